"""The base of all providers: a client, plain or async, that may call other clients, each in its own way.

One rule for mixed clients: a provider of plain clients is plain; with one async client in it, it is async, and calls
its plain clients in threads.
"""

from __future__ import annotations

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from typing import Any

from durable_swarm import credentials
from durable_swarm.awaitables import is_async, is_awaitable
from durable_swarm.errors import ConfigurationError
from durable_swarm.models.lean import prepared
from durable_swarm.models.receiver import is_stream
from durable_swarm.models.wire import addressed


class Completions:
    """The `chat.completions` of a provider."""

    def __init__(self, create: Callable[..., object]) -> None:
        self.create = create


class Chat:
    """The `chat` of a provider."""

    def __init__(self, create: Callable[..., object]) -> None:
        self.completions = Completions(create)


class Provider(ABC):
    """A client of ours. Messages sent to it keep the fields for their own provider, under `provider`."""

    takes_origins = True

    def __init__(self, *, is_async: bool) -> None:
        self.is_async = is_async
        """True if `chat.completions.create` must be awaited."""
        self.chat = Chat(self._create_async if is_async else self._create)

    @abstractmethod
    def _create(self, **request: object) -> object:
        """Answer in the calling thread."""

    @abstractmethod
    async def _create_async(self, **request: object) -> object:
        """Answer on the running event loop."""

    def client_for(self, model: str) -> Any:
        """Return the client for a model: this one, unless it only routes to others."""
        return self

    @abstractmethod
    def ready(self) -> None:
        """Check that a client is available. Raises `ConfigurationError`."""


def check_client(where: str, client: object) -> Any:
    """Return the client that was passed to `where`. Raises `ConfigurationError` for an object that is not a client."""
    if hasattr(getattr(client, "chat", None), "completions"):
        return client
    raise ConfigurationError(
        f"{where} is a {type(client).__name__} without chat.completions.create; pass an openai client, a provider of "
        "durable_swarm.providers, or anything of that shape"
    )


def asks_async(client: Any) -> bool:
    """Return True if a client's answers must be awaited, as far as that is known before a call."""
    if isinstance(client, Provider):
        return client.is_async
    openai = sys.modules.get("openai")
    if openai is not None and isinstance(client, openai.AsyncOpenAI):
        return True  # Its `create` is wrapped by a plain function.
    return is_async(client.chat.completions.create)


def ready(client: object) -> None:
    """Check that a client can be used. Raises `ConfigurationError`."""
    if isinstance(client, Provider):
        client.ready()


def for_client(client: object, request: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the function of a client and its arguments, without other providers' own fields."""
    credentials.remember(client)
    if not getattr(client, "takes_origins", False):
        request = {**request, "messages": addressed(request.get("messages") or [], request.get("model"))}
    create, arguments = prepared(client, request)
    return create, {name: value for name, value in arguments.items() if value is not None}


async def ask_async(client: object, request: dict[str, Any]) -> Any:
    """Call a client from an event loop: a plain one in a thread, its stream too."""
    create, arguments = for_client(client, request)
    if asks_async(client):
        return await create(**arguments)
    answer = await asyncio.to_thread(create, **arguments)
    if is_awaitable(answer):
        return await answer
    return _from_thread(answer) if is_stream(answer) else answer


async def _from_thread(stream: Iterable[object]) -> AsyncIterator[object]:
    """Read a plain stream in threads."""
    chunks = iter(stream)
    try:
        while True:
            chunk = await asyncio.to_thread(next, chunks, _END)
            if chunk is _END:
                return
            yield chunk
    finally:
        close = getattr(stream, "close", None)
        with suppress(Exception):
            if callable(close):
                close()


_END = object()
