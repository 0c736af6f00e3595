"""What this process knows of the runs it executes right now: the objects that a database cannot hold."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from durable_swarm.concurrency import CallerThreadExecutor
from durable_swarm.engine.backend import steps
from durable_swarm.engine.execution.publisher import EventPublisher
from durable_swarm.engine.execution.swarms import Settings
from durable_swarm.engine.records.agent_versions import Answered
from durable_swarm.engine.records.encoding import RecordCodec
from durable_swarm.loop import Start
from durable_swarm.models.wire import Conversation
from durable_swarm.tools.calls import Cast
from durable_swarm.types import Response

log = logging.getLogger("durable_swarm")


class OwnershipKeeper(Protocol):
    """What knows whose a run is."""

    def check_ownership(self, run: Execution) -> bool:
        """Whether the run is under way and this execution's. Raises `OwnershipLost` where it is another's."""

    def verify_ownership(self, run: Execution) -> None:
        """Check that. Raises `Cancelled`, too, and `RunHeld` where the database cannot tell."""


SURE = 0.1
"""Seconds for which it counts that the run was found to be this execution's: what waited longer asks again."""


@dataclass
class Execution:
    """One run under way in this process."""

    run_id: str
    start: Start
    swarm: Settings
    debug: bool = False
    cast: Cast = field(default_factory=dict)
    conversation: Conversation = field(default_factory=Conversation)
    feed: EventPublisher = field(default_factory=EventPublisher)
    streams: bool = False
    """Whether replies are streamed."""
    homes: list[CallerThreadExecutor] = field(default_factory=list)
    """Threads that wait for this run and lend themselves to its plain functions."""
    entered: bool = False
    """Whether the workflow's body was entered in this process: if not, somebody else executes the run."""
    recovered: bool = False
    """Whether an earlier life may have begun what has no record yet."""
    stood: bool = False
    """Whether the life before was no crash: it was taken over from a process that stood still."""
    over: Future[None] = field(default_factory=Future)
    """Done when the run is executed here no more, and its end, if it has come to one, is in the database; or when it is
    lost: then its tools may go on for a while."""
    lost: bool = False
    """Whether another execution has the run: what this one has made of it is not the run's."""
    watched: bool = False
    """Whether somebody awaits the workflow itself, who knows when its end is recorded."""
    watcher: asyncio.Task[None] | None = None
    """Who watches; kept, because a loop does not keep its tasks."""
    response: Response | None = None
    error: BaseException | None = None
    owner: str | None = None
    """DBOS's token of this execution."""
    keeper: OwnershipKeeper | None = None
    """Who knows whose the run is."""
    sure_at: float = 0.0
    """When that was asked last, in seconds since 1970: a machine that is suspended stops the other clocks."""
    heard: int = 0
    """How many messages that were said to the run the model has been told."""
    said: int | None = None
    """How many were said to it when its last step began; None where that is not known."""
    answered: dict[str, Answered] = field(default_factory=dict)
    """The last own turn of each agent. What a fork has kept does not count: it goes on with the code as it is now."""
    rated: str | None = None
    """What the run waits for before it may ask a model, if it does."""
    begun: set[str] = field(default_factory=set)
    """The tool calls whose tools are being executed."""
    asks: int = 0
    """How many of its calls ask somebody, and wait or are about to."""
    stays: bool = False
    """Whether the run keeps its place however long it waits."""
    released: bool = False
    """Whether the run leaves memory: whatever waits in it is unwound."""
    suspended_on: list[tuple[str | None, int | None]] = field(default_factory=list)
    """What the released run waits for: requests, and times in milliseconds since 1970."""

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Count a call that asks somebody, for as long as it does."""
        self.asks += 1
        try:
            yield
        finally:
            self.asks -= 1

    def end(self) -> None:
        """Have nobody wait any more for what this execution does."""
        with contextlib.suppress(InvalidStateError):
            self.over.set_result(None)

    def lose(self) -> None:
        """Note that another execution has the run."""
        self.lost, self.response, self.error = True, None, None

    def check_ownership(self) -> bool:
        """Whether the run is under way and this execution's. Raises `OwnershipLost` where it is another's."""
        return self.keeper is not None and self.keeper.check_ownership(self)

    def verify_ownership(self) -> None:
        """Check that. Raises `Cancelled`, too, and `RunHeld` where the database cannot tell."""
        if self.keeper is not None:
            self.keeper.verify_ownership(self)

    @property
    def ownership_is_fresh(self) -> bool:
        """Whether it was asked just now whose the run is."""
        return abs(time.time() - self.sure_at) < SURE

    @property
    def seal(self) -> RecordCodec:
        """What closes and opens the run's records."""
        return RecordCodec(self.swarm.codec)


_beginning: ContextVar[Execution | None] = ContextVar("durable_swarm_beginning", default=None)


def beginning_here() -> Execution | None:
    """Give the run that is being begun in this context, or None."""
    return _beginning.get()


def is_under_way() -> bool:
    """Whether this code belongs to a run that has begun; one that was not recorded yet fails at once."""
    begun = _beginning.get()
    return steps.in_workflow() and (begun is None or begun.entered)


@contextlib.contextmanager
def beginning(run: Execution) -> Iterator[None]:
    """Have a workflow that is started in this context execute the run with these objects.

    Of several callers that start one run at once, one's workflow executes it, with that caller's objects.
    """
    token = _beginning.set(run)
    try:
        yield
    finally:
        _beginning.reset(token)


async def watch(handle: Any, live: Execution) -> None:
    """Note when the run's end is recorded, whatever it is; `handle` is DBOS's of the run."""
    try:
        await handle.get_result()
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        log.debug("run %r ended with %s", live.run_id, type(error).__name__)
    finally:
        live.end()
