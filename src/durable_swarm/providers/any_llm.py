"""`AnyLLM`: the providers that the any-llm package supports."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from typing import Any

from durable_swarm.awaitables import settled
from durable_swarm.errors import ConfigurationError
from durable_swarm.models.receiver import is_async_stream
from durable_swarm.models.wire import addressed
from durable_swarm.providers.clients import Provider

INSTALL = (
    "AnyLLM needs the package any-llm-sdk: pip install 'durable-swarm[any-llm]' 'any-llm-sdk[anthropic]', "
    "with the names of the providers that you use"
)


class AnyLLM(Provider):
    """A client of any provider that any-llm supports, always async.

    `AnyLLM(provider="anthropic")` asks that provider for the model by its name; `AnyLLM()` takes models named
    `"anthropic:claude-..."`. The other options are passed to `any_llm.AnyLLM.create` (`api_key`, `api_base`, ...).
    Raises `ConfigurationError` if the extra `any-llm` is not installed.
    """

    def __init__(self, **options: Any) -> None:
        if not _is_installed():
            raise ConfigurationError(INSTALL)
        self._provider = options.pop("provider", None)
        if self._provider is not None and (not isinstance(self._provider, str) or not self._provider):
            raise ConfigurationError(f'provider is a name of any-llm, such as "anthropic", not {self._provider!r}')
        # Without it any-llm warns of each error.
        self._options = {"unified_exceptions": True, **options}
        self._made: dict[str, object] = {}
        self._lock = threading.Lock()
        super().__init__(is_async=True)

    def client_for(self, model: str) -> Any:
        """Check that the model's provider can be asked. Raises `ConfigurationError`."""
        self._llm(self._split(model)[0])
        return self

    def ready(self) -> None:
        """Check that the provider can be asked, if one is named. Raises `ConfigurationError`."""
        if self._provider is not None:
            self._llm(self._provider)

    def _create(self, **request: object) -> object:
        return self._create_async(**request)

    async def _create_async(self, **request: Any) -> object:
        provider, model = self._split(str(request.pop("model")))
        messages = addressed(request.pop("messages"), f"{provider} {model}")
        given = {name: value for name, value in request.items() if value is not None}
        with _own_errors():
            answer = await self._llm(provider).acompletion(model=model, messages=messages, **given)
        return _read(answer) if is_async_stream(answer) else answer

    def _split(self, model: str) -> tuple[str, str]:
        if self._provider is not None:
            return self._provider, model
        provider, colon, name = model.partition(":")
        if not colon or not provider or not name:
            raise ConfigurationError(
                f'AnyLLM cannot tell the provider of model {model!r}; name the model "provider:model", or make '
                'AnyLLM(provider="...")'
            )
        return provider, name

    def _llm(self, provider: str) -> Any:
        with self._lock:
            if provider not in self._made:
                self._made[provider] = _created(provider, self._options)
            return self._made[provider]


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    """Raise the errors of each provider's own client, with known kinds and headers, in place of any-llm's."""
    try:
        yield
    except Exception as error:
        original = getattr(error, "original_exception", None)
        if isinstance(original, Exception):
            raise original from None
        raise


async def _read(stream: AsyncIterable[object]) -> AsyncIterator[object]:
    try:
        with _own_errors():
            async for chunk in stream:
                yield chunk
    finally:
        close = getattr(stream, "aclose", None) or getattr(stream, "close", None)
        with contextlib.suppress(Exception):
            if callable(close):
                await settled(close())


def _is_installed() -> bool:
    """Return True if the package is installed; importing it takes seconds."""
    try:
        return importlib.util.find_spec("any_llm") is not None
    except ImportError:
        return False


def _created(provider: str, options: Mapping[str, object]) -> object:
    try:
        return importlib.import_module("any_llm").AnyLLM.create(provider, **options)
    except Exception as error:  # No key, an unknown provider, or a package of the provider that is not installed.
        raise ConfigurationError(f"AnyLLM cannot ask {provider!r}: {error}") from error
