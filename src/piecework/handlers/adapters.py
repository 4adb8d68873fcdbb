"""Pydantic adapters for the args and the result of a handler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Optional, cast

import typing_extensions
from pydantic import ConfigDict, PydanticSchemaGenerationError, PydanticUserError, TypeAdapter

from piecework.handlers.signature import EMPTY

if TYPE_CHECKING:
    from piecework.handlers.signature import Arg

__all__ = ["args_adapter", "count_nodes", "result_adapter"]

# Inherited by dataclasses without a config of their own; pydantic models always have one.
# Instances are looked into anew, for a dataclass takes any value for any field.
_STRICT: Final = ConfigDict(
    extra="forbid",
    revalidate_instances="always",
    allow_inf_nan=False,
    ser_json_inf_nan="constants",
    ser_json_bytes="base64",
    val_json_bytes="base64",
)
_OPEN: Final = cast("ConfigDict", {**_STRICT, "extra": "ignore"})
_NO_JSON: Final = (PydanticSchemaGenerationError, PydanticUserError, NameError)
_OBJECTS: Final = ("dataclass", "model", "definition-ref")


def args_adapter(
    kind: str, args: Sequence[Arg], args_type: type[Any] | None
) -> tuple[TypeAdapter[Any], bool]:
    """Return the adapter of the args, and whether there may be objects inside of them.

    TypeError for a parameter of a type without JSON, saying that it may be a service.
    """
    adapter = _args_adapter(kind, args, args_type, _STRICT)
    schema = adapter.core_schema
    if count_nodes(schema, lambda node: node.get("init") is False):
        # Such a field is written with the others, but a constructor does not take it back.
        adapter = _args_adapter(kind, args, args_type, _OPEN)
    objects = count_nodes(schema, lambda node: node.get("type") in _OBJECTS)
    return adapter, objects > (args_type is not None)


def result_adapter(returns: object) -> tuple[TypeAdapter[Any], bool]:
    """Return the adapter of a return annotation, and whether null is for it to judge.

    Any JSON will do where there is no annotation, or one without JSON.
    """
    if returns is EMPTY:
        return TypeAdapter(Any), True
    for hint, judges_null in ((returns, True), (_nullable(returns), False)):
        try:
            return _adapter(hint, _OPEN), judges_null
        except PydanticUserError:  # perhaps a dataclass: as above
            continue
        except (PydanticSchemaGenerationError, NameError):
            break
    return TypeAdapter(Any), True


def count_nodes(schema: object, test: Callable[[Mapping[str, Any]], bool]) -> int:
    """Return how many mappings anywhere in the schema pass the test."""
    if isinstance(schema, Mapping):
        node = cast("Mapping[str, Any]", schema)
        # A field may be called type or metadata, too: then the value is a node, no text.
        skipped = "metadata" if isinstance(node.get("type"), str) else None
        inside = sum(count_nodes(value, test) for key, value in node.items() if key != skipped)
        return inside + test(node)
    if isinstance(schema, (list, tuple)):
        return sum(count_nodes(value, test) for value in cast("Sequence[object]", schema))
    return 0


def _args_adapter(
    kind: str, args: Sequence[Arg], args_type: type[Any] | None, config: ConfigDict
) -> TypeAdapter[Any]:
    try:
        hint = args[0].hint if args_type is not None else _typed_dict(args, config)
        # As an optional one: a dataclass, model or typed dict itself may not be given a config.
        return _adapter(_nullable(hint), config)
    except _NO_JSON as error:
        raise TypeError(_without_json(kind, args)) from error


def _adapter(hint: object, config: ConfigDict) -> TypeAdapter[Any]:
    made: Any = TypeAdapter
    adapter: TypeAdapter[Any] = made(hint, config=config)
    return adapter


def _nullable(hint: object) -> object:
    made: Any = Optional
    nullable: object = made[hint]
    return nullable


def _typed_dict(args: Sequence[Arg], config: ConfigDict) -> Any:
    made: Any = typing_extensions.TypedDict
    given: Any = typing_extensions.Required
    maybe: Any = typing_extensions.NotRequired
    typed = made(
        "args", {arg.name: given[arg.hint] if arg.required else maybe[arg.hint] for arg in args}
    )
    typed.__pydantic_config__ = config
    return typed


def _without_json(kind: str, args: Sequence[Arg]) -> str:
    for arg in args:
        try:
            _adapter(_nullable(arg.hint), _STRICT)
        except PydanticSchemaGenerationError as error:
            name = getattr(arg.hint, "__name__", str(arg.hint))
            return (
                f"parameter {arg.name!r} of {kind!r}: {name} is neither a registered service nor "
                f"JSON. For a service: app.services.register_factory({name}, ...) before the "
                f"handler is first used ({_first_line(error)})"
            )
        except (PydanticUserError, NameError) as error:
            return f"parameter {arg.name!r} of {kind!r}: {_first_line(error)}"
    return f"the parameters of {kind!r} have no JSON"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
