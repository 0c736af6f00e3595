"""`Responses`: OpenAI's Responses API behind the shape of chat completions."""

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
    """A client that asks OpenAI's Responses API, and answers as chat completions do.

    `client` is an `openai.OpenAI` or `openai.AsyncOpenAI`, by default `OpenAI()`, made at first use. Nothing is stored
    at the provider: reasoning comes encrypted with each reply, is kept in its message, and is sent back in front of
    what it led to. With `background=True` a model call is begun at the provider, its id is recorded, and then the
    answer is waited for: a call that was in flight at a crash is fetched, and not made and paid once more. Responses in
    the background are stored at the provider.

    Raises `ConfigurationError` for a client without `responses`, and at first use where there is no key.
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
        """How often what may pass is tried again, by whoever asks: the client itself makes no retries then."""
        retries = getattr(self._client, "max_retries", None)
        return retries if isinstance(retries, int) else DEFAULT_RETRIES

    def ready(self) -> None:
        """Make the client, if none was given. Raises `ConfigurationError` where there is no key."""
        with self._lock:
            if self._client is None:
                self._client = default_client()

    def _call(self) -> ResponsesCall:
        self.ready()
        client, call = self._client, current_model_call.get()
        credentials.remember(client)
        # What a program has put round `create` is called, and makes the client's own retries.
        bare = is_openai(client) and "create" not in vars(client.responses)
        api = client.with_options(max_retries=0).responses if bare else client.responses
        memo = KeptInMemory() if call is None else call.memo
        return ResponsesCall(api, memo, str(getattr(client, "base_url", "")), self._background)

    def _create(self, **request: Any) -> Any:
        call = self._call()
        return call.perform(call.opened(request) if request.get("stream") else call.whole(request))

    async def _create_async(self, **request: Any) -> Any:
        call = self._call()
        return await call.perform_async(call.opened_async(request) if request.get("stream") else call.whole(request))
