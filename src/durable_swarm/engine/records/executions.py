"""The executions of a run that have ended before its last one, as they are noted on the run.

Noted only when another execution begins, in the transaction that hands the run over, so that a run without a crash
writes nothing for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass

ENDED_EXECUTIONS = "lives"
"""Note on a run: its ended executions, oldest first, as lists of process, time and the way in which each ended."""

DIED, STOPPED, HANDED = "died", "stopped", "handed over"
"""Ways in which an execution ends without the run: its process died, stands still, or left the run to others."""

MOST = 50
"""How many ended executions are kept for each run: the last ones."""


@dataclass(frozen=True)
class EndedExecution:
    """An ended execution: its process, and until when it owned the run, in milliseconds since 1970.

    `how` is one of the ways above, or the status with which the run ended before it was resumed.
    """

    process: str
    until: int
    how: str


def read_ended(notes: Mapping[str, object]) -> list[EndedExecution]:
    """Return the ended executions that are noted on a run, without notes of an unexpected form."""
    noted = notes.get(ENDED_EXECUTIONS)
    return [EndedExecution(*entry) for entry in noted if _is_ended(entry)] if isinstance(noted, list) else []


def _is_ended(entry: object) -> bool:
    return isinstance(entry, list) and [type(part) for part in entry] == [str, int, str] and entry[1] >= 0


def with_ended(notes: Mapping[str, object], ended: EndedExecution) -> dict[str, object]:
    """Return the note with one more ended execution."""
    return {ENDED_EXECUTIONS: [list(astuple(known)) for known in [*read_ended(notes), ended][-MOST:]]}
