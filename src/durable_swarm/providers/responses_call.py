"""One call of the Responses API: whole or streamed, at once or in the background.

The requests are written once, as generators that yield effects and are sent their results (`Flow`); a plain and an
async client perform them in two ways. Only the reading of a stream is written twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from durable_swarm.models.memo import Memo
from durable_swarm.models.provider_errors import status_of
from durable_swarm.models.reply import field
from durable_swarm.providers.fallback import is_away
from durable_swarm.providers.responses_reply import UNDER_WAY, Chunks, checked, completion_of, id_of
from durable_swarm.providers.responses_request import KIND, REASONING, responses_request

FIRST_LOOK, LONGEST_LOOK = 0.25, 5.0
"""Seconds between polls of a background response: the first, doubled each time, and the longest."""

RESUMPTIONS = 5
"""Maximum resumptions in a row, without an event in between, of a background response's broken stream."""


@dataclass(frozen=True)
class Ask:
    """A request: the method of `client.responses`, and its arguments."""

    method: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Pause:
    """A wait of some seconds."""

    seconds: float


@dataclass(frozen=True)
class Keep:
    """A value to keep for this model call, so that a crash does not lose it."""

    value: Any


@dataclass(frozen=True)
class Recall:
    """The request for the kept value."""


Flow = Generator[Ask | Pause | Keep | Recall, Any, Any]


@dataclass
class ResponsesCall:
    """One call: `api` is `client.responses`, `place` the provider's address, `memo` keeps the response in progress."""

    api: Any
    memo: Memo
    place: str
    background: bool

    def perform(self, flow: Flow) -> Any:
        """Perform a flow in this thread, and return its result."""
        answer, error = None, None
        while True:
            try:
                wish = flow.send(answer) if error is None else flow.throw(error)
            except StopIteration as end:
                return end.value
            answer, error = None, None
            try:
                answer = self._do(wish)
            except Exception as raised:
                error = raised

    def _do(self, wish: Ask | Pause | Keep | Recall) -> Any:
        if isinstance(wish, Ask):
            return getattr(self.api, wish.method)(**wish.arguments)
        if isinstance(wish, Pause):
            return time.sleep(wish.seconds)
        return self.memo.write(wish.value) if isinstance(wish, Keep) else self.memo.read()

    async def perform_async(self, flow: Flow) -> Any:
        """Perform a flow on the running event loop."""
        answer, error = None, None
        while True:
            try:
                wish = flow.send(answer) if error is None else flow.throw(error)
            except StopIteration as end:
                return end.value
            answer, error = None, None
            try:
                answer = await self._do_async(wish)
            except Exception as raised:
                error = raised

    async def _do_async(self, wish: Ask | Pause | Keep | Recall) -> Any:
        if isinstance(wish, Ask):
            return await getattr(self.api, wish.method)(**wish.arguments)
        if isinstance(wish, Pause):
            return await asyncio.sleep(wish.seconds)
        return await asyncio.to_thread(self._do, wish)

    def whole(self, request: Mapping[str, object]) -> Flow:
        """Ask, and return the completion."""
        sent = responses_request(request, background=self.background)
        if not self.background:
            return completion_of((yield Ask("create", sent)))
        kept = yield from self._kept(sent)
        response = None if kept is None else (yield from self._retrieved(kept))
        if response is None:
            response = checked((yield Ask("create", sent)))
            yield Keep(self._note(sent, id_of(response)))
        return (yield from self._awaited(response))

    def opened(self, request: dict[str, Any]) -> Flow:
        """Ask for a stream, and return its chunks; a response that was not streamed at first arrives whole."""
        return (yield from self._opened(request, self._chunks))

    def opened_async(self, request: dict[str, Any]) -> Flow:
        """Return the chunks as `opened` does, if they must be awaited."""
        return (yield from self._opened(request, self._chunks_async))

    def _opened(self, request: Mapping[str, object], chunks: Any) -> Flow:
        sent = responses_request(request, background=self.background)
        kept = (yield from self._kept(sent)) if self.background else None
        if kept is not None and kept.get("streamed"):
            # From its first event on, because the text shown before the crash was withdrawn.
            stream = yield from self._retrieved(kept, stream=True)
            if stream is not None:
                return chunks(stream, sent, kept["id"])
        elif kept is not None and (response := (yield from self._retrieved(kept))) is not None:
            return (yield from self._awaited(response))
        return chunks((yield Ask("create", sent)), sent, "")

    def _note(self, sent: Mapping[str, object], response_id: str) -> dict[str, object]:
        streamed = bool(sent.get("stream"))
        return {"kind": KIND, "id": response_id, "model": sent.get("model"), "at": self.place, "streamed": streamed}

    def _kept(self, sent: Mapping[str, object]) -> Flow:
        """Return the kept value of this call, if it belongs to this model at this provider."""
        kept = yield Recall()
        same = isinstance(kept, dict) and {**kept, "streamed": None} == {
            **self._note(sent, kept.get("id", "")),
            "streamed": None,
        }
        return kept if same else None

    def _retrieved(self, kept: Mapping[str, object], **more: object) -> Flow:
        """Return the response in progress, or None if the provider no longer has it."""
        try:
            return (yield Ask("retrieve", {"response_id": kept["id"], "include": [REASONING], **more}))
        except Exception as error:
            if status_of(error) != 404:
                raise
        yield Keep(None)
        return None

    def _awaited(self, response: object) -> Flow:
        """Wait for a response in the background, and return its completion."""
        pause = FIRST_LOOK
        while field(checked(response), "status") in UNDER_WAY:
            yield Pause(pause)
            pause = min(2 * pause, LONGEST_LOOK)
            response = yield Ask("retrieve", {"response_id": id_of(response), "include": [REASONING]})
        try:
            return completion_of(response)
        except Exception:
            yield Keep(None)
            raise

    def _chunks(self, stream: Any, sent: Mapping[str, object], known: str) -> Iterator[object]:
        reading = Reading(self, sent, known)
        while True:
            try:
                if stream is None:
                    stream = self.api.retrieve(**reading.rest())
                for event in stream:
                    made = reading.take(event)
                    if reading.is_new():
                        self.memo.write(self._note(sent, reading.known))
                    yield from made
                reading.end()
                return
            except Exception as error:
                pause = reading.resumed(error)
                if pause is None:
                    if reading.failed():
                        self.memo.write(None)
                    raise
            finally:
                _close(stream)
            stream = None
            time.sleep(pause)

    async def _chunks_async(self, stream: Any, sent: Mapping[str, object], known: str) -> AsyncIterator[object]:
        reading = Reading(self, sent, known)
        while True:
            try:
                if stream is None:
                    stream = await self.api.retrieve(**reading.rest())
                async for event in stream:
                    made = reading.take(event)
                    if reading.is_new():
                        await asyncio.to_thread(self.memo.write, self._note(sent, reading.known))
                    for chunk in made:
                        yield chunk
                reading.end()
                return
            except Exception as error:
                pause = reading.resumed(error)
                if pause is None:
                    if reading.failed():
                        await asyncio.to_thread(self.memo.write, None)
                    raise
            finally:
                await _close_async(stream)
            stream = None
            await asyncio.sleep(pause)


class Reading:
    """The position in a stream, and the recovery when it breaks."""

    def __init__(self, call: ResponsesCall, sent: Mapping[str, object], known: str) -> None:
        self._background = call.background
        self._chunks = Chunks()
        self.known = known
        """The id under which the response is kept for a crash."""
        self._broken = 0

    def take(self, event: object) -> list[Any]:
        """Return the chunks of an event."""
        made = [*self._chunks.take(event)]
        self._broken = 0
        return made

    def is_new(self) -> bool:
        """Return True, once, when the response must be kept from now on."""
        if not self._background or not self._chunks.response_id or self.known == self._chunks.response_id:
            return False
        self.known = self._chunks.response_id
        return True

    def end(self) -> None:
        """Record that the stream has ended. Raises if it ended too soon."""
        if self._background and not self._chunks.ended:
            raise ConnectionError("the stream of a response in the background ended before the response")

    def rest(self) -> dict[str, Any]:
        """Return the arguments of `retrieve` for the missing events."""
        after = {"starting_after": self._chunks.last} if self._chunks.last >= 0 else {}
        return {"response_id": self.known, "stream": True, "include": [REASONING], **after}

    def resumed(self, error: Exception) -> float | None:
        """Return the seconds after which to resume reading after an error, or None if it ends the call."""
        if not self.known or self._chunks.ended or self._broken >= RESUMPTIONS or not is_away(error):
            return None
        self._broken += 1
        return FIRST_LOOK * float(2 ** (self._broken - 1))

    def failed(self) -> bool:
        """Return True if the response itself has failed, so that a retry means a new one."""
        return self._background and self._chunks.ended


def _close(stream: Any) -> None:
    with contextlib.suppress(Exception):
        if stream is not None:
            stream.close()


async def _close_async(stream: Any) -> None:
    with contextlib.suppress(Exception):
        if stream is not None:
            await stream.close()
