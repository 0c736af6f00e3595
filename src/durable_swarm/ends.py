"""Classifies exceptions of user code: a failure of the code, or a signal that passes through it.

User code may raise anything: a Rust panic, pytest's `fail()` and gevent's `Timeout` are not `Exception`s. All of these
are failures like any other. Signals are not failures: a signal of the engine, Ctrl+C, `sys.exit()` in a handler of an
operating system's signal, and a cancellation of the task in which the run is executed.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal as system_signals
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NoReturn, TypeVar

from durable_swarm.errors import ModelError, safe_text

Kind = TypeVar("Kind", bound=type[BaseException])
Left = TypeVar("Left", bound=type[Exception])

_signals: set[type[BaseException]] = set()
_leaving: set[type[Exception]] = set()
_sorters: list[Callable[[BaseException], BaseException | None]] = []


def signal(kind: Kind) -> Kind:
    """Declare that exceptions of this class are signals that pass through user code; usable as a decorator."""
    _signals.add(kind)
    return kind


def leaving(kind: Left) -> Left:
    """Declare that these `Exception`s mean the end of this process, also as the cause of another one in user code.

    Usable as a decorator.
    """
    _leaving.add(kind)
    return kind


def sorter(sort: Callable[[BaseException], BaseException | None]) -> Callable[[BaseException], BaseException | None]:
    """Declare a function that returns the signal that an exception means, also as the cause of another one, or None.

    Usable as a decorator.
    """
    _sorters.append(sort)
    return sort


class Raised(Exception):
    """Carries an exception of user code that is not an `Exception`, so that it is handled like one.

    Unwrapped it would pass every `except Exception`, and `SystemExit` would end the event loop that it is raised on.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__(type(error).__name__)
        self.error = error

    @property
    def is_retried(self) -> bool:
        """True if `retries` apply. They do not apply to a request to exit."""
        return not isinstance(self.error, SystemExit | KeyboardInterrupt | GeneratorExit | asyncio.CancelledError)


@signal
class Unable(BaseException):
    """This process can begin nothing more, for example because its interpreter is ending. Others continue the run."""


def failure_of(error: BaseException) -> BaseException | None:
    """Return the exception with which user code failed, or None if a signal ended it."""
    if isinstance(error, Raised):
        return error.error
    return None if passing(error) is not None else error


def passing(error: BaseException) -> BaseException | None:
    """Return the signal that this exception is, or that a group of exceptions contains, or None.

    An `Exception` caused by the end of this process counts as `Unable`.
    """
    if isinstance(error, Exception):
        return next(filter(None, map(_meaning, _chain(error, set()))), None)
    if isinstance(error, BaseExceptionGroup):
        return next((found for part in error.exceptions if (found := passing(part)) is not None), None)
    passes = isinstance(error, tuple(_signals)) or interrupts(error) or _cancelled_from_outside(error)
    return error if passes else None


def _meaning(error: BaseException) -> BaseException | None:
    if _is_of_the_end(error):
        return Unable(f"this process stops: {error}")
    return next(filter(None, (sort(error) for sort in _sorters)), None)


def _is_of_the_end(error: BaseException) -> bool:
    if isinstance(error, RuntimeError) and not isinstance(error, RecursionError):
        return "interpreter shutdown" in safe_text(error)  # Python's message once its threads and pools have ended.
    return isinstance(error, tuple(_leaving))


def _chain(error: BaseException | None, seen: set[int]) -> Iterator[BaseException]:
    """Yield an exception, its causes, and the members if it is a group."""
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    causes = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    # A `ModelError` hides its context only from tracebacks.
    hidden = error.__suppress_context__ and not isinstance(error, ModelError)
    for other in (error.__cause__, None if hidden else error.__context__, *causes):
        yield from _chain(other, seen)


def let_pass(error: BaseException) -> NoReturn:
    """Raise the signal that ended user code; for a group of exceptions, the signal in it."""
    raise passing(error) or error


def interrupts(error: BaseException) -> bool:
    """Return True if the process was asked to stop: Ctrl+C, or `sys.exit()` in a signal handler.

    Python runs the handlers of operating system signals in the main thread only.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    return isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and _in_handler(error.__traceback__))


def _in_handler(trace: TracebackType | None) -> bool:
    handlers = [system_signals.getsignal(number) for number in system_signals.valid_signals()] if trace else []
    codes = {getattr(getattr(handler, "__func__", handler), "__code__", None) for handler in handlers} - {None}
    while trace is not None and codes:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False


def _cancelled_from_outside(error: BaseException) -> bool:
    if not isinstance(error, asyncio.CancelledError):
        return False
    try:
        task = asyncio.current_task()
    except RuntimeError:
        return False
    return task is not None and task.cancelling() > 0


@contextlib.contextmanager
def carrying() -> Iterator[None]:
    """Run user code in this block: a failure leaves it as an `Exception`, `Raised` if needed; signals pass."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if failure_of(error) is not None:
            raise Raised(error) from None
        let_pass(error)


@contextlib.contextmanager
def bare() -> Iterator[None]:
    """Raise the original of an exception that left this block carried, for user code to handle."""
    try:
        yield
    except Raised as carried:
        raise carried.error from None
