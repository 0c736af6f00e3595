"""Unknown fields are refused with the field that was probably meant: a typo must not drop what was given."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from typing import Any, TypeVar

from durable_swarm.errors import ConfigurationError

T = TypeVar("T")


def unknown_field(kind: str, name: str, known: list[str]) -> str:
    """Return the message about an unknown field, with the nearest known one."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"its fields are {', '.join(known)}"
    return f"{kind} has no field {name!r}; {hint}"


def named_fields(cls: type[T]) -> type[T]:
    """Let a dataclass refuse unknown fields with `ConfigurationError` instead of a bare `TypeError`."""
    changed: Any = cls  # Its constructor is replaced.
    known = [field.name for field in dataclasses.fields(changed)]
    initialize = cls.__init__

    @functools.wraps(initialize)
    def checked(self: object, *values: object, **named: object) -> None:
        for name in named:
            if name not in known:
                raise ConfigurationError(unknown_field(cls.__name__, name, known))
        initialize(self, *values, **named)

    changed.__init__ = checked
    return cls
