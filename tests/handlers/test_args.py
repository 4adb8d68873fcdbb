"""Args are checked before anything is stored, and what was stored is checked again."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, PlainValidator, SecretStr

from piecework.core.errors import ArgsInvalid, PayloadTooLarge
from piecework.handlers.codec import Undecodable, encode_plain
from piecework.handlers.options import Options
from piecework.handlers.registry import Definition, Registry
from piecework.handlers.run import Run


@dataclass(frozen=True)
class OrderJob:
    order_id: str
    count: int = 1


@dataclass
class Box:
    order: OrderJob
    more: list[OrderJob] = field(default_factory=list[OrderJob])


class Opaque: ...


async def ship(args: OrderJob, run: Run) -> None: ...


def resize(path: str, width: int = 320, *, crop: bool = False) -> None: ...


@pytest.fixture
def shipping(registry: Registry) -> Definition:
    return registry.add(ship)


@pytest.fixture
def resizing(registry: Registry) -> Definition:
    return registry.add(resize)


def refused(definition: Definition, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ArgsInvalid) as caught:
        definition.encode(args, kwargs)
    assert caught.value.kind == definition.kind
    message = caught.value.detail
    assert len(message.splitlines()) == 1
    assert len(message) < 600
    return message


# ── one args object ──────────────────────────────────────────────────────────────────────────


def test_an_args_object_is_stored_as_its_own_json(shipping: Definition) -> None:
    assert shipping.encode((OrderJob("1"),), {}) == '{"order_id":"1","count":1}'
    assert shipping.encode((), {"args": OrderJob("1", 2)}) == '{"order_id":"1","count":2}'
    assert shipping.style == "object"
    assert shipping.args_type is OrderJob


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((OrderJob("1"), 2), {}), ((), {"order": OrderJob("1")})]
)
def test_an_args_object_comes_alone(
    shipping: Definition, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    assert "give one OrderJob" in refused(shipping, *args, **kwargs)


def test_an_args_object_may_have_a_default(registry: Registry) -> None:
    def nightly(args: OrderJob = OrderJob("all")) -> None: ...

    definition = registry.add(nightly)
    assert definition.encode((), {}) == '{"order_id":"all","count":1}'
    assert definition.all_defaults


@pytest.mark.parametrize(
    ("order", "field_name"),
    [
        (OrderJob(1), "order_id"),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        (OrderJob("1", "2"), "count"),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        (OrderJob("1", count=True), "count"),
        (OrderJob("1", 1.0), "count"),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        (OrderJob(None), "order_id"),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    ],
)
def test_a_dataclass_that_holds_a_wrong_type_is_refused(
    shipping: Definition, order: OrderJob, field_name: str
) -> None:
    """A dataclass takes anything for any field: the mistake would only show in the worker."""
    assert refused(shipping, order).startswith(f"{field_name}: ")


def test_another_type_is_refused_and_a_subclass_says_why(shipping: Definition) -> None:
    class Other(OrderJob):
        pass

    assert refused(shipping, "x") == "expected OrderJob, not str"
    assert "its own fields would be lost" in refused(shipping, Other("1"))
    assert "expected OrderJob, not dict" in refused(shipping, {"order_id": "1"})


def test_an_object_inside_of_the_args_is_checked_too(registry: Registry) -> None:
    def handle(args: Box) -> None: ...

    definition = registry.add(handle)
    assert refused(definition, Box(OrderJob("1", count=True))).startswith("order.count: ")
    assert refused(definition, Box(OrderJob("1"), [OrderJob(2)])).startswith("more.0.order_id: ")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def test_a_subclass_inside_of_the_args_would_lose_its_fields(registry: Registry) -> None:
    @dataclass(frozen=True)
    class Wider(OrderJob):
        extra: int = 0

    def handle(args: Box) -> None: ...
    def plain(order: OrderJob) -> None: ...
    def listed(orders: list[OrderJob]) -> None: ...

    for handler, args in (
        (handle, Box(Wider("1"))),
        (handle, Box(OrderJob("1"), [Wider("1")])),
        (listed, [Wider("1")]),
    ):
        message = refused(registry.add(handler), args)
        assert "a Wider in the place of a OrderJob" in message
    assert "Wider" in refused(registry.add(plain), Wider("1"))


def test_a_secret_is_not_stored_as_stars(registry: Registry) -> None:
    class Login(BaseModel):
        password: SecretStr

    def login(args: Login) -> None: ...
    def say(text: str) -> None: ...

    assert "stars" in refused(registry.add(login), Login(password=SecretStr("x")))
    definition = registry.add(say)
    assert definition.decode(definition.encode(("*" * 10,), {})) == {"text": "*" * 10}


def test_a_model_with_aliases_and_computed_parts_comes_back(registry: Registry) -> None:
    class Model(BaseModel):
        model_config = {"extra": "forbid"}
        order_id: str = Field(alias="orderId")

        @property
        def twice(self) -> str:
            return self.order_id * 2

    def handle(args: Model) -> None: ...

    definition = registry.add(handle)
    model = Model(orderId="1")
    assert definition.decode(definition.encode((model,), {})) == model
    assert definition.decode(definition.encode_json({"orderId": "1"})) == model


def test_a_field_that_no_constructor_takes_does_no_harm(registry: Registry) -> None:
    @dataclass
    class Counted:
        name: str
        size: int = field(init=False, default=0)

        def __post_init__(self) -> None:
            self.size = len(self.name)

    def handle(args: Counted) -> None: ...

    definition = registry.add(handle)
    assert definition.decode(definition.encode((Counted("abc"),), {})) == Counted("abc")


# ── plain parameters ─────────────────────────────────────────────────────────────────────────


def test_only_the_given_parameters_are_stored(resizing: Definition) -> None:
    """So that a job enqueued today gets the defaults of the release that runs it."""
    assert resizing.encode(("a",), {}) == '{"path":"a"}'
    assert resizing.encode(("a", 64), {}) == '{"path":"a","width":64}'
    assert resizing.encode((), {"crop": True, "path": "a"}) == '{"crop":true,"path":"a"}'
    assert resizing.style == "call"
    assert resizing.args_type is None
    assert not resizing.all_defaults


@pytest.mark.parametrize(
    ("args", "kwargs", "why"),
    [
        ((), {}, "path: Field required"),
        ((), {"width": 1}, "path: Field required"),
        (("a", 1, True), {}, "too many positional arguments"),
        (("a",), {"path": "b"}, "multiple values for argument 'path'"),
        (("a",), {"height": 1}, "height: Extra inputs are not permitted"),
        ((1,), {}, "path: Input should be a valid string, not int"),
        (("a", "64"), {}, "width: Input should be a valid integer, not str"),
        (("a", True), {}, "width: Input should be a valid integer, not bool"),
        (("a", 1.0), {}, "width: Input should be a valid integer, not float"),
        (("a",), {"crop": 1}, "crop: Input should be a valid boolean, not int"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(
    resizing: Definition, args: tuple[Any, ...], kwargs: dict[str, Any], why: str
) -> None:
    assert refused(resizing, *args, **kwargs) == why


def test_the_message_stays_short_however_wrong_the_args_are(registry: Registry) -> None:
    def add(numbers: list[int]) -> None: ...

    definition = registry.add(add)
    message = refused(definition, ["x" * 10_000] * 1_000)
    assert message.endswith("and 996 more")
    assert "xxx" not in message
    refused(definition, [1], **{"y" * 10_000: 1})


def test_injected_parameters_are_no_args(registry: Registry) -> None:
    def handle(run: Run, path: str) -> None: ...

    definition = registry.add(handle)
    assert definition.encode(("a",), {}) == '{"path":"a"}'
    assert "run" in refused(definition, "a", run=1)


@pytest.mark.parametrize(
    "name",
    ["type", "self_", "json", "copy", "kind", "delay", "metadata", "init", "value", "fn", "cls"],
)
async def test_a_parameter_may_have_any_name(registry: Registry, call: Any, name: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def handle({name}: int, run=None): return {name}", scope)  # noqa: S102
    definition = registry.add(scope["handle"])
    assert await call(definition, 3) == 3
    assert await call(definition, **{name: 3}) == 3


async def test_parameters_without_annotation_take_any_json(registry: Registry, call: Any) -> None:
    scope: dict[str, Any] = {}
    exec("def handle(a, b=None): return [a, b]", scope)  # noqa: S102
    definition = registry.add(scope["handle"])
    assert await call(definition, {"x": [1, None, "y"]}, b=2.5) == [{"x": [1, None, "y"]}, 2.5]
    assert "object" in refused(definition, object())


def test_a_type_that_is_neither_json_nor_service_says_how_to_register_it(
    registry: Registry,
) -> None:
    def handle(path: str, mailer: Opaque) -> None: ...

    with pytest.raises(TypeError, match=r"register_factory\(Opaque") as caught:
        registry.add(handle).encode(("a",), {})
    assert "'mailer' of 'handle'" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_annotation_that_cannot_be_resolved_says_so(registry: Registry) -> None:
    def handle(args: "Nowhere") -> None: ...  # type: ignore[name-defined] # noqa: F821 # pyright: ignore[reportUndefinedVariable]

    definition = registry.add(handle)
    with pytest.raises(TypeError, match="TYPE_CHECKING"):
        definition.encode((1,), {})
    with pytest.raises(Undecodable, match="Nowhere"):
        definition.decode("{}")


# ── what no store and no reader can take ─────────────────────────────────────────────────────


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("a\x00b", "NUL"),
        ("\\\x00", "NUL"),
        ({"\x00": 1}, "NUL"),
        ("\ud800", "surrogates"),
        (float("nan"), "NaN"),
        ([float("inf")], "NaN"),
        ({"a": -float("inf")}, "NaN"),
        (deep(220), "too deep"),
        (deep(300), "too deep"),
        (deep(100_000), "too deep"),
        (object(), "object"),
    ],
)
def test_what_json_cannot_hold_is_refused(registry: Registry, value: Any, why: str) -> None:
    def handle(data: Any) -> None: ...

    assert why in refused(registry.add(handle), value)
    with pytest.raises(ArgsInvalid, match=why):
        encode_plain("far", value, limit_bytes=1_000_000)


def test_a_lone_surrogate_in_a_key_is_refused(registry: Registry) -> None:
    """A typed key would be stored as U+FFFD, which is another key."""

    def handle(data: dict[str, int]) -> None: ...

    definition = registry.add(handle)
    assert "surrogate" in refused(definition, {"\ud800": 1})
    assert definition.encode(({"\ufffd": 1},), {}) == '{"data":{"\ufffd":1}}'


def test_a_circle_is_refused(registry: Registry) -> None:
    def handle(data: Any) -> None: ...

    circle: list[Any] = []
    circle.append(circle)
    assert "Circular" in refused(registry.add(handle), circle)


def test_text_that_only_looks_like_nul_or_nan_is_fine(registry: Registry) -> None:
    def handle(data: Any) -> None: ...

    definition = registry.add(handle)
    for text in ("\\u0000", "\\\\u0000", "NaN", "-Infinity", "null"):
        assert definition.decode(definition.encode((text,), {})) == {"data": text}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_without_json_is_refused_wherever_it_hides(
    registry: Registry, value: float
) -> None:
    """Pydantic writes it as null, which an optional field would take without a word."""

    @dataclass
    class Data:
        number: float | None

    class Model(BaseModel):
        number: float | None

    def plain(number: float | None) -> None: ...
    def data(args: Data) -> None: ...
    def model(args: Model) -> None: ...
    def inner(models: list[Model]) -> None: ...

    refused(registry.add(plain), value)
    refused(registry.add(data), Data(value))
    refused(registry.add(model), Model(number=value))
    refused(registry.add(inner), [Model(number=value)])


def test_args_beyond_the_limit_are_refused_with_both_sizes(registry: Registry) -> None:
    small = Registry(registry.services, max_args_bytes=100)
    definition = small.add(resize)
    limit = "x" * (100 - len('{"path":""}'))
    assert len(definition.encode((limit,), {})) == 100
    with pytest.raises(PayloadTooLarge) as caught:
        definition.encode((limit + "x",), {})
    assert (caught.value.size_bytes, caught.value.limit_bytes) == (101, 100)
    with pytest.raises(PayloadTooLarge):
        definition.encode(("ü" * 60,), {})
    with pytest.raises(PayloadTooLarge):
        definition.encode_json({"path": "x" * 200})
    with pytest.raises(PayloadTooLarge):
        encode_plain("far", "x" * 200, limit_bytes=100)


def test_a_validator_that_fails_in_its_own_way_is_no_crash(registry: Registry) -> None:
    @dataclass
    class Picky:
        n: int

        def __post_init__(self) -> None:
            if self.n > 1:
                raise KeyError("n")

    def handle(args: Picky) -> None: ...

    definition = registry.add(handle)
    picky = Picky(1)
    picky.n = 2
    assert "KeyError" in refused(definition, picky)
    with pytest.raises(Undecodable, match="KeyError"):
        definition.decode('{"n":2}')


# ── from outside, and back ───────────────────────────────────────────────────────────────────


def test_json_from_outside_is_checked_where_the_kind_is_known(shipping: Definition) -> None:
    assert shipping.encode_json({"order_id": "1"}) == '{"order_id":"1"}'
    wrong: list[object] = [{}, {"order_id": 1}, {"order_id": "1", "oder": 1}, [], None, "x"]
    for data in wrong:
        with pytest.raises(ArgsInvalid):
            shipping.encode_json(data)


def test_json_from_outside_stands_as_it_is_where_the_kind_is_not_known() -> None:
    assert encode_plain("far", {"a": [1, None]}, limit_bytes=100) == '{"a":[1,null]}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "garbage",
        "null",
        "[]",
        '"x"',
        "{}",
        '{"order_id":1}',
        '{"order_id":"1","count":"1"}',
        '{"order_id":"1","count":true}',
        '{"order_id":"1","more":1}',
        '{"order_id":"\\ud800"}',
        "\ud800",
        "[" * 100_000,
        '{"order_id":' * 100_000,
        '{"order_id":"1","count":' + "9" * 5_000 + "}",
        '{"order_id":"1"} x',
        "\x80\x04K*.",
    ],
)
def test_a_stored_text_that_does_not_fit_gives_one_line(shipping: Definition, text: str) -> None:
    """F11, S01, S02: whatever a writer of the store puts there, the worker lives."""
    with pytest.raises(Undecodable) as caught:
        shipping.decode(text)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 600


def test_a_stored_number_without_json_does_not_fit(registry: Registry) -> None:
    def handle(number: float | None) -> None: ...

    with pytest.raises(Undecodable, match="finite"):
        registry.add(handle).decode('{"number":NaN}')


@pytest.mark.parametrize("text", ["null", "[]", '{"path":"a","x":1}', '{"width":1}'])
def test_a_stored_call_that_does_not_fit_gives_one_line(resizing: Definition, text: str) -> None:
    with pytest.raises(Undecodable):
        resizing.decode(text)


# ── annotations as text ──────────────────────────────────────────────────────────────────────


def test_annotations_may_be_text_that_names_what_is_around(registry: Registry) -> None:
    @dataclass
    class Local:
        n: int

    def handle(args: "Local", run: "Run") -> "Local":
        return args

    class Handler:
        def __call__(self, args: "Local") -> None: ...

    definition = registry.add(handle)
    assert definition.encode((Local(1),), {}) == '{"n":1}'
    assert definition.decode_result('{"n":2}') == Local(2)
    assert registry.add(Handler).args_type is Local


# ── the schema ───────────────────────────────────────────────────────────────────────────────


def test_the_schema_tells_fields_defaults_and_purpose(registry: Registry) -> None:
    def resize(path: str, width: int = 320, when: Any = Opaque) -> None:
        """Make a picture
        smaller.

        Not shown.
        """

    schema = registry.add(resize).schema()
    assert schema["description"] == "Make a picture smaller."
    assert schema["title"] == "resize"
    assert schema["required"] == ["path"]
    assert schema["properties"]["width"] == {"title": "Width", "type": "integer", "default": 320}
    assert "default" not in schema["properties"]["when"]


def test_the_schema_of_an_args_object_is_that_of_its_type(registry: Registry) -> None:
    @dataclass
    class Tree:
        name: str
        children: "list[Tree]"

    def flat(args: OrderJob) -> None: ...
    def boxed(args: Box) -> None: ...

    assert registry.add(flat).schema() == {
        "additionalProperties": False,
        "properties": {
            "count": {"default": 1, "title": "Count", "type": "integer"},
            "order_id": {"title": "Order Id", "type": "string"},
        },
        "required": ["order_id"],
        "title": "flat",
        "type": "object",
    }
    schema = registry.add(boxed).schema()
    assert set(schema["$defs"]) == {"OrderJob"}
    assert schema["properties"]["order"] == {"$ref": "#/$defs/OrderJob"}


def test_a_class_describes_itself(registry: Registry) -> None:
    class Mail:
        """Send one mail."""

        def __call__(self, to: str) -> None: ...

    assert registry.add(Mail, Options(kind="SendMail")).schema()["description"] == "Send one mail."


def test_a_type_without_a_schema_still_has_json(registry: Registry) -> None:
    def handle(key: Annotated[int, PlainValidator(int)], path: str) -> None: ...

    definition = registry.add(handle)
    assert definition.decode(definition.encode((1, "a"), {})) == {"key": 1, "path": "a"}
    assert definition.schema()["title"] == "handle"


def test_a_chain_of_objects_may_be_long_but_not_endless(registry: Registry) -> None:
    @dataclass
    class Node:
        n: int
        after: "Node | None" = None

    def handle(args: Node) -> None: ...

    definition = registry.add(handle)
    node = Node(0)
    for n in range(50):
        node = Node(n, node)
    assert definition.decode(definition.encode((node,), {})) == node
    for n in range(5_000):
        node = Node(n, node)
    refused(definition, node)
