"""Tool calls that are workflows of their own, between the run that starts them and the thread that makes them."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from durable_swarm.concurrency import Runtime
from durable_swarm.engine.backend import steps
from durable_swarm.engine.execution.execution import Execution
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.signals import engine_closed
from durable_swarm.loop import Call
from durable_swarm.tools.batch import ConcurrencyLimit
from durable_swarm.tools.repeats import Place


class OpenCall(NamedTuple):
    """A tool call that an earlier life may have begun."""

    run_id: str
    tool: str
    flow: bool
    """Whether the call has records of its own."""
    stood: bool = False
    """Whether the life before ended in no crash."""


class CallGuard(Protocol):
    """What counts how often a call was executed that a crash left open, and says when a call may begin."""

    def execution(
        self, key: str, waits: Runtime, again: OpenCall | None = None
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """Round the execution of a tool or model call."""

    def until_recorded(self, key: str) -> contextlib.AbstractContextManager[None]:
        """Round all that leads to the record of a call that is executed once more."""


class ChildWait:
    """A run's wait for an undecorated call. After a crash both are taken over, and the call is made by another task.

    What breaks such a call off (its tool raised, or is gone) is no result that the database could pass on.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._error: BaseException | None = None

    async def end(self, child: Callable[[], Awaitable[Record]]) -> Record:
        """Await the call's record, or raise what broke it off."""
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
        """Raise the error where the call is waited for, unless it is made there too and raises it by itself."""
        task = self._task
        if task is None or task is not _running_task():
            self._error = error
        if self._error is not None and task is not None:
            task.get_loop().call_soon_threadsafe(self._interrupt, task)

    def _interrupt(self, task: asyncio.Task[Any]) -> None:
        if self._task is task:
            task.cancel()


def _running_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


@dataclass(frozen=True)
class ToolCall:
    """One undecorated tool call under way, as its child workflow needs it."""

    run: Execution
    agent: Any
    turn: int
    call: Call
    context: dict[str, Any]
    attempt: int
    lane: ConcurrencyLimit | None
    """Where the batch runs together: what gives its plain functions their turn."""
    trials: CallGuard
    same: Place | None = None
    """Where the model has made the same call before, for the person who approves."""
    wait: ChildWait = field(default_factory=ChildWait)


class PendingCalls:
    """Where a run lays down what its child workflows need, and where they pick it up, whoever comes first.

    After a crash both are taken over at once, and a child may start before its run has come to the call again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[str, Future[ToolCall]] = {}
        self._owners: dict[str, str | None] = {}

    def place(self, key: str, owner: str | None = None) -> Future[ToolCall]:
        """Return the place of one call; `owner` is the token of the execution that comes for it."""
        with self._lock:
            self._owners[key] = owner
            return self._places.setdefault(key, Future())

    def owners(self) -> dict[str, str | None]:
        """Return the calls that lie or are waited for here, with the token of who came last; None if nobody has."""
        with self._lock:
            return {key: self._owners.get(key) for key in self._places}

    def void(self, key: str) -> None:
        """Take away what lies there of an execution that is over, and end who waits there for what does not come."""
        with self._lock:
            place = self._places.pop(key, None)
            self._owners.pop(key, None)
            if place is not None and not place.done():
                place.set_exception(steps.OwnershipLost(key))

    def put(self, key: str, call: ToolCall) -> None:
        """Lay the call down, in place of what an interrupted life of it left."""
        with self._lock:
            place = self._places.get(key)
            if place is None or place.done():
                place = self._places[key] = Future()
            place.set_result(call)

    def clear(self, key: str, call: ToolCall | None = None) -> None:
        """Take the call away; with `call`, only if that is what lies there."""
        with self._lock:
            place = self._places.get(key)
            lies = place is not None and place.done() and place.exception() is None
            if call is None or (place is not None and lies and place.result() is call):
                self._places.pop(key, None)
                self._owners.pop(key, None)

    def close(self) -> None:
        """Have nobody wait any more for what is not here."""
        with self._lock:
            for place in self._places.values():
                if not place.done():
                    place.set_exception(engine_closed())
