"""The events of a run for many readers at once: they are read and encoded once, however many connections take them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable
from itertools import islice
from typing import Any, Generic, TypeVar

from durable_swarm import errors
from durable_swarm.engine.api.run import Run
from durable_swarm.events import Event

T = TypeVar("T")

AHEAD = 1000
"""How many events are read for readers that do not take them, and are kept for those that come later."""

PAUSE = 0.02
"""Seconds between two moments in which readers are woken."""

Encode = Callable[[Event], T]


class _Hub(Generic[T]):
    """The events of one run after a number, as far as they were read."""

    def __init__(self, run: Run, after: int, encode: Encode[T]) -> None:
        self.readers = 0
        self._run, self._encode = run, encode
        self._window: deque[T] = deque()
        self._before = after
        """The number of the event before the first one in the window."""
        self._taken = after
        """The highest number that a reader has taken."""
        self._changed, self._took = asyncio.Event(), asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._woken = 0.0
        self._stopped = False
        self._work = asyncio.ensure_future(self._read(after))
        self._work.add_done_callback(lambda _: self.wake())

    async def _read(self, after: int) -> None:
        async for event in self._run.events_async(after):
            self._window.append(self._encode(event))
            self._wake_soon()
            if len(self._window) >= 2 * AHEAD:
                self._before += AHEAD
                for _ in range(AHEAD):
                    self._window.popleft()
            while self._last >= self._taken + AHEAD:
                self._took.clear()
                await self._took.wait()

    def _wake_soon(self) -> None:
        """Wake all readers now, or soon if that was done just now: waking many for each event would slow the run."""
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._timer = loop.call_at(max(loop.time(), self._woken + PAUSE), self.wake)

    def wake(self) -> None:
        """Wake all readers."""
        self._timer, self._woken = None, asyncio.get_running_loop().time()
        self._changed.set()
        self._changed = asyncio.Event()

    def stop(self) -> None:
        """Let all readers go."""
        self._stopped = True
        self.wake()

    async def more(self, after: int, silence: float) -> bool:
        """Wait until there is an event after this number, or no further one comes; return False after `silence`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(silence):
                while self._last <= after and not self.over:
                    await self._changed.wait()
                return True
        return False

    @property
    def _last(self) -> int:
        return self._before + len(self._window)

    def reaches(self, after: int) -> bool:
        """Return True if the first event after this number is still here, or will come."""
        return self._before <= after

    def since(self, after: int) -> list[T]:
        """Return the events after a number, and note that they are taken."""
        found = list(islice(self._window, max(after - self._before, 0), None))
        self._taken = max(self._taken, min(after + len(found), self._last))
        self._took.set()
        return found

    @property
    def over(self) -> bool:
        """Return True if no further event comes."""
        return self._stopped or self._work.done()

    async def check(self) -> None:
        """Raise the error that has ended the events, unless it says that the run cannot continue here."""
        if self._work.done():
            with contextlib.suppress(errors.DurableSwarmError):
                await self._work

    def close(self) -> None:
        """Read no more."""
        self._work.cancel()


class EventHubs:
    """The hubs of the runs that are being read, by the event loop of their readers."""

    def __init__(self) -> None:
        self._hubs: dict[tuple[asyncio.AbstractEventLoop, str, object], _Hub[Any]] = {}
        self._stopped = False

    def stop(self) -> None:
        """End all readers; may be called in a signal handler."""
        self._stopped = True
        for (loop, _, _), hub in list(self._hubs.items()):
            with contextlib.suppress(RuntimeError):  # Its loop is closed.
                loop.call_soon_threadsafe(hub.stop)

    async def batches(self, run: Run, after: int, encode: Encode[T], silence: float) -> AsyncGenerator[list[T]]:
        """Yield a run's events as they come, all that are there at once; an empty list after `silence` seconds.

        They end with the run, when the run cannot continue here, and when the server ends. A reader that takes them so
        slowly that they are gone reads on by itself.
        """
        while not self._stopped:
            hub = self._hub(run, after, encode)
            hub.readers += 1
            try:
                while hub.reaches(after) and not self._stopped:
                    found = hub.since(after)
                    if not found and hub.over:
                        await hub.check()
                        return
                    after += len(found)
                    if found:
                        yield found
                    elif not await hub.more(after, silence):
                        yield []
            finally:
                hub.readers -= 1
                if not hub.readers:
                    hub.close()
                    self._hubs = {key: one for key, one in self._hubs.items() if one is not hub}

    def _hub(self, run: Run, after: int, encode: Encode[T]) -> _Hub[T]:
        """Return the hub that has what the reader needs: that of all, or one of its own.

        One that has ended is left to its readers, as the run may have been resumed.
        """
        key = asyncio.get_running_loop(), run.id, encode
        known: _Hub[T] | None = self._hubs.get(key)
        if known is not None and known.reaches(after) and not known.over:
            return known
        hub = _Hub(run, after, encode)
        if known is None or known.over:
            self._hubs[key] = hub
        return hub
