"""Tool calls that are workflows of their own: they link the run that starts them and the thread that makes them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from durable_swarm.concurrency import Runtime
from durable_swarm.engine.backend import ownership
from durable_swarm.engine.execution.execution import Execution
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.signals import engine_closed
from durable_swarm.engine.storage.ledger import Refusal
from durable_swarm.loop import Call
from durable_swarm.tools.batch import ConcurrencyLimit
from durable_swarm.tools.repeats import Place
from durable_swarm.types import AgentLike


class OpenCall(NamedTuple):
    """A tool call that an earlier execution may have begun."""

    run_id: str
    tool: str
    flow: bool
    """True if the call has records of its own."""
    was_paused: bool = False
    """True if the previous execution did not end in a crash."""
    verify_ownership: Callable[[], None] = lambda: None
    """Checks that this execution still owns the run."""


class CallGuard(Protocol):
    """Counts how often a call left open by a crash was executed, and decides when a call may begin."""

    def execution(
        self, key: str, waits: Runtime, again: OpenCall | None = None
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """Wrap the execution of a tool or model call."""

    def until_recorded(self, key: str) -> contextlib.AbstractContextManager[None]:
        """Wrap all steps up to the record of a call that is executed again."""


class ChildWait:
    """A run's wait for an undecorated call. After a crash both are recovered, and another task makes the call.

    If the call is aborted (its tool raised, or is missing), that is not a result that the database could pass on.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._error: BaseException | None = None

    async def end(self, child: Callable[[], Awaitable[Record]]) -> Record:
        """Return the call's record, once it exists, or raise the error that aborted the call."""
        self._task = asyncio.current_task()
        try:
            if self._error is not None:
                raise self._error
            return await child()
        except asyncio.CancelledError:
            if self._error is None or self._task is None or self._task.uncancel() > 0:
                raise
            raise self._error from None
        finally:
            self._task = None

    def abort(self, error: BaseException) -> None:
        """Raise the error in the waiter, unless the call is made there too and raises it by itself."""
        task = self._task
        if task is None or task is not _running_task():
            self._error = error
        if self._error is not None and task is not None:
            task.get_loop().call_soon_threadsafe(self._interrupt, task)

    def _interrupt(self, task: asyncio.Task[object]) -> None:
        if self._task is task:
            task.cancel()


def _running_task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


@dataclass(frozen=True)
class ToolCall:
    """One undecorated tool call in progress, with the data that its workflow needs."""

    run: Execution
    agent: AgentLike
    turn: int
    call: Call
    context: dict[str, Any]
    attempt: int
    lane: ConcurrencyLimit | None
    """The lane of a batch that runs concurrently: it schedules the batch's plain functions."""
    crash_guard: CallGuard
    refused: Callable[[], Refusal | None] = lambda: None
    """Returns the account that does not permit the call, or None. May block."""
    same: Place | None = None
    """The place of an earlier identical call of the model, shown to the person who approves."""
    wait: ChildWait = field(default_factory=ChildWait)


class PendingCalls:
    """The exchange where a run places the data for its undecorated calls, whose workflows pick it up, in either order.

    After a crash both are recovered at once, and a child may start before its run has reached the call again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[str, Future[ToolCall]] = {}
        self._owners: dict[str, str | None] = {}

    def place(self, key: str, owner: str | None = None) -> Future[ToolCall]:
        """Return the place of one call; `owner` is the token of the execution that fetches it."""
        with self._lock:
            self._owners[key] = owner
            return self._places.setdefault(key, Future())

    def owners(self) -> dict[str, str | None]:
        """Return the calls that are placed or awaited here, with the token of the last execution that came, or None."""
        with self._lock:
            return {key: self._owners.get(key) for key in self._places}

    def void(self, key: str) -> None:
        """Remove the entries of an execution that has ended, and end the waits for calls that will not come."""
        with self._lock:
            place = self._places.pop(key, None)
            self._owners.pop(key, None)
            if place is not None and not place.done():
                place.set_exception(ownership.OwnershipLost(key))

    def put(self, key: str, call: ToolCall) -> None:
        """Place the call, replacing the entry of an interrupted execution."""
        with self._lock:
            place = self._places.get(key)
            if place is None or place.done():
                place = self._places[key] = Future()
            place.set_result(call)

    def clear(self, key: str, call: ToolCall | None = None) -> None:
        """Remove the call; with `call`, only if that is the entry."""
        with self._lock:
            place = self._places.get(key)
            is_filled = place is not None and place.done() and place.exception() is None
            if call is None or (place is not None and is_filled and place.result() is call):
                self._places.pop(key, None)
                self._owners.pop(key, None)

    def close(self) -> None:
        """End all waits for calls that are not here."""
        with self._lock:
            for place in self._places.values():
                if not place.done():
                    place.set_exception(engine_closed())
