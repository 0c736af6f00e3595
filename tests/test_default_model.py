"""Which model is asked: the run's, the agent's, the swarm's default, the environment's, or Swarm's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, ModelError, Swarm
from durable_swarm.testing import ScriptedModel, http_error

HI: list[Any] = [{"role": "user", "content": "Hi"}]
MAKERS: dict[str, Any] = {"Swarm": Swarm, "DurableSwarm": DurableSwarm}


class OfItsOwn(Agent):
    """A kind of agent that names its model in its class."""

    model: str = "class-model"


def given_later() -> Agent:
    """An agent that was made without a model, and given one."""
    agent = Agent()
    agent.model = "later-model"
    return agent


NAMED: dict[str, Any] = {
    "gpt-4o": lambda: Agent(model="gpt-4o"),
    "own-model": lambda: Agent(model="own-model"),
    "later-model": given_later,
    "class-model": OfItsOwn,
    "foreign-model": lambda: SimpleNamespace(
        name="Agent", model="foreign-model", instructions="Help.", functions=[], tool_choice=None
    ),
}


def asked(maker: Any, agent: Any, settings: dict[str, Any], **more: Any) -> str:
    """Return the model that is asked for an agent."""
    model = ScriptedModel(["Hello"])
    with maker(model, **settings) as swarm:
        swarm.run(agent, HI, **more)
    return str(model.calls[0]["model"])


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
def test_an_agent_without_a_model_is_asked_with_the_default(maker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The swarm's default goes before the environment's, and that before `gpt-4o`, which the agent's field says."""
    agent = Agent()
    assert asked(maker, agent, {}) == "gpt-4o"
    monkeypatch.setenv("DURABLE_SWARM_MODEL", "environment-model")
    assert asked(maker, agent, {}) == "environment-model"
    assert asked(maker, agent, {"default_model": "swarm-model"}) == "swarm-model"
    assert asked(maker, agent, {"default_model": "swarm-model"}, model_override="run-model") == "run-model"
    assert agent.model == Agent().model == "gpt-4o"


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("name", NAMED)
def test_an_agent_that_names_a_model_keeps_it(maker: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model given to the agent, to its class or later is asked, whatever the defaults; also if it is `gpt-4o`."""
    monkeypatch.setenv("DURABLE_SWARM_MODEL", "environment-model")
    assert asked(maker, NAMED[name](), {"default_model": "swarm-model"}) == name


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("status", [404, 410])
@pytest.mark.parametrize(
    ("agent", "settings", "variable", "more", "remedy"),
    [
        (Agent(), {}, None, {}, "set $DURABLE_SWARM_MODEL, DurableSwarm(default_model=...) or Agent(model=...)"),
        (Agent(), {}, "gone", {}, "$DURABLE_SWARM_MODEL says so"),
        (Agent(), {"default_model": "gone"}, "other", {}, "default_model="),
        (Agent(name="Clerk", model="gone"), {"default_model": "other"}, "other", {}, "agent 'Clerk' names it"),
        (Agent(model="other"), {}, None, {"model_override": "gone"}, "model_override="),
    ],
)
def test_a_model_that_is_gone_says_what_to_set(
    maker: Any,
    status: int,
    agent: Agent,
    settings: dict[str, Any],
    variable: str | None,
    more: dict[str, Any],
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error for a model that the provider does not have names the model, and the setting that chose it."""
    if variable is not None:
        monkeypatch.setenv("DURABLE_SWARM_MODEL", variable)
    model = ScriptedModel([http_error(status, "no such model")])
    with maker(model, **settings) as swarm, pytest.raises(ModelError) as failed:
        swarm.run(agent, HI, **more)
    assert remedy in str(failed.value)
    assert repr(model.calls[0]["model"]) in str(failed.value)


@pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("given", ["", 5, ["gpt-5.4"]])
def test_a_default_model_is_a_name(maker: Any, given: Any) -> None:
    """A default model that is no name is refused when the swarm is made."""
    with pytest.raises(ConfigurationError, match="default_model"):
        maker(ScriptedModel([]), default_model=given)
