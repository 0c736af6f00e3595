"""`AnyLLM`: the providers of the any-llm package, asked over HTTP."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, ModelError, Response, Swarm
from durable_swarm.background import background_loop
from durable_swarm.providers import AnyLLM, Fallback, Routes
from durable_swarm.testing import ScriptedServer, call, http_error, rate_limited, serve_scripted
from tests.support.patience import PATIENCE

HI: list[Any] = [{"role": "user", "content": "Where is A1?"}]


def look_up(order: str) -> str:
    """Look up an order."""
    return "shipped"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A provider whose first reply calls a tool, and whose second is the answer."""
    with serve_scripted([[call("look_up", order="A1")], "It is on its way."]) as running:
        yield running


@pytest.fixture
def made() -> Iterator[Callable[..., AnyLLM]]:
    """Makes clients of a server of OpenAI's shape; what any-llm has opened is closed on the loop it was opened on."""
    clients: list[AnyLLM] = []

    def make(server: ScriptedServer, **options: Any) -> AnyLLM:
        clients.append(AnyLLM(api_base=server.base_url, api_key="sk-test", max_retries=0, **options))
        return clients[-1]

    yield make
    for llm in [llm for client in clients for llm in vars(client)["_made"].values()]:
        asyncio.run_coroutine_threadsafe(llm.client.close(), background_loop()).result(PATIENCE)


def run(client: Any, model: str, *, streamed: bool = False) -> Response:
    """Run an agent with a tool in memory."""
    agent = Agent(model=model, functions=[look_up], model_settings={"temperature": 0.5})
    swarm = Swarm(client)  # Not closed: its loop would be closed under connections that any-llm keeps.
    if not streamed:
        return swarm.run(agent, HI)
    [*_, last] = swarm.run(agent, HI, stream=True)
    response: Response = last["response"]
    return response


@pytest.mark.parametrize("streamed", [False, True])
def test_a_run_by_any_llm(streamed: bool, server: ScriptedServer, made: Callable[..., AnyLLM]) -> None:
    """Tools, settings, history and usage go through any-llm both ways, whole and streamed."""
    response = run(made(server, provider="openai"), "gpt-5.4", streamed=streamed)
    assert [message["role"] for message in response.messages] == ["assistant", "tool", "assistant"]
    assert response.messages[-1]["content"] == "It is on its way."
    assert response.usage is not None
    assert (server.calls[0]["model"], server.calls[0]["temperature"]) == ("gpt-5.4", 0.5)


def test_the_model_names_its_provider(server: ScriptedServer, made: Callable[..., AnyLLM]) -> None:
    """Without `provider=` the model is named `provider:model`, and the provider gets the name behind the colon."""
    assert run(Routes({"openai:*": made(server)}), "openai:gpt-5.4").messages[-1]["content"] == "It is on its way."
    assert server.calls[0]["model"] == "gpt-5.4"


@pytest.mark.parametrize("model", ["gpt-5.4", ":gpt-5.4", "openai:"])
def test_a_model_without_provider_is_an_error(model: str, server: ScriptedServer, made: Callable[..., AnyLLM]) -> None:
    """Where nothing tells the provider, the error says both ways to."""
    with pytest.raises(ConfigurationError, match=r"provider:model.*AnyLLM\(provider="):
        run(made(server), model)


def test_an_unknown_provider_and_a_missing_key_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What any-llm cannot make is a `ConfigurationError` with its words, before anything is asked."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigurationError, match="no-such-provider"):
        run(AnyLLM(), "no-such-provider:m")
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        run(AnyLLM(provider="openai"), "m")


def test_its_errors_are_known(made: Callable[..., AnyLLM]) -> None:
    """A rate limit leads to the next client of a `Fallback`; a refusal is told with its status."""
    script = [rate_limited(), http_error(403, "not for you")]
    with serve_scripted(script) as one, serve_scripted(["Hello"]) as two:
        first, second = made(one, provider="openai"), made(two, provider="openai")
        assert run(Fallback(first, second), "m").messages[-1]["content"] == "Hello"
        with pytest.raises(ModelError, match="not for you") as refused:
            run(Fallback(first, second), "m")
    assert refused.value.status == 403


def test_without_the_package_the_error_says_how_to_install_it() -> None:
    """Where any-llm is not installed, making the client is one clear error."""
    program = """
import sys
class Nothing:
    def find_spec(self, name, *_):
        if name == "any_llm":
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Nothing())
from durable_swarm.providers import AnyLLM
AnyLLM(provider="anthropic")
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert "ConfigurationError" in done.stderr
    assert "pip install 'durable-swarm[any-llm]'" in done.stderr
