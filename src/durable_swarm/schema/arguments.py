"""The model's argument text as keyword arguments, or as an error that the model can learn from."""

from __future__ import annotations

import json
import math
import reprlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, NoReturn

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from durable_swarm.schema.descriptions import Adapters, describe, label
from durable_swarm.schema.signatures import ABSENT, Parameter, Signature

MAX_DEPTH = 100
"""Maximum nesting of lists and objects in an argument: far below Python's recursion limit, also when stored."""

MAX_DIGITS = 500
"""Maximum digits of a whole number: more than any float holds, and below Python's own limit for reading."""

MAX_MESSAGE = 1024
"""Maximum size of a `BadArguments` message in UTF-8 bytes."""


class BadArguments(ValueError):
    """The model's arguments do not fit the tool. The message is meant for the model and has at most 1024 bytes."""


class ObjectReader(ABC):
    """Reads the JSON object that a model sends as arguments of a tool."""

    def __init__(self, tool: str) -> None:
        self._tool = tool

    def read_object(self, text: str | None) -> dict[str, Any]:
        """Return the object; an empty text counts as an empty object. Raises `BadArguments`."""
        if not text or not text.strip():
            return {}
        try:
            value = _decoder.decode(text)
            if isinstance(value, str) and value.strip()[:1] in ("", "{"):
                value = (
                    _decoder.decode(value) if value.strip() else None
                )  # The text of an object, encoded as a JSON string.
        except RecursionError:
            self.refuse("are nested too deep")
        except ValueError as error:
            self.refuse(f"are not valid JSON: {cut(str(error), 200)}. They begin with {_echo(text)}")
        if value is None or value == []:
            return {}  # Some models and servers write missing arguments this way.
        if not isinstance(value, dict):
            self.refuse(f"are not a JSON object. They begin with {_echo(text)}")
        if _too_deep(value):
            self.refuse("are nested too deep")
        return value

    def refuse(self, verdict: str) -> NoReturn:
        """Raise `BadArguments`; if the text is too long, the expected arguments stay and the verdict is cut."""
        ending = f". {self.expected()}."
        verdict = f"The arguments for {cut(self._tool, 64)} {verdict}"
        raise BadArguments(cut(verdict, MAX_MESSAGE - len(ending.encode())) + ending)

    @abstractmethod
    def expected(self) -> str:
        """Describe the allowed arguments."""


class Reader(ObjectReader):
    """Reads arguments for one function. Raises `ConfigurationError` if the function cannot be called by keywords."""

    def __init__(self, signature: Signature, adapters: Adapters) -> None:
        signature.require_keywords()
        super().__init__(signature.name)
        self._signature = signature
        self._adapters = adapters
        self._required = [parameter.name for parameter in signature.open if parameter.required]
        self._filled = {parameter.name: parameter.filled for parameter in signature.open if parameter.filled}
        self._converters = {parameter.name: _converter(parameter, adapters) for parameter in signature.open}

    def read(self, text: str | None) -> dict[str, Any]:
        """Return the keyword arguments in the text. Raises `BadArguments`."""
        given = self.read_object(text)
        problems = [f"{name} is missing" for name in self._required if name not in given]
        values: dict[str, object] = {}
        for key, value in given.items():
            if convert := self._converters.get(key):
                try:
                    values[key] = convert(value)
                # A user's own type may raise anything for a value that it did not expect.
                except Exception as error:
                    problems += reasons(key, error)
            elif self._signature.takes_more and key not in self._signature.closed:
                values[key] = value
            else:
                problems.append(f"there is no parameter {_echo(key)}")
        for name in self._filled.keys() - given.keys() - set(self._required):
            try:
                values[name] = _default(self._filled[name], values)
            except Exception as error:
                problems += reasons(name, error)
        if problems:
            self.refuse(f"do not fit: {'; '.join(problems[:20])}")
        return values

    def expected(self) -> str:
        """Describe the allowed arguments."""
        takes = self._signature.open
        properties = describe(self._signature, takes, self._adapters)["function"]["parameters"]["properties"]
        notes = [f"{p.name} ({cut(label(properties[p.name]), 60)}{', optional' * (not p.required)})" for p in takes]
        more = ", and any others" if self._signature.takes_more else ""
        return cut(f"Expected is a JSON object with: {', '.join(notes) or 'no parameters'}{more}", 400)


def _default(field: FieldInfo, values: Mapping[str, object]) -> object:
    """Return the default of a `Field`, which may be computed from the other arguments."""
    if getattr(field, "default_factory_takes_validated_data", False):
        make: Any = field.default_factory
        return make(values)
    return field.get_default(call_default_factory=True)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {_echo(twice)} appears twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits is too long")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {_echo(digits)} is too large")
    return number


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_decoder = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_whole, parse_float=_finite, parse_constant=_no_constant
)


def decoded(text: str) -> Any:
    """Return the JSON value in a model's text. Raises ValueError, and RecursionError if it is nested too deep."""
    value = _decoder.decode(text)
    if _too_deep([value]):
        raise RecursionError("it is nested too deep")
    return value


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        items = (item for node in level for item in (node.values() if isinstance(node, dict) else node))
        level = [item for item in items if isinstance(item, (dict, list))]
        if not level:
            return False
    return True


def _converter(parameter: Parameter, adapters: Adapters) -> Callable[[Any], object]:
    if parameter.annotation in (ABSENT, Any, object):
        return lambda value: value
    # From text, because pydantic accepts more for JSON than for Python values, as in a model that is strict.
    read, write = adapters[parameter.name].validate_json, json.dumps
    if parameter.may_be_null:
        return lambda value: None if value is None else read(write(value))
    return lambda value: read(write(value))


def reasons(name: str, error: Exception) -> list[str]:
    """Return why the value called `name` was refused, a line for each place in it."""
    if not isinstance(error, ValidationError):
        return [f"{name}: {type(error).__name__}: {cut(str(error), 200)}"]
    details = error.errors(include_url=False, include_context=False)
    reasons = [_reason(name, detail["loc"], detail["msg"], detail["input"]) for detail in islice(details, 5)]
    return reasons if len(details) <= 5 else [*reasons, f"{name}: and {len(details) - 5} more"]


def _reason(name: str, place: tuple[int | str, ...], message: str, value: object) -> str:
    path = ".".join([name, *map(str, place)])
    return f"{cut(path, 100)}: {cut(message, 200)}, not {_echo(value)}"


def _echo(value: object) -> str:
    """Show a short part of a value from the model."""
    return "null" if value is None else cut(reprlib.repr(value), 60)


def cut(text: str, size: int) -> str:
    """Return the text in at most `size` bytes of UTF-8, without characters that UTF-8 or a database refuses."""
    data = text.replace("\0", "\\0").encode("utf-8", "backslashreplace")
    return data.decode() if len(data) <= size else data[: size - 3].decode("utf-8", "ignore") + "…"
