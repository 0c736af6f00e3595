"""The two ways to wait: in the calling thread, or on an event loop.

Everything that performs effects is written once, as `async def` over a `Runtime`. With `BlockingRuntime` such a
coroutine never suspends, so `finish` runs it to its end in the calling thread, where tools may use what belongs to that
thread (a SQLite connection, `input`, Ctrl+C). With an event-loop `Runtime` the same coroutine is awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, Protocol, Self, TypeVar, cast

from durable_swarm import ends
from durable_swarm.awaitables import is_async, is_awaitable, settled

T = TypeVar("T")


class Runtime(Protocol):
    """How to call what may block and how to let time pass."""

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function, plain or async, and give its result."""

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""


class Pool(Protocol):
    """Where plain functions run; an `Executor` is one."""

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Have the function called."""


class BlockingRuntime:
    """Waits in the calling thread; what is async runs on a background loop meanwhile."""

    async def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with ends.carrying():
            result = function(*args, **kwargs)
            if not is_awaitable(result):
                return result
            if asyncio.isfuture(result) and result.get_loop() is running_loop():
                raise RuntimeError("the function's task needs the event loop that run() blocks; use run_async() there")
            return beside(lambda _: settled(result))

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class LoopRuntime:
    """Waits on the running event loop; plain functions go to the threads of `pool`."""

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


def _plain(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    try:
        with ends.carrying():
            return function(*args, **kwargs)
    except StopIteration as error:
        # A future refuses it, and whoever waits for the future would wait for ever; Python's own words for it.
        raise RuntimeError("coroutine raised StopIteration") from error


async def contained(coroutine: Coroutine[Any, Any, T]) -> tuple[T, None] | tuple[None, BaseException]:
    """Await the coroutine and return its result, or what would end the event loop (SystemExit) or lose its kind."""
    try:
        return await coroutine, None
    except Exception:
        raise
    except BaseException as error:
        return None, error


async def _apart(awaitable: Awaitable[Any]) -> Any:
    """Await what a function has returned in a task of its own: code that cancels its task does not cancel the run."""
    return result_of(await asyncio.get_running_loop().create_task(contained(settled(awaitable))))


def result_of(ended: tuple[T, None] | tuple[None, BaseException]) -> T:
    """Give the result of what was `contained`, or raise what it raised."""
    result, error = ended
    if error is not None:
        raise error
    return cast("T", result)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Give the event loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def finish(coroutine: Coroutine[Any, Any, T]) -> T:
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
    """Ctrl+C ended a plain function in the thread that lent itself; whoever waits for the function stops as well.

    Not a KeyboardInterrupt, which would end the event loop it is told to.
    """


class CallerThreadExecutor:
    """A thread that waits for work on a loop, and meanwhile makes the plain calls of that work itself.

    It is the pool of an `LoopRuntime`: plain functions keep the thread they belong to. Used as a context manager; calls
    that come in later, or were not begun, go to `threads`. So do calls that were not begun within `patience` seconds:
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

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Have the waiting thread call the function."""
        future: Future[Any] = Future()
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
        """Make the calls that come in until `future` is done, and give its result."""
        future.add_done_callback(lambda _: self.wake())
        while not future.done():
            job = self._jobs.get()
            if job is not None:
                job()
        return future.result()

    def wake(self) -> None:
        """Have the thread look up from `serve`."""
        self._jobs.put(None)

    def serve(self, seconds: float | None = None) -> None:
        """Make the first call that comes in, within some seconds."""
        with contextlib.suppress(Empty):
            job = self._jobs.get(timeout=seconds)
            if job is not None:
                job()


def beside(make: Callable[[Runtime], Coroutine[Any, Any, T]], home: CallerThreadExecutor | None = None) -> T:
    """Run `make(waits)` on the background loop, in the caller's context, and block this thread until it is done.

    Plain functions it calls run meanwhile in this thread, as `home`.
    """
    with home or CallerThreadExecutor() as here:
        running = on_background(contained(make(LoopRuntime(here))))
        return result_of(here.wait(running))


def block(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the background loop, in the caller's context, and block this thread until it is done.

    Ctrl+C ends the waiting, and the coroutine.
    """
    running = on_background(contained(coroutine))
    try:
        return result_of(running.result())
    except KeyboardInterrupt:
        running.cancel()
        raise


CROWD = 32
"""How many free threads are kept: those of a larger crowd are given back when most of it has gone."""
ERRANDS = 8
"""How many short functions of this package run in threads at once."""
MANY = 10_000
"""How many threads an executor of Python's may have, which is one more than ever run."""


class Threads:
    """Threads in which plain functions run: each in one of its own, a free one if there is one.

    So what waits in a thread, for a run or for anything else, never keeps from its turn what it waits for. `at_once` is
    how many run at most, for functions that wait for nothing of the kind.
    """

    def __init__(self, name: str, at_once: int = MANY) -> None:
        self._name = name
        self._at_once = at_once
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._busy = self._most = 0

    def submit(
        self, function: Callable[..., T], /, *args: Any, context: contextvars.Context | None = None
    ) -> Future[T]:
        """Have a thread call the function. Raises RuntimeError when the program has come to its end."""
        future: Future[T] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return self._leave()
            try:
                result = function(*args) if context is None else context.run(function, *args)
            except BaseException as error:
                self._leave()
                future.set_exception(error)
            else:
                self._leave()
                future.set_result(result)
            return None

        with self._lock:
            if self._pool is None:
                self._pool, self._most = ThreadPoolExecutor(self._at_once, thread_name_prefix=self._name), 0
            try:
                self._pool.submit(job)
            except RuntimeError as error:
                # Where the system gives no more threads, the job has its turn when one of ours is free.
                if "can't start new thread" not in str(error) or not self._busy:
                    raise
            self._busy += 1
            self._most = max(self._most, self._busy)
        return future

    def _leave(self) -> None:
        """Count a function no more; let the threads of a crowd that has gone end when they are free."""
        with self._lock:
            self._busy -= 1
            if self._most > CROWD and self._busy <= self._most // 4 and self._pool is not None:
                self._pool.shutdown(wait=False)
                self._pool = None

    def close(self) -> None:
        """Let all threads end, those that work when they are free; a later `submit` makes new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
            idle = self._busy == 0
        if pool is not None:
            pool.shutdown(wait=idle)


class _ForLoop(ThreadPoolExecutor):
    """The threads for plain functions, as the default executor of a loop of ours: loops take only this class."""

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        return threads().submit(functools.partial(function, *args, **kwargs))


def equip(loop: asyncio.AbstractEventLoop) -> None:
    """Have what is sent to threads on a loop that is not the program's, as by `asyncio.to_thread`, never wait."""
    loop.set_default_executor(_ForLoop())


class Background:
    """The process's own event loop. It runs in a thread from its first use on, until it is given back."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._last: threading.Thread | None = None
        self._users = 0
        self._leaving = False
        self._bound: weakref.WeakSet[Any] = weakref.WeakSet()

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop, which runs."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                equip(self._loop)
            if self._thread is None:
                work = functools.partial(self._run, self._loop, self._last)
                self._thread = self._last = threading.Thread(target=work, name="durable-swarm-loop", daemon=True)
                self._thread.start()
            return self._loop

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop, in the caller's context."""
        with self._lock:
            self.hold()
            future = asyncio.run_coroutine_threadsafe(coroutine, self.loop())
        future.add_done_callback(lambda _: self.let_go())
        return future

    def hold(self) -> None:
        """Keep the loop running until `let_go`."""
        with self._lock:
            self._users += 1
            self._leaving = False

    def let_go(self) -> None:
        """Need the loop no more."""
        with self._lock:
            self._users -= 1
            if self._leaving and self._loop is not None:
                self._loop.call_soon_threadsafe(self._end)

    def bind(self, thing: Any) -> None:
        """Note that a thing of the program has connections that only this loop can use: it is never closed then."""
        with contextlib.suppress(TypeError):
            self._bound.add(thing)

    def give_back(self) -> None:
        """End the loop and its thread, now if nothing is under way on it, else when that has ended."""
        with self._lock:
            loop, thread = self._loop, self._thread
            if loop is None or thread is None or self._leaving:
                return
            self._leaving = True
            if self._users:
                return
            decided = threading.Event()
            loop.call_soon_threadsafe(self._end)
            loop.call_soon_threadsafe(decided.set)
        if threading.current_thread() is not thread and decided.wait(GIVING_BACK) and self._thread is not thread:
            thread.join(GIVING_BACK)

    def _end(self) -> None:
        """On the loop: stop it if nothing is under way."""
        with self._lock:
            loop = asyncio.get_running_loop()
            if self._users or not self._leaving or loop is not self._loop:
                return
            under_way = asyncio.all_tasks(loop)
            if under_way:
                under_way.pop().add_done_callback(lambda _: self._end())
                return
            self._leaving, self._thread = False, None
            if not self._bound:
                self._loop = None
            loop.stop()

    def _run(self, loop: asyncio.AbstractEventLoop, last: threading.Thread | None) -> None:
        if last is not None:
            last.join()  # It may still be leaving this loop.
        loop.run_forever()
        if loop is not self._loop:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


GIVING_BACK = 5.0
"""Seconds that closing waits at most for the loop to end."""

_background = Background()


def background_loop() -> asyncio.AbstractEventLoop:
    """Return the process's own event loop, which runs in a daemon thread from its first use on."""
    return _background.loop()


def background() -> Background:
    """Return what runs the process's own event loop."""
    return _background


def on_background(coroutine: Coroutine[Any, Any, T]) -> Future[T]:
    """Run a coroutine on the process's own event loop, in the caller's context."""
    return _background.submit(coroutine)


def give_back() -> None:
    """Give back the threads and the loop, as soon as nothing runs in them; a later use makes them anew."""
    _background.give_back()
    _threads.close()
    _errands.close()


_threads = Threads("durable-swarm-tool")
_errands = Threads("durable-swarm-errand", ERRANDS)


def threads() -> Threads:
    """Give the threads for plain functions that have no thread of their own to run in."""
    return _threads


def _forget_after_fork() -> None:
    """Threads do not survive a fork; the child makes its own at first use."""
    global _background, _threads, _errands
    _background, _threads = Background(), Threads("durable-swarm-tool")
    _errands = Threads("durable-swarm-errand", ERRANDS)


if hasattr(os, "register_at_fork"):  # Not on Windows, where there is no fork.
    os.register_at_fork(after_in_child=_forget_after_fork)


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Await a short plain function of this package in a thread; where no event loop is to be spared, call it here.

    Not a thread of `threads`: those may all be taken by tools that wait for what this call is part of.
    """
    if running_loop() is None:
        return function(*args)
    return await asyncio.wrap_future(begin(_errands, contextvars.copy_context().run, function, *args))


def begin(pool: Pool, function: Callable[..., T], *args: Any) -> Future[T]:
    """Have a pool call the function. Raises `Unable` where it can start nothing more: the interpreter is ending."""
    try:
        return pool.submit(function, *args)
    except RuntimeError as error:
        raise ends.Unable(f"this process begins nothing more: {error}") from error


def exiting() -> bool:
    """Whether the program has come to its end and waits for its threads: then none of them may wait for anything."""
    try:
        _errands.submit(int)
    except RuntimeError:
        return True
    return False
