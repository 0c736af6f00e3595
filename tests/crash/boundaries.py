"""The effects of our own scenarios on the outside world: boundaries of the crash kit, with lines that tell more.

A line says which checkpoint would keep the effect from happening again, so that the matrix can tell a repetition that
was in flight from one that was finished.
"""

from __future__ import annotations

from dbos import DBOS

from durable_swarm import current_call
from durable_swarm.errors import NotInRun
from durable_swarm.models.call import current_model_call
from durable_swarm.testing.crash.ledger import report

RUN_PREFIX = "run-"
"""How the ids of runs under test begin."""


def effect(label: str) -> None:
    """Have an effect on the outside world: a boundary, and a line in the ledger.

    The line says what the effect is (idempotency key and label), whether it is known to be a repetition (attempt), and
    which checkpoint would keep it from happening again (workflow and step of the engine).
    """
    key, attempt = _who()
    checkpoint = [str(DBOS.workflow_id), str(DBOS.step_id)]
    report(label, {"key": key, "label": label, "attempt": attempt, "checkpoint": checkpoint})


def _who() -> tuple[str, int]:
    asked = current_model_call.get()
    if asked is not None:
        return f"{asked.run_id}/{asked.turn}", 0
    try:
        call = current_call()
    except NotInRun:
        return "outside", 0
    return call.idempotency_key, call.attempt
