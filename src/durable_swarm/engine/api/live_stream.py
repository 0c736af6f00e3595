"""Swarm's dictionaries of a durable run: published live if this process executes it, else made from its events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial

from durable_swarm.concurrency import CallerThreadExecutor, in_thread
from durable_swarm.engine.api.run import Run
from durable_swarm.engine.history.follower import EventReader
from durable_swarm.events import Event
from durable_swarm.streaming import Channel, Item, as_swarms, read, read_async

SOON = 0.02
"""Seconds between checks which process executes the run."""

RECORDING = 0.005
"""Seconds between checks for the recorded end of a run that has ended here."""


def dictionaries(run: Run, channel: Channel, home: CallerThreadExecutor) -> Iterator[Item]:
    """Yield the items of a run from now on. `channel` has joined the run's publisher, if the run was started for it."""
    text, executor = _Text(run, channel), run.executor()
    check = partial(run.check_open, executor)
    response = None
    try:
        while response is None:
            live = run.live()
            if live is not None and not live.over.done():
                yield from text.leave()
                live.feed.join(channel)
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
    text, executor = _Text(run, channel), run.executor()
    check = partial(run.check_open, executor)
    response = None
    try:
        while response is None:
            live = run.live()
            if live is not None and not live.over.done():
                for item in await in_thread(text.leave) if text.open else ():
                    yield item
                live.feed.join(channel)
                async for item in read_async(channel, asyncio.wrap_future(live.over), check):
                    yield item
            elif (response := await in_thread(run.look, executor)) is None and (live is None or live.lost):
                for item in await in_thread(text.read):
                    yield item
                await asyncio.sleep(text.pause)
            elif response is None:
                await asyncio.sleep(RECORDING)
        for item in [*channel.take(), *await in_thread(text.leave)]:
            yield item
    finally:
        channel.close()
    yield {"response": response}


class _Text:
    """The replies of a run that another process executes, from the incoming one on."""

    def __init__(self, run: Run, channel: Channel) -> None:
        self._run = run
        self._channel = channel
        self._follower: EventReader | None = None
        self._sender: str | None = None
        self.open = False
        """True if a reply has begun."""
        self.pause = 0.0

    def read(self) -> list[Item]:
        """Return the new items. Text of a process that has died is void, and left out."""
        self.pause = SOON
        if self._follower is None and not self._run.lives_elsewhere():
            return []
        first = self._follower is None
        follower = self._follower = self._follower or self._run.follower(0)
        events = follower.read()
        self.pause = follower.pause
        return [as_swarms(item) for event in (_open_turn(events) if first else events) for item in self._items(event)]

    def leave(self) -> list[Item]:
        """Return the last items of a reply that has begun: the run has ended, or is executed here."""
        items = self.read() if self.open else []
        self.open = False
        return items

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
