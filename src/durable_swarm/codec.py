"""Values to JSON and back: the only format in which data of a run is stored.

Plain JSON values stay as they are. Python's other common values become `{"$type": NAME, "value": ...}` for the names in
`_READERS`; so does a dictionary that JSON could not give back unchanged (a key that is not a string, or a key `$type`).
Everything else raises `NotSerializable`: nothing is ever pickled, and reading runs only the constructors of this file.

`Codec` is the hook for a program's own treatment of stored data, such as encryption; it gets the JSON data.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from operator import is_
from typing import Any, Protocol
from uuid import UUID

from durable_swarm.errors import NotSerializable

TAG = "$type"

MAX_DEPTH = 100
"""Maximum nesting of containers: a fixed number, so that stored data can be read at any stack depth of a program."""

MAX_TEXT = 200_000_000
"""Maximum length of a text or bytes: no database stores a gigabyte in one row, and JSON and encryption add to it. A
longer value would fail only after minutes, using ten times its memory.
"""

_LONE = re.compile("[\ud800-\udfff]")
"""Halves of characters, which a text that leaves the program must not contain."""

_PLAIN_BITS = 2000
"""Longer integers are stored in hexadecimal: Python may be set to refuse decimals of more than 640 digits."""

_READERS: dict[str, Callable[[Any], object]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda parts: timedelta(*parts),
    "decimal": Decimal,
    "uuid": UUID,
    "bytes": base64.b64decode,
    "float": float,
    "int": lambda digits: int(digits, 16),
    "text": lambda escaped: json.loads(f'"{escaped}"'),
    "tuple": lambda items: tuple(decode(item) for item in items),
    "set": lambda items: {decode(item) for item in items},
    "frozenset": lambda items: frozenset(decode(item) for item in items),
    "dict": lambda pairs: {decode(key): decode(value) for key, value in pairs},
}

_WRITERS: dict[type, Callable[[Any], Any]] = {
    datetime: lambda value: ("datetime", value.isoformat()),
    date: lambda value: ("date", value.isoformat()),
    time: lambda value: ("time", value.isoformat()),
    timedelta: lambda value: ("timedelta", [value.days, value.seconds, value.microseconds]),
    Decimal: lambda value: ("decimal", str(value)),
    UUID: lambda value: ("uuid", str(value)),
    bytes: lambda value: ("bytes", base64.b64encode(value).decode()),
}


@dataclass(frozen=True)
class Place:
    """The position of a record: an authenticated encryption binds the record to it, so that it cannot be moved.

    `run_id` is the id of the run, or of a tool call (`<run id>/<turn>.<index>`). `step` is the step's name
    (`model:Clerk`, `tool:refund`, a `@step`'s own), or `input`, `output`, `error` for the arguments, the result or the
    error of a run or call. `number` counts the steps of that run or call. `beside` are the readable values stored next
    to it.
    """

    run_id: str
    step: str
    number: int = 0
    beside: Mapping[str, Any] = field(default_factory=dict)

    def associated(self) -> bytes:
        """Return all fields as bytes, the same in every process: the associated data for an encryption."""
        return dumps([self.run_id, self.step, self.number, dict(self.beside)]).encode()


class Codec(Protocol):
    """The interface of `DurableSwarm(codec=...)`: all user data passes through it to the database and back.

    Both methods are called from many threads. An exception in them keeps the run from continuing, and is not recorded
    as its result.

    A codec with a true attribute `lossless` declares that `decode` returns exactly the data that `encode` got, and that
    it may get a text in pieces. Otherwise a streamed reply is stored whole and sent in one event, because pieces could
    escape a codec that masks parts of a text.
    """

    def encode(self, data: dict[str, Any], place: Place) -> dict[str, Any] | str:
        """Return the stored form of `data`, a record's fields as JSON data: a text, or JSON data with the same keys."""

    def decode(self, stored: dict[str, Any] | str, place: Place) -> dict[str, Any]:
        """Return the fields again. Gets a dictionary if the record was stored without a codec, or by another one."""


def encode(value: object, path: str = "value") -> Any:
    """Return `value` as plain JSON data (dict, list, str, int, float, bool, None).

    `path` names the value in error messages. Raises `NotSerializable`, naming the path of the part without a JSON form.
    """
    return _encode(value, path, MAX_DEPTH)


def as_json(value: Any, path: str, depth: int = MAX_DEPTH) -> Any:
    """Return `value` as JSON data that every language reads: a tuple as a list, half characters as U+FFFD.

    Raises `NotSerializable`, naming the path, for every value without a JSON form.
    """
    kind = type(value)
    if value is None or kind is bool or kind is int or (kind is float and math.isfinite(value)):
        return value
    if kind is str:
        return mended_text(value)
    if kind in (list, tuple) and depth:
        return [as_json(item, f"{path}[{index}]", depth - 1) for index, item in enumerate(value)]
    if kind is dict and depth and all(type(key) is str for key in value):
        return {as_json(key, path): as_json(item, f"{path}[{key!r}]", depth - 1) for key, item in value.items()}
    raise NotSerializable(
        f"{path} is not JSON data: {value!r:.80}; give texts, numbers, lists and dictionaries", path=path
    )


def mended_text(text: str) -> str:
    """Return the text with half characters as U+FFFD, and the two halves of one as that character.

    File names that are not UTF-8 contain such halves, and so do texts cut within an emoji; JSON must not contain them.
    """
    if text.isascii() or not _LONE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def mended(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Return `value` with all its texts repaired, keys too; the same object if nothing changes."""
    kind = type(value)
    if kind is str:
        return mended_text(value)
    if kind in (list, tuple, set, frozenset) and depth:
        items = [mended(item, depth - 1) for item in value]
        return value if all(map(is_, items, value)) else kind(items)
    if kind is dict and depth:
        pairs = [(mended(key, depth - 1), mended(item, depth - 1)) for key, item in value.items()]
        same = all(key is old and item is was for (key, item), (old, was) in zip(pairs, value.items(), strict=True))
        return value if same else dict(pairs)
    return value


def mended_values(context: Mapping[str, object]) -> dict[str, Any]:
    """Return context variables with all texts in their values repaired; names stay, because code looks for them."""
    return {key: mended(value) for key, value in context.items()}


def _encode(value: Any, path: str, depth: int) -> object:
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        return value if value.bit_length() <= _PLAIN_BITS else _tagged("int", hex(value))
    if kind in (str, bytes) and len(value) > MAX_TEXT:
        raise NotSerializable(
            f"{path} is {len(value):,} characters or bytes long, and at most {MAX_TEXT:,} are stored in one value. "
            "Keep it in a file or an object store, and its name in the run.",
            path=path,
        )
    if kind is str:
        return value if storable(value) else _tagged("text", json.dumps(value)[1:-1])
    if kind is float:
        return value if math.isfinite(value) else _tagged("float", repr(value))
    if writer := _WRITERS.get(kind):
        return _tagged(*writer(value))
    if kind in _CONTAINERS:
        return _encode_container(value, path, depth - 1)
    raise NotSerializable(
        f"{path} is a {kind.__module__}.{kind.__qualname__}, which cannot be stored as JSON. Keep an id or plain data "
        "there and make the object where it is used.",
        path=path,
    )


_CONTAINERS = frozenset({list, tuple, set, frozenset, dict})


def _encode_container(value: Any, path: str, depth: int) -> object:
    if depth < 0:
        raise NotSerializable(f"{path[:100]}… is nested deeper than {MAX_DEPTH} levels, or contains itself", path=path)
    if type(value) is dict:
        return _encode_dict(value, path, depth)
    if type(value) is list:
        return [_encode(item, f"{path}[{index}]", depth) for index, item in enumerate(value)]
    if type(value) is tuple:
        return _tagged("tuple", [_encode(item, f"{path}[{index}]", depth) for index, item in enumerate(value)])
    # Sorted by their encoded text, so that equal sets have equal records.
    return _tagged(type(value).__name__, sorted((_encode(item, path, depth) for item in value), key=dumps))


def _encode_dict(value: dict[object, object], path: str, depth: int) -> object:
    if all(type(key) is str and key != TAG and storable(key) for key in value):
        return {key: _encode(item, f"{path}[{key!r}]", depth) for key, item in value.items()}
    return _tagged(
        "dict",
        [[_encode(key, path, depth), _encode(item, f"{path}[{key!r}]", depth)] for key, item in value.items()],
    )


def storable(text: str) -> bool:
    """Return True if a database takes the text: PostgreSQL refuses NUL, and none takes half of a surrogate pair."""
    if text.isascii():
        return "\0" not in text
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def _tagged(name: str, value: object) -> dict[str, object]:
    return {TAG: name, "value": value}


def decode(data: object) -> Any:
    """Return the value that `encode` was given. Raises ValueError for data that this version's `encode` never wrote."""
    if type(data) is dict:
        if TAG in data:
            return _read(data)
        return {key: decode(item) if type(item) in _NESTED else item for key, item in data.items()}
    if type(data) is list:
        return [decode(item) if type(item) in _NESTED else item for item in data]
    return data


_NESTED = frozenset({dict, list})


def _read(data: Mapping[str, object]) -> object:
    name = data[TAG]
    if type(name) is not str or name not in _READERS:
        raise ValueError(f"unknown stored type {name!r}; was it written by a newer version?")
    try:
        return _READERS[name](data["value"])
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"a stored {name} cannot be read: {error!r}") from error


def dumps(data: object) -> str:
    """Return JSON data as compact text, the same text for equal data."""
    return json.dumps(data, separators=(",", ":"), sort_keys=True)


def round_trip(value: object, path: str = "value") -> Any:
    """Return `value` as it would come back from a checkpoint, sharing no object with the original."""
    return decode(encode(value, path))
