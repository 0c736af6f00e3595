"""The executions of a run that have ended before its last one, as they are noted on the run.

Noted only when another execution begins, in the transaction that hands the run over, so that a run without a crash
writes nothing for it.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

LIVES = "lives"
"""Note on a run: its ended executions, oldest first, as lists of process, time and the way in which each ended."""

DIED, STOPPED, HANDED = "died", "stopped", "handed over"
"""Ways in which an execution ends without the run: its process died, stands still, or left the run to others."""

MOST = 50
"""How many ended executions are kept for each run: the last ones."""


@dataclass(frozen=True)
class Life:
    """An ended execution: its process, and until when it owned the run, in milliseconds since 1970.

    `how` is one of the ways above, or the status with which the run ended before it was resumed.
    """

    process: str
    until: int
    how: str


def read_lives(notes: dict[str, Any]) -> list[Life]:
    """Return the ended executions that are noted on a run, without notes of an unexpected form."""
    noted = notes.get(LIVES)
    return [Life(*entry) for entry in noted if _is_life(entry)] if isinstance(noted, list) else []


def _is_life(entry: Any) -> bool:
    return isinstance(entry, list) and [type(part) for part in entry] == [str, int, str] and entry[1] >= 0


def with_life(notes: dict[str, Any], life: Life) -> dict[str, Any]:
    """Return the note with one more ended execution."""
    return {LIVES: [list(astuple(known)) for known in [*read_lives(notes), life][-MOST:]]}
