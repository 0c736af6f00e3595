"""Swarm's dictionaries of a durable run: published live if this process executes it, else made from its events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

from durable_swarm.concurrency import CallerThreadExecutor
from durable_swarm.engine.api.run import Run
from durable_swarm.engine.history.follower import EventReader
from durable_swarm.engine.signals import look_aside
from durable_swarm.events import Event
from durable_swarm.streaming import Channel, Item, as_swarms, read, read_async

SOON = 0.02
"""Seconds between checks which process executes the run."""

RECORDING = 0.005
"""Seconds between checks for the recorded end of a run that has ended here."""


def dictionaries(run: Run, channel: Channel, home: CallerThreadExecutor) -> Iterator[Item]:
    """Yield the items of a run from now on. `channel` has joined the run's publisher, if the run was started for it."""
    executor = run.executor()
    check = partial(run.check_open, executor)
    text = _Text(run, channel, check)
    response = None
    try:
        while response is None:
            live = run.live()
            if live is not None and not live.over.done():
                yield from text.leave()
                live.publisher.join(channel)
                yield from read(channel, home, live.over, check)
            elif (response := run.look(executor)) is None and (live is None or live.lost):
                yield from text.read()
                home.serve(text.pause)
            elif response is None:
                home.serve(RECORDING)
        yield from channel.take()
        yield from text.leave()
    finally:
        channel.close()
    yield {"response": response}


async def dictionaries_async(run: Run, channel: Channel) -> AsyncIterator[Item]:
    """Yield the items on the event loop."""
    executor = run.executor()
    check = partial(run.check_open, executor)
    text = _Text(run, channel, check)
    response = None
    try:
        while response is None:
            live = run.live()
            if live is not None and not live.over.done():
                for item in await look_aside(text.leave) if text.open else ():
                    yield item
                live.publisher.join(channel)
                async for item in read_async(channel, asyncio.wrap_future(live.over), check):
                    yield item
            elif (response := await look_aside(run.look, executor)) is None and (live is None or live.lost):
                for item in await look_aside(text.read):
                    yield item
                await asyncio.sleep(text.pause)
            elif response is None:
                await asyncio.sleep(RECORDING)
        for item in [*channel.take(), *await look_aside(text.leave)]:
            yield item
    finally:
        channel.close()
    yield {"response": response}


class _Text:
    """The replies of a run that another process executes, from the incoming one on."""

    def __init__(self, run: Run, channel: Channel, check: Callable[[], None]) -> None:
        self._run = run
        self._check = check
        self._channel = channel
        self._follower: EventReader | None = None
        self._sender: str | None = None
        self.open = False
        """True if a reply has begun."""
        self.pause = 0.0

    def read(self) -> list[Item]:
        """Return the new items; none while the database is away."""
        self.pause = SOON
        with self._run.bearing():
            return self._read()
        return []

    def leave(self) -> list[Item]:
        """Return the last items of a reply that has begun: the run has ended, or is executed here."""
        items: list[Item] | None = None if self.open else []
        while items is None:
            self._check()
            with self._run.bearing():
                items = self._read()
            if items is None:
                time.sleep(SOON)
        self.open = False
        return items

    def _read(self) -> list[Item]:
        """Return the new items. Text of a process that has died is void, and left out."""
        if self._follower is None and not self._run.lives_elsewhere():
            return []
        follower = self._follower or self._run.follower(0)
        events = follower.read()
        self.pause = follower.pause
        if self._follower is None:
            self._follower, events = follower, _open_turn(events)
        return [as_swarms(item) for event in events for item in self._items(event)]

    def _items(self, event: Event) -> Iterator[Item]:
        match event.type:
            case "turn.started":
                self._sender, self.open = event.data["agent"], True
                self._channel.turn = event.data["turn"]  # In case this process takes the run over in mid-reply.
                yield {"delim": "start"}
            case "text.delta":
                opening = {"role": "assistant", "sender": self._sender} if self._sender is not None else {}
                self._sender = None
                yield {**opening, "content": event.data["text"]}
            case "text.reset":
                yield {"delim": "reset"}
            case _ if self.open:
                self.open = False
                yield {"delim": "end"}


def _open_turn(events: list[Event]) -> list[Event]:
    """Return the events of the incoming reply, if there is one."""
    for index in range(len(events) - 1, -1, -1):
        if events[index].type == "turn.started":
            return events[index:]
        if not events[index].type.startswith("text."):
            break
    return []
