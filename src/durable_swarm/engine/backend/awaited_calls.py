"""What waits in this process for a tool call that another task makes, and what tells it that the call has ended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

SOON, RARELY = 0.01, 10.0
"""Seconds until the first look for a record that is being written, and between looks for one that will be told of."""

LOOKS = 3
"""How many looks in a row must find a claim without its execution, which begins a moment after it.

Looks, not seconds: a process that was stopped in that moment has not waited.
"""


@dataclass(frozen=True)
class Expected:
    """A tool call that a run of this process waits for."""

    check_ownership: Callable[[], bool]
    """Asked now and then while nothing comes: raises `OwnershipLost` where the run is another execution's."""
    strayed: Callable[[], object]
    """Called where nobody executes the call here: fetches it, if it is still the run's."""
    ends: Future[None] = field(default_factory=Future)


_expected: dict[str, Expected] = {}


@contextlib.contextmanager
def expecting(workflow_id: str, expected: Expected) -> Iterator[None]:
    """Say that the workflow is executed in this process, which calls `ends` just before its end is recorded."""
    _expected[workflow_id] = expected
    try:
        yield
    finally:
        if _expected.get(workflow_id) is expected:  # Else a later life of the workflow is waited for.
            del _expected[workflow_id]


def expected(workflow_id: str) -> Expected | None:
    """Return what waits for the workflow, or None."""
    return _expected.get(workflow_id)


def ends(workflow_id: str) -> None:
    """Have who waits for the workflow look for its record."""
    waiting = _expected.get(workflow_id)
    if waiting is not None:
        with contextlib.suppress(InvalidStateError):
            waiting.ends.set_result(None)
