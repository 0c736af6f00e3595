"""The streamed form of a scripted answer: its chunks, and the streams that deliver them.

The streams are used like openai's `Stream` and `AsyncStream`: iterate them, use them in `with`, or `close` them.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from durable_swarm.testing.shapes import (
    AssistantMessage,
    Choice,
    Chunk,
    ChunkChoice,
    Completion,
    Delta,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
)

ARGUMENTS_PIECE = 8
"""Characters of a call's arguments in one chunk."""


class Patience:
    """The longest wait of a request's client for each chunk: the request's `timeout` in seconds, or forever."""

    def __init__(self, request: Mapping[str, object]) -> None:
        timeout = request.get("timeout")
        self._limit = float(timeout) if isinstance(timeout, int | float) else math.inf

    def wait(self, seconds: float) -> None:
        """Let time pass. Raises `TimeoutError` if it is longer than the client waits."""
        time.sleep(min(seconds, self._limit))
        self._check(seconds)

    async def wait_async(self, seconds: float) -> None:
        """Let time pass as `wait` does, on an event loop."""
        await asyncio.sleep(min(seconds, self._limit))
        self._check(seconds)

    def _check(self, seconds: float) -> None:
        if seconds > self._limit:
            raise TimeoutError(f"no answer within the request's timeout of {self._limit:g} s")


@dataclass
class Tape:
    """The chunks of one stream, the seconds before each, and the error it ends with, if any."""

    chunks: list[Chunk]
    pace: float = 0.0
    error: Exception | None = None
    _next: int = field(default=0, init=False)

    def take(self) -> Chunk | None:
        """Return the next chunk, None at the end. Raises the error the stream ends with, once."""
        if self._next < len(self.chunks):
            self._next += 1
            return self.chunks[self._next - 1]
        error, self.error = self.error, None
        if error is not None:
            raise error
        return None

    def end(self) -> None:
        """End the stream."""
        self.chunks, self.error = [], None


class ScriptedStream:
    """The result of `create(stream=True)`: an iterator of chunks. `closed` is true once the program has closed it."""

    def __init__(self, tape: Tape, patience: Patience) -> None:
        self.closed = False
        self._tape = tape
        self._patience = patience

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Chunk:
        if not self.closed:
            self._patience.wait(self._tape.pace)
        chunk = self._tape.take()
        if chunk is None:
            raise StopIteration
        return chunk

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the stream: it yields nothing more."""
        self.closed = True
        self._tape.end()


class AsyncScriptedStream:
    """`ScriptedStream` for `async for` and `async with`; `await` its `close`."""

    def __init__(self, tape: Tape, patience: Patience) -> None:
        self.closed = False
        self._tape = tape
        self._patience = patience

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if not self.closed:
            await self._patience.wait_async(self._tape.pace)
        chunk = self._tape.take()
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the stream: it yields nothing more."""
        self.closed = True
        self._tape.end()


def chunks_of(completion: Completion, include_usage: bool) -> list[Chunk]:
    """Cut a response into chunks: role, text word by word, calls piece by piece, finish reason, usage if asked for."""

    def chunk(*choices: ChunkChoice, **more: Any) -> Chunk:
        return Chunk(id=completion.id, created=completion.created, model=completion.model, choices=[*choices], **more)

    made = [chunk(piece) for choice in completion.choices for piece in _pieces(choice)] or [chunk()]
    return [*made, chunk(usage=completion.usage)] if include_usage else made


def _pieces(choice: Choice) -> Iterator[ChunkChoice]:
    for delta in _deltas(choice.message):
        yield ChunkChoice(index=choice.index, delta=delta)
    yield ChunkChoice(index=choice.index, delta=Delta(), finish_reason=choice.finish_reason)


def _deltas(message: AssistantMessage) -> Iterator[Delta]:
    # A provider's own fields of a message are sent with the role, in one piece.
    yield Delta(role="assistant", content=None if message.content is None else "", **(message.model_extra or {}))
    for word in words(message.content):
        yield Delta(content=word)
    for word in words(message.refusal):
        yield Delta(refusal=word)
    for index, call in enumerate(message.tool_calls or ()):
        for piece in _call_pieces(index, call):
            yield Delta(tool_calls=[piece])


def words(text: str | None) -> list[str]:
    """Cut a text into words, each with the space before it."""
    return re.findall(r"\s*\S+|\s+\Z", text or "")


def _call_pieces(index: int, call: ToolCall) -> Iterator[ToolCallDelta]:
    opened = FunctionDelta(name=call.function.name, arguments="")
    yield ToolCallDelta(index=index, id=call.id, type=call.type, function=opened)
    text = call.function.arguments
    for start in range(0, len(text), ARGUMENTS_PIECE):
        yield ToolCallDelta(index=index, function=FunctionDelta(arguments=text[start : start + ARGUMENTS_PIECE]))
