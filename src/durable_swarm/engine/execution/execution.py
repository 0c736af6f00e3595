"""The runs that this process executes at present: the objects that a database cannot hold."""

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
from durable_swarm.engine.backend.steps import StartedWorkflow
from durable_swarm.engine.execution.budget import Budget
from durable_swarm.engine.execution.publisher import EventPublisher
from durable_swarm.engine.execution.swarms import Settings
from durable_swarm.engine.records.agent_versions import Answered
from durable_swarm.engine.records.compactions import CompactionPlan
from durable_swarm.engine.records.encoding import RecordCodec
from durable_swarm.engine.records.executions import EndedExecution
from durable_swarm.engine.records.sessions import SessionPlace
from durable_swarm.loop import Start
from durable_swarm.models.wire import Conversation
from durable_swarm.swarm.collected_trace import CollectedTrace
from durable_swarm.swarm.compaction import SessionHistory
from durable_swarm.tools.calls import Cast
from durable_swarm.types import Response, Usage

log = logging.getLogger("durable_swarm")


class OwnershipKeeper(Protocol):
    """Knows which execution owns a run."""

    def check_ownership(self, run: Execution) -> bool:
        """Return True if the run is in progress and this execution owns it. Raises `OwnershipLost` if another does."""

    def verify_ownership(self, run: Execution) -> None:
        """Check ownership. Raises `Cancelled`, too, and `RunHeld` if the database cannot answer."""


SURE = 0.1
"""Seconds for which a successful ownership check counts: after a longer wait it is repeated."""


@dataclass
class Execution:
    """One run in progress in this process."""

    run_id: str
    start: Start
    swarm: Settings
    root: str
    """The id of the top run of its family: its own, unless a tool call of another run started it."""
    budget: Budget = field(init=False)
    """What the run may spend; known when it is entered."""
    live: bool = False
    """True once this execution has performed an effect that has no record."""
    debug: bool = False
    cast: Cast = field(default_factory=dict)
    conversation: Conversation = field(default_factory=Conversation)
    publisher: EventPublisher = field(default_factory=EventPublisher)
    belongs_to: str | None = None
    """The person to whom it belongs, and so do the runs that its tools start."""
    place: SessionPlace | None = None
    """Its place in a session, or None if it is in none."""
    history: SessionHistory = field(default_factory=SessionHistory)
    """The messages of its session before it."""
    compaction: CompactionPlan | None = None
    """When the first of them are summarized."""
    trace: CollectedTrace | None = None
    """What it has done, if its swarm is observed and no earlier execution has done anything."""
    summarizing: Usage | None = None
    """The tokens of the summary that it has written."""
    tokens: int = 0
    """The tokens of its last model call, if the provider counts them."""
    streams: bool = False
    """True if replies are streamed."""
    caller_threads: list[CallerThreadExecutor] = field(default_factory=list)
    """Threads that wait for this run and execute its plain functions meanwhile."""
    entered: bool = False
    """True if the workflow's body was entered in this process: if not, another process executes the run."""
    recovered: bool = False
    """True if an earlier execution may have begun a step that has no record yet."""
    before: EndedExecution | None = None
    """The execution in another process from which the run was taken over; None once an event has said so."""
    was_paused: bool = False
    """True if the previous execution did not crash: the run was taken over from a process that was paused."""
    over: Future[None] = field(default_factory=Future)
    """Done when the run is no longer executed here and its end, if any, is in the database; or when ownership is lost:
    then its tools may still run for a while."""
    lost: bool = False
    """True if another execution owns the run: results of this one do not belong to it."""
    watched: bool = False
    """True if a task awaits the workflow itself and so notices when its end is recorded."""
    watcher: asyncio.Task[None] | None = None
    """The task that watches; kept, because a loop does not keep its tasks."""
    response: Response | None = None
    error: BaseException | None = None
    process: str = ""
    """The name of this process."""
    queue: str = ""
    """The shared queue from which it was claimed, or ''."""
    owner: str | None = None
    """DBOS's token of this execution."""
    keeper: OwnershipKeeper | None = None
    """Checks which execution owns the run."""
    sure_at: float = 0.0
    """The time of the last ownership check, in seconds since 1970, because a suspended machine stops other clocks."""
    heard: int = 0
    """How many of the messages added to the run the model has received."""
    said: int | None = None
    """How many messages had been added when its last step began; None if unknown."""
    input_guardrails: list[str] | None = None
    """The names of those that run beside the first model call, if that was recorded by an earlier execution."""
    answered: dict[str, Answered] = field(default_factory=dict)
    """The last own turn of each agent. Turns kept by a fork do not count: it continues with the present code."""
    rated: str | None = None
    """The reason for the wait while the run waits for a model's rate limit, else None."""
    begun: set[str] = field(default_factory=set)
    """The tool calls whose tools are being executed."""
    asks: int = 0
    """How many of its calls have a request, and wait or are about to wait."""
    stays: bool = False
    """True if the run stays in memory however long it waits."""
    released: bool = False
    """True if the run is to leave memory: all its waits are unwound."""
    patience: float = 0.0
    """How many seconds the run waits for a provider that is away."""
    away: str | None = None
    """The outage, by its key, for whose end the run itself waits."""
    suspended_on: list[tuple[str | None, int | None]] = field(default_factory=list)
    """Conditions that the released run waits for: requests, and times in milliseconds since 1970."""

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Count a call that opens a request, for as long as it waits."""
        self.asks += 1
        if self.trace is not None:
            self.trace.whole = False  # A wait for a request is recorded by whoever decides it.
        try:
            yield
        finally:
            self.asks -= 1

    @property
    def has_ended(self) -> bool:
        """Return True if this execution has come to the run's end."""
        return self.response is not None or self.error is not None

    def end(self) -> None:
        """End all waits for this execution."""
        with contextlib.suppress(InvalidStateError):
            self.over.set_result(None)

    def lose(self) -> None:
        """Note that another execution owns the run."""
        self.lost, self.response, self.error = True, None, None

    def check_ownership(self) -> bool:
        """Return True if the run is in progress and this execution owns it. Raises `OwnershipLost` if another does."""
        return self.keeper is not None and self.keeper.check_ownership(self)

    def verify_ownership(self) -> None:
        """Check ownership. Raises `Cancelled`, too, and `RunHeld` if the database cannot answer."""
        if self.keeper is not None:
            self.keeper.verify_ownership(self)

    def recovery(self, turn: int) -> dict[str, Any] | None:
        """Return what `run.recovered` says if this execution took the run over and no event has said so, else None."""
        before, self.before = self.before, None
        if before is None:
            return None
        return {"turn": turn, "process": self.process, "before": before.process, "how": before.how}

    @property
    def ownership_is_fresh(self) -> bool:
        """Return True if ownership was checked just now."""
        return abs(time.time() - self.sure_at) < SURE

    @property
    def record_codec(self) -> RecordCodec:
        """The codec of the run's records."""
        return RecordCodec(self.swarm.codec)


_beginning: ContextVar[Execution | None] = ContextVar("durable_swarm_beginning", default=None)


def beginning_here() -> Execution | None:
    """Return the run that is being begun in this context, or None."""
    return _beginning.get()


def is_under_way() -> bool:
    """Return True if this code belongs to a run that has begun; a run that was not recorded yet fails at once."""
    begun = _beginning.get()
    return steps.in_workflow() and (begun is None or begun.entered)


@contextlib.contextmanager
def beginning(run: Execution) -> Iterator[None]:
    """Make a workflow that is started in this context execute the run with these objects.

    Of several callers that start one run at once, one's workflow executes it, with that caller's objects.
    """
    token = _beginning.set(run)
    try:
        yield
    finally:
        _beginning.reset(token)


async def watch(handle: StartedWorkflow, live: Execution) -> None:
    """Note when the run's end is recorded, whatever its kind; `handle` is DBOS's handle of the run."""
    try:
        await handle.get_result()
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        log.debug("run %r ended with %s", live.run_id, type(error).__name__)
    finally:
        live.end()
