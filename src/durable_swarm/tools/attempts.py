"""The attempts of one call: retries, timeouts, and awaitables that the function returns."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from durable_swarm import ends
from durable_swarm.awaitables import is_async, is_awaitable, settled
from durable_swarm.concurrency import LoopRuntime, in_thread
from durable_swarm.errors import ToolError
from durable_swarm.tools.context import Inside, inside
from durable_swarm.types import ToolSettings


def retrying(function: Callable[[], object], settings: ToolSettings, here: Inside) -> Callable[[], object]:
    """Return `function` with the retries and the timeout of `settings`, async if it is; attempts are numbered.

    An exception that is not an `Exception` leaves it as `ends.Raised`.

    A plain function may return an awaitable. The caller then awaits the rest of the attempt, which belongs to the call
    like the first part.
    """
    attempts = _Attempts(function, settings, here)
    return attempts.on_loop if is_async(function) else attempts.in_this_thread


@dataclass(frozen=True)
class _Attempts:
    function: Callable[[], object]
    settings: ToolSettings
    here: Inside

    async def on_loop(self) -> object:
        for attempt in range(self.settings.retries + 1):
            if not self.here.ownership_is_fresh:
                await in_thread(self.here.verify_ownership)
            try:
                with ends.carrying(), inside(self.here.again(attempt)):
                    return await _bounded_async(self.function, self.settings.timeout)
            except Exception as error:
                if self._is_last(attempt, error):
                    raise
                await asyncio.sleep(self._pause(attempt))
        raise AssertionError("unreachable")

    def in_this_thread(self, first: int = 0) -> object:
        timeout = self.settings.timeout
        for attempt in range(first, self.settings.retries + 1):
            self.here.verify_ownership()
            begun = time.monotonic()
            try:
                with ends.carrying(), inside(self.here.again(attempt)) as now:
                    value = self.function() if timeout is None else _bounded(self.function, timeout, now)
            except Exception as error:
                if self._is_last(attempt, error):
                    raise
                time.sleep(self._pause(attempt))
            else:
                return self._rest(value, attempt, now, begun) if self._is_begun(value) else value
        raise AssertionError("unreachable")

    async def _rest(self, value: object, attempt: int, now: Inside, begun: float) -> object:
        """Await the awaitable of a plain function, and make further attempts in a thread, as for plain functions."""
        timeout = self.settings.timeout
        left = None if timeout is None else timeout - (time.monotonic() - begun)
        try:
            with ends.carrying(), inside(now):
                return await _bounded_async(lambda: value, timeout, left)
        except Exception as error:
            if self._is_last(attempt, error):
                raise
            await asyncio.sleep(self._pause(attempt))
        return await LoopRuntime().call(self.in_this_thread, attempt + 1)

    def _is_begun(self, value: object) -> bool:
        if self.settings.effect == "transactional":
            return False  # Refused by the transaction.
        # A plain caller of a step may want the future of a thread as it is.
        return inspect.isawaitable(value) if self.settings.is_step else is_awaitable(value)

    def _is_last(self, attempt: int, error: Exception) -> bool:
        final = isinstance(error, ToolError) or (isinstance(error, ends.Raised) and not error.is_retried)
        return final or attempt == self.settings.retries

    def _pause(self, attempt: int) -> float:
        return self.settings.backoff * 2.0**attempt


async def _bounded_async(function: Callable[[], object], timeout: float | None, left: float | None = None) -> object:
    try:
        async with asyncio.timeout(timeout if left is None else left) as bound:
            return await settled(function())
    except TimeoutError:
        if timeout is None or not bound.expired():
            raise
        raise _late(timeout) from None


def _bounded(function: Callable[[], object], timeout: float, here: Inside) -> object:
    future: Future[object] = Future()

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
