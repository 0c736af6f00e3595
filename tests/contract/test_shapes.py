"""Agent, Result and Response have Swarm's fields and defaults."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import Field

from durable_swarm import Agent, Block, Compaction, ConfigurationError, Limits, Response, Result
from durable_swarm.testing import ScriptedModel
from tests.contract.helpers import MakeSwarm, tool_contents, user


def test_agent_defaults() -> None:
    """An agent without arguments is Swarm's default agent."""
    agent = Agent()
    assert agent.name == "Agent"
    assert agent.model == "gpt-4o"
    assert agent.instructions == "You are a helpful agent."
    assert agent.functions == []
    assert agent.tool_choice is None
    assert agent.parallel_tool_calls is True
    assert agent.model_settings == {}


def test_result_defaults() -> None:
    """A result without arguments says nothing, hands off to nobody and changes nothing."""
    result = Result()
    assert (result.value, result.agent, result.context_variables) == ("", None, {})


def test_response_defaults() -> None:
    """A response without arguments is empty."""
    response = Response()
    assert (response.messages, response.agent, response.context_variables) == ([], None, {})
    assert (response.run_id, response.usage) == (None, None)


def test_defaults_are_not_shared() -> None:
    """What is put into one agent, result or response does not show in the next."""
    Agent().functions.append(print)
    Result().context_variables["key"] = "value"
    Response().messages.append({"role": "user"})
    assert Agent().functions == []
    assert Result().context_variables == {}
    assert Response().messages == []


def test_fields_can_be_changed() -> None:
    """The fields of an agent can be assigned after its construction, as programs for Swarm do."""
    agent = Agent(name="Draft")
    agent.name, agent.model, agent.instructions = "Final", "gpt-4o-mini", "Be brief."
    assert (agent.name, agent.model, agent.instructions) == ("Final", "gpt-4o-mini", "Be brief.")


def test_result_keeps_the_agent_itself() -> None:
    """A result holds the very agent it was given, not a copy."""
    agent = Agent(name="Sales")
    assert Result(agent=agent).agent is agent


def test_functions_appended_later_are_tools(make_swarm: MakeSwarm) -> None:
    """A function appended to `agent.functions` after construction is offered to the model and called."""

    def greet(name: str) -> str:
        return f"Hello, {name}"

    agent = Agent(name="Greeter")
    agent.functions.append(greet)
    model = ScriptedModel([[("greet", {"name": "Ada"})], "Done"])
    response = make_swarm(model).run(agent, user())
    assert [tool["function"]["name"] for tool in model.calls[0]["tools"]] == ["greet"]
    assert tool_contents(response) == ["Hello, Ada"]


def test_changes_of_an_agent_during_a_run_count_at_once(make_swarm: MakeSwarm) -> None:
    """A tool that changes its agent's instructions and functions changes the next model call."""

    def learn() -> str:
        agent.instructions = "You know more now."
        agent.functions.append(recall)
        return "Learned"

    def recall() -> str:
        return "Recalled"

    agent = Agent(name="Pupil", instructions="You know little.", functions=[learn])
    model = ScriptedModel([["learn"], ["recall"], "Done"])
    response = make_swarm(model).run(agent, user())
    assert [request["messages"][0]["content"] for request in model.calls] == [
        "You know little.",
        "You know more now.",
        "You know more now.",
    ]
    assert tool_contents(response) == ["Learned", "Recalled"]


@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ("functon", "did you mean 'functions'?"),
        ("function", "did you mean 'functions'?"),
        ("instruction", "did you mean 'instructions'?"),
        ("modelsettings", "did you mean 'model_settings'?"),
        ("xyz", "its fields are name, model, instructions"),
    ],
)
def test_unknown_fields_of_an_agent(field: str, hint: str) -> None:
    """A field that is not there is an error that names the nearest one; nothing is left out without a word."""
    with pytest.raises(ConfigurationError, match=re.escape(f"Agent has no field {field!r}; {hint}")):
        Agent(**{field: []})


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda: Result(valu="done"), "Result has no field 'valu'; did you mean 'value'?"),
        (lambda: Limits(request=2), "Limits has no field 'request'; did you mean 'requests'?"),
        (lambda: Compaction(at_message=2), "Compaction has no field 'at_message'; did you mean 'at_messages'?"),
        (lambda: Block("no", answer="No."), "Block has no field 'answer'; its fields are reason, reply"),
    ],
)
def test_unknown_fields_of_other_things(make: Callable[[], Any], hint: str) -> None:
    """What else a program makes says which field was probably meant, too."""
    with pytest.raises(ConfigurationError, match=re.escape(hint)):
        make()


def test_fields_of_a_program_s_own_agents() -> None:
    """A subclass may add fields, by an alias too, or take any."""

    class Clerk(Agent):
        """Sits at a desk."""

        desk: int = Field(default=1, alias="place")

    class Open(Agent, extra="allow"):
        """Takes any field."""

    assert Clerk(place=2).desk == 2
    assert Open(colour="red").name == "Agent"
    with pytest.raises(ConfigurationError, match="Clerk has no field 'dsk'"):
        Clerk(dsk=2)
