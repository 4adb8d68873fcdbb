# `make` alone lists what can be made. Another Python: make PYTHON=python3.12 test

PYTHON ?= python3
VENV ?= .venv
DEMO ?= src
BENCH ?= sqlite:///build/bench.db
PYTEST ?= --numprocesses=auto --dist=loadscope

MAKEFLAGS += --no-print-directory
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-all check pytest lock format docs bench clean

bin := $(VENV)/bin
version := $(shell $(PYTHON) -c 'import sys; sys.stdout.write("%d.%d.%d" % sys.version_info[:3] if sys.version_info >= (3, 11) else "")' 2>/dev/null)
pip := $(bin)/python -m pip --quiet --disable-pip-version-check --no-input
# Not --quiet, which would hide warnings from --strict; the variable only silences a banner.
mkdocs := NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs
compile = build/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-emit-build-options \
	--custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)
say = @printf '\n-- %s\n'

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | while IFS='	' read -r name text; do printf '  %-10s %s\n' "$$name" "$$text"; done

demo: $(VENV)/ready-run ## set up what is needed, then run the demo (DEMO=any/folder)
	@mkdir -p build
	@$(bin)/piecework demo $(DEMO) --db build/demo.db

test: check ## set up everything, then all checks and tests
	@$(MAKE) pytest PYTEST='$(PYTEST) -m "not slow"'

test-all: check ## as test, with the tests that take minutes
	@$(MAKE) pytest

check: $(VENV)/ready-dev
	$(say) 'format: ruff format'
	@$(bin)/ruff format --check --quiet . || { $(bin)/ruff format --diff --quiet .; echo 'Not formatted: make format'; exit 1; }
	$(say) 'lint: ruff check'
	@$(bin)/ruff check --quiet .
	$(say) 'types: mypy'
	@$(bin)/mypy
	$(say) 'types: basedpyright'
	@$(bin)/basedpyright --pythonpath $(bin)/python
	$(say) 'imports: lint-imports'
	@out=$$($(bin)/lint-imports --no-logo --no-cache) || { echo "$$out"; exit 1; }; echo "$$out" | tail -1
	$(say) 'docs: mkdocs'
	@$(mkdocs) build --strict

# Last, so that pytest's closing line is the last line of all.
pytest: $(VENV)/ready-dev
	$(say) 'tests, and the examples in the docs: pytest'
	@mkdir -p build
	@$(bin)/pytest --cov --cov-report=term $(PYTEST)

lock: build/lock/ready ## resolve requirements/*.txt anew (UPGRADE=1: to the newest versions)
	$(compile) --output-file requirements/dev.txt --group dev pyproject.toml
	$(compile) --output-file requirements/run.txt --group build --constraints requirements/dev.txt pyproject.toml
	$(compile) --output-file requirements/lock.txt --group lock
	@! grep -n '://' requirements/*.txt

format: $(VENV)/ready-dev ## format, and repair what lint can repair
	@$(bin)/ruff format .
	@$(bin)/ruff check --fix --quiet .
	@$(bin)/ruff format --quiet .

docs: $(VENV)/ready-dev ## the documentation, live on localhost
	@$(mkdocs) serve

bench: $(VENV)/ready-dev ## speed, beside its peers (BENCH=a store's URL)
	@mkdir -p build
	@$(bin)/piecework bench $(BENCH) --peers

clean: ## remove all that was made here
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests examples typing_tests -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# Set-up: done again only when the requirements or the Python change.
$(VENV)/python-$(version):
	$(if $(version),,$(error Piecework needs Python 3.11 or newer, and '$(PYTHON)' is not: try make PYTHON=python3.12 $(MAKECMDGOALS)))
	@echo 'Setting up $(VENV) with Python $(version)'
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/ready-%: $(VENV)/python-$(version) requirements/%.txt pyproject.toml Makefile
	@echo 'Installing requirements/$*.txt'
	@$(pip) install --require-hashes --requirement requirements/$*.txt
	@$(pip) install --no-deps --no-build-isolation --editable .
	@touch $@

build/lock/ready: requirements/lock.txt
	@$(PYTHON) -m venv build/lock
	@build/lock/bin/python -m pip --quiet --disable-pip-version-check install --require-hashes --requirement $<
	@touch $@
