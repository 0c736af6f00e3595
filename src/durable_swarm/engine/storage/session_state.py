"""Sessions as plain data: their state, what is sent to them, and what a run leaves to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from durable_swarm import errors
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.storage.ownership import UNFINISHED

WAITS, BEGUN = "waits", "begun"
"""States of a run in a session: its turn has not come; it has, and its messages count."""
LEFT_OUT, WITHDRAWN = "left_out", "withdrawn"
"""States of runs whose messages do not count: no model can be sent them; the run was cancelled before its turn."""


@dataclass(frozen=True)
class Ahead:
    """The run in progress of a session: its number, its id, and when it ended, if it has."""

    number: int
    run_id: str
    over: bool
    completed_at: int | None


@dataclass(frozen=True)
class SessionState:
    """A session as its row says. `agent`, `context` and `base` are what the last run whose end was noted has left.

    `context` is a record as it is stored, its text. `last` is the highest number given. `ahead` is the run in progress;
    it may have ended without that being noted here.
    """

    id: str
    swarm: str
    agent: str
    context: str
    base: str | None
    last: int
    ahead: Ahead | None
    created_at: int
    updated_at: int


@dataclass(frozen=True)
class Arrival:
    """A run that is sent to a session.

    `expected` is the state for which the run's record was made, or None for a new session: with another state the run
    waits, though nothing is in progress, and `pass_turn` completes its record. `queue` is where it is executed.
    """

    session: str
    run_id: str
    swarm: str
    agent: str
    context: Record
    expected: SessionState | None
    queue: str
    is_shared: bool = False
    """True if workers serve the queue, so that the run does not begin in this process."""
    priority: int = 0
    may_wait: bool = True
    belongs_to: str | None = None


@dataclass(frozen=True)
class Left:
    """The state that an ended run leaves: the agent and the context of the next one, and its own tokens.

    `base` is the run on which the next one builds: this one, unless its messages do not count.
    """

    agent: str
    context: Record
    base: str | None
    counts: bool
    usage: dict[str, int] | None


@dataclass(frozen=True)
class Following:
    """The run whose turn comes next; `stored` is its completed start record."""

    number: int
    run_id: str
    queue: str
    agent: str
    stored: Record


class SessionRow(NamedTuple):
    """The row of a session, in the order of its table's columns, with those of its run in progress, if it has one."""

    id: str
    swarm: str
    agent: str
    context: str
    base: str | None
    last: int
    ahead: int | None
    created_at: int
    updated_at: int
    run_id: str | None
    status: str | None
    completed_at: int | None


def state_of_session(row: SessionRow) -> SessionState:
    """Return the state of a session from its row."""
    over = row.status not in UNFINISHED
    ahead = None if row.ahead is None else Ahead(row.ahead, row.run_id or "", over, row.completed_at)
    return SessionState(
        row.id, row.swarm, row.agent, row.context, row.base, row.last, ahead, row.created_at, row.updated_at
    )


def no_session(session: str) -> errors.RunNotFound:
    """Return the error for a session that does not exist, or belongs to somebody else."""
    return errors.RunNotFound(f"there is no session {session!r} of yours in this database")
