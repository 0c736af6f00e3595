"""Two ways to wait: in the calling thread, or on an event loop.

Everything that performs effects is written once, as `async def` over a `Runtime`. With `BlockingRuntime` such a
coroutine never suspends, so `finish` runs it to its end in the calling thread, where tools may use objects bound to
that thread (a SQLite connection, `input`, Ctrl+C). With an event-loop `Runtime` the same coroutine is awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, Protocol, Self, TypeVar, cast, overload

from durable_swarm import ends
from durable_swarm.awaitables import is_async, is_awaitable, settled
from durable_swarm.background import background_loop, errands, on_background, threads
from durable_swarm.tasks import Coro, apart, user_scope

P = ParamSpec("P")
T = TypeVar("T")


class Calls(Protocol):
    """Calls functions that may block."""

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function, plain or async, and return its result."""


class Runtime(Protocol):
    """Calls functions that may block, and lets time pass."""

    @overload
    async def call(self, function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function, plain or async, and return its result."""

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""


class Pool(Protocol):
    """Executes plain functions; an `Executor` is a pool."""

    def submit(self, function: Callable[..., T], /, *args: object) -> Future[T]:
        """Schedule a call of the function."""


class BlockingRuntime:
    """Waits in the calling thread; async functions run on a background loop meanwhile."""

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with ends.carrying():
            with user_scope():
                result = function(*args, **kwargs)
            if not is_awaitable(result):
                return result
            if asyncio.isfuture(result) and result.get_loop() is running_loop():
                raise RuntimeError("the function's task needs the event loop that run() blocks; use run_async() there")
            return beside(lambda _: _apart(result))

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class LoopRuntime:
    """Waits on the running event loop; plain functions run in the threads of `pool`."""

    def __init__(self, pool: Pool | None = None) -> None:
        self._pool = pool

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with ends.carrying():
            if is_async(function):
                return await _apart(settled(function(*args, **kwargs)))
            call = functools.partial(contextvars.copy_context().run, _plain, function, *args, **kwargs)
            result = await asyncio.wrap_future(begin(self._pool or threads(), call))
            return await _apart(settled(result)) if is_awaitable(result) else result

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _plain(function: Callable[..., T], *args: object, **kwargs: object) -> T:
    try:
        with ends.carrying(), user_scope():
            return function(*args, **kwargs)
    except StopIteration as error:
        # A future refuses it, and a waiter for the future would wait forever; these are Python's own words for it.
        raise RuntimeError("coroutine raised StopIteration") from error


async def contained(coroutine: Coro[T]) -> tuple[T, None] | tuple[None, BaseException]:
    """Await the coroutine; return its result, or an exception that would end the loop (SystemExit) or change type."""
    try:
        return await coroutine, None
    except Exception:
        raise
    except BaseException as error:
        return None, error


async def _apart(awaitable: Awaitable[object]) -> object:
    return result_of(await apart(contained(settled(awaitable))))


async def kept(work: Awaitable[T]) -> tuple[T, None] | tuple[None, BaseException]:
    """Await the work and return a failure as a value: it neither ends the loop nor stays unretrieved."""
    try:
        return await work, None
    except BaseException as error:
        return None, error


def result_of(ended: tuple[T, None] | tuple[None, BaseException]) -> T:
    """Return the result that was `contained` or `kept`, or raise its exception."""
    result, error = ended
    if error is not None:
        raise error
    return cast("T", result)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def finish(coroutine: Coro[T]) -> T:
    """Run a coroutine over `BlockingRuntime` to its end in this thread."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("a coroutine that may not suspend did")


@ends.signal
class Interrupted(BaseException):
    """Ctrl+C ended a plain function in the calling thread; the code that waits for the function stops as well.

    Not a KeyboardInterrupt, which would end the event loop that it is sent to.
    """


class CallerThreadExecutor:
    """A thread that waits for work on a loop, and meanwhile makes the plain calls of that work itself.

    It is the pool of a `LoopRuntime`: plain functions keep the thread they belong to. Used as a context manager; later
    calls, and calls that were not begun, go to `threads`. So do calls that were not begun within `patience` seconds:
    then the thread is busy elsewhere, and may never come back.
    """

    def __init__(self, patience: float | None = None) -> None:
        self._patience = patience
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._open = False
        with contextlib.suppress(Empty):
            while True:
                job = self._jobs.get_nowait()
                if job is not None:
                    threads().submit(job)

    def submit(self, function: Callable[..., T], /, *args: object) -> Future[T]:
        """Schedule a call of the function in the waiting thread."""
        future: Future[T] = Future()
        begun = threading.Lock()

        def job() -> None:
            if not begun.acquire(blocking=False) or not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(*args))
            except BaseException as error:
                if ends.interrupts(error):
                    future.set_exception(Interrupted())
                    raise
                future.set_exception(error)

        with self._lock:
            if self._open:
                self._jobs.put(job)
                if self._patience is not None:
                    background_loop().call_soon_threadsafe(self._see_to_it, job, begun)
                return future
        threads().submit(job)
        return future

    def _see_to_it(self, job: Callable[[], None], begun: threading.Lock) -> None:
        def late() -> None:
            if not begun.locked():
                threads().submit(job)

        background_loop().call_later(self._patience or 0, late)

    def wait(self, future: Future[T]) -> T:
        """Make the scheduled calls until `future` is done, and return its result."""
        future.add_done_callback(lambda _: self.wake())
        while not future.done():
            job = self._jobs.get()
            if job is not None:
                job()
        return future.result()

    def wake(self) -> None:
        """Interrupt the thread's wait in `serve`."""
        self._jobs.put(None)

    def serve(self, seconds: float | None = None) -> None:
        """Wait at most some seconds for a call and make it."""
        with contextlib.suppress(Empty):
            job = self._jobs.get(timeout=seconds)
            if job is not None:
                job()


def beside(make: Callable[[Runtime], Coro[T]], home: CallerThreadExecutor | None = None) -> T:
    """Run `make(waits)` on the background loop, in the caller's context, and block this thread until it is done.

    The plain functions it calls run meanwhile in this thread, as `home`.
    """
    with home or CallerThreadExecutor() as here:
        running = on_background(contained(make(LoopRuntime(here))))
        return result_of(here.wait(running))


def block(coroutine: Coro[T]) -> T:
    """Run a coroutine on the background loop, in the caller's context, and block this thread until it is done.

    Ctrl+C ends the wait and cancels the coroutine.
    """
    running = on_background(contained(coroutine))
    try:
        return result_of(running.result())
    except KeyboardInterrupt:
        running.cancel()
        raise


async def together(parts: Iterable[Awaitable[T]]) -> list[T]:
    """Await the parts together; all finish, then the first exception in their order is raised."""
    made = await asyncio.gather(*(contained(_awaited(part)) for part in parts), return_exceptions=True)
    ended = [part if isinstance(part, tuple) else (None, part) for part in made]
    errors = [error for _, error in ended if error is not None]
    # An engine's own signals (cancelled, no longer the owner) are not `Exception`s and outrank exceptions of tools.
    for error in sorted(errors, key=lambda error: isinstance(error, Exception)):
        raise error
    return [cast("T", result) for result, _ in ended]


async def _awaited(awaitable: Awaitable[T]) -> T:
    return await awaitable


class Beside:
    """Work beside what the code that began it does meanwhile: on its event loop, or if it has none on our own."""

    def __init__(self, work: Coro[Any]) -> None:
        loop = running_loop()
        self._running = on_background(kept(work)) if loop is None else loop.create_task(kept(work))

    async def result(self) -> Any:
        """Wait for the work and return its result, or raise its exception."""
        if isinstance(self._running, asyncio.Task):
            return result_of(await self._running)
        try:
            return result_of(self._running.result())
        except KeyboardInterrupt:
            self._running.cancel()
            raise

    def cancel(self) -> None:
        """Cancel the work, if it has not ended: nobody waits for it."""
        self._running.cancel()


async def in_thread(function: Callable[..., T], *args: object) -> T:
    """Await a short plain function of this package in a thread; without an event loop to keep free, call it here.

    The thread is one of the few `errands`, because none of these functions waits for a run.
    """
    if running_loop() is None:
        return function(*args)
    return await asyncio.wrap_future(begin(errands(), contextvars.copy_context().run, function, *args))


def begin(pool: Pool, function: Callable[..., T], *args: object) -> Future[T]:
    """Schedule a call in a pool. Raises `Unable` if it can start nothing more, because the interpreter is ending."""
    try:
        return pool.submit(function, *args)
    except RuntimeError as error:
        raise ends.Unable(f"this process begins nothing more: {error}") from error


def exiting() -> bool:
    """Return True if the program has ended and waits for its threads: then no thread may wait for anything."""
    try:
        errands().submit(int)
    except RuntimeError:
        return True
    return False
