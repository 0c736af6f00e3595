"""Receiving one streamed reply: its chunks are shown as they arrive and merged into the whole."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
import weakref
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol, TypeGuard

from pydantic import BaseModel

from durable_swarm.awaitables import is_async
from durable_swarm.models.reply import Answer, read_message
from durable_swarm.models.stream import ReplyBuilder, whole

FIRST, EAGER, SELDOM = 4, 8, 25
"""Pause after each of the first `FIRST` chunks; yield to others after each of `EAGER`, then after every `SELDOM`-th."""
PAUSE = 0.001
"""Seconds of a pause. A reader in another thread gets its turn then, not only when this thread must let it run."""


_marks: weakref.WeakKeyDictionary[object, dict[str, bool]] = weakref.WeakKeyDictionary()
"""For each client and model: True if its streams were seen to end with a finish reason."""


def has_end_marks(client: object, model: str) -> bool | None:
    """Return True if a model's streams end with a finish reason; None if that is not known."""
    with contextlib.suppress(TypeError):
        return _marks.get(client, {}).get(model)
    return None


def note_end_marks(client: object, model: str, has: bool) -> None:
    """Record whether a stream had a finish reason. A provider that ever sent one has broken off when it sends none."""
    with contextlib.suppress(TypeError):  # Some clients are not hashable.
        known = _marks.setdefault(client, {})
        known[model] = has or known.get(model, False)


class DeltaSink(Protocol):
    """Receives the chunks of a reply as they arrive. Called from the thread that receives the reply."""

    def delta(self, delta: dict[str, Any]) -> None:
        """Show a chunk: what it adds to the message, as plain data."""

    def reset(self) -> None:
        """Discard the chunks shown so far: the reply broke off, and starts again or never arrives."""


class ReaderGone(Exception):
    """Nothing waits for this reply any more; ends its reception."""


class AttemptSink:
    """The text that one attempt at turn number `turn` shows. Once ended it shows nothing more, from any thread."""

    def __init__(self, show: DeltaSink, turn: int) -> None:
        self._show = show
        self._turn = turn
        self._lock = threading.Lock()
        self._any = self._busy = self._ended = False

    def delta(self, delta: dict[str, object]) -> None:
        """Show a chunk. Raises `ReaderGone` after the end."""
        with self._lock:
            if self._ended:
                raise ReaderGone
            self._any = self._busy = True
        # Without the lock: the sink may wait for its reader, and the reader's thread may be the one that ends this
        # attempt.
        try:
            self._show.delta(delta)
        finally:
            with self._lock:
                self._busy = False
                late = self._ended
            if late:
                self._show.reset()

    def whole(self, message: object) -> None:
        """Show a message that arrived whole, as one chunk."""
        read = read_message(message, self._turn)
        calls = [{"index": index, **call} for index, call in enumerate(read.pop("tool_calls") or [])]
        delta = {name: value for name, value in {**read, "tool_calls": calls}.items() if value and name != "provider"}
        self.delta(delta)

    def end(self) -> None:
        """Withdraw what was shown."""
        with self._lock:
            self._ended = True
            if self._busy or not self._any:
                return
        self._show.reset()


class StreamReceiver:
    """One attempt: `create` makes the request, and its result is received."""

    def __init__(self, create: Callable[[], Any], shown: AttemptSink) -> None:
        self._create = create
        self._shown = shown
        self._count = 0
        self.begun = False
        """True once the provider has begun to answer."""

    def way(self) -> Callable[[], object]:
        """Return the function that receives the `Answer`: async if the client is."""
        return self._on_loop if is_async(self._create) else self._in_thread

    async def _on_loop(self) -> Answer:
        return await self._awaited(self._create())

    def _in_thread(self) -> object:
        """Receive in this thread; if the client turns out to be async, return an awaitable."""
        begun = self._create()
        if inspect.isawaitable(begun):
            return self._awaited(begun)
        self.begun = True
        if is_stream(begun):
            return self._iterated(begun)
        return self._iterated_async(begun) if is_async_stream(begun) else self._whole(begun)

    async def _awaited(self, beginning: Awaitable[object]) -> Answer:
        begun = await beginning
        self.begun = True
        # Some streams can be read both ways; a caller that awaits them means the async one.
        if is_async_stream(begun):
            return await self._iterated_async(begun)
        return self._iterated(begun) if is_stream(begun) else self._whole(begun)

    def _whole(self, completion: object) -> Answer:
        answer = whole(completion)
        self._shown.whole(answer.message)
        return answer

    def _iterated(self, stream: Iterable[object]) -> Answer:
        pieces = ReplyBuilder()
        try:
            for chunk in stream:
                if (pause := self._take(pieces, chunk)) is not None:
                    time.sleep(pause)
        finally:
            # An error of the stream says more than the error of closing it.
            with contextlib.suppress(Exception):
                closing(stream)()
        return self._whole_of(pieces)

    async def _iterated_async(self, stream: AsyncIterable[object]) -> Answer:
        pieces = ReplyBuilder()
        try:
            async for chunk in stream:
                if (pause := self._take(pieces, chunk)) is not None:
                    await asyncio.sleep(pause)
        finally:
            with contextlib.suppress(Exception):
                closed = closing(stream)()
                if inspect.isawaitable(closed):
                    await closed
        return self._whole_of(pieces)

    def _whole_of(self, pieces: ReplyBuilder) -> Answer:
        answer, rest = pieces.answer(), pieces.rest()
        if rest is not None:
            self._shown.delta(rest)
        return answer

    def _take(self, pieces: ReplyBuilder, chunk: object) -> float | None:
        """Add a chunk; return the seconds for which its reader should now get a turn: chunks at hand leave it none."""
        delta = pieces.add(chunk)
        if delta is None:
            return None
        self._shown.delta(delta)
        self._count += 1
        if self._count <= FIRST:
            return PAUSE
        return 0 if self._count <= EAGER or self._count % SELDOM == 0 else None


def is_stream(begun: object) -> TypeGuard[Iterable[object]]:
    """Return True if it is to be iterated, and is not a whole completion."""
    return hasattr(begun, "__iter__") and not _is_whole(begun)


def is_async_stream(begun: object) -> TypeGuard[AsyncIterable[object]]:
    """Return True if it is to be iterated with `async for`, and is not a whole completion."""
    return hasattr(begun, "__aiter__") and not _is_whole(begun)


def _is_whole(begun: object) -> bool:
    # Completions that are pydantic models or dictionaries can be iterated too, and mocks in both ways.
    if isinstance(begun, str | bytes | Mapping | BaseModel):
        return True
    return isinstance(getattr(begun, "choices", None), list | tuple)


def closing(stream: object) -> Callable[[], object]:
    """Return the function that closes a stream; one that does nothing if it has none."""
    found = getattr(stream, "close", None) or getattr(stream, "aclose", None)
    return found if callable(found) else lambda: None
