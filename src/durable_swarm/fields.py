"""Unknown names are refused with the name that was probably meant: a typo must not drop what was given."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Sequence
from typing import Any, TypeVar

from durable_swarm.errors import ConfigurationError

T = TypeVar("T")


def unknown_field(owner: str, name: str, known: Sequence[str], kind: str = "field") -> str:
    """Return the message about an unknown field, or another `kind` of name, with the nearest known one."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    some = f"its {kind}s are {', '.join(known)}" if known else f"it takes no {kind}"
    return f"{owner} has no {kind} {name!r:.80}; {f'did you mean {near[0]!r}?' if near else some}"


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
