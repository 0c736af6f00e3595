"""The model's argument text becomes keyword arguments, or one short complaint."""

import dataclasses
import datetime as dt
import decimal
import enum
import functools
import inspect
import json
import timeit
import typing
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, BeforeValidator, Field

from durable_swarm.errors import ConfigurationError
from durable_swarm.schema import BadArguments, check_arguments


class Color(enum.Enum):
    RED = "red"
    GREEN = "green"


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Item(BaseModel):
    title: str
    count: int = 1


class Exact(BaseModel, strict=True):
    when: dt.date
    sizes: tuple[int, ...]


class Address(typing.TypedDict):
    street: str
    number: typing.NotRequired[int]


def greet(name, age: int, location: str = "New York"):
    """Greets the user."""
    raise AssertionError("the tool was called")


def paint(color: Color, at: Point, items: list[Item], when: dt.datetime | None = None, context_variables: Any = None):
    """Paints."""
    raise AssertionError("the tool was called")


def collect(first: int, context_variables: dict, **more: Any):
    """Collects."""
    raise AssertionError("the tool was called")


def nothing():
    """Does nothing."""
    raise AssertionError("the tool was called")


TOOLS = [greet, paint, collect, nothing]


def value_of(annotation: Any, value: Any) -> Any:
    """What a single parameter with this annotation gets for this JSON value."""

    def f(it):
        """Take it."""

    f.__annotations__["it"] = annotation
    return check_arguments(f, json.dumps({"it": value}))["it"]


def complaint(f: Callable[..., Any], text: str) -> str:
    """The complaint about the text, proven to be short and fit for any wire."""
    with pytest.raises(BadArguments) as caught:
        check_arguments(f, text)
    message = str(caught.value)
    assert len(message.encode()) <= 1024
    assert "\0" not in message
    return message


class TestGoodArguments:
    def test_become_keyword_arguments(self):
        """A good text gives exactly what the model sent, and defaults are left to the function."""
        assert check_arguments(greet, '{"name": "Ada", "age": 36}') == {"name": "Ada", "age": 36}

    def test_become_real_objects(self):
        """Enumerations, dataclasses, models and dates arrive as what the annotations say."""
        sent = {"color": "red", "at": {"x": 1}, "items": [{"title": "a"}], "when": "2024-05-06T07:08:09"}
        assert check_arguments(paint, json.dumps(sent)) == {
            "color": Color.RED,
            "at": Point(1),
            "items": [Item(title="a")],
            "when": dt.datetime(2024, 5, 6, 7, 8, 9),  # noqa: DTZ001
        }

    @pytest.mark.parametrize(
        ("annotation", "value", "expected"),
        [
            (int, "5", 5),
            (int, 5.0, 5),
            (float, 5, 5.0),
            (str, 5, "5"),
            (str | None, 7, "7"),
            (bool, "true", True),
            (list, [1, "a"], [1, "a"]),
            (dict, {"a": None}, {"a": None}),
            (type(None), None, None),
            (Literal["a", "b"], "b", "b"),
            (decimal.Decimal, "1.10", decimal.Decimal("1.10")),
            (uuid.UUID, "12345678123456781234567812345678", uuid.UUID(int=0x12345678123456781234567812345678)),
            (dt.timedelta, "PT1H", dt.timedelta(hours=1)),
            (tuple[int, str], [1, "a"], (1, "a")),
            (set[int], [1, 1], {1}),
            (dict[int, Color], {"1": "red"}, {1: Color.RED}),
            (Address, {"street": "a"}, {"street": "a"}),
            (list[Address], [{"street": "a", "number": "1"}], [{"street": "a", "number": 1}]),
            (Exact, {"when": "2024-05-06", "sizes": [1]}, Exact(when=dt.date(2024, 5, 6), sizes=(1,))),
            (Annotated[int, Field(ge=1)], 1, 1),
            (Any, {"a": [1.5, None]}, {"a": [1.5, None]}),
        ],
        ids=repr,
    )
    def test_are_converted_leniently(self, annotation: Any, value: Any, expected: Any):
        """JSON values become the annotated type where that is plainly meant."""
        assert value_of(annotation, value) == expected
        assert type(value_of(annotation, value)) is type(expected)

    def test_without_annotation_stay_as_they_are(self):
        """An unannotated parameter gets the JSON value itself, of whatever type."""
        for value in (None, True, 1, 1.5, "", "a\0\ud800", [], {"a": [{}]}):
            assert check_arguments(lambda it: it, json.dumps({"it": value})) == {"it": value}

    def test_may_be_null_where_the_default_is(self):
        """With `x: str = None` null is taken; with another default it is not."""

        def f(x: str = None, y: str = "a"):  # noqa: RUF013
            """Do."""

        assert check_arguments(f, '{"x": null}') == {"x": None}
        assert "y: Input should be a valid string, not null" in complaint(f, '{"y": null}')

    @pytest.mark.parametrize("text", ["", "  \n", "{}"])
    def test_may_be_empty(self, text: str):
        """Some providers send no text at all for a tool without parameters."""
        assert check_arguments(nothing, text) == {}

    def test_keep_extra_keys_for_a_function_that_takes_them(self):
        """With `**kwargs` unknown keys pass as plain values."""
        assert check_arguments(collect, '{"first": "1", "x": [1], "": 2}') == {"first": 1, "x": [1], "": 2}

    def test_fit_every_kind_of_callable(self):
        """What is given for a method, an object or a partial is what it can be called with."""

        class Shop:
            def order(self, item: str, *rest: int, count: int = 1, **more: str):
                return item, count, more

            async def __call__(self, query: str):
                return query

        bound = functools.partial(Shop().order, "tea")
        assert Shop().order(**check_arguments(Shop().order, '{"item": 5, "count": "2", "x": 1}')) == ("5", 2, {"x": 1})
        assert bound(**check_arguments(bound, '{"count": 3}')) == ("tea", 3, {})
        assert check_arguments(Shop(), '{"query": "q"}') == {"query": "q"}

    def test_are_read_fast(self):
        """A simple call is read in well under 50 microseconds."""
        fastest = min(timeit.repeat(lambda: check_arguments(greet, '{"name": "a", "age": 1}'), number=500, repeat=5))
        assert fastest / 500 < 50e-6


class TestComplaints:
    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ('{"name": "Ada", "ag', "are not valid JSON: Unterminated string"),
            ("[1, 2]", "are not a JSON object. They begin with '[1, 2]'"),
            ("5", "are not a JSON object"),
            ('{"name": "a", "name": "b", "age": 1}', "the key 'name' appears twice"),
            ('{"name": {"a": 1, "a": 2}, "age": 1}', "the key 'a' appears twice"),
            ('{"name": NaN, "age": 1}', "NaN is not a JSON number"),
            ('{"name": -Infinity, "age": 1}', "-Infinity is not a JSON number"),
            ('{"name": 1e999, "age": 1}', "the number '1e999' is too large"),
            ('{"name": ' + "9" * 5000 + ', "age": 1}', "a number of 5000 digits is too long"),
            ("[" * 100_000, "are nested too deep"),
            ('{"name": ' + "[" * 100 + "]" * 100 + ', "age": 1}', "are nested too deep"),
            ('{"age": 1}', "do not fit: name is missing"),
            ('{"name": "a", "age": 1, "city": "b"}', "there is no parameter 'city'"),
            ('{"name": "a", "age": "old"}', "age: Input should be a valid integer"),
            ('{"name": "a", "age": 1, "location": {"\\ud800": 1}}', "location: "),
            ('{"name": "a", "age": "\\u0000\\udfff"}', "age: "),
            ('{"name": "a", "age": 1, "\\u0000\\ud800": 1}', "there is no parameter "),
            ("\ud800", "are not valid JSON"),
            ("\ufeff{}", "are not valid JSON"),
        ],
    )
    def test_say_what_is_wrong_and_what_is_expected(self, text: str, part: str):
        """Each fault is named, and the parameters that the tool takes follow."""
        message = complaint(greet, text)
        assert message.startswith("The arguments for greet ")
        assert part in message
        assert "JSON object with: name (string), age (integer), location (string, optional)." in message

    def test_list_every_fault(self):
        """All faults stand in one complaint, each with its parameter and place."""
        message = complaint(paint, '{"color": "blue", "at": {"x": "far"}, "items": [{"title": "a"}, {}], "no": 1}')
        for part in (
            "color: Input should be 'red' or 'green', not 'blue'",
            "at.x: Input should be a valid integer",
            "items.1.title: Field required",
            "there is no parameter 'no'",
        ):
            assert part in message
        assert 'color ("red" or "green"), at (object), items (array), when (string or null, optional).' in message

    def test_refuse_context_variables_from_the_model(self):
        """The model cannot set the context, whether the function takes it, or anything."""
        for f, text in ((paint, '{"context_variables": {}}'), (collect, '{"first": 1, "context_variables": {}}')):
            assert "there is no parameter 'context_variables'" in complaint(f, text)

    def test_refuse_what_the_program_has_bound(self):
        """Through `**kwargs` the model can neither replace a bound value nor name `self`."""

        class Shop:
            def order(self, item: str, **more: Any): ...

        bound = functools.partial(collect, 1, key="secret")
        assert "there is no parameter 'key'" in complaint(bound, '{"key": "mine"}')
        assert "there is no parameter 'first'" in complaint(bound, '{"first": 2}')
        assert "there is no parameter 'self'" in complaint(Shop().order, '{"item": "tea", "self": 1}')

    def test_of_a_tool_without_parameters(self):
        """A tool without parameters says so."""
        expected = "The arguments for nothing do not fit: there is no parameter 'x'. "
        assert complaint(nothing, '{"x": 1}') == expected + "Expected is a JSON object with: no parameters."

    @pytest.mark.parametrize(
        "text",
        [
            "x" * 5_000_000,
            '{"name": "' + "x" * 5_000_000,
            json.dumps({"name": "a", "age": "x" * 1_000_000}),
            json.dumps({"name": "a", "age": 1, "ü" * 1_000_000: 1}),
            json.dumps({f"key{number}": number for number in range(10_000)}),
            json.dumps({"name": "a", "age": [["x" * 100] * 100] * 100}),
        ],
        ids=["junk", "truncated", "value", "key", "keys", "nested"],
    )
    def test_echo_little(self, text: str):
        """However much the model sends, the complaint stays short and still says what is expected."""
        assert "Expected is a JSON object with: name (string), age (integer)" in complaint(greet, text)

    def test_stay_short_for_wide_functions(self):
        """A function with many long names and choices does not make the complaint longer."""
        names = [f"größe_{number}_" + "ü" * 50 for number in range(100)]

        def f(**values: Any): ...

        choice = inspect.Parameter.KEYWORD_ONLY
        choices = Literal["a" * 200, "b" * 200]
        f.__signature__ = inspect.Signature([inspect.Parameter(name, choice, annotation=choices) for name in names])
        f.__name__ = "long" * 100
        assert complaint(f, json.dumps(dict.fromkeys(names, 5))).endswith("….")

    def test_bound_the_faults_of_one_value(self):
        """A list of a thousand wrong values is answered with the first few."""

        def total(numbers: list[int]): ...

        message = complaint(total, json.dumps({"numbers": ["x"] * 1000}))
        assert "numbers.4: " in message
        assert "numbers: and 995 more" in message

    def test_cover_what_a_users_type_raises(self):
        """Whatever a type's own check raises at a value is told to the model."""

        def check(value: Any) -> Any:
            return value["missing"]

        def f(it: Annotated[int, BeforeValidator(check)]): ...

        assert "it: KeyError: 'missing'" in complaint(f, '{"it": {}}')
        assert value_of(Annotated[int, BeforeValidator(check)], {"missing": 1}) == 1

    def test_are_not_for_the_programs_faults(self):
        """A tool that cannot be called by keywords is the program's fault, not the model's."""

        def f(a, /): ...

        with pytest.raises(ConfigurationError, match="positional-only"):
            check_arguments(f, '{"a": 1}')


def json_values(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    """Any JSON value, made with these numbers."""
    return st.recursive(
        st.none() | st.booleans() | st.integers() | numbers | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
        max_leaves=10,
    )


def read(f: Callable[..., Any], text: str) -> dict[str, Any] | None:
    """The arguments, or None if there was a complaint, which is proven to be short."""
    try:
        return check_arguments(f, text)
    except BadArguments as error:
        message = str(error)
    assert len(message.encode()) <= 1024
    return None


NAMES = st.sampled_from(["name", "age", "location", "color", "at", "items", "when", "first", "context_variables", "x"])
FINITE = st.floats(allow_nan=False, allow_infinity=False)


class TestAnything:
    @given(st.sampled_from(TOOLS), st.text(st.characters()) | st.text('{}[]":,ageinm 019.-eE\\u\0'))
    def test_as_text_gives_arguments_or_a_complaint(self, f: Callable[..., Any], text: str):
        """Arbitrary text is never anything but arguments or one short complaint."""
        assert isinstance(read(f, text), dict | None)

    @given(st.sampled_from(TOOLS), st.dictionaries(NAMES, json_values(st.floats())) | json_values(st.floats()))
    def test_as_json_gives_arguments_that_bind_or_a_complaint(self, f: Callable[..., Any], value: Any):
        """Arbitrary JSON gives arguments that fit the signature, or one short complaint."""
        arguments = read(f, json.dumps(value))
        if arguments is not None:
            assert "context_variables" not in arguments
            context = {"context_variables": {}} if f in (paint, collect) else {}
            inspect.signature(f).bind(**arguments, **context)

    @given(st.fixed_dictionaries({"name": json_values(FINITE), "age": st.integers()}, optional={"location": st.text()}))
    def test_that_fits_is_taken(self, value: dict[str, Any]):
        """Whatever fits the signature comes through unchanged."""
        assert check_arguments(greet, json.dumps(value)) == value
