"""The parts that all records share: the version, and the checks on reading."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

from durable_swarm import codec, errors
from durable_swarm.engine.records.names import VERSION

Record = dict[str, Any]

T = TypeVar("T")


def read(record: object, where: str) -> Record:
    """Check that this is a record of a version this package can read, and return it."""
    if not isinstance(record, dict) or not isinstance(record.get("v"), int):
        raise errors.ReplayMismatch(f"{where} is not a record of durable-swarm")
    if record["v"] > VERSION:
        raise errors.ConfigurationError(
            f"{where} was written by a newer version of durable-swarm (record version {record['v']}, this one reads "
            f"up to {VERSION}); upgrade the package"
        )
    return record


def _slim(**fields: object) -> Record:
    """Return a record without the empty fields."""
    return {"v": VERSION, **{key: value for key, value in fields.items() if value not in (None, {}, [], "")}}


def _named(context: dict[str, object]) -> dict[str, object]:
    for key in context:
        if not isinstance(key, str) or key == codec.TAG or not codec.storable(key):
            raise errors.NotSerializable(
                f"context_variables[{key!r:.80}]: keys must be strings other than {codec.TAG!r}, without NUL and "
                "without half of a surrogate pair",
                path=f"context_variables[{key!r:.80}]",
            )
    return context


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn errors raised while a malformed record is read into `ReplayMismatch`."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        reason = " ".join(f"{error!r:.200}".split())
        raise errors.ReplayMismatch(f"the record of {what} is damaged: {reason}") from error


def _checked(value: object, *kinds: type[T]) -> T:
    """Return the value if it is of one of these types, as everything written here is."""
    if not isinstance(value, kinds):
        raise TypeError(f"a {type(value).__name__} where {' or '.join(kind.__name__ for kind in kinds)} was written")
    return value


def _each(values: object, kind: type[T]) -> list[T]:
    return [value if isinstance(value, kind) else _checked(value, kind) for value in _checked(values, list)]


def _values(data: object) -> dict[str, object]:
    """Return values by name, in the form in which context variables are stored."""
    decoded: dict[str, object] = _checked(codec.decode(data), dict)
    for name in decoded:
        _checked(name, str)
    return decoded
