"""The schema that a provider gets of a type of answers, and how an answer is read."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import uuid
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from openai.types.shared_params import ResponseFormatJSONSchema
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from durable_swarm import Agent
from durable_swarm.agents import fingerprint
from durable_swarm.schema.output import BadOutput, read_type
from durable_swarm.testing.provider_rules import check_request


class Colour(enum.Enum):
    """An enumeration."""

    RED = "red"


class Item(BaseModel):
    """A model with limits, defaults, and names of its own."""

    name: str = Field(max_length=5, pattern="^[a-z]*$")
    price: Decimal = Field(ge=0)
    colour: Colour = Field(default=Colour.RED, description="of the paint")
    at: dt.datetime | None = None
    tags: set[str] = set()
    kind: Literal["a", "b"] = Field(default="a", alias="Kind")


class Order(BaseModel):
    """A model of models."""

    first: Item = Field(description="the first one")
    others: list[Item] = []


class Node(BaseModel):
    """A model that contains itself."""

    value: int
    children: list[Node] = []


class Cat(BaseModel):
    """One of a union."""

    kind: Literal["cat"]


class Dog(BaseModel):
    """The other of the union."""

    kind: Literal["dog"]


class Open(BaseModel):
    """A model that takes any more."""

    model_config = ConfigDict(extra="allow")
    value: int


class Typed(TypedDict):
    """A typed dictionary."""

    value: int


@dataclasses.dataclass
class Data:
    """A dataclass."""

    value: int


STRICT: list[Any] = [
    Item, Order, Node, Typed, Data, list[Order], Cat | Dog, Annotated[Cat | Dog, Field(discriminator="kind")],
    Literal["yes", "no"], Colour, str, bool, float, Annotated[int, Field(ge=1)], uuid.UUID, int | None,
]  # fmt: skip
LOOSE: list[Any] = [dict[str, int], dict, list, Any, tuple[int, str], Open]


@pytest.mark.parametrize("kind", [*STRICT, *LOOSE], ids=str)
def test_a_provider_takes_the_schema(kind: Any) -> None:
    """The format is of OpenAI's own type, strict where that can be, and taken by a strict provider."""
    sent = read_type(kind).response_format
    assert TypeAdapter(ResponseFormatJSONSchema).validate_python(sent, strict=True) == sent
    assert sent["json_schema"]["strict"] is (kind in STRICT)
    check_request({"model": "m", "messages": [{"role": "user", "content": "Hi"}], "response_format": sent})


VALUES: list[tuple[Any, Any]] = [
    (Order, Order(first=Item(name="hat", price=Decimal("1.5"), at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC)))),
    (Node, Node(value=1, children=[Node(value=2)])),
    (Cat | Dog, Dog(kind="dog")),
    (list[Colour], [Colour.RED]),
    (uuid.UUID, uuid.UUID(int=3)),
    (Data, Data(3)),
    (Typed, {"value": 3}),
    (tuple[int, str], (1, "a")),
    (dict[str, int], {"value": 1}),
]


@pytest.mark.parametrize(("kind", "value"), VALUES, ids=lambda given: str(given)[:40])
def test_a_value_comes_back(kind: Any, value: Any) -> None:
    """The JSON of a value, wrapped or not, is read as the same value."""
    output, text = read_type(kind), TypeAdapter(kind).dump_json(value, by_alias=True).decode()
    assert output.read(text) == (value, False)
    if output.wraps:
        assert output.read(f'{{"value": {text}}}') == (value, True)


@pytest.mark.parametrize("text", ["", "x", "{", "{}x", '{"value": 1, "value": 2}', "NaN", "[" * 500 + "]" * 500])
def test_what_is_no_json_is_refused(text: str) -> None:
    """A text that is not one JSON value is refused with a reason, however it is broken."""
    for kind in (int, Data, Any):
        with pytest.raises(BadOutput, match="the reply is "):
            read_type(kind).read(text)


def test_every_problem_has_its_place() -> None:
    """A refusal names each place in the value that is wrong, and the correction shows them and the schema."""
    with pytest.raises(BadOutput) as caught:
        read_type(Order).read('{"first": {"name": "Hat", "price": -1}, "others": 3}')
    places = [problem.partition(":")[0] for problem in caught.value.problems]
    assert places == ["first.name", "first.price", "others"]
    told = read_type(Order).correction(caught.value.problems)
    assert all(problem in told for problem in caught.value.problems)
    assert json.dumps(read_type(Order).schema) in told


def test_a_limit_that_strict_schemas_lack_is_described() -> None:
    """The model learns of limits and defaults that a strict schema cannot say from the descriptions."""
    properties = read_type(Item).schema["properties"]
    assert properties["name"]["description"] == "(maxLength: 5)"
    assert properties["colour"]["description"] == 'of the paint (default: "red")'
    assert properties["Kind"]["description"] == '(default: "a")'


def test_the_type_is_part_of_the_fingerprint() -> None:
    """Another type, or another field of it, is another version of the agent; the number of retries is none."""
    versions = [fingerprint(Agent(name="Typist", output_type=kind)) for kind in (None, Cat, Dog, list[Cat])]
    assert len(set(versions)) == 4
    assert fingerprint(Agent(name="Typist", output_type=Cat, output_retries=5)) == versions[1]
