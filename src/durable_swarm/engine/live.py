"""What this process knows of the runs it executes right now: the objects that a database cannot hold."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future, InvalidStateError
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from durable_swarm import errors
from durable_swarm.calls import Cast, Lane
from durable_swarm.checks import check_rate, check_whole
from durable_swarm.codec import Codec
from durable_swarm.engine import internals
from durable_swarm.engine.feed import Feed
from durable_swarm.engine.records import Record
from durable_swarm.engine.sealing import Seal
from durable_swarm.engine.signals import closed
from durable_swarm.engine.versions import Answered
from durable_swarm.loop import Call, Start
from durable_swarm.models import Clients
from durable_swarm.repeats import Place
from durable_swarm.types import Response
from durable_swarm.waits import Home, Waits
from durable_swarm.wire import Conversation

log = logging.getLogger("durable_swarm")


class Settings(Protocol):
    """What a run needs of the `DurableSwarm` it belongs to."""

    clients: Clients
    tool_concurrency: int
    tool_errors: str
    tool_database: str | None
    keep_for: float | None
    model_rates: Mapping[str, tuple[int, float]]
    name: str
    codec: Codec | None
    changed_agents: str


@dataclass(frozen=True)
class Limits:
    """How many queued runs are executed. Raises `ConfigurationError`."""

    concurrency: int = 10
    """In this process at once."""
    queue_concurrency: int | None = None
    """In all workers of the queue at once."""
    rate: tuple[int, float] | None = None
    """How many begin, in all workers, within how many seconds."""

    def __post_init__(self) -> None:
        check_whole("concurrency", self.concurrency, 1)
        if self.queue_concurrency is not None:
            check_whole("queue_concurrency", self.queue_concurrency, 1)
        if self.rate is not None:
            check_rate("rate", self.rate, "runs")


class Swarms(list[Settings]):
    """The swarms that are open in this process, oldest first."""

    def named(self, name: str) -> Settings | None:
        """Give the newest open swarm of that name."""
        return next((swarm for swarm in reversed(self) if swarm.name == name), None)

    def codec_for(self, name: str) -> Codec | None:
        """Give the codec of the swarm of that name; for runs of a swarm that is not open here, whatever codec is."""
        named = self.named(name)
        if named is not None:
            return named.codec
        return next((swarm.codec for swarm in reversed(self) if swarm.codec is not None), None)

    def admit(self, swarm: Settings) -> None:
        """Count `swarm` among the users. Raises `ConfigurationError` if one of its name has another codec."""
        if any(other.name == swarm.name and other.codec != swarm.codec for other in self):
            named = f"named {swarm.name!r}" if swarm.name else "without a name"
            raise errors.ConfigurationError(
                f"a DurableSwarm {named} is open in this process with another codec; give both the same codec, or each "
                "a name= of its own"
            )
        self.append(swarm)


class Keeper(Protocol):
    """What knows whose a run is."""

    def goes_on(self, run: LiveRun) -> bool:
        """Whether the run is under way and this execution's. Raises `internals.Lost` where it is another's."""

    def make_sure(self, run: LiveRun) -> None:
        """Check that. Raises `internals.Cancelled`, too, and `Held` where the database cannot tell."""


SURE = 0.1
"""Seconds for which it counts that the run was found to be this execution's: what waited longer asks again."""


@dataclass
class LiveRun:
    """One run under way in this process."""

    run_id: str
    start: Start
    swarm: Settings
    debug: bool = False
    cast: Cast = field(default_factory=dict)
    conversation: Conversation = field(default_factory=Conversation)
    feed: Feed = field(default_factory=Feed)
    streams: bool = False
    """Whether replies are streamed."""
    homes: list[Home] = field(default_factory=list)
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
    keeper: Keeper | None = None
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
    rests: list[tuple[str | None, int | None]] = field(default_factory=list)
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

    def goes_on(self) -> bool:
        """Whether the run is under way and this execution's. Raises `internals.Lost` where it is another's."""
        return self.keeper is not None and self.keeper.goes_on(self)

    def make_sure(self) -> None:
        """Check that. Raises `internals.Cancelled`, too, and `Held` where the database cannot tell."""
        if self.keeper is not None:
            self.keeper.make_sure(self)

    @property
    def is_sure(self) -> bool:
        """Whether it was asked just now whose the run is."""
        return abs(time.time() - self.sure_at) < SURE

    @property
    def seal(self) -> Seal:
        """What closes and opens the run's records."""
        return Seal(self.swarm.codec)


_beginning: ContextVar[LiveRun | None] = ContextVar("durable_swarm_beginning", default=None)


def beginning_here() -> LiveRun | None:
    """Give the run that is being begun in this context, or None."""
    return _beginning.get()


def is_under_way() -> bool:
    """Whether this code belongs to a run that has begun; one that was not recorded yet fails at once."""
    begun = _beginning.get()
    return internals.in_workflow() and (begun is None or begun.entered)


@contextlib.contextmanager
def beginning(run: LiveRun) -> Iterator[None]:
    """Have a workflow that is started in this context execute the run with these objects.

    Of several callers that start one run at once, one's workflow executes it, with that caller's objects.
    """
    token = _beginning.set(run)
    try:
        yield
    finally:
        _beginning.reset(token)


async def watch(handle: Any, live: LiveRun) -> None:
    """Note when the run's end is recorded, whatever it is; `handle` is DBOS's of the run."""
    try:
        await handle.get_result()
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        log.debug("run %r ended with %s", live.run_id, type(error).__name__)
    finally:
        live.end()


class Again(NamedTuple):
    """A tool call that an earlier life may have begun."""

    run_id: str
    tool: str
    flow: bool
    """Whether the call has records of its own."""
    stood: bool = False
    """Whether the life before ended in no crash."""


class Trials(Protocol):
    """What counts how often a call was executed that a crash left open, and says when a call may begin."""

    def execution(
        self, key: str, waits: Waits, again: Again | None = None
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """Round the execution of a tool or model call."""

    def until_recorded(self, key: str) -> contextlib.AbstractContextManager[None]:
        """Round all that leads to the record of a call that is executed once more."""


class Wait:
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

    def break_off(self, error: BaseException) -> None:
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

    run: LiveRun
    agent: Any
    turn: int
    call: Call
    context: dict[str, Any]
    attempt: int
    lane: Lane | None
    """Where the batch runs together: what gives its plain functions their turn."""
    trials: Trials
    same: Place | None = None
    """Where the model has made the same call before, for the person who approves."""
    wait: Wait = field(default_factory=Wait)


class Desk:
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
                place.set_exception(internals.Lost(key))

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
                    place.set_exception(closed())
