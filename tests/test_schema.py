"""What a function looks like to the model: Swarm's dictionary for plain types, JSON schema for the rest."""

import dataclasses
import datetime as dt
import enum
import functools
import gc
import timeit
import typing
import weakref
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from durable_swarm.errors import ConfigurationError
from durable_swarm.schema import function_to_json, tool_schema, wants_context
from durable_swarm.types import ToolSettings, note_settings


class Color(enum.Enum):
    """What paint there is."""

    RED = "red"
    GREEN = "green"


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Item(BaseModel):
    """One line of an order."""

    title: str
    count: int = Field(default=1, description="how many")
    color: Color | None = None


class Tree(BaseModel):
    label: str
    children: "list[Tree]" = []


class Address(typing.TypedDict):
    street: str
    number: typing.NotRequired[int]


def greet(name, age: int, location: str = "New York"):
    """Greets the user. Make sure to get their name and age before calling.

    Args:
       name: Name of the user.
       age: Age of the user.
       location: Best place on earth.
    """
    return f"Hello {name}, glad you are {age} in {location}!"


def parameters(f: Callable[..., Any]) -> dict[str, Any]:
    """The `parameters` part of the function's description, proven to be a valid JSON schema."""
    schema = function_to_json(f)["function"]["parameters"]
    jsonschema.Draft202012Validator.check_schema(schema)
    return schema


def schema_of(annotation: Any) -> dict[str, Any]:
    """The schema of a single parameter with this annotation."""

    def f(it):
        """Take it."""

    f.__annotations__["it"] = annotation
    return parameters(f)["properties"]["it"]


def swarm(name: str, description: str, properties: dict[str, str], required: list[str]) -> dict[str, Any]:
    """The dictionary that OpenAI's Swarm gives."""
    kinds = {name: {"type": kind} for name, kind in properties.items()}
    accepted = {"type": "object", "properties": kinds, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": accepted}}


class TestSwarmsDictionary:
    def test_of_a_bare_function(self):
        """A function without annotations and docstring takes strings, all of them required."""

        def basic_function(arg1, arg2):
            return arg1 + arg2

        expected = swarm("basic_function", "", {"arg1": "string", "arg2": "string"}, ["arg1", "arg2"])
        assert function_to_json(basic_function) == expected

    def test_of_every_plain_type(self):
        """Each plain type has Swarm's name, in the order of the signature, and defaults make a parameter optional."""

        def f(a: str, b: int, c: float, d: bool, e: list, g: dict, h: type(None), i: None, j=3, k: int = 0):
            """All of them."""

        kinds = ["string", "integer", "number", "boolean", "array", "object", "null", "string", "string", "integer"]
        expected = swarm("f", "All of them.", dict(zip("abcdeghijk", kinds, strict=True)), list("abcdeghi"))
        assert function_to_json(f) == expected
        assert list(function_to_json(f)["function"]["parameters"]["properties"]) == list("abcdeghijk")

    def test_of_a_function_without_parameters(self):
        """A function without parameters has empty properties and an empty list of required ones."""
        assert function_to_json(lambda: None) == swarm("<lambda>", "", {}, [])

    def test_names_the_context_variables_as_swarm_does(self):
        """`function_to_json` keeps context_variables, whatever its annotation; `tool_schema` leaves it out."""

        def f(context_variables: dict, text: str):
            """Say it."""

        def odd(context_variables: object(), text: str):
            """Say it."""

        expected = {"context_variables": "object", "text": "string"}
        assert function_to_json(f) == swarm("f", "Say it.", expected, ["context_variables", "text"])
        assert function_to_json(odd) == swarm("odd", "Say it.", expected, ["context_variables", "text"])
        assert tool_schema(f) == swarm("f", "Say it.", {"text": "string"}, ["text"])

    def test_keeps_the_raw_docstring(self):
        """The description is the docstring as it is written, also where it documents parameters."""
        assert function_to_json(greet)["function"]["description"] == greet.__doc__

    def test_is_the_callers_own(self):
        """Changing the result changes nobody else's."""
        function_to_json(greet)["function"]["parameters"]["properties"].clear()
        assert list(parameters(greet)["properties"]) == ["name", "age", "location"]

    def test_refuses_what_has_no_signature(self):
        """Where Python cannot tell the signature, a ValueError names the function as Swarm's does."""
        with pytest.raises(ValueError, match="Failed to get signature for function type: "):
            function_to_json(type)
        with pytest.raises(ValueError, match="Failed to get signature for function int: 5 is not a callable"):
            tool_schema(5)


class TestDescriptions:
    def test_come_from_a_google_docstring(self):
        """Swarm's own example gets its parameter descriptions, and nothing else changes."""
        expected = swarm(
            "greet", greet.__doc__, {"name": "string", "age": "integer", "location": "string"}, ["name", "age"]
        )
        texts = {"name": "Name of the user.", "age": "Age of the user.", "location": "Best place on earth."}
        for name, text in texts.items():
            expected["function"]["parameters"]["properties"][name]["description"] = text
        assert function_to_json(greet) == expected

    @pytest.mark.parametrize(
        "docstring",
        [
            "Go.\n\n    Parameters\n    ----------\n    x, y : int\n        where to,\n        on earth\n",
            "Go.\n\n    :param x: where to,\n        on earth\n    :param int y: where to, on earth\n",
            "Go.\n\n    Args:\n        x: where to,\n            on earth\n        y: where to, on earth\n",
        ],
        ids=["numpy", "rest", "google"],
    )
    def test_are_read_in_three_styles(self, docstring: str):
        """Numpy, reST and Google docstrings are understood; a text over several lines becomes one line."""

        def go(x, y, other):
            """Replaced."""

        go.__doc__ = docstring
        described = {name: kind.get("description") for name, kind in parameters(go)["properties"].items()}
        assert described == {"x": "where to, on earth", "y": "where to, on earth", "other": None}

    def test_in_the_annotation_win(self):
        """A text or a pydantic Field in the annotation goes before the docstring, and that before a type's own."""

        def f(
            a: Annotated[int, "from text"], b: Annotated[int, Field(description="from field", ge=1)], c: Item, d: Item
        ):
            """Do.

            :param a: doc
            :param b: doc
            :param c: doc
            """

        properties = parameters(f)["properties"]
        assert properties["a"] == {"type": "integer", "description": "from text"}
        assert properties["b"] == {"type": "integer", "minimum": 1, "description": "from field"}
        assert properties["c"]["description"] == "doc"
        assert "description" not in properties["d"]
        assert parameters(f)["$defs"]["Item"]["description"] == "One line of an order."

    def test_of_the_tool_may_be_set(self):
        """A description set by decorator replaces the docstring, and the parameters stay described."""

        def f(x):
            """Old.

            Args:
                x: the x
            """

        note_settings(f, ToolSettings(name="new_name", description="New."))
        described = function_to_json(f)["function"]
        assert (described["name"], described["description"]) == ("new_name", "New.")
        assert described["parameters"]["properties"]["x"] == {"type": "string", "description": "the x"}

    @given(
        st.text() | st.lists(st.sampled_from([":", ":param x: a", "Args:", "    x: y", "----", "x : int", ".. a::"]))
    )
    def test_survive_any_docstring(self, docstring: str | list[str]):
        """No docstring, however odd, keeps a function from being a tool."""

        def f(x):
            """Replaced."""

        f.__doc__ = docstring if isinstance(docstring, str) else "\n".join(docstring)
        assert function_to_json(f)["function"]["description"] == f.__doc__


class TestRichTypes:
    @pytest.mark.parametrize(
        ("annotation", "expected"),
        [
            (str | None, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
            (int | str, {"anyOf": [{"type": "integer"}, {"type": "string"}]}),
            (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
            (Color, {"type": "string", "enum": ["red", "green"], "description": "What paint there is."}),
            (list[int], {"type": "array", "items": {"type": "integer"}}),
            (dict[str, float], {"type": "object", "additionalProperties": {"type": "number"}}),
            (dt.datetime, {"type": "string", "format": "date-time"}),
            (Annotated[int, [], Field(gt=0)], {"type": "integer", "exclusiveMinimum": 0}),
            (Any, {}),
        ],
        ids=repr,
    )
    def test_become_json_schema(self, annotation: Any, expected: dict[str, Any]):
        """Each kind of annotation has the JSON schema that means it, without pydantic's titles."""
        assert schema_of(annotation) == expected

    def test_structures_show_their_fields(self):
        """A dataclass and a TypedDict are objects; only real titles, such as a field's name, stay."""
        integer = {"type": "integer"}
        assert schema_of(Point) == {
            "type": "object",
            "properties": {"x": integer, "y": {"type": "integer", "default": 0}},
            "required": ["x"],
        }
        street = {
            "type": "object",
            "properties": {"street": {"type": "string"}, "number": integer},
            "required": ["street"],
        }
        assert schema_of(Address) == street
        assert schema_of(list[Address] | None) == {"anyOf": [{"type": "array", "items": street}, {"type": "null"}]}
        assert list(schema_of(Item)["properties"]) == ["title", "count", "color"]

    def test_used_once_stand_in_place(self):
        """A type that is used once, and every enumeration, is written where it is used."""

        def f(items: list[Item], a: Color, b: Color):
            """Do."""

        described = parameters(f)
        assert "$defs" not in described
        color = described["properties"]["items"]["items"]["properties"]["color"]
        assert color["anyOf"][0] == described["properties"]["a"] == described["properties"]["b"]

    def test_used_twice_are_shared(self):
        """A type that is used more than once, or contains itself, stands in `$defs`, and the references hold."""

        def f(a: Point, b: Point, tree: Tree):
            """Do."""

        described = parameters(f)
        assert set(described["$defs"]) == {"Point", "Tree"}
        valid = {"a": {"x": 1}, "b": {"x": 2}, "tree": {"label": "t", "children": [{"label": "u"}]}}
        jsonschema.validate(valid, described)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**valid, "tree": {"label": "t", "children": [{"label": 5}]}}, described)

    def test_of_one_name_stay_apart(self):
        """Two types that share a name keep their own schemas."""

        def make(kind: type) -> type:
            return dataclasses.make_dataclass("Same", [("it", kind)])

        one, two = make(int), make(str)

        def f(a: one, b: one, c: two, d: two):
            """Do."""

        jsonschema.validate({"a": {"it": 1}, "b": {"it": 1}, "c": {"it": "1"}, "d": {"it": "1"}}, parameters(f))
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"a": {"it": 1}, "b": {"it": "1"}, "c": {"it": "1"}, "d": {"it": "1"}}, parameters(f))

    def test_without_schema_are_the_programs_fault(self):
        """An annotation that JSON schema cannot express is refused, naming function and parameter."""

        def ask(question: str, connection: memoryview):
            """Ask."""

        def call(back: Callable[[int], int]):
            """Call."""

        for f, parameter in ((ask, "connection"), (call, "back")):
            with pytest.raises(ConfigurationError, match=f"tool {f.__name__}: the parameter {parameter} is annotated"):
                function_to_json(f)

    def test_with_defaults_that_are_not_json_are_described(self):
        """A nested default without JSON form is left out, without a warning."""

        class Odd(BaseModel):
            it: int = Field(default_factory=int)
            other: Any = object()

        assert schema_of(Odd)["properties"] == {"it": {"type": "integer"}, "other": {}}


class TestTextAnnotations:
    def test_are_resolved(self):
        """Annotations that are text, in whole or in part, mean what they say."""

        def f(a: "int", b: "Color", c: list["Color"], d: "Annotated[int, 'four']", e: "None"):
            """Do."""

        properties = parameters(f)["properties"]
        assert properties["a"] == {"type": "integer"}
        assert properties["b"] == properties["c"]["items"] == schema_of(Color)
        assert properties["d"] == {"type": "integer", "description": "four"}
        assert properties["e"] == {"type": "string"}

    def test_may_name_local_types(self):
        """A local type is found where the function uses it."""

        class Local(enum.Enum):
            A = "a"

        def f(seen: "Local"):
            """Do."""
            return Local(seen)

        assert parameters(f)["properties"] == {"seen": {"type": "string", "enum": ["a"]}}

    def test_survive_a_name_that_is_not_there_yet(self):
        """A closure over a name that has no value yet can be described."""

        def f(x: int):
            """Do."""
            return later

        described = parameters(f)
        later = 1
        assert described["properties"] == {"x": {"type": "integer"}}
        assert f(1) == later


class Shop:
    """Sells."""

    def order(self, item: str, count: int = 1):
        """Order it."""

    @classmethod
    def open(cls, day: "int"):
        """Open it."""

    def __call__(self, query: str):
        """Look around."""


class TestKindsOfCallables:
    def test_methods_lose_self(self):
        """Bound methods and class methods are described without their first parameter."""
        order = swarm("order", "Order it.", {"item": "string", "count": "integer"}, ["item"])
        assert function_to_json(Shop().order) == order
        assert function_to_json(Shop.open) == swarm("open", "Open it.", {"day": "integer"}, ["day"])

    def test_objects_are_described_by_their_call(self):
        """A callable object has its class's name and the docstring of `__call__`."""
        assert function_to_json(Shop()) == swarm("Shop", "Look around.", {"query": "string"}, ["query"])

    def test_partials_hide_what_is_bound(self):
        """What a partial has bound is not offered to the model, and the rest stays as it was."""

        def send(to: str, key: str, text: "str", copies: int = 1):
            """Send it."""

        bound = functools.partial(functools.partial(send, "me"), key="secret")
        expected = swarm("send", "Send it.", {"text": "string", "copies": "integer"}, ["text"])
        assert function_to_json(bound) == expected

    def test_wrappers_show_what_they_wrap(self):
        """A decorated function that keeps `__wrapped__` is described as the function inside."""

        @functools.wraps(greet)
        def wrapper(*args, **kwargs):
            return greet(*args, **kwargs)

        assert function_to_json(wrapper) == function_to_json(greet)

    def test_async_functions_and_starred_parameters(self):
        """An async function is described like any other; `*args` and `**kwargs` are left out."""

        async def f(a: int, *args: int, b: str = "", **kwargs: str):
            """Do."""

        assert function_to_json(f) == swarm("f", "Do.", {"a": "integer", "b": "string"}, ["a"])

    def test_positional_only_parameters_are_refused_as_tools(self):
        """Swarm's dictionary can be had, but a tool that cannot be called by keywords is refused with the remedy."""

        def f(a, /, b):
            """Do."""

        assert function_to_json(f) == swarm("f", "Do.", {"a": "string", "b": "string"}, ["a", "b"])
        with pytest.raises(ConfigurationError, match=r"tool f: the parameter a is positional-only.*remove the '/'"):
            tool_schema(f)
        assert tool_schema(functools.partial(f, 1)) == swarm("f", "Do.", {"b": "string"}, ["b"])

    def test_without_hash_are_described_too(self):
        """A callable object that cannot be hashed or referred to weakly is described anew each time."""

        @dataclasses.dataclass
        class Unhashable:
            def __call__(self, x: int): ...

        class Slotted:
            __slots__ = ()

            def __call__(self, x: int): ...

        for f in (Unhashable(), Slotted()):
            assert tool_schema(f) == swarm(type(f).__name__, type(f).__doc__ or "", {"x": "integer"}, ["x"])


class TestToolSchema:
    def test_is_kept(self):
        """The same function gives the same object, in a microsecond or so."""
        assert tool_schema(greet) is tool_schema(greet)
        fastest = min(timeit.repeat(lambda: tool_schema(greet), number=1000, repeat=5))
        assert fastest / 1000 < 5e-6

    def test_does_not_keep_functions_alive(self):
        """A function that nobody else holds is forgotten."""

        def f(x: Color):
            """Do."""

        tool_schema(f)
        gone = weakref.ref(f)
        del f
        gc.collect()
        assert gone() is None

    def test_wants_context_reads_the_signature(self):
        """Only a parameter named context_variables counts: not a local name, not `**kwargs`, not a bound one."""

        def wants(context_variables, x): ...

        def local(x):
            context_variables = [x]
            context_variables.append(x)

        assert wants_context(wants)
        assert not wants_context(local)
        assert not wants_context(lambda **kwargs: None)
        assert not wants_context(functools.partial(wants, context_variables={}))
