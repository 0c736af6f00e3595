"""The tries of one call: retries, timeouts, and whatever the function gives that is to be awaited."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from durable_swarm import ends
from durable_swarm.errors import ToolError
from durable_swarm.inside import Inside, inside
from durable_swarm.types import ToolSettings
from durable_swarm.waits import in_thread, is_async


def retrying(function: Callable[[], Any], settings: ToolSettings, here: Inside) -> Callable[[], Any]:
    """Return `function` with the retries and the timeout of `settings`, async if it is; each attempt knows its number.

    What it raises that is not an `Exception` leaves it as `ends.Raised`.
    """

    async def on_loop() -> Any:
        for attempt in range(settings.retries + 1):
            if not here.is_sure:
                await in_thread(here.make_sure)
            try:
                with ends.carrying(), inside(here.again(attempt)):
                    return await _bounded_async(function, settings.timeout)
            except Exception as error:
                if attempt == settings.retries or _is_final(error):
                    raise
                await asyncio.sleep(settings.backoff * 2**attempt)
        raise AssertionError("unreachable")

    def in_this_thread() -> Any:
        for attempt in range(settings.retries + 1):
            here.make_sure()
            try:
                with ends.carrying(), inside(here.again(attempt)) as now:
                    return function() if settings.timeout is None else _bounded(function, settings.timeout, now)
            except Exception as error:
                if attempt == settings.retries or _is_final(error):
                    raise
                time.sleep(settings.backoff * 2**attempt)
        raise AssertionError("unreachable")

    return on_loop if is_async(function) else in_this_thread


def _is_final(error: Exception) -> bool:
    """Whether no further attempt follows."""
    return isinstance(error, ToolError) or (isinstance(error, ends.Raised) and not error.is_retried)


async def _bounded_async(function: Callable[[], Any], timeout: float | None) -> Any:
    try:
        async with asyncio.timeout(timeout) as bound:
            return await function()
    except TimeoutError:
        if timeout is None or not bound.expired():
            raise
        raise _late(timeout) from None


def _bounded(function: Callable[[], Any], timeout: float, here: Inside) -> Any:
    future: Future[Any] = Future()

    def main() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(main,), daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise ends.Unable(f"this process begins nothing more: {error}") from error
    try:
        return future.result(timeout)
    except TimeoutError:
        if future.done():
            raise
        here.abandoned.set()
        raise _late(timeout) from None


def _late(timeout: float) -> TimeoutError:
    return TimeoutError(f"the call took longer than its timeout of {timeout:g} s")
