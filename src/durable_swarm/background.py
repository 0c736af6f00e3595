"""Shared resources of the process: its own event loop, and threads for plain functions. Released when unused."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from durable_swarm.tasks import Coro, protect

T = TypeVar("T")

CROWD = 32
"""Number of free threads that are kept; the others end once most functions have ended."""
ERRANDS = 8
"""Number of short functions of this package that run in threads at once."""
MANY = 10_000
"""Maximum threads of one of Python's executors: one more than ever run."""


class Threads:
    """Threads for plain functions: each runs in a thread of its own, a free one if there is one.

    So a function that waits in a thread, for a run or for anything else, never blocks the function it waits for.
    `at_once` is the maximum number that run together, for functions without such waits.
    """

    def __init__(self, name: str, at_once: int = MANY) -> None:
        self._name = name
        self._at_once = at_once
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._busy = self._most = 0

    def submit(
        self, function: Callable[..., T], /, *args: object, context: contextvars.Context | None = None
    ) -> Future[T]:
        """Call the function in a thread. Raises RuntimeError if the program is ending."""
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
                # If the system refuses more threads, the job runs when a thread of ours is free.
                if "can't start new thread" not in str(error) or not self._busy:
                    raise
            self._busy += 1
            self._most = max(self._most, self._busy)
        return future

    def _leave(self) -> None:
        """Uncount a finished function; end surplus threads as soon as they are free."""
        with self._lock:
            self._busy -= 1
            if self._most > CROWD and self._busy <= self._most // 4 and self._pool is not None:
                self._pool.shutdown(wait=False)
                self._pool = None

    def close(self) -> None:
        """End all threads, busy ones when they are free; a later `submit` starts new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
            idle = self._busy == 0
        if pool is not None:
            pool.shutdown(wait=idle)


class _ForLoop(ThreadPoolExecutor):
    """The threads for plain functions, as the default executor of a loop of ours; loops accept only this class."""

    def submit(self, function: Callable[..., T], /, *args: object, **kwargs: object) -> Future[T]:
        return threads().submit(functools.partial(function, *args, **kwargs))


def equip(loop: asyncio.AbstractEventLoop) -> None:
    """Make calls in threads, as by `asyncio.to_thread`, never wait on a loop of ours, and protect its tasks."""
    loop.set_default_executor(_ForLoop())
    protect(loop)


class Background:
    """The process's own event loop. It runs in a thread from its first use on, until it is released."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._users = 0
        self._leaving = False
        self._bound: weakref.WeakSet[object] = weakref.WeakSet()

    def loop(self) -> asyncio.AbstractEventLoop:
        """Return the running loop."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                equip(self._loop)
            if self._thread is None:
                work = functools.partial(self._run, self._loop)
                self._thread = threading.Thread(target=work, name="durable-swarm-loop", daemon=True)
                self._thread.start()
            return self._loop

    def submit(self, coroutine: Coro[T]) -> Future[T]:
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
        """Release one `hold`."""
        with self._lock:
            self._users -= 1
            if self._leaving and self._loop is not None:
                self._loop.call_soon_threadsafe(self._end)

    def bind(self, thing: object) -> None:
        """Record that an object has connections that only this loop can use: the loop stays as long as the object."""
        with self._lock:
            self._bound.add(thing)
            self._leaving = False

    def unbind(self, thing: object) -> None:
        """Record that an object has no connections any more; the code that closed them releases the loop."""
        with self._lock:
            self._bound.discard(thing)

    def give_back(self) -> None:
        """End the loop and its thread: now if nothing runs on it, otherwise when that has ended."""
        with self._lock:
            loop, thread = self._loop, self._thread
            if loop is None or thread is None or self._leaving or self._bound:
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
        """On the loop: stop it if nothing runs on it."""
        with self._lock:
            loop = asyncio.get_running_loop()
            if self._users or not self._leaving or loop is not self._loop:
                return
            under_way = asyncio.all_tasks(loop)
            if under_way:
                under_way.pop().add_done_callback(lambda _: self._end())
                return
            self._leaving, self._loop, self._thread = False, None, None
            loop.stop()

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


GIVING_BACK = 5.0
"""Maximum seconds that closing waits for the loop to end."""

_background = Background()


def background_loop() -> asyncio.AbstractEventLoop:
    """Return the process's own event loop, which runs in a daemon thread from its first use on."""
    return _background.loop()


def background() -> Background:
    """Return the object that runs the process's own event loop."""
    return _background


def on_background(coroutine: Coro[T]) -> Future[T]:
    """Run a coroutine on the process's own event loop, in the caller's context."""
    return _background.submit(coroutine)


def give_back() -> None:
    """Release the threads and the loop as soon as nothing runs in them; a later use starts them again."""
    _background.give_back()
    _threads.close()
    _errands.close()


_threads = Threads("durable-swarm-tool")
_errands = Threads("durable-swarm-errand", ERRANDS)


def errands() -> Threads:
    """Return the threads for short functions of this package, which wait for no run."""
    return _errands


def threads() -> Threads:
    """Return the threads for plain functions without a thread of their own."""
    return _threads


def _forget_after_fork() -> None:
    """Forget threads after a fork, because they do not survive it; the child starts its own at first use."""
    global _background, _threads, _errands
    _background, _threads = Background(), Threads("durable-swarm-tool")
    _errands = Threads("durable-swarm-errand", ERRANDS)


if hasattr(os, "register_at_fork"):  # Not on Windows, which has no fork.
    os.register_at_fork(after_in_child=_forget_after_fork)
