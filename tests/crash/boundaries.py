"""The effects of our own scenarios on the outside world: boundaries of the crash kit, with lines that tell more.

A line says which checkpoint would keep the effect from happening again, so that the matrix can tell a repetition that
was in flight from one that was finished.
"""

from __future__ import annotations

import os

from dbos import DBOS

from durable_swarm import current_call
from durable_swarm.errors import NotInRun
from durable_swarm.models import current_model_call
from durable_swarm.testing.crash.boundaries import PROBE

RUN_PREFIX = "run-"
"""How the ids of runs under test begin."""


class Ledger:
    """The world outside the database: a file that effects are appended to, one line each, in one write."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, *words: object) -> None:
        """Append one line of words."""
        os.write(self._file, (" ".join(str(word) for word in words) + "\n").encode())


_ledger: Ledger | None = None


def keep_ledger(path: str) -> None:
    """Write the effects of this process to that file."""
    global _ledger
    _ledger = Ledger(path)


def effect(label: str) -> None:
    """Have an effect on the outside world: a boundary, and a line in the ledger.

    The line says what the effect is (idempotency key and label), whether it is known to be a repetition (attempt), and
    which checkpoint would keep it from happening again (workflow and step of the engine).
    """
    if _ledger is None:
        raise RuntimeError("effects are for lives: this process keeps no ledger")
    key, attempt = _who()
    number = PROBE.before(f"effect {label}")
    _ledger.write(key, label, attempt, DBOS.workflow_id, DBOS.step_id)
    PROBE.after(number)


def _who() -> tuple[str, int]:
    asked = current_model_call.get()
    if asked is not None:
        return f"{asked.run_id}/{asked.turn}", 0
    try:
        call = current_call()
    except NotInRun:
        return "outside", 0
    return call.idempotency_key, call.attempt
