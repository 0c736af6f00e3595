"""Whatever a model writes and a program hands over: a clear answer, never another exception."""

from __future__ import annotations

import enum
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from durable_swarm import codec
from durable_swarm.engine.records import base, failures, runs
from durable_swarm.engine.records.failures import rebuild, step_done
from durable_swarm.errors import ConfigurationError, DurableSwarmError, NotSerializable, ReplayMismatch
from durable_swarm.schema import BadArguments, check_arguments, function_to_json, tool_schema

FEW = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=15,
)
tagged = st.recursive(
    json_values,
    lambda inner: st.fixed_dictionaries(
        {"$type": st.sampled_from([*codec._READERS, "__class__", "object", 5]), "value": inner | st.lists(inner)}
    ),
    max_leaves=5,
)
python_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.datetimes()
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.uuids(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.dates(), inner, max_size=3)
        | st.dictionaries(st.just("$type"), inner)
        | st.sets(st.text() | st.integers(), max_size=3)
        | st.frozensets(st.binary(), max_size=3)
    ),
    max_leaves=15,
)


def refusal(call: Callable[[], Any], *kinds: type[Exception]) -> Exception | None:
    """Give the error of one of these kinds that a call raises, or None; any other passes and fails the test."""
    try:
        call()
    except kinds as error:
        return error
    return None


# The codec


@FEW
@given(python_values)
def test_every_value_comes_back_through_json_text(value: Any) -> None:
    """What is encoded is JSON that any database stores, and comes back equal and of the same type."""
    text = json.dumps(codec.encode(value), ensure_ascii=False)
    assert codec.storable(text)
    found = codec.decode(json.loads(text))
    assert type(found) is type(value)
    assert found == value


@FEW
@given(tagged)
@example({"$type": "decimal", "value": [2, [1], 0]})
@example({"$type": "timedelta", "value": [10**12, 0, 0]})
def test_any_json_is_read_or_refused(data: Any) -> None:
    """Decoding gives plain values of the codec's types, or ValueError; nothing else ever."""
    try:
        found = codec.decode(data)
    except ValueError:
        return
    codec.encode(found)


class Alien:
    """Of no type the codec knows."""


@FEW
@given(python_values, st.integers(0, 5))
def test_what_cannot_be_stored_is_named(value: Any, depth: int) -> None:
    """A foreign object anywhere in a value is refused with its path."""
    hostile: Any = [value, Alien()]
    for _ in range(depth):
        hostile = {"key": hostile}
    with pytest.raises(NotSerializable) as caught:
        codec.encode(hostile, "context_variables")
    assert caught.value.path == "context_variables" + "['key']" * depth + "[1]"


# Records


READERS = [runs.read_start, runs.read_reply, runs.read_outcome, failures.read_failure, step_done, rebuild]
FIELDS = ["v", "agent", "swarm", "messages", "context", "message", "plan", "usage", "text", "changed", "updates", "own"]
FIELDS += ["removed", "value", "raised", "type", "args", "state", "run_id", "traceback", "kept", "detours", "max_turns"]


@FEW
@given(st.dictionaries(st.sampled_from(FIELDS), tagged, max_size=6), st.sampled_from(READERS))
def test_any_record_is_read_or_refused(record: dict[str, Any], read: Any) -> None:
    """A record of any shape gives what it says or `ReplayMismatch`, of one line."""
    if read is rebuild:
        record = {"raised": record}
        read = step_done
    refused = refusal(lambda: read(record), DurableSwarmError)
    assert refused is None or isinstance(refused, ReplayMismatch)
    assert "\n" not in str(refused)


@FEW
@given(json_values)
def test_what_is_no_record_is_refused(data: Any) -> None:
    """Any JSON in the place of a record is told from one."""
    refused = refusal(lambda: base.read(data, "it"), ReplayMismatch, ConfigurationError)
    assert (refused is None) == (isinstance(data, dict) and isinstance(data.get("v"), int) and data["v"] <= 1)
    assert refused is None or str(refused).startswith("it ")


# Schema and arguments


class Colour(enum.Enum):
    """An enumeration."""

    RED = "red"
    BLUE = 2


@dataclass
class Point:
    """A dataclass."""

    x: int
    y: float = 0.0


class Order(BaseModel):
    """A pydantic model."""

    item: str
    points: list[Point] = []


def plain(a, b=1, *args, **kwargs):  # type: ignore[no-untyped-def]
    return a, b, args, kwargs


def typed(text: str, number: int, ratio: float, flag: bool, items: list[int], table: dict[str, str]) -> None:
    """Of plain types."""


def rich(colour: Colour, point: Point, order: Order, choice: Literal["a", 1], maybe: int | None = None) -> None:
    """Of richer types."""


def context(context_variables: dict[str, Any], limit: int = 3) -> None:
    """With context variables."""


TOOLS = [plain, typed, rich, context]
names = st.sampled_from(
    ["a", "b", "text", "number", "colour", "point", "order", "choice", "context_variables", "limit"]
)
arguments = st.dictionaries(names | st.text(), json_values, max_size=6)


@FEW
@given(st.sampled_from(TOOLS), arguments.map(json.dumps) | st.text() | json_values.map(json.dumps))
@example(typed, "[" * 100_000)
@example(typed, '{"number": ' + "9" * 5000 + "}")
@example(typed, '{"text": "\\ud800"}')
@example(plain, '{"a": 1, "a": 2}')
def test_any_arguments_are_taken_or_refused(tool: Any, text: str) -> None:
    """Whatever a model writes as arguments, the tool gets keyword arguments, or the model a text to learn from."""
    refused = refusal(lambda: check_arguments(tool, text), BadArguments)
    if refused is None:
        found = check_arguments(tool, text)
        assert all(isinstance(name, str) for name in found)
        assert "context_variables" not in found
    else:
        assert str(refused)


@FEW
@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
            st.sampled_from(["int", "str", "list[int]", "dict[str, Colour]", "Point", "Order | None", "Any", "object"]),
            st.sampled_from(["", " = None", " = 5", " = 'x'"]),
        ),
        max_size=4,
        unique_by=lambda part: part[0],
    ),
    st.text(st.characters(exclude_characters='"\\', exclude_categories=["Cs", "Cc"]), max_size=60),
)
def test_any_signature_has_a_schema(parameters: list[tuple[str, str, str]], docstring: str) -> None:
    """A function of any of these parameters has a schema that is JSON, or one clear error."""
    written = ", ".join(f"{name}_: {kind}{default}" for name, kind, default in parameters)
    namespace: dict[str, Any] = {**globals()}
    exec(f'def made(*, {written}):\n    """{docstring}"""' if written else "def made(): pass", namespace)
    for give in (function_to_json, tool_schema):
        refused = refusal(functools.partial(give, namespace["made"]), ConfigurationError, ValueError)
        if refused is None:
            assert json.loads(json.dumps(give(namespace["made"])))["function"]["name"] == "made"
        else:
            assert str(refused)
