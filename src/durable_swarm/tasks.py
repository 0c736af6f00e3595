"""Tasks that survive user code which cancels every task of its event loop.

A tool, or a library in it, may do that (`for task in asyncio.all_tasks(): task.cancel()`). It would interrupt its run,
which would be repeated and interrupted again, without bound, and all other runs on the loop. So user code cannot cancel
the tasks of the engine on a loop of this package, nor those in which the calls of other user code are awaited: the
context in which `cancel` is called tells who calls it. A loop of the program has tasks of the program. There the
cancellation of a run's task by the run's own tool is taken back, and is a failure of the tool.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Awaitable, Coroutine, Iterator
from typing import Any, TypeVar, cast

T = TypeVar("T")

Coro = Coroutine[Any, Any, T]
"""A coroutine; what it yields is between it and its event loop."""

Scope = tuple[object, ...]

_scope: contextvars.ContextVar[Scope] = contextvars.ContextVar("durable_swarm_scope", default=())
"""The calls of user code that the running code belongs to, outermost first; empty for all other code."""


@contextlib.contextmanager
def user_scope() -> Iterator[None]:
    """Mark the code in this block, and what it begins, as one call of user code."""
    token = _scope.set((*_scope.get(), object()))
    try:
        yield
    finally:
        _scope.reset(token)


@contextlib.contextmanager
def engine_scope() -> Iterator[None]:
    """Mark the code in this block as code that may cancel every task."""
    token = _scope.set(())
    try:
        yield
    finally:
        _scope.reset(token)


class _Task(asyncio.Task[T]):
    """A task that knows whether its own code cancels it."""

    def __init__(
        self,
        coroutine: Coro[T],
        *,
        is_protected: bool = False,
        context: contextvars.Context | None = None,
        **options: Any,
    ) -> None:
        self._home = contextvars.copy_context() if context is None else context
        self._is_protected = is_protected or self._home.get(_scope, ()) == ()
        self.is_cancelled_from_outside = False
        super().__init__(coroutine, context=self._home, **options)

    def cancel(self, msg: object | None = None) -> bool:
        """Request the task's cancellation; return False if it has ended, or if the caller may not cancel it."""
        canceller, own = _scope.get(), self._home.get(_scope, ())
        if self._is_protected and own[: len(canceller)] != canceller:
            return False
        if self.cancelling() == 0:  # Later ones do not change the reason: a loop that ends cancels what is left.
            self.is_cancelled_from_outside = not canceller or canceller[: len(own)] != own
        return super().cancel(msg)


def _task_of_ours(loop: asyncio.AbstractEventLoop, coroutine: Coro[T], **options: Any) -> asyncio.Task[T]:
    return _Task(coroutine, loop=loop, **options)


def protect(loop: asyncio.AbstractEventLoop) -> None:
    """Protect the tasks of a loop of ours from user code; tasks that user code begins there are not protected."""
    factory: Any = _task_of_ours
    loop.set_task_factory(factory)


async def apart(awaitable: Awaitable[T]) -> T:
    """Await user code in a task of its own, because code that cancels its task must not cancel the run.

    If the code has cancelled the task of its run as well, that is taken back.
    """
    loop, run = asyncio.get_running_loop(), cast("asyncio.Task[Any]", asyncio.current_task())
    before, is_ours = run.cancelling(), loop.get_task_factory() is _task_of_ours
    task = _Task(_in_scope(awaitable), is_protected=is_ours, loop=loop)
    try:
        return await task
    finally:
        while not task.is_cancelled_from_outside and run.cancelling() > before:
            run.uncancel()


async def _in_scope(awaitable: Awaitable[T]) -> T:
    with user_scope():
        return await awaitable
