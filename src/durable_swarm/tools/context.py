"""Where running code stands: in which tool call, what records its steps, who answers what it asks.

`inside` is a context variable that the performer sets round a call; what tools use reaches the engine through it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from durable_swarm.errors import NotInRun
from durable_swarm.requests import Decision, RequestSpec


@dataclass(frozen=True)
class CurrentCall:
    """The tool call under way.

    `attempt` counts from 1 and is above 1 when the call may have been entered before: after a crash, or by a retry.
    `idempotency_key` is the same in every attempt and belongs to no other call: hand it to the outside world.
    """

    run_id: str
    agent: str
    tool: str
    call_id: str
    attempt: int
    idempotency_key: str


class Recorder(Protocol):
    """What the engine offers inside a tool: checkpoints and sleeps that survive a crash."""

    def step(self, name: str, body: Callable[[], Any]) -> Any:
        """Run `body` once, ever, and give its result; a `body` that gives an awaitable gives one for the result."""

    def sleep(self, seconds: float) -> None:
        """Sleep to the time first set."""

    async def sleep_async(self, seconds: float) -> None:
        """Sleep to the time first set, on the event loop."""


class People(Protocol):
    """Who answers what a tool call asks: a person, or another program."""

    async def wait(self, asked: RequestSpec, unfit: Callable[[Decision], str] | None = None) -> Decision:
        """Ask, unless it was asked before, and wait for the decision.

        `unfit` says what is wrong with one, or ''; then the request is opened again.
        """


class Owner(Protocol):
    """Who knows whether what begins is still to begin: in a database, others may have taken the run over."""

    @property
    def ownership_is_fresh(self) -> bool:
        """Whether that was asked just now."""

    def verify_ownership(self) -> None:
        """Ask. Raises what ends the execution where it has the run no more."""


@dataclass(frozen=True)
class Inside:
    """Where the running code stands: in which call, what records its steps (None: nothing does), who answers it.

    `scope` and `numbers` name what the code begins there (steps, runs of its own) the same way in every life and in
    every attempt; `finished` keeps the steps of failed attempts, which a further attempt does not repeat.
    """

    call: CurrentCall
    recorder: Recorder | None
    people: People
    scope: str = ""
    numbers: Iterator[int] = dataclasses.field(default_factory=itertools.count)
    finished: dict[str, Any] = dataclasses.field(default_factory=dict)
    emit: Callable[[int, Any], None] | None = None
    """Takes what the code emits, with the attempt; None where nobody can follow the run."""
    abandoned: threading.Event = dataclasses.field(default_factory=threading.Event)
    """Set when the attempt has timed out; its thread may still run, but begins nothing more."""
    owner: Owner | None = None
    """Asked before each attempt; None in memory."""

    def next_id(self) -> str:
        """Give the id of the next thing begun here."""
        return f"{self.scope or self.call.idempotency_key}/{next(self.numbers)}"

    def again(self, attempt: int) -> Inside:
        """Give the same place for the attempt that follows `attempt` earlier ones."""
        call = dataclasses.replace(self.call, attempt=self.call.attempt + attempt)
        return dataclasses.replace(self, call=call, numbers=itertools.count(), abandoned=threading.Event())

    @property
    def ownership_is_fresh(self) -> bool:
        """Whether it was asked just now whose the run is."""
        return self.owner is None or self.owner.ownership_is_fresh

    def verify_ownership(self) -> None:
        """Check that the code is still to begin, unless that was asked just now."""
        if self.owner is not None and not self.owner.ownership_is_fresh:
            self.owner.verify_ownership()

    def check(self) -> None:
        """Check that the attempt is still wanted. Raises TimeoutError."""
        if self.abandoned.is_set():
            raise TimeoutError(f"tool {self.call.tool!r} has timed out; what its thread goes on with counts no more")


_inside: ContextVar[Inside | None] = ContextVar("durable_swarm_inside", default=None)


@contextlib.contextmanager
def inside(here: Inside) -> Iterator[Inside]:
    """Make `here` what the vocabulary sees in this context."""
    token = _inside.set(here)
    try:
        yield here
    finally:
        _inside.reset(token)


def current_call() -> CurrentCall:
    """Give the tool call under way: `run_id, agent, tool, call_id, attempt, idempotency_key`.

    Raises `NotInRun` outside a tool.
    """
    here = _inside.get()
    if here is None:
        raise NotInRun("current_call() was called outside a tool; only a tool that a run has called has a call")
    return here.call


def calling() -> Inside | None:
    """Give where the running code stands, or None outside a tool."""
    return _inside.get()
