"""The JSON codec: every supported value comes back as it was, everything else is refused by name."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable_swarm import NotSerializable, codec

ZONES = st.integers(-86399, 86399).map(lambda seconds: timezone(timedelta(seconds=seconds)))
TEXTS = st.text(st.characters(codec=None), max_size=12) | st.sampled_from(
    ["\0", "a\0b", "\ud800", "\udfff!", "\\u0000"]
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    TEXTS,
    st.binary(max_size=12),
    st.decimals(),
    st.uuids(),
    st.dates(),
    st.times(timezones=st.none() | ZONES),
    st.datetimes(timezones=st.none() | ZONES),
    st.timedeltas(),
)
HASHABLE = st.one_of(
    st.integers(), TEXTS, st.booleans(), st.dates(), st.uuids(), st.tuples(st.integers(), TEXTS), st.just("$type")
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(HASHABLE, inner, max_size=4),
        st.sets(HASHABLE, max_size=4),
        st.frozensets(HASHABLE, max_size=4),
    ),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal with equal types, in depth; NaN is itself here."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float) and math.isnan(one):
        return isinstance(other, float) and math.isnan(other)
    if isinstance(one, Decimal):
        return str(one) == str(other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, set | frozenset):
        return bool(one == other) and {type(item) for item in one} == {type(item) for item in other}
    if isinstance(one, datetime | time):
        return bool(one == other) and bool(one.utcoffset() == other.utcoffset())
    return bool(one == other)


def through_text(value: Any) -> Any:
    """Give the value as it comes back from a database: through JSON text that any database takes."""
    text = json.dumps(codec.encode(value), ensure_ascii=False, allow_nan=False)
    text.encode("utf-8")
    assert "\0" not in text
    return codec.decode(json.loads(text))


@settings(max_examples=400, deadline=None)
@given(VALUES)
def test_every_supported_value_comes_back(value: Any) -> None:
    """What is stored comes back equal and of the same types, whatever it is made of."""
    assert same(through_text(value), value)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_equal_values_have_equal_records(value: Any) -> None:
    """The stored text of a value and of its copy are the same, so records can be compared as text."""
    assert codec.dumps(codec.encode(value)) == codec.dumps(codec.encode(codec.round_trip(value)))


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_records_are_strict_json(value: Any) -> None:
    """A record is JSON by the standard: no NaN, no infinity, no lone surrogate, no NUL."""
    text = codec.dumps(codec.encode(value))
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


EDGES: dict[str, Any] = {
    "huge integer": 10**6000,
    "huge negative integer": -(7**9000),
    "negative zero": -0.0,
    "whole float": 1.0,
    "NaN": math.nan,
    "infinity": -math.inf,
    "smallest float": 5e-324,
    "surrogate": "half \ud83d of a pair",
    "NUL": "a\0b",
    "NUL in a key": {"a\0b": 1},
    "surrogate in a key": {"\udc00": {"deep": "\0"}},
    "escape as text": "\\u0000 \\ud800 \\\\",
    "type key": {"$type": "datetime", "value": "x"},
    "nested type key": {"$type": {"$type": "set", "value": [1]}},
    "value key": {"value": {"$typ": 1}},
    "integer keys": {1: "one", 2: {3: "three"}},
    "mixed keys": {1: "a", "1": "b", None: "c", (1, 2): "d"},
    "boolean keys": {True: 1, False: 0},
    "tuple in tuple": ((), ((1,), [2]), {"t": (3,)}),
    "empty things": [{}, [], (), set(), frozenset(), "", b""],
    "set of tuples": {(1, "a"), (2, "b")},
    "set of sets": {frozenset({1}), frozenset()},
    "decimal": Decimal("0.10"),
    "decimal signalling NaN": Decimal("sNaN"),
    "decimal exponent": Decimal("-1.20E+400"),
    "aware datetime": datetime(2024, 2, 29, 12, 0, 0, 1, UTC),
    "odd offset": datetime(1900, 1, 1, tzinfo=timezone(timedelta(hours=-5, minutes=-17, seconds=-32))),
    "naive datetime": datetime.fromisoformat("0001-01-01T00:00:00"),
    "last datetime": datetime.max.replace(tzinfo=UTC),
    "date": date(9999, 12, 31),
    "aware time": time(23, 59, tzinfo=UTC),
    "negative timedelta": timedelta(days=-999999999),
    "long timedelta": timedelta.max,
    "uuid": UUID(int=0),
    "bytes": bytes(range(256)),
    "emoji": "👩‍🚀 ü \u2028",
}


@pytest.mark.parametrize("name", EDGES)
def test_values_at_the_edge(name: str) -> None:
    """The values that JSON, Python or a database are known to spoil come back as they were."""
    assert same(through_text(EDGES[name]), EDGES[name])


def test_a_zone_becomes_its_offset() -> None:
    """A datetime with a named time zone keeps its instant and its offset, not the zone's name."""
    summer = datetime(2024, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    found = through_text(summer)
    assert found == summer
    assert found.utcoffset() == timedelta(hours=2)


def test_plain_json_is_stored_as_itself() -> None:
    """Plain JSON values are stored without any tag, so that a person can read the record."""
    value = {"name": "Ada", "ids": [1, 2.5, None, True], "inner": {"ü": "→"}}
    assert codec.encode(value) == value


class Colour(StrEnum):
    """An enumeration of texts: a `str`, and more than a `str`."""

    RED = "red"


class Level(IntEnum):
    """An enumeration of numbers."""

    LOW = 1


UNSTORABLE: dict[str, tuple[Any, str]] = {
    "object": (object(), "value"),
    "class": (int, "value"),
    "function": ([1, print], "value[1]"),
    "lambda in a dictionary": ({"a": {"b": lambda: 1}}, "value['a']['b']"),
    "ellipsis in a tuple": ((1, [2, (3, ...)]), "value[1][1][1]"),
    "generator": ({"rows": (i for i in "ab")}, "value['rows']"),
    "complex": (1j, "value"),
    "bytearray": (bytearray(b"x"), "value"),
    "text enumeration": ({"colour": Colour.RED}, "value['colour']"),
    "number enumeration": ({"level": Level.LOW}, "value['level']"),
    "ordered dictionary": (OrderedDict(a=1), "value"),
    "key": ({"map": {Colour.RED: 1}}, "value['map']"),
    "set item": ({1, 2j}, "value"),
    "under a key that is no text": ({1: {2: object()}}, "value[1][2]"),
}


@pytest.mark.parametrize("name", UNSTORABLE)
def test_what_cannot_be_stored_is_named(name: str) -> None:
    """Anything else raises NotSerializable, and the error says where the value stands and what to do."""
    value, path = UNSTORABLE[name]
    with pytest.raises(NotSerializable) as caught:
        codec.encode(value)
    assert caught.value.path == path
    assert str(caught.value).startswith(f"{path} is a ")
    assert "Keep an id or plain data" in str(caught.value)


def _cycle() -> list[Any]:
    cycle: list[Any] = [1]
    cycle.append({"again": cycle})
    return cycle


def _deep(levels: int, kind: type = list) -> Any:
    value: Any = "bottom"
    for _ in range(levels):
        value = {"k": value} if kind is dict else kind([value])
    return value


@pytest.mark.parametrize("value", [_cycle(), _deep(5000), _deep(5000, dict), _deep(5000, tuple)])
def test_cycles_and_endless_depth_are_refused(value: Any) -> None:
    """A value that contains itself, or is nested without measure, raises NotSerializable and not RecursionError."""
    with pytest.raises(NotSerializable, match="nested deeper than 100 levels, or contains itself") as caught:
        codec.encode(value, "context_variables['x']")
    assert caught.value.path.startswith("context_variables['x']")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("kind", [list, dict, tuple])
def test_depth_does_not_depend_on_the_caller(kind: type) -> None:
    """What is accepted near the top of the stack is accepted, and read again, from deep inside a program."""

    def deep_down(frames: int) -> Any:
        return through_text(_deep(codec.MAX_DEPTH - 1, kind)) if frames == 0 else deep_down(frames - 1)

    assert same(deep_down(300), _deep(codec.MAX_DEPTH - 1, kind))
    with pytest.raises(NotSerializable):
        codec.encode(_deep(codec.MAX_DEPTH + 1, kind))


HOSTILE: list[Any] = [
    {"$type": "os.system", "value": "touch executed"},
    {"$type": "builtins.eval", "value": "open('executed', 'w')"},
    {"$type": "__class__", "value": []},
    {"$type": "", "value": 1},
    {"$type": None, "value": 1},
    {"$type": 5},
    {"$type": ["set"], "value": []},
    {"$type": {"$type": "set"}, "value": []},
    {"$type": "decimal", "value": "no number"},
    {"$type": "datetime", "value": {"a": 1}},
    {"$type": "uuid", "value": 7},
    {"$type": "bytes", "value": None},
    {"$type": "timedelta", "value": [1e300]},
    {"$type": "set", "value": [[1]]},
    {"$type": "dict", "value": [[1]]},
    {"$type": "tuple"},
    {"$type": "text", "value": 'x"]'},
    {"$type": "int", "value": "ten"},
]


@pytest.mark.parametrize("data", HOSTILE, ids=json.dumps)
def test_hostile_records_are_data(data: Any) -> None:
    """A record with an unknown or broken tag raises ValueError, at any depth, and runs nothing."""
    for wrapped in (data, [data], {"a": {"b": data}}, {"$type": "tuple", "value": [data]}):
        with pytest.raises(ValueError, match=r"\w"):
            codec.decode(wrapped)


def test_an_unknown_tag_is_named() -> None:
    """A record of a newer version says which type this version does not know."""
    with pytest.raises(ValueError, match="unknown stored type 'complex'; was it written by a newer version"):
        codec.decode({"$type": "complex", "value": [1, 2]})


def test_a_round_trip_shares_nothing() -> None:
    """Changing a value after its round trip leaves the copy alone."""
    value: dict[Any, Any] = {"list": [1], "set": {1}, 5: {"x": []}}
    copy = codec.round_trip(value)
    value["list"].append(2)
    value["set"].add(2)
    assert copy == {"list": [1], "set": {1}, 5: {"x": []}}


def test_equal_sets_and_dictionaries_have_one_text() -> None:
    """The text of a set or a plain dictionary does not depend on the order in which it was filled."""
    assert codec.dumps(codec.encode({"b": 1, "a": 2})) == codec.dumps(codec.encode({"a": 2, "b": 1}))
    assert codec.dumps(codec.encode({"x", "y", "z"})) == codec.dumps(codec.encode({"z", "y", "x"}))
