"""To whom runs belong: the name of the person or program for whom a door of a server began each of them.

A run that a program begins by itself belongs to nobody, and everybody may see it. A child run and a fork belong to whom
the run they come from belongs to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

BELONGS_TO = "belongs_to"
"""The key of a run's start record, and of the notes on the run, with the name of the person; missing if it has none."""

_person: ContextVar[str | None] = ContextVar("durable_swarm_person", default=None)


@contextlib.contextmanager
def beginning_for(person: str | None) -> Iterator[None]:
    """Let the runs that are begun in this block, in this thread or task, belong to a person."""
    token = _person.set(person)
    try:
        yield
    finally:
        _person.reset(token)


def person() -> str | None:
    """Return the person to whom a run of its own belongs that is begun now, or None."""
    return _person.get()
