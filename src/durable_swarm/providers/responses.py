"""`Responses`: OpenAI's Responses API with the interface of chat completions."""

from __future__ import annotations

import threading
from typing import Any

from durable_swarm import credentials
from durable_swarm.awaitables import is_async
from durable_swarm.errors import ConfigurationError
from durable_swarm.models.call import current_model_call
from durable_swarm.models.client import default_client
from durable_swarm.models.lean import is_openai
from durable_swarm.models.memo import KeptInMemory
from durable_swarm.models.retry import DEFAULT_RETRIES
from durable_swarm.providers.clients import Provider
from durable_swarm.providers.responses_call import ResponsesCall


class Responses(Provider):
    """A client that calls OpenAI's Responses API, and answers as chat completions do.

    `client` is an `openai.OpenAI` or `openai.AsyncOpenAI`, by default `OpenAI()`, made at first use. Nothing is stored
    at the provider: reasoning arrives encrypted with each reply, is kept in its message, and is sent back before the
    text and calls that followed it. With `background=True` a model call is begun at the provider, its id is recorded,
    and then the client waits for the answer: after a crash, a call that was in progress is fetched instead of made and
    paid again. Background responses are stored at the provider.

    Raises `ConfigurationError` for a client without `responses`, and at first use without a key.
    """

    def __init__(self, client: Any = None, *, background: bool = False) -> None:
        if client is not None and not hasattr(getattr(client, "responses", None), "create"):
            raise ConfigurationError(
                f"Responses takes an openai client with `responses`, not a {type(client).__name__}; give any other "
                "client to the swarm as it is"
            )
        self._client = client
        self._background = background
        self._lock = threading.Lock()
        super().__init__(is_async=client is not None and is_async(client.responses.create))

    @property
    def max_retries(self) -> int:
        """Number of retries of transient errors by the caller: the client itself makes no retries then."""
        retries = getattr(self._client, "max_retries", None)
        return retries if isinstance(retries, int) else DEFAULT_RETRIES

    def ready(self) -> None:
        """Make the client, if none was given. Raises `ConfigurationError` without a key."""
        with self._lock:
            if self._client is None:
                self._client = default_client()

    def _call(self) -> ResponsesCall:
        self.ready()
        client, call = self._client, current_model_call.get()
        credentials.remember(client)
        # A wrapper that a program has put around `create` is called, and makes the client's own retries.
        bare = is_openai(client) and "create" not in vars(client.responses)
        api = client.with_options(max_retries=0).responses if bare else client.responses
        memo = KeptInMemory() if call is None else call.memo
        return ResponsesCall(api, memo, str(getattr(client, "base_url", "")), self._background)

    def _create(self, **request: object) -> object:
        call = self._call()
        return call.perform(call.opened(request) if request.get("stream") else call.whole(request))

    async def _create_async(self, **request: object) -> object:
        call = self._call()
        return await call.perform_async(call.opened_async(request) if request.get("stream") else call.whole(request))
