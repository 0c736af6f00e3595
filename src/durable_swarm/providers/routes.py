"""`Routes`: a client for each model name."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from durable_swarm.errors import ConfigurationError
from durable_swarm.providers.clients import Provider, ask_async, asks_async, check_client, for_client, ready


class Routes(Provider):
    """A client that routes each request to another one, by the name of its model.

    `Routes({"gpt-*": OpenAI(), "claude-*": AnyLLM(provider="anthropic"), "*": OpenAI(base_url=...)})`: the first
    matching pattern, in the order given. `*` matches any characters, `?` one, `[ab]` one of these; case counts. Without
    a matching pattern it raises `ConfigurationError`, and a durable run waits for a process that has a route.
    """

    def __init__(self, routes: Mapping[str, object]) -> None:
        if not isinstance(routes, Mapping) or not routes:
            raise ConfigurationError(
                f'Routes takes a dictionary of patterns and clients, such as {{"gpt-*": OpenAI()}}, not {routes!r}'
            )
        for pattern, client in routes.items():
            if not isinstance(pattern, str) or not pattern:
                raise ConfigurationError(f'a pattern of Routes is a text such as "gpt-*", not {pattern!r}')
            check_client(f"Routes: {pattern!r}", client)
        self._routes = dict(routes)
        super().__init__(is_async=any(map(asks_async, self._routes.values())))

    def client_for(self, model: str) -> Any:
        """Return the client for a model. Raises `ConfigurationError` if no pattern fits."""
        for pattern, client in self._routes.items():
            if fnmatchcase(model, pattern):
                return client.client_for(model) if isinstance(client, Provider) else client
        patterns = ", ".join(map(repr, self._routes))
        raise ConfigurationError(
            f"Routes has no pattern for model {model!r}, only {patterns}; add one, or a last one of '*' for all others"
        )

    def ready(self) -> None:
        """Check that a client is available. Raises `ConfigurationError` if none can be used."""
        reasons = []
        for client in self._routes.values():
            try:
                ready(client)
                return
            except ConfigurationError as error:
                reasons.append(error)
        raise reasons[0]

    def _create(self, **request: object) -> object:
        create, arguments = for_client(self.client_for(str(request.get("model"))), request)
        return create(**arguments)

    async def _create_async(self, **request: object) -> object:
        return await ask_async(self.client_for(str(request.get("model"))), request)
