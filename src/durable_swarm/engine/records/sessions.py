"""The part of a run's start record that says where the run is in a session.

A run in a session stores its own messages only. `session` is the session's id, `number` the run's number in it, and
`base` the run before it, on whose messages it builds. A run that waits for its turn has no number yet; its agent and
context variables are then the ones that the session had when it was sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import NoneType

from durable_swarm.engine.records.base import Record, _checked, reading


@dataclass(frozen=True)
class SessionPlace:
    """The place of a run in a session: the session's id, the run's number, and the run before it."""

    session: str
    number: int | None = None
    base: str | None = None


@dataclass(frozen=True)
class Admission:
    """How a run that is sent to a session is recorded: begun, or in a state and on a queue; and more notes on it."""

    queued: tuple[str, str] | None = None
    notes: Record = field(default_factory=dict)
    priority: int = 0


_KEYS = ("session", "number", "base", "compaction")


def placed(record: Record, place: SessionPlace) -> Record:
    """Return a start record with the run's place."""
    known = {"session": place.session, "number": place.number, "base": place.base}
    return {**record, **{key: value for key, value in known.items() if value is not None}}


def begun(record: Record, place: SessionPlace, agent: str, context: Record) -> Record:
    """Return the start record of a run whose turn has come: with what the run before it has left."""
    return placed({**record, "agent": agent, "context": context}, place)


def place_in(record: Record) -> SessionPlace | None:
    """Return the place of the run of a start record, or None if it is in no session."""
    if "session" not in record:
        return None
    with reading("the place of a run in a session"):
        number = _checked(record.get("number"), int, NoneType)
        return SessionPlace(_checked(record["session"], str), number, _checked(record.get("base"), str, NoneType))


def without_place(record: Record) -> Record:
    """Return a start record without the run's place: of a run that is in no session."""
    return {key: value for key, value in record.items() if key not in _KEYS}
