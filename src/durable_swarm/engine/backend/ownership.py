"""Which execution owns a run, by DBOS's token, and how an execution in progress here checks that it still does.

Beyond DBOS's public interface:

- `current_owner_xid`: DBOS refuses the records of an execution whose token is not the one in the run's row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dbos import _context
from dbos import error as dbos_errors

OwnershipLost = dbos_errors.DBOSWorkflowConflictIDError
"""Ends an execution that no longer owns the run; DBOS then waits for the owner. Constructed from the run's id."""
Cancelled = dbos_errors.DBOSWorkflowCancelledError
"""Ends an execution that was cancelled. Constructed from a text."""


def owner_of(run_id: str) -> str | None:
    """Return DBOS's token of the current execution, by which it refuses writes of a former owner of the run."""
    return _context.current_owner_xid(run_id)


@dataclass(frozen=True)
class OwnershipCheck:
    """An execution of a run, or of a tool call, in progress in this process.

    `check_ownership` is called before each step that has no record. It returns True if the run is in progress and owned
    by this execution, and raises `OwnershipLost` if another execution owns it. If it returns False, DBOS's own check
    raises the reason.
    """

    check_ownership: Callable[[], bool] = lambda: False
    is_first: bool = False
    """True if no earlier execution can have left a record."""


_checks: dict[tuple[str, str | None], OwnershipCheck] = {}


@contextlib.contextmanager
def checked_by(workflow_id: str, check: OwnershipCheck) -> Iterator[None]:
    """Allow the steps of the current workflow, which has that id, only if its execution's check passes."""
    key = workflow_id, owner_of(workflow_id)
    _checks[key] = check
    try:
        yield
    finally:
        del _checks[key]


def check_of(workflow_id: str) -> OwnershipCheck | None:
    """Return the check of the current execution of a workflow, or None if it has none."""
    return _checks.get((workflow_id, owner_of(workflow_id)))
