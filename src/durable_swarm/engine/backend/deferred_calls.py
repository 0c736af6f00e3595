"""Tool calls that are workflows without a row: it is written before the first thing that needs it.

Most tools have no steps of their own. Such a call is recorded as a step of its run when it has ended: one row, where a
workflow has three, and its start as a step of the run is a fourth. A call that records a step, sleeps, asks or starts a
run becomes a workflow with a row just before. So does one that uses DBOS itself, as soon as it asks for the number of a
step.

Beyond DBOS's public interface:

- `DBOSContext.function_id`: everything that DBOS records in a workflow reads it to draw a number, and it is read for
  nothing else. `DBOS.patch` draws the number only when its record is written, so reading is what counts. There is no
  other place that all of DBOS's own functions pass.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dbos import _context

from durable_swarm.codec import Place
from durable_swarm.engine.backend.ownership import OwnershipCheck, OwnershipLost, check_of, owner_of
from durable_swarm.engine.records import names
from durable_swarm.engine.records.encoding import output_of


@dataclass(eq=False)
class DeferredCall:
    """A tool call in progress in this process, whose workflow may have no row yet."""

    key: str
    run_id: str
    owner: str | None
    """DBOS's token of the run's execution."""
    check: OwnershipCheck | None
    """The check of the run's execution."""
    number: int = 0
    """The number that the run has drawn for it."""
    started_at: int = 0
    """In milliseconds since 1970."""
    write: Callable[[], None] | None = None
    """Writes the row; None before the call has begun here, and after the row exists."""
    recorded: str | None = None
    """The stored outcome, if an earlier execution has recorded it as a step."""
    is_workflow: bool = False
    """True once the workflow has a row."""
    has_ended: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def place(self) -> Place:
        """The place of its outcome's record."""
        return output_of(self.key) if self.is_workflow else Place(self.run_id, names.TOOL, self.number)

    def begin_workflow(self) -> None:
        """Write the row, unless it exists. Raises `OwnershipLost` and `Cancelled`. May block."""
        with self._lock:
            if self.write is not None:
                if self.has_ended:  # A thread that the tool has left behind.
                    raise OwnershipLost(self.key)
                self.write()
                self.is_workflow, self.write = True, None

    def end(self) -> Place:
        """Note that the tool has ended, and return the place of its outcome's record, fixed from now on."""
        with self._lock:
            self.has_ended = True
            return self.place


_current: contextvars.ContextVar[DeferredCall | None] = contextvars.ContextVar("durable_swarm_deferred", default=None)


@contextlib.contextmanager
def deferring(run_id: str, key: str) -> Iterator[DeferredCall]:
    """Make a tool call of the current run, started in this block, without a row as long as it needs none."""
    call = DeferredCall(key, run_id, owner_of(run_id), check_of(run_id))
    token = _current.set(call)
    try:
        yield call
    finally:
        _current.reset(token)


def deferred(key: str) -> DeferredCall | None:
    """Return the tool call of this id, if this code belongs to it and its workflow has no row."""
    call = _current.get()
    return None if call is None or call.key != key or call.is_workflow else call


def deferred_of(run_id: str) -> DeferredCall | None:
    """Return the tool call that is being started for this run, if any."""
    call = _current.get()
    return None if call is None or call.run_id != run_id or call.is_workflow or call.write is not None else call


def begin_workflow() -> None:
    """Write the row of the current tool call's workflow, unless it exists."""
    call = _current.get()
    if call is not None:
        call.begin_workflow()


def place_of_outcome(key: str) -> Place:
    """Return the place of the record of a tool call that ends now."""
    call = deferred(key)
    return output_of(key) if call is None else call.end()


_reserving: contextvars.ContextVar[bool] = contextvars.ContextVar("durable_swarm_reserving", default=False)


@contextlib.contextmanager
def reserving() -> Iterator[None]:
    """Draw or read numbers in this block without writing the row, which our own steps write off the event loop."""
    token = _reserving.set(True)
    try:
        yield
    finally:
        _reserving.reset(token)


class CallContext(_context.DBOSContext):
    """DBOS's context of a tool call: whoever asks it for a number makes the call a workflow with a row."""

    call: DeferredCall

    @classmethod
    def of(cls, context: _context.DBOSContext, call: DeferredCall) -> None:
        """Make the context of a call that begins one of this kind."""
        context.__class__ = cls
        vars(context)["call"] = call

    @property
    def function_id(self) -> int:
        """The last number drawn."""
        if not _reserving.get():
            self.call.begin_workflow()
        return int(self.__dict__["function_id"])

    @function_id.setter
    def function_id(self, number: int) -> None:
        self.__dict__["function_id"] = number
