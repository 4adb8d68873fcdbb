"""Run the examples in README.md, docs/ and docstrings.

The blocks of one page share their names, one event loop (`await` works at the top level) and an
empty folder to write in. `<!-- skip: next -->` before a block leaves it out.
"""

import ast
import asyncio
import re
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack, chdir
from doctest import ELLIPSIS
from inspect import CO_COROUTINE
from types import FunctionType
from typing import Any

from sybil import Document, Example, Region, Sybil
from sybil.parsers.doctest import DocTestParser
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

FENCED = re.compile(r"python(?:[ \t][^\n]*)?$\n", re.MULTILINE)


def run_block(example: Example) -> None:
    """The block has run to its end, on the page's event loop if it awaits."""
    source = "\n" * (example.line + example.parsed.line_offset) + example.parsed
    code = compile(
        source, example.path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
    )
    result = FunctionType(code, example.namespace)()
    if code.co_flags & CO_COROUTINE:
        example.namespace["__runner__"].run(result)


def enter(namespace: dict[str, Any]) -> None:
    """A page begins: it has a loop and an empty folder."""
    stack = namespace["__stack__"] = ExitStack()
    namespace["__name__"] = "example"
    stack.enter_context(chdir(stack.enter_context(tempfile.TemporaryDirectory())))
    namespace["__runner__"] = stack.enter_context(asyncio.Runner())


def leave(namespace: dict[str, Any]) -> None:
    """A page ends: its loop is closed and its folder gone."""
    namespace["__stack__"].close()


class PageParser(PythonCodeBlockParser):
    """Every block fenced as python, with a title or not; one that begins with >>> is a doctest."""

    def __init__(self) -> None:
        super().__init__(doctest_optionflags=ELLIPSIS)
        self.codeblock_parser = blocks


def blocks(document: Document) -> Iterable[Region]:
    """Yield the fenced python blocks of a page."""
    for region in RawFencedCodeBlockLexer(FENCED)(document):
        region.parsed = region.lexemes["source"]
        region.evaluator = run_block
        yield region


pages = Sybil(
    [PageParser(), SkipParser()],
    patterns=["*.md"],
    setup=enter,
    teardown=leave,
)
docstrings = Sybil([DocTestParser(ELLIPSIS)], path="src", patterns=["*.py"])

pytest_collect_file = (pages + docstrings).pytest()
