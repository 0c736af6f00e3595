"""The clients that are asked, and the loop on which async ones live."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable
from typing import Any

from durable_swarm.awaitables import is_async
from durable_swarm.concurrency import background_loop, give_back, on_background
from durable_swarm.credentials import without_secrets
from durable_swarm.errors import ConfigurationError, safe_text
from durable_swarm.models.lean import is_openai
from durable_swarm.models.retry import DEFAULT_RETRIES

CLOSING_SECONDS = 5.0
"""How long closing waits for connections to be given back."""


_at_home: weakref.WeakSet[Any] = weakref.WeakSet()
"""Async clients of our own making: their connections belong to the background loop, whichever loop asks."""


def _is_at_home(client: Any) -> bool:
    return is_openai(client) and client in _at_home


async def _beside(create: Callable[..., Any], **request: Any) -> Any:
    return await asyncio.wrap_future(on_background(create(**request)))


class Clients:
    """The model client of a swarm: the one it was given, or `openai`'s, made at first use."""

    def __init__(self, client: Any) -> None:
        self._given = client
        self._made: dict[bool, Any] = {}
        self._lock = threading.Lock()

    def get(self, loop: Any = None) -> Any:
        """Give the client for calls from a thread, or from the event loop `loop`; one serves all loops.

        Raises `ConfigurationError` where there is no API key.
        """
        if self._given is not None:
            return self._given
        asynchronous = loop is not None
        with self._lock:
            if asynchronous not in self._made:
                self._made[asynchronous] = _default_client(asynchronous)
            return self._made[asynchronous]

    @property
    def is_blocking(self) -> bool:
        """Whether the client is asked by plain calls."""
        return self._given is None or not is_async(self._given.chat.completions.create)

    @property
    def is_ready(self) -> bool:
        """Whether there is a client to use."""
        try:
            self.ready()
        except ConfigurationError:
            return False
        return True

    def ready(self) -> None:
        """Check that there is a client to use. Raises `ConfigurationError`."""
        if self._given is None and not self._made:
            self.get()

    def close(self) -> None:
        """Close what this object made, and give back the threads behind it; a later `get` makes it anew."""
        with self._lock:
            blocking, on_loops = self._made.pop(False, None), self._made.pop(True, None)
        if blocking is not None:
            blocking.close()
        if on_loops is not None:
            closed = on_background(on_loops.close())
            with contextlib.suppress(TimeoutError):
                closed.result(0 if _on_background_loop() else CLOSING_SECONDS)
        give_back()


def _on_background_loop() -> bool:
    try:
        return asyncio.get_running_loop() is background_loop()
    except RuntimeError:
        return False


def _default_client(asynchronous: bool) -> Any:
    try:
        import openai

        kind = openai.AsyncOpenAI if asynchronous else openai.OpenAI
        client = kind(max_retries=DEFAULT_RETRIES)
    except Exception as error:  # A proxy or a certificate of the environment that is unfit raises anything.
        raise ConfigurationError(
            f"no model client: {without_secrets(safe_text(error)).rstrip('.')}. Set OPENAI_API_KEY, or pass client= to "
            'the swarm. To try it offline, without a key: client=ScriptedModel(["Hello"]) of durable_swarm.testing, or '
            "`durable-swarm demo refund`."
        ) from None
    if asynchronous:
        _at_home.add(client)
    return client
