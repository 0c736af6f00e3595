"""The context of running code: its tool call, the recorder of its steps, and the recipient of its requests.

`inside` sets a context variable around a call; the functions that tools use reach the engine through it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Callable, Collection, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict, Unpack

from durable_swarm.concurrency import Runtime
from durable_swarm.errors import NotInRun
from durable_swarm.requests import Decision, Kind, RequestSpec
from durable_swarm.sub_agents import ChildRunner, children_run_by


@dataclass(frozen=True)
class CurrentCall:
    """The tool call in progress.

    `attempt` counts from 1 and is above 1 if the call may have been entered before: after a crash, or by a retry.
    `idempotency_key` is the same in every attempt and belongs to no other call: pass it to external services.
    """

    run_id: str
    agent: str
    tool: str
    call_id: str
    attempt: int
    idempotency_key: str


class Recorder(Protocol):
    """The engine inside a tool: checkpoints and sleeps that survive a crash."""

    def step(self, name: str, body: Callable[[], Any]) -> Any:
        """Run `body` once, ever, and return its result; if `body` returns an awaitable, return one for the result."""

    async def mark(self, waits: Runtime) -> bool:
        """Record that something is about to begin that must not be repeated unseen; return True if that is new."""

    def sleep(self, seconds: float) -> None:
        """Sleep until the time that was first set."""

    async def sleep_async(self, seconds: float) -> None:
        """Sleep until the time that was first set, on the event loop."""


class People(Protocol):
    """Answers the requests of a tool call: a person, or another program."""

    async def wait(self, asked: RequestSpec, unfit: Callable[[Decision], str] | None = None) -> Decision:
        """Open the request, unless it was opened before, and wait for the decision.

        `unfit` returns the problem with a decision, or ''; with a problem the request is opened again.
        """


class RequestFields(TypedDict, total=False):
    """The fields of a request beside its question, as in `RequestSpec`."""

    choices: list[str] | None
    arguments: dict[str, Any] | None
    schema: dict[str, Any] | None
    timeout: float | None
    same_as: int | None


def request_of(call: CurrentCall, *, id: str, kind: Kind, question: str, **more: Unpack[RequestFields]) -> RequestSpec:
    """Return a request of a tool call."""
    return RequestSpec(
        id=id,
        kind=kind,
        run_id=call.run_id,
        call=call.idempotency_key,
        agent=call.agent,
        tool=call.tool,
        call_id=call.call_id,
        question=question,
        **more,
    )


class Owner(Protocol):
    """The execution's ownership of the run: in a database, another process may have taken the run over."""

    @property
    def ownership_is_fresh(self) -> bool:
        """True if ownership was verified just now."""

    def verify_ownership(self) -> None:
        """Verify that this process still owns the run. If not, raises the signal that ends the execution."""


@dataclass(frozen=True)
class Inside:
    """The context of running code: its call, the recorder of its steps (None: nothing is recorded), and its `People`.

    `scope` and `numbers` name what the code begins (steps, child runs) the same way in every execution and in every
    attempt; `finished` keeps the steps of failed attempts, which a further attempt does not repeat.
    """

    call: CurrentCall
    recorder: Recorder | None
    people: People
    scope: str = ""
    numbers: Iterator[int] = dataclasses.field(default_factory=itertools.count)
    finished: dict[str, Any] = dataclasses.field(default_factory=dict)
    emit: Callable[[int, Any], None] | None = None
    """Receives what the code emits, with the attempt; None if nothing can follow the run."""
    abandoned: threading.Event = dataclasses.field(default_factory=threading.Event)
    """Set when the attempt has timed out; its thread may still run, but begins nothing more."""
    owner: Owner | None = None
    """Verified before each attempt; None in memory."""
    limited_by: Collection[str] = ()
    """The ids of the runs whose limits hold here: of the tool's own run, and of its ancestors."""
    swarm: ChildRunner | None = None
    """Runs agents for the code."""

    def next_id(self) -> str:
        """Return the id of the next step or child run begun here."""
        return f"{self.scope or self.call.idempotency_key}/{next(self.numbers)}"

    def again(self, attempt: int) -> Inside:
        """Return the same context for the attempt that follows `attempt` earlier ones."""
        call = dataclasses.replace(self.call, attempt=self.call.attempt + attempt)
        return dataclasses.replace(self, call=call, numbers=itertools.count(), abandoned=threading.Event())

    @property
    def ownership_is_fresh(self) -> bool:
        """True if ownership was verified just now."""
        return self.owner is None or self.owner.ownership_is_fresh

    def verify_ownership(self) -> None:
        """Check that this process still owns the run, unless that was verified just now."""
        if self.owner is not None and not self.owner.ownership_is_fresh:
            self.owner.verify_ownership()

    def check(self) -> None:
        """Check that the attempt has not timed out. Raises TimeoutError."""
        if self.abandoned.is_set():
            raise TimeoutError(f"tool {self.call.tool!r} has timed out; what its thread still does is ignored")


_inside: ContextVar[Inside | None] = ContextVar("durable_swarm_inside", default=None)


@contextlib.contextmanager
def inside(here: Inside) -> Iterator[Inside]:
    """Make `here` the context of the functions that tools use."""
    token = _inside.set(here)
    try:
        with children_run_by(here.swarm):
            yield here
    finally:
        _inside.reset(token)


def current_call() -> CurrentCall:
    """Return the tool call in progress: `run_id, agent, tool, call_id, attempt, idempotency_key`.

    Raises `NotInRun` outside a tool.
    """
    here = _inside.get()
    if here is None:
        raise NotInRun("current_call() was called outside a tool; only a tool that a run has called has a call")
    return here.call


def calling() -> Inside | None:
    """Return the context of the running code, or None outside a tool."""
    return _inside.get()
