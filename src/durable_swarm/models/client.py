"""Model clients, and the event loop that async clients belong to."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

from durable_swarm.awaitables import is_async
from durable_swarm.background import give_back
from durable_swarm.credentials import without_secrets
from durable_swarm.errors import ConfigurationError, safe_text
from durable_swarm.models.client_loops import StandIn, can_stand_in
from durable_swarm.models.retry import DEFAULT_RETRIES


class Clients:
    """The model client of a swarm: the given one, or a client of `openai`, made at first use."""

    def __init__(self, client: Any) -> None:
        self._given = client
        self._blocking: Any = None
        self._stand_in: StandIn | None = None
        self._lock = threading.Lock()

    def get(self, loop: object = None) -> object:
        """Return the client for calls from a thread, or from the event loop `loop`; one client serves all loops.

        Raises `ConfigurationError` without an API key.
        """
        if self._given is not None:
            check_ready(self._given)
        with self._lock:
            if self._given is None:
                return self._default(loop is not None)
            if not can_stand_in(self._given):
                return self._given
            self._stand_in = self._stand_in or StandIn.of(self._given)
            with contextlib.suppress(Exception):  # A client that cannot be copied reports the reason when it is called.
                return self._stand_in.client()
            return self._given

    def _default(self, asynchronous: bool) -> object:
        with _without_client():
            import openai

            if asynchronous:
                self._stand_in = self._stand_in or StandIn(partial(_default_async_client, openai))
                return self._stand_in.client()
        self._blocking = self._blocking or default_client()
        return self._blocking

    @property
    def is_blocking(self) -> bool:
        """True if the client is called synchronously."""
        return self._given is None or not is_async(self._given.chat.completions.create)

    @property
    def is_ready(self) -> bool:
        """True if a client is available."""
        try:
            self.ready()
        except ConfigurationError:
            return False
        return True

    def ready(self) -> None:
        """Check that there is a client to use. Raises `ConfigurationError`."""
        if self._given is not None:
            check_ready(self._given)
        elif self._blocking is None and self._stand_in is None:
            self.get()

    def close(self) -> None:
        """Close what this object made and release its threads; a later `get` makes it again."""
        with self._lock:
            blocking, self._blocking = self._blocking, None
            stand_in, self._stand_in = self._stand_in, None
        if blocking is not None:
            blocking.close()
        if stand_in is not None:
            stand_in.close()
        give_back()


def _default_async_client(openai: Any, connections: object) -> object:
    return openai.AsyncOpenAI(max_retries=DEFAULT_RETRIES, http_client=connections)


@contextlib.contextmanager
def _without_client() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # A proxy or a certificate of the environment that is unfit raises anything.
        raise ConfigurationError(
            f"no model client: {without_secrets(safe_text(error)).rstrip('.')}. Set OPENAI_API_KEY, or pass client= to "
            "the swarm. To try it offline, without a key: `durable-swarm run --mock SCRIPT`, or "
            'client=ScriptedModel(["Hello"]) of durable_swarm.testing.'
        ) from None


def default_client() -> object:
    """Make the default client, of `openai`. Raises `ConfigurationError` without a key."""
    with _without_client():
        import openai

        return openai.OpenAI(max_retries=DEFAULT_RETRIES)


def client_for(client: Any, model: str) -> object:
    """Return the client for a model, if `client` routes to others (see `durable_swarm.providers`).

    Raises `ConfigurationError` if there is none.
    """
    if not takes_origins(client):
        return client
    found = client.client_for(model)
    check_ready(found)
    return found


def check_ready(client: Any) -> None:
    """Check that a client can be used, as far as that is known. Raises `ConfigurationError`."""
    if takes_origins(client):
        client.ready()


def takes_origins(client: object) -> bool:
    """Return True if a client is a provider, which gets messages with the origins of their fields."""
    return getattr(client, "takes_origins", False) is True


def provider_of(client: object) -> str:
    """Return a name for the provider that a client asks: the same for all clients with its address and its key."""
    address = getattr(client, "base_url", None)
    kind = type(client)
    name = f"{kind.__module__}.{kind.__qualname__}" if address is None else without_secrets(str(address))
    key = getattr(client, "api_key", None)
    # Limits belong to a key. Its digest cannot be turned back.
    return f"{name}#{hashlib.sha256(key.encode()).hexdigest()[:12]}" if isinstance(key, str) and key else name
