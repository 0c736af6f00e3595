"""Tool calls, and runs, that wait in this process for an answer or a time: until it comes, or the run is released.

A waiting call occupies memory: a coroutine, and for a plain tool the thread it blocks. When more than `COROUTINES` or
`THREADS` wait, the runs that have waited longest are released: their tools are unwound, no process executes them, and
the database wakes them. The tool is then entered again, as after a crash. So ten thousand waiting runs cost little more
than their rows, and a few waiting runs cost no repetition.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

from durable_swarm.concurrency import LoopRuntime, Runtime, block, in_thread
from durable_swarm.engine.backend import ownership
from durable_swarm.engine.execution.execution import Execution
from durable_swarm.engine.signals import RunSuspended, engine_closed
from durable_swarm.engine.storage.ownership import now
from durable_swarm.engine.storage.requests import LONGEST
from durable_swarm.engine.storage.runs import Store

COROUTINES, THREADS = 100, 16
"""Maximum waits in memory: those that hold no thread, and plain tools and others, which hold one of the pool."""


@dataclass(eq=False)
class WaitingCall:
    """One tool call, or a run itself, that waits: for a request (None: for a time only), until a time in milliseconds.

    `key` is the id of the call or of the run. Times are since 1970. With `stays` the run is not released meanwhile.
    """

    run: Execution
    key: str
    request: str | None
    until: int | None
    holds_thread: bool
    stays: bool = False
    told: Future[None] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)

    @property
    def may_leave(self) -> bool:
        """Return True if the call still waits, and its run may be released."""
        return not (self.told.done() or self.stays or self.run.stays)

    def end(self, error: BaseException | None = None) -> None:
        """Let the call continue, or end it with the error. The first one counts."""
        with contextlib.suppress(InvalidStateError):
            self.told.set_result(None) if error is None else self.told.set_exception(error)


class WaitingCalls:
    """The tool calls that wait here, those that have waited longest first."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.RLock()
        self._waiting: list[WaitingCall] = []
        self._entered = False
        self._closed = False
        self.patience: float | None = None
        """In a worker, suspend waiting runs after this many seconds so that they do not hold a concurrency slot."""

    async def wait(
        self,
        run: Execution,
        key: str,
        *,
        request: str | None,
        seconds: float | None,
        holds_thread: bool,
        stays: bool = False,
    ) -> None:
        """Wait until the request is decided, or the seconds have passed.

        Raises `RunSuspended` when the run leaves memory, and DBOS's own signal when it was cancelled.
        """
        until = None if seconds is None or seconds > LONGEST else now() + round(seconds * 1000)
        waiting = WaitingCall(run, key, request, until, holds_thread, stays)
        timer = None if until is None else asyncio.get_running_loop().call_later(seconds or 0, waiting.end)
        try:
            self._enter(waiting)
            await asyncio.wrap_future(waiting.told)
        except RunSuspended:
            run.suspended_on.append((request, until))
            raise
        finally:
            if timer is not None:
                timer.cancel()
            self._leave(waiting)

    async def wait_outside_calls(
        self,
        run: Execution,
        waits: Runtime,
        *,
        request: str | None = None,
        seconds: float | None = None,
        stays: bool = False,
    ) -> None:
        """Wait as `wait` does, as the run itself, outside of its tool calls; `wake` ends the wait, too."""
        on_loop = isinstance(waits, LoopRuntime)
        wait = self.wait(run, run.run_id, request=request, seconds=seconds, holds_thread=not on_loop, stays=stays)
        if on_loop:
            await wait
        else:
            block(wait)
        if not run.ownership_is_fresh:
            await in_thread(run.verify_ownership)

    def _enter(self, waiting: WaitingCall) -> None:
        with self._lock:
            if self._closed:
                raise engine_closed()
            if waiting.run.released:
                raise RunSuspended
            self._waiting.append(waiting)
            self._entered = True
            self._make_room()

    def _leave(self, waiting: WaitingCall) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._waiting.remove(waiting)

    def _make_room(self) -> None:
        for holds_thread, most in ((True, THREADS), (False, COROUTINES)):
            crowd = [one for one in self._waiting if one.holds_thread is holds_thread and one.may_leave]
            for one in crowd[: max(0, len(crowd) - most)]:
                self._release(one.run)

    def _release(self, run: Execution) -> None:
        """Suspend a run if all its calls that have begun are waiting: working calls are not disturbed."""
        if run.begun <= {one.key for one in self._waiting if one.run is run}:
            run.released = True
            self._end(lambda one: one.run is run, RunSuspended)

    def notify(self, *request_ids: str) -> None:
        """Wake the calls that wait for these requests, so that they check them."""
        self._end(lambda one: one.request in request_ids)

    def wake(self, run_ids: Iterable[str]) -> None:
        """Wake these runs if they wait outside of their tool calls."""
        woken = set(run_ids)
        self._end(lambda one: one.key in woken)

    def release(self) -> None:
        """Suspend the runs that have waited for longer than this process lets them."""
        with self._lock:
            for one in list(self._waiting):
                if self.patience is not None and one.may_leave and time.monotonic() - one.since > self.patience:
                    self._release(one.run)

    def has_new(self) -> bool:
        """Return True if a wait began after the last look, and perhaps after the decision."""
        return self._entered

    def look(self) -> None:
        """Check for decisions and cancellations by other processes."""
        with self._lock:
            waiting, self._entered = list(self._waiting), False
        if waiting:
            self.notify(*self._store.inbox.decided(one.request for one in waiting if one.request is not None))
            cancelled = self._store.claims.cancelled({one.run.run_id for one in waiting})
            self._end(lambda one: one.run.run_id in cancelled, lambda: ownership.Cancelled("the run was cancelled"))

    def close(self) -> list[Execution]:
        """End all waits here, and return the runs that waited; they stay unfinished."""
        with self._lock:
            self._closed = True
            runs = [one.run for one in self._waiting]
        self._end(lambda _: True, engine_closed)
        return runs

    def _end(self, which: Callable[[WaitingCall], bool], error: Callable[[], BaseException] | None = None) -> None:
        with self._lock:
            for waiting in filter(which, self._waiting):
                waiting.end(None if error is None else error())
