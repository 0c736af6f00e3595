"""What the model client is sent, and what `debug` shows of it."""

from __future__ import annotations

from typing import Any

import pytest

from durable_swarm import Agent
from durable_swarm.testing import ScriptedModel
from tests.contract.helpers import MakeSwarm, Run, completion, mock_client, user


def look_up(city: str, days: int = 1) -> str:
    """Looks up the weather."""
    return f"Sunny in {city} for {days}"


def test_request_without_tools(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """The model gets the agent's model name, its instructions as system message, and the conversation."""
    model = ScriptedModel(["Hello"])
    plain_run(make_swarm(model), Agent(model="gpt-4o-mini", instructions="Be brief."), user("Hi there"))
    (request,) = model.calls
    assert request["model"] == "gpt-4o-mini"
    assert request["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi there"},
    ]
    assert request.get("tools") is None
    assert request.get("tool_choice") is None
    assert not request.get("stream")
    assert "parallel_tool_calls" not in request


def test_request_with_tools(make_swarm: MakeSwarm) -> None:
    """Functions become tools in Swarm's own form, and `parallel_tool_calls` goes with them."""
    model = ScriptedModel(["Hello"])
    make_swarm(model).run(Agent(functions=[look_up]), user())
    (request,) = model.calls
    assert request["tools"] == [
        {
            "type": "function",
            "function": {
                "name": "look_up",
                "description": "Looks up the weather.",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                    "required": ["city"],
                },
            },
        }
    ]
    assert request["parallel_tool_calls"] is True


@pytest.mark.parametrize("parallel", [True, False])
def test_parallel_tool_calls(make_swarm: MakeSwarm, parallel: bool) -> None:
    """The agent's `parallel_tool_calls` is passed on."""
    model = ScriptedModel(["Hello"])
    make_swarm(model).run(Agent(functions=[look_up], parallel_tool_calls=parallel), user())
    assert model.calls[0]["parallel_tool_calls"] is parallel


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look_up"}}])
def test_tool_choice(make_swarm: MakeSwarm, choice: Any) -> None:
    """The agent's `tool_choice` is passed on, a word or a dictionary."""
    model = ScriptedModel(["Hello"])
    make_swarm(model).run(Agent(functions=[look_up], tool_choice=choice), user())
    assert model.calls[0]["tool_choice"] == choice


def test_model_override(make_swarm: MakeSwarm, run: Run) -> None:
    """`model_override` replaces the model of every agent of the run, also after a handoff."""

    def to_sales() -> Agent:
        return sales

    sales = Agent(name="Sales", model="gpt-4o-mini")
    model = ScriptedModel([["to_sales"], "Hello"])
    run(make_swarm(model), Agent(functions=[to_sales]), user(), model_override="o4")
    assert [request["model"] for request in model.calls] == ["o4", "o4"]


def test_model_settings(make_swarm: MakeSwarm) -> None:
    """The agent's `model_settings` are passed to the client as they are."""
    model = ScriptedModel(["Hello"])
    make_swarm(model).run(Agent(model_settings={"temperature": 0.2, "seed": 7}), user())
    assert (model.calls[0]["temperature"], model.calls[0]["seed"]) == (0.2, 7)


def test_history_grows_by_every_message(make_swarm: MakeSwarm, run: Run) -> None:
    """Each model call sees the system message, the input, and all messages of the run so far."""
    model = ScriptedModel([[("look_up", {"city": "Oslo"})], "Hello"])
    run(make_swarm(model), Agent(functions=[look_up]), user("Hi"))
    system, asked, called, told = model.calls[1]["messages"]
    assert system["role"] == "system"
    assert asked == {"role": "user", "content": "Hi"}
    assert called["tool_calls"][0]["function"]["name"] == "look_up"
    assert told == {"role": "tool", "tool_call_id": called["tool_calls"][0]["id"], "content": "Sunny in Oslo for 1"}


def test_own_keys_are_not_sent(make_swarm: MakeSwarm, run: Run) -> None:
    """`sender` and `tool_name` stay in the response: providers refuse keys they do not know."""
    model = ScriptedModel([[("look_up", {"city": "Oslo"})], "Sunny.", "Bye."])
    swarm = make_swarm(model)
    first = run(swarm, Agent(functions=[look_up]), user())
    assert first.messages[0]["sender"] == "Agent"
    assert first.messages[1]["tool_name"] == "look_up"
    run(swarm, Agent(functions=[look_up]), [*user(), *first.messages, *user("Bye")])
    sent = [message for request in model.calls for message in request["messages"]]
    assert not [message for message in sent if message.keys() & {"sender", "tool_name"}]


def test_a_mock_client_gets_messages(make_swarm: MakeSwarm) -> None:
    """A client that is not OpenAI's gets the whole conversation under `messages`, where mocks look for it."""
    client = mock_client(completion("Hello"))
    make_swarm(client).run(Agent(instructions="Be brief."), user("Hi there"))
    messages = client.chat.completions.create.call_args.kwargs["messages"]
    assert [message["content"] for message in messages] == ["Be brief.", "Hi there"]


def test_debug_prints_the_messages(make_swarm: MakeSwarm, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """`debug=True` prints what goes to the model and what comes back."""
    model = ScriptedModel([[("look_up", {"city": "Oslo"})], "Mild and fair."])
    run(make_swarm(model), Agent(functions=[look_up]), user("How is Oslo?"), debug=True)
    printed = capsys.readouterr().out
    assert "How is Oslo?" in printed
    assert "look_up" in printed
    assert "Mild and fair." in printed


def test_without_debug_nothing_is_printed(make_swarm: MakeSwarm, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A run is silent unless asked."""
    model = ScriptedModel([[("look_up", {"city": "Oslo"})], "Sunny."])
    run(make_swarm(model), Agent(functions=[look_up]), user())
    assert capsys.readouterr().out == ""
