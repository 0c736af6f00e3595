"""Swarm's dictionaries of a streamed run, on their way to a consumer that may be slow, or gone."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future
from typing import Any, Self

from durable_swarm.concurrency import CallerThreadExecutor

Item = dict[str, Any]
"""`{"delim": "start"}`, a delta, `{"delim": "reset"}`, `{"delim": "end"}`, and finally `{"response": Response}`."""

WAITING = 1000
"""Number of dictionaries that wait unread; further pieces of one text are joined."""


class _Joined:
    """Unread deltas, joined: all pieces of one text, or of one call's arguments."""

    def __init__(self, kind: str | int, piece: str) -> None:
        self.kind = kind
        self._pieces = [piece]

    def add(self, piece: str) -> None:
        """Join one more piece."""
        self._pieces.append(piece)

    def delta(self) -> Item:
        """Return the pieces as one delta."""
        text = "".join(self._pieces)
        self._pieces = [text]
        if isinstance(self.kind, str):
            return {self.kind: text}
        return {"tool_calls": [{"index": self.kind, "function": {"arguments": text}}]}


def _piece_of(delta: Item) -> tuple[str | int, str] | None:
    """Return the text that the delta continues (a field's name, a call's index) and its piece; None if it says more."""
    if len(delta) != 1:
        return None
    ((field, value),) = delta.items()
    if field != "tool_calls":
        return (field, value) if isinstance(value, str) else None
    if len(value) == 1 and value[0].keys() == {"index", "function"} and value[0]["function"].keys() == {"arguments"}:
        return value[0]["index"], value[0]["function"]["arguments"]
    return None


_SILENT = {"content": None, "function_call": None, "refusal": None, "role": None, "tool_calls": None}


def as_swarms(item: Item) -> Item:
    """Return a delta with all the keys of Swarm's, because programs read them without checking."""
    if "delim" in item:
        return item
    calls = [
        {"id": None, "type": None, **call, "function": {"name": None, "arguments": None, **call.get("function", {})}}
        for call in item.get("tool_calls") or ()
    ]
    return {**_SILENT, **item, **({"tool_calls": calls} if calls else {})}


class Channel:
    """The dictionaries of a run that a consumer has not read yet.

    Even for a slow consumer they take no more memory than the texts of the replies. `wake` is called when there is
    something to read again; it must not wait.
    """

    def __init__(self, wake: Callable[[], None] = lambda: None, waiting: int = WAITING) -> None:
        self.wake = wake
        self.turn: int | None = None
        """The turn whose reply has begun here, or was begun for the consumer by earlier reads."""
        self._limit = waiting
        self._lock = threading.Lock()
        self._items: deque[Item | _Joined] = deque()
        self._sender = ""
        self._first = True
        self._closed = False

    def begin(self, agent: str, turn: int) -> None:
        """Begin the reply of a turn; if it has begun here before, restart it."""
        self._sender, self._first = agent, True
        self._put(self._beginning(turn))

    def _beginning(self, turn: int | None) -> Item:
        again, self.turn = turn == self.turn, turn
        return {"delim": "reset" if again else "start"}

    def delta(self, delta: Item) -> None:
        """Pass on a piece of the reply; the first one names its sender."""
        if self._first:
            delta, self._first = {**delta, "sender": self._sender}, False
        self._put(delta)

    def reset(self) -> None:
        """Void everything since the last start."""
        self._first = True
        self._put({"delim": "reset"})

    def end(self) -> None:
        """End the reply: it is whole."""
        self._put({"delim": "end"})

    def take(self) -> list[Item]:
        """Return the dictionaries since the last call."""
        with self._lock:
            items = list(self._items)
            self._items.clear()
        return [as_swarms(item.delta() if isinstance(item, _Joined) else item) for item in items]

    def join(self, other: Channel) -> None:
        """Begin with a copy of the other one's dictionaries."""
        for number, item in enumerate(other.look()):
            self._put(item if number else self._beginning(other.turn))
        self._sender, self._first = other._sender, other._first

    def look(self) -> list[Item]:
        """Return the unread dictionaries without removing them."""
        with self._lock:
            return [item.delta() if isinstance(item, _Joined) else item for item in self._items]

    def close(self) -> None:
        """Accept nothing more: the consumer is gone."""
        with self._lock:
            self._closed = True
            self._items.clear()

    def _put(self, item: Item) -> None:
        with self._lock:
            if self._closed:
                return
            idle = not self._items
            self._keep(item)
        if idle:
            self.wake()

    def _keep(self, item: Item) -> None:
        piece = _piece_of(item) if len(self._items) >= self._limit else None
        if piece is None:
            self._items.append(item)
            return
        last = self._items[-1] if self._items else None
        if isinstance(last, _Joined) and last.kind == piece[0]:
            last.add(piece[1])
        else:
            self._items.append(_Joined(*piece))


PATIENCE = 1.0
"""Seconds until a call of a plain function no longer waits for a reader's thread."""


LOOK = 0.25
"""Seconds between checks that a reader still waits for something."""

Check = Callable[[], None]
"""Raises if there is nothing left to wait for."""


def read(
    channel: Channel, home: CallerThreadExecutor, over: Future[Any], check: Check = lambda: None
) -> Iterator[Item]:
    """Yield the dictionaries until the run is over; this thread makes the calls of its plain functions meanwhile."""
    channel.wake = home.wake
    over.add_done_callback(lambda _: home.wake())
    while not over.done():
        check()
        yield from channel.take()
        home.serve(LOOK)
    yield from channel.take()


async def read_async(channel: Channel, over: asyncio.Future[Any], check: Check = lambda: None) -> AsyncIterator[Item]:
    """Yield the dictionaries on the event loop."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    channel.wake = lambda: from_any_thread(loop, changed)
    over.add_done_callback(lambda _: changed.set())
    while not over.done():
        check()
        for item in channel.take():
            yield item
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(changed.wait(), LOOK)
        changed.clear()
    for item in channel.take():
        yield item


def from_any_thread(loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> None:
    """Set the event of a reader, even if its loop may be closed."""
    with contextlib.suppress(RuntimeError):  # The consumer's loop is closed.
        loop.call_soon_threadsafe(changed.set)


class Stream:
    """The result of `run_async(stream=True)`: iterate it, with or without an `await` before it."""

    def __init__(self, items: AsyncIterator[Item]) -> None:
        self._items = items

    def __aiter__(self) -> AsyncIterator[Item]:
        return self._items

    def __await__(self) -> Generator[Any, None, Self]:
        yield from ()
        return self
