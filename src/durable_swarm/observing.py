"""What observers of a process are told: model calls and tool calls that are executed here, and runs that end here.

An observer, such as the one of `durable_swarm.otel`, is told of nothing that a replay takes from its record.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from durable_swarm.types import Message, Usage

log = logging.getLogger("durable_swarm")


@dataclass(frozen=True)
class StepTrace:
    """A step inside a tool. Times are seconds since 1970, here and below; None if unknown or not yet."""

    name: str
    started: float | None
    finished: float | None
    error: str = ""


@dataclass(frozen=True)
class CallTrace:
    """A tool call that was made. `key` is its id. `result` is the text for the model, None while there is none."""

    key: str
    tool: str
    call_id: str
    arguments: str
    effect: str
    started: float | None
    finished: float | None
    result: str | None = None
    error: str = ""
    steps: Sequence[StepTrace] = ()


@dataclass(frozen=True)
class TurnTrace:
    """A turn: the model call and its tool calls. `message` is None if it failed or has not ended."""

    turn: int
    agent: str
    model: str
    started: float | None
    finished: float | None
    message: Message | None = None
    usage: Usage | None = None
    finish: str = ""
    error: str = ""
    calls: Sequence[CallTrace] = ()


@dataclass(frozen=True)
class WaitTrace:
    """A wait for the decision about a request."""

    request_id: str
    kind: str
    call: str
    started: float
    finished: float | None


@dataclass(frozen=True)
class RunEnd:
    """The end of a run: `status` is done, failed or cancelled; `error` is the type of the error it failed with."""

    status: str
    at: float
    ended_by: str = ""
    error: str = ""
    message: str = ""


@dataclass(frozen=True)
class RunTrace:
    """The records of a run, by turn, without the turns that a fork has kept from another.

    `root` is the top run of its family, `call` the id of the tool call that started it, or ''. `end` is None while it
    is unfinished. `resumed` are the times of the ends that were undone by `resume`, in order.
    """

    run_id: str
    root: str
    call: str
    agent: str
    session: str
    started: float
    messages: Sequence[Message]
    turns: Sequence[TurnTrace]
    waits: Sequence[WaitTrace] = ()
    end: RunEnd | None = None
    resumed: Sequence[float] = ()
    forked_from: str = ""


@dataclass
class Executed:
    """A model call or a tool call that was executed in this process; times as in `time.time()`."""

    kind: Literal["model", "tool"]
    name: str
    """The model's or the tool's."""
    agent: str
    started: float = field(default_factory=time.time)
    seconds: float = 0.0
    usage: Usage | None = None
    error: str = ""


class Observer(Protocol):
    """Is told what happens. An error of it is logged, and disturbs no run."""

    def wants(self, swarm: Any) -> bool:
        """Return True if it wants to be told of the runs of this swarm."""

    def inside(self, root: str, key: str) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which the tool call `key` is made; `root` is the top run of its family."""

    def executed(self, what: Executed) -> None:
        """Take a call that was executed."""

    def ended(self, trace: RunTrace) -> None:
        """Take the trace of a run that is about to end."""


_observers: list[Observer] = []


def observe(observer: Observer) -> Callable[[], None]:
    """Tell the observer what happens from now on; return the function that ends this."""
    _observers.append(observer)
    return lambda: _observers.remove(observer) if observer in _observers else None


def observers_of(swarm: object) -> list[Observer]:
    """Return the observers of a swarm's runs."""
    return [observer for observer in _observers if observer.wants(swarm)] if _observers else []


@contextlib.contextmanager
def executing(
    swarm: object, kind: Literal["model", "tool"], name: str, agent: str, root: str = "", key: str = ""
) -> Iterator[Executed]:
    """Tell the observers of a call that is made in this block; `root` and `key` name a tool call."""
    observers, what = observers_of(swarm), Executed(kind, name, agent)
    if not observers:
        yield what
        return
    begun = time.perf_counter()
    try:
        with contextlib.ExitStack() as stack:
            for observer in observers if key else ():
                stack.enter_context(observer.inside(root, key))
            yield what
    except BaseException as error:
        what.error = type(error).__name__
        raise
    finally:
        what.seconds = time.perf_counter() - begun
        for observer in observers:
            _guarded(observer.executed, what)


def run_ended(swarm: object, trace: Callable[[], RunTrace]) -> None:
    """Tell the observers that a run is about to end."""
    observers = observers_of(swarm)
    if observers:
        try:
            found = trace()
        except Exception:
            log.exception("the trace of a run could not be read; `durable-swarm trace ID` sends it")
            return
        for observer in observers:
            _guarded(observer.ended, found)


def _guarded(tell: Callable[[Any], None], what: object) -> None:
    try:
        tell(what)
    except Exception:
        log.exception("an observer of runs failed")
