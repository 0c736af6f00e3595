"""Stand-ins for official async clients: copies with connections of their own, on the package's loop.

Connections belong to the event loop on which they were opened. A stand-in's belong to a loop that always exists, so the
client serves calls from any loop, the program may use it itself on any, and closing releases what was opened. Every
other async client is called on the caller's loop, and belongs to that.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import weakref
from collections.abc import Callable
from typing import Any

from durable_swarm.background import background, background_loop, on_background
from durable_swarm.concurrency import kept, result_of, running_loop
from durable_swarm.models.lean import is_bare, is_official, is_openai

CLOSING_SECONDS = 5.0
"""Seconds that closing waits for connections to be released."""

_stand_ins: weakref.WeakSet[object] = weakref.WeakSet()
"""The stand-ins: their connections belong to the package's loop, whichever loop calls them."""


def can_stand_in(client: object) -> bool:
    """Return True if a copy is unnoticeable: an official async client, bare, over connections that it made itself."""
    openai = sys.modules.get("openai")
    if openai is None or not isinstance(client, openai.AsyncOpenAI) or not is_bare(client):
        return False
    connections = getattr(client, "_client", None)
    # The type of the connections shows whether the client has made them or was given them.
    return type(connections).__name__ == "AsyncHttpxClientWrapper" and _is_untouched(connections)


def _is_untouched(connections: object) -> bool:
    """Return True if nothing of the program or of a tracer is called on the way to the provider."""
    hooks = [hook for hooks in getattr(connections, "event_hooks", {}).values() for hook in hooks]
    transports = [getattr(connections, "_transport", None), *filter(None, getattr(connections, "_mounts", {}).values())]
    usual = all(
        type(transport).__name__ == "AsyncHTTPTransport" and "handle_async_request" not in vars(transport)
        for transport in transports
    )
    return usual and all(map(is_official, hooks)) and "send" not in vars(connections)


def on_its_loop(client: object, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that calls the client; for a stand-in, one that calls it on its own loop."""
    if not is_openai(client) or client not in _stand_ins:
        return function

    async def ask(*args: object, **kwargs: object) -> object:
        if running_loop() is background_loop():
            return await function(*args, **kwargs)
        return result_of(await asyncio.wrap_future(on_background(kept(function(*args, **kwargs)))))

    return ask


class StandIn:
    """An official async client over connections of its own; `make` returns it for these connections.

    It is made anew if the `settings` differ from those it was made with.
    """

    def __init__(self, make: Callable[[Any], object], settings: Callable[[], dict[str, object]] = dict) -> None:
        self._make = make
        self._settings = settings
        self._made: object = None
        self._made_with: dict[str, object] = {}
        self._connections: Any = None
        self._home = background()

    @classmethod
    def of(cls, client: Any) -> StandIn:
        """Return the stand-in of a program's client, with its present settings, because a key may be changed."""

        def settings() -> dict[str, object]:
            # Without parts such as `chat`, which are made at first use.
            return {name: value for name, value in vars(client).items() if not hasattr(value, "_client")}

        return cls(lambda connections: client.with_options(http_client=connections), settings)

    def client(self) -> object:
        """Return the client to call."""
        import openai

        if self._home is not background():  # After a fork: the loop and its connections belong to the parent.
            self._home, self._made, self._connections = background(), None, None
        settings = self._settings()
        if self._made is None or settings != self._made_with:
            self._connections = self._connections or openai.DefaultAsyncHttpxClient()
            self._made, self._made_with = self._make(self._connections), settings
            _stand_ins.add(self._made)
            self._home.bind(self)
        return self._made

    def close(self) -> None:
        """Close the connections, and release the loop."""
        connections, self._made, self._connections = self._connections, None, None
        if connections is not None and self._home is background():
            closed = on_background(connections.aclose())
            with contextlib.suppress(TimeoutError):
                closed.result(0 if running_loop() is background_loop() else CLOSING_SECONDS)
        self._home.unbind(self)
