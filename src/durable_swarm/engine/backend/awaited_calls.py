"""Waiting in this process for a tool call that another task makes, and the wake-up when the call has ended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

SOON, RARELY = 0.01, 10.0
"""Seconds until the first check for a record that is being written, and between checks while a wake-up is expected."""

LOOKS = 3
"""The number of consecutive checks that must find a claim without its execution, which begins a moment after it.

Counted in checks, not seconds, because a process that was stopped at that moment has not waited.
"""


@dataclass(frozen=True)
class Expected:
    """A tool call that a run of this process waits for."""

    check_ownership: Callable[[], bool]
    """Called from time to time while nothing arrives: raises `OwnershipLost` if another execution owns the run."""
    strayed: Callable[[], object]
    """Called if no process executes the call: fetches it, if the run still owns it."""
    ends: Future[None] = field(default_factory=Future)


_expected: dict[str, Expected] = {}


@contextlib.contextmanager
def expecting(workflow_id: str, expected: Expected) -> Iterator[None]:
    """Declare that the workflow is executed in this process, which calls `ends` just before its end is recorded."""
    _expected[workflow_id] = expected
    try:
        yield
    finally:
        if _expected.get(workflow_id) is expected:  # Otherwise a later execution of the workflow is waited for.
            del _expected[workflow_id]


def expected(workflow_id: str) -> Expected | None:
    """Return the waiter for the workflow, or None."""
    return _expected.get(workflow_id)


def ends(workflow_id: str) -> None:
    """Make the waiter for the workflow check for its record."""
    waiting = _expected.get(workflow_id)
    if waiting is not None:
        with contextlib.suppress(InvalidStateError):
            waiting.ends.set_result(None)
