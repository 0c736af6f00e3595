"""What the row of a run says: its status, its owner, its times, and the notes on it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from durable_swarm import errors
from durable_swarm.engine.records import names
from durable_swarm.engine.records.agent_versions import ACCEPTED, HELD_FOR
from durable_swarm.engine.records.owners import BELONGS_TO
from durable_swarm.engine.records.rows import RunRow
from durable_swarm.engine.storage.provider_outages import AWAY, wait_noted
from durable_swarm.runs import ENDED, State

STATES_OF: dict[str, State] = {
    "ENQUEUED": "queued",
    "DELAYED": "queued",
    "PENDING": "running",
    "SUCCESS": "done",
    "ERROR": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
    "CANCELLED": "cancelled",
}
UNFINISHED = ["PENDING", "ENQUEUED"]

TRIED = "tried:"
"""Prefix of the notes on a run that count the executions of its open calls; resuming the run clears them."""

PAUSES = "stood"
"""Note on a run: how often it was taken over from a process that had stopped; resuming the run clears it, too."""

NEEDS = "needs"
"""Note on a run that waits for an agent which some process lacked: the agent's name."""

MODEL_CALL, BY_TOOL = "model_call", "by_tool"
"""Note on a run of what a client keeps of the model call in progress: which call, and the value."""

QUEUED = "queued"
"""Note on a run that was started for the queue of workers: True."""


def state_of(row: RunRow) -> State:
    """Return a run's status from its row. A run that is being taken over counts as running.

    A run that waits for a person, a provider or a child run is `waiting` if its row was read with `waits`; otherwise
    only a suspended run is. Raises `ConfigurationError` for a row of a kind that this version does not know.
    """
    return "waiting" if row.asks else stored_state(row.status, row.queue_name)


def stored_state(status: str, queue: str | None) -> State:
    """Return a run's status by what its row alone says, as `state_of` does."""
    ours = (queue or "").startswith(names.QUEUE)
    if status == "DELAYED" and ours:
        return "waiting"
    if status == "ENQUEUED" and ours:
        return "running"
    if status not in STATES_OF:
        raise errors.ConfigurationError(
            f"the database has a run of status {status!r}, which this version of durable-swarm does not know; "
            "install the version that wrote it"
        )
    return STATES_OF[status]


def notes_on(row: RunRow) -> dict[str, Any]:
    """Return the notes on a run, without those of an unexpected form."""
    noted = row.attributes if isinstance(row.attributes, dict) else {}
    return {name: value for name, value in noted.items() if name not in _NOTED or _NOTED[name](value)}


def reason_noted(row: RunRow) -> str | None:
    """Return the reason why an unfinished run does not continue, as the process that holds it noted it, or None."""
    if row.status == "DELAYED" and row.queue_name == names.TURNS:
        return f"it waits for its turn in session {notes_on(row).get('session', '')!r}"
    away: str | None = row.away
    return None if state_of(row) in ENDED else notes_on(row).get("waits_for") or away


def owner_of(row: RunRow) -> str:
    """Return the name of the process that executes an unfinished run; '' if any process may execute it."""
    if row.status == "PENDING":
        return str(row.executor_id or "")
    queue = str(row.queue_name or "")
    owned = queue.startswith(names.QUEUE) and queue != names.UNCLAIMED
    return queue.removeprefix(names.QUEUE) if owned else ""


def started_at(row: RunRow) -> datetime:
    """Return the time at which a run was started, in UTC, which is before its row was written; 1970 if unknown."""
    at = notes_on(row).get("at")
    return moment(row.created_at) if at is None else datetime.fromtimestamp(at, UTC)


def moment(milliseconds: object) -> datetime:
    """Return a time of the database, in UTC; 1970 if it is invalid."""
    seconds = milliseconds / 1000 if isinstance(milliseconds, int | float) else 0
    return datetime.fromtimestamp(seconds if _is_time(seconds) else 0, UTC)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _YEAR_9999


_YEAR_9999 = 253_370_764_800
_NOTED: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("agent", "swarm", "waits_for", "forked_from", "held_by", "conversation"), _is_text),
    **dict.fromkeys(("session", BELONGS_TO), _is_text),
    "number": lambda value: type(value) is int and value > 0,
    **dict.fromkeys((NEEDS, HELD_FOR, ACCEPTED), _is_text),
    "at": _is_time,
    PAUSES: lambda value: type(value) is int and value >= 0,
    AWAY: lambda value: value is None or wait_noted(value) is not None,
}
