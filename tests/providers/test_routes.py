"""`Routes`: one client for each kind of model."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, Swarm
from durable_swarm.providers import Fallback, Routes
from durable_swarm.testing import AsyncScriptedModel, ScriptedModel, http_error, serve_scripted
from tests.providers.conftest import Opened

HI: list[Any] = [{"role": "user", "content": "Hi"}]


def answer(client: Any, model: str, **more: Any) -> str:
    """Return the answer to an agent with that model."""
    with Swarm(client) as swarm:
        return str(swarm.run(Agent(model=model), HI, **more).messages[-1]["content"])


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("gpt-5.4-mini", "small"),
        ("gpt-5.4", "gpt"),
        ("openai/gpt-5.4", "slash"),
        ("o4", "letter"),
        ("GPT-5.4", "rest"),
        ("claude-opus", "rest"),
    ],
)
def test_the_first_pattern_that_fits_is_taken(model: str, wanted: str) -> None:
    """Patterns are tried in the order given, by the exact name of the model."""
    names = {"gpt-*-mini": "small", "gpt-*": "gpt", "*/gpt*": "slash", "o[34]": "letter", "*": "rest", "claude-*": "no"}
    routes = Routes({pattern: ScriptedModel([name]) for pattern, name in names.items()})
    assert answer(routes, model) == wanted


def test_the_model_of_the_run_decides() -> None:
    """`model_override` leads to the client of that model, and to no other."""
    routes = Routes({"a-*": ScriptedModel(["A"]), "b-*": ScriptedModel(["B"])})
    assert answer(routes, "a-1", model_override="b-1") == "B"


def test_a_model_without_a_route_is_an_error() -> None:
    """The error names the model and the patterns there are."""
    with pytest.raises(ConfigurationError, match=r"'other'.*'gpt-\*'"):
        answer(Routes({"gpt-*": ScriptedModel(["A"])}), "other")


def test_a_run_without_a_route_waits_for_one(tmp_path: Any) -> None:
    """A durable run whose model has no route here is not failed by it; with the route it goes on."""
    agent = Agent(name="Clerk", model="other")
    with DurableSwarm(Routes({"gpt-*": ScriptedModel(["A"])})) as swarm:
        with pytest.raises(ConfigurationError, match="no pattern"):
            swarm.run(agent, HI, run_id="run-route")
        assert swarm.get("run-route").status == "running"
    with DurableSwarm(Routes({"*": ScriptedModel(["B"])})) as swarm:
        assert swarm.run(agent, HI, run_id="run-route").messages[-1]["content"] == "B"


@pytest.mark.parametrize("routes", [{}, None, [], {"": ScriptedModel([])}, {5: ScriptedModel([])}, {"*": "gpt-5.4"}])
def test_routes_are_patterns_and_clients(routes: Any) -> None:
    """Anything else is refused when they are made."""
    with pytest.raises(ConfigurationError, match="Routes"):
        Routes(routes)


@pytest.mark.parametrize("streamed", [False, True])
def test_plain_and_async_clients_stand_side_by_side(streamed: bool) -> None:
    """Each is asked in its own way, in a thread and on a loop, whole and streamed."""

    def routes() -> Routes:
        return Routes({"a-*": ScriptedModel(["A b c"]), "b-*": AsyncScriptedModel(["A b c"])})

    async def on_loop(model: str) -> str:
        with Swarm(routes()) as swarm:
            if not streamed:
                return str((await swarm.run_async(Agent(model=model), HI)).messages[-1]["content"])
            items = [item async for item in swarm.run_async(Agent(model=model), HI, stream=True)]
            return "".join(item.get("content") or "" for item in items)

    async def alone(model: str) -> str:
        made = await routes().chat.completions.create(model=model, messages=HI, stream=streamed)
        if not streamed:
            return str(made.choices[0].message.content)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in made if chunk.choices])

    for model in ("a-1", "b-1"):
        assert asyncio.run(on_loop(model)) == asyncio.run(alone(model)) == "A b c"
        with Swarm(routes()) as swarm:
            if streamed:
                items = [*swarm.run(Agent(model=model), HI, stream=True)]
                assert "".join(item.get("content") or "" for item in items) == "A b c"
            else:
                assert swarm.run(Agent(model=model), HI).messages[-1]["content"] == "A b c"


def test_each_client_keeps_its_own_retries(opened: Opened) -> None:
    """What may pass is tried again as often as the client of the route says."""
    with serve_scripted([http_error(500), http_error(500), "Hello"]) as server:
        routes = Routes({"*": Fallback(opened(server.client(max_retries=2)))})
        assert answer(Routes({"x": ScriptedModel([]), "*": routes}), "any") == "Hello"
