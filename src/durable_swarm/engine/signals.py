"""Signals by which a run leaves its workflow without a response, and the form in which DBOS stores a failure.

`StepFailed`, `RunHeld` and `RunSuspended` do not derive from `Exception`. So DBOS does not record them as the result of
a step (a fixed program could not repeat it), and a tool's `except Exception` does not swallow them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from durable_swarm import ends, errors
from durable_swarm.concurrency import in_thread
from durable_swarm.tools.context import calling

T = TypeVar("T")


@ends.signal
class StepFailed(BaseException):
    """A tool or a model call ended the run with `error`, in the step called `step`."""

    def __init__(self, error: BaseException, step: str) -> None:
        super().__init__(type(error).__name__)
        self.error = error
        self.step = step


@ends.signal
class RunHeld(BaseException):
    """The run cannot continue in this process for `reason`; in the database it stays unfinished.

    `passes` says that the database could not be written. That needs no person, so the run is retried automatically.
    """

    def __init__(self, reason: errors.DurableSwarmError, *, passes: bool = False) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.passes = passes


@ends.signal
class RunSuspended(BaseException):
    """The run waits for a decision or a time, and leaves memory until the database wakes it."""


@ends.leaving
class Closed(errors.ConfigurationError):
    """The engine was closed, or is about to be, while a caller needs it."""


class Broken(Exception):
    """The exception that DBOS stores for a failed run: `data` is the failure's record."""

    def __init__(self, data: dict[str, object]) -> None:
        super().__init__(f"{data['type']}: {data.get('message', '')}".removesuffix(": "))
        self.data = data


def engine_closed() -> RunHeld:
    """Return the hold for a run whose engine was closed. The run continues where the database is opened next."""
    return RunHeld(Closed("the DurableSwarm was closed while the run was in progress"))


def program_ended() -> Closed:
    """Return what a thread meets that waits for a run although the program has come to its end, which waits for it."""
    return Closed(
        "the program has ended while this thread waits for a run; the run continues where its agents are defined"
    )


def refused(reason: errors.DurableSwarmError) -> BaseException:
    """Return the exception for a run that cannot continue in this process; inside a tool, also for the tool's run."""
    here = calling()
    return reason if here is None or here.owner is None else RunHeld(reason)


async def look_aside(function: Callable[..., T], *args: object) -> T:
    """Await a short plain function in a thread, for whoever waits for a run on an event loop.

    Raises `Closed` where the program has ended and no thread can be started.
    """
    try:
        return await in_thread(function, *args)
    except ends.Unable:
        raise refused(program_ended()) from None
