"""Kinds of function results: a value, an awaitable, or a generator."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def is_async(function: object) -> bool:
    """Return True if calling the function returns a coroutine; sees through partials and callable objects."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def is_generator(function: object) -> bool:
    """Return True if calling the function returns a generator, plain or async, and executes none of its code."""
    while isinstance(function, functools.partial):
        function = function.func
    called = (function, type(function).__call__)
    return any(inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one) for one in called)


def is_awaitable(value: object) -> bool:
    """Return True for a pending result: a coroutine, a task, a future of a loop or of a thread."""
    return inspect.isawaitable(value) or isinstance(value, Future)


async def settled(value: object) -> object:
    """Return the value after awaiting it until nothing is left to await: an async function may return a task."""
    while is_awaitable(value):
        value = await _here(value)
    return value


def _here(value: Any) -> Awaitable[object]:
    """Return an awaitable for the running loop: futures may belong to a thread, or to another loop."""
    if isinstance(value, Future):
        return asyncio.wrap_future(value)
    if not asyncio.isfuture(value) or value.get_loop() is asyncio.get_running_loop():
        return _await(value)
    if value.done():
        return _done(value)
    if not value.get_loop().is_running():
        raise RuntimeError("the function returned a future of an event loop that does not run")
    return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_await(value), value.get_loop()))


async def _await(awaitable: Awaitable[T]) -> T:
    return await awaitable


async def _done(future: asyncio.Future[T]) -> T:
    return future.result()
