"""What a process has once: its own event loop, and threads for plain functions. All are given back when unused."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

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
                work = functools.partial(self._run, self._loop)
                self._thread = threading.Thread(target=work, name="durable-swarm-loop", daemon=True)
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
        """Note that a thing has connections that only this loop can use: while the thing is there, the loop stays."""
        with self._lock:
            self._bound.add(thing)
            self._leaving = False

    def unbind(self, thing: Any) -> None:
        """Note that a thing has no connections any more; whoever closed them gives the loop back."""
        with self._lock:
            self._bound.discard(thing)

    def give_back(self) -> None:
        """End the loop and its thread, now if nothing is under way on it, else when that has ended."""
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
        """On the loop: stop it if nothing is under way."""
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


def errands() -> Threads:
    """Return the threads for short functions of this package, which wait for no run."""
    return _errands


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
