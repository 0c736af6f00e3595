"""`Fallback`: the next client if one is unavailable."""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from durable_swarm.awaitables import is_awaitable, settled
from durable_swarm.credentials import without_secrets
from durable_swarm.errors import ConfigurationError, safe_text
from durable_swarm.models.call import current_model_call
from durable_swarm.models.provider_errors import status_of, transient
from durable_swarm.models.receiver import closing, is_async_stream, is_stream
from durable_swarm.models.reply import field, refuse_error
from durable_swarm.models.retry import DEFAULT_RETRIES
from durable_swarm.models.stream import BrokenStream, whole
from durable_swarm.providers.clients import Provider, ask_async, asks_async, check_client, for_client, ready

log = logging.getLogger("durable_swarm")

REMEMBERED = 1000
"""Number of model calls for which the client of a broken stream is remembered."""


class Place(NamedTuple):
    """One of the clients, and the name of the model there if it differs."""

    client: Any
    model: str | None


class Fallback(Provider):
    """A client that calls the first of several, and the next one if that is unavailable.

    `Fallback(OpenAI(), (OpenAI(base_url=...), "other-model"))`: each is asked for the model by its own name, or by the
    given name. The next one is called after a lost connection, a timeout, and the statuses 408, 409, 429 and 5xx; any
    other error is the caller's, and raised at once. Each model call begins with the first client again, except that a
    client with a broken stream is skipped when the same call is made again.
    """

    def __init__(self, *clients: object) -> None:
        if not clients:
            raise ConfigurationError("Fallback takes one client or more: Fallback(first, second)")
        self._places = [_place(number, given) for number, given in enumerate(clients, start=1)]
        self._broken: OrderedDict[tuple[str, int], int] = OrderedDict()
        """For a model call with a broken stream, the place to begin with."""
        super().__init__(is_async=any(asks_async(place.client) for place in self._places))

    @property
    def max_retries(self) -> int:
        """Number of retries of transient errors with all clients: the maximum over the clients."""
        said = [getattr(place.client, "max_retries", None) for place in self._places]
        return max((tries for tries in said if isinstance(tries, int)), default=DEFAULT_RETRIES)

    def ready(self) -> None:
        """Check that all clients can be used. Raises `ConfigurationError`."""
        for place in self._places:
            ready(place.client)

    def _create(self, **request: object) -> object:
        at = self._first()
        while True:
            try:
                create, arguments = for_client(self._places[at].client, self._request(at, request))
                answer = create(**arguments)
                if is_awaitable(answer):  # A client that does not show beforehand that it is async.
                    return self._awaited(at, answer, request)
                return self._stream(at, answer) if is_stream(answer) else self._whole(at, answer)
            except Exception as error:
                at = self._next(at, error)

    async def _create_async(self, **request: object) -> object:
        return await self._awaited(self._first(), None, request)

    async def _awaited(self, at: int, begun: Any, request: dict[str, object]) -> object:
        """Ask from place `at` on; if `begun` is given, its client was called already."""
        while True:
            try:
                place = self._places[at]
                answer = await (ask_async(place.client, self._request(at, request)) if begun is None else begun)
                if is_async_stream(answer):
                    return await self._stream_async(at, answer)
                return self._stream(at, answer) if is_stream(answer) else self._whole(at, answer)
            except Exception as error:
                at, begun = self._next(at, error), None

    def _first(self) -> int:
        return self._broken.get(_call(), 0)

    def _request(self, at: int, request: dict[str, object]) -> dict[str, object]:
        model = self._places[at].model
        return request if model is None else {**request, "model": model}

    def _next(self, at: int, error: Exception) -> int:
        """Return the place to ask after a failed one. Raises its error if that is final."""
        following = at + 1
        if following >= len(self._places) or not is_away(error):
            raise error
        told = without_secrets(safe_text(error))[:200]
        log.warning(
            "client %d of Fallback is away (%s: %s); client %d is asked", at + 1, type(error).__name__, told, at + 2
        )
        return following

    def _whole(self, at: int, answer: object) -> object:
        """Return an answer that arrived whole. Raises the error that a gateway sends in place of one."""
        whole(answer)
        self._note(at)
        return answer

    def _note(self, at: int) -> None:
        """Record which model has answered."""
        call, model = current_model_call.get(), self._places[at].model
        if call is not None and model is not None:
            call.notes["model"] = model

    def _stream(self, at: int, stream: Iterable[object]) -> Iterator[object]:
        """Return the stream of place `at` once its message has begun."""
        chunks, first = iter(stream), _Beginning()
        for chunk in chunks:
            if first.take(chunk):
                break
        self._note(at)
        return self._chunks(at, stream, first.checked(), chunks)

    def _chunks(self, at: int, stream: object, first: Sequence[object], rest: Iterator[object]) -> Iterator[object]:
        try:
            yield from first
            yield from rest
        except Exception:
            self._broke(at)
            raise
        finally:
            with contextlib.suppress(Exception):
                closing(stream)()

    async def _stream_async(self, at: int, stream: AsyncIterable[object]) -> AsyncIterator[object]:
        chunks, first = aiter(stream), _Beginning()
        async for chunk in chunks:
            if first.take(chunk):
                break
        self._note(at)
        return self._chunks_async(at, stream, first.checked(), chunks)

    async def _chunks_async(
        self, at: int, stream: object, first: Sequence[object], rest: AsyncIterator[object]
    ) -> AsyncIterator[object]:
        try:
            for chunk in first:
                yield chunk
            async for chunk in rest:
                yield chunk
        except Exception:
            self._broke(at)
            raise
        finally:
            with contextlib.suppress(Exception):
                await settled(closing(stream)())

    def _broke(self, at: int) -> None:
        """Record that a partly shown stream broke off: the next client makes the call again."""
        if (call := _call()) != _NO_CALL:
            self._broken[call] = (at + 1) % len(self._places)
            self._broken.move_to_end(call)
            while len(self._broken) > REMEMBERED:
                self._broken.popitem(last=False)


_NO_CALL = ("", -1)


def _call() -> tuple[str, int]:
    call = current_model_call.get()
    return _NO_CALL if call is None else (call.run_id, call.turn)


class _Beginning:
    """The beginning of a stream, up to the first chunk of a message."""

    def __init__(self) -> None:
        self._chunks: list[object] = []
        self._begun = False

    def take(self, chunk: object) -> bool:
        """Add a chunk, and return True if the message has begun. Raises a gateway's error in place of one."""
        refuse_error(chunk)
        self._chunks.append(chunk)
        self._begun = bool(field(chunk, "choices"))
        return self._begun

    def checked(self) -> list[object]:
        """Return the chunks. Raises `BrokenStream` if the stream has ended without a message."""
        if not self._begun:
            raise BrokenStream("the provider's stream has no message")
        return self._chunks


def _place(number: int, given: object) -> Place:
    client, model = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
    check_client(f"client {number} of Fallback", client)
    if model is not None and (not isinstance(model, str) or not model):
        raise ConfigurationError(
            f'client {number} of Fallback is given with {model!r}; give (client, "name of the model")'
        )
    return Place(client, model)


def is_away(error: Exception) -> bool:
    """Return True if an error means that a client is unavailable or overloaded, and another one may serve."""
    status = status_of(error)
    if status is not None:
        return status in (408, 409, 429) or status >= 500
    return transient(error)
