"""The turn loop: messages in, messages out, when it stops, and what it leaves alone."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from durable_swarm import Agent
from durable_swarm.testing import ScriptedModel
from tests.contract.helpers import MakeSwarm, Run, roles, tool_contents, tool_messages, user


def look_up(city: str) -> str:
    """Looks up the weather."""
    return f"Sunny in {city}"


def weather_agent() -> Agent:
    return Agent(name="Weather", functions=[look_up])


def test_simple_message(make_swarm: MakeSwarm, run: Run) -> None:
    """A run without tool calls gives one assistant message, from the agent it was given."""
    agent = Agent()
    response = run(make_swarm(ScriptedModel(["Hello!"])), agent, user())
    (message,) = response.messages
    assert (message["role"], message["content"], message["sender"]) == ("assistant", "Hello!", "Agent")
    assert not message.get("tool_calls")
    assert response.agent is agent
    assert response.context_variables == {}


def test_tool_call(make_swarm: MakeSwarm, run: Run) -> None:
    """A tool is called with the model's arguments, and its value goes back to the model under the call's id."""
    model = ScriptedModel([[("look_up", {"city": "Oslo"})], "It is sunny."])
    response = run(make_swarm(model), weather_agent(), user("How is Oslo?"))
    asked, told, answered = response.messages
    (call,) = asked["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "look_up")
    assert json.loads(call["function"]["arguments"]) == {"city": "Oslo"}
    assert told == {
        "role": "tool",
        "tool_call_id": call["id"],
        "tool_name": "look_up",
        "content": "Sunny in Oslo",
    }
    assert answered["content"] == "It is sunny."
    assert len(model.calls) == 2


def test_several_calls_in_one_reply(make_swarm: MakeSwarm, run: Run) -> None:
    """All tool calls of a reply are made in the model's order, each answered by a message of its own."""
    cities = ["Oslo", "Rome", "Lima"]
    model = ScriptedModel([[("look_up", {"city": city}) for city in cities], "Sunny all over."])
    response = run(make_swarm(model), weather_agent(), user())
    assert roles(response) == ["assistant", "tool", "tool", "tool", "assistant"]
    assert tool_contents(response) == [f"Sunny in {city}" for city in cities]
    ids = [call["id"] for call in response.messages[0]["tool_calls"]]
    assert [message["tool_call_id"] for message in tool_messages(response)] == ids


def test_several_turns(make_swarm: MakeSwarm, run: Run) -> None:
    """The loop goes on until a reply calls no tool."""
    model = ScriptedModel([[("look_up", {"city": "Oslo"})], [("look_up", {"city": "Rome"})], "Done"])
    response = run(make_swarm(model), weather_agent(), user())
    assert roles(response) == ["assistant", "tool", "assistant", "tool", "assistant"]
    assert len(model.calls) == 3


def test_text_beside_tool_calls_is_kept(make_swarm: MakeSwarm) -> None:
    """A reply may hold text and tool calls; both stay in its message."""
    model = ScriptedModel([{"content": "One moment.", "tool_calls": [("look_up", {"city": "Oslo"})]}, "Done"])
    response = make_swarm(model).run(weather_agent(), user())
    assert response.messages[0]["content"] == "One moment."
    assert len(response.messages[0]["tool_calls"]) == 1


def test_execute_tools_false(make_swarm: MakeSwarm, run: Run) -> None:
    """With `execute_tools=False` the run ends at the first tool call, which is returned and not made."""
    called: list[str] = []

    def note(text: str) -> str:
        called.append(text)
        return "noted"

    model = ScriptedModel([[("note", {"text": "x"})]])
    response = run(make_swarm(model), Agent(functions=[note]), user(), execute_tools=False)
    (call,) = response.messages[-1]["tool_calls"]
    assert call["function"]["name"] == "note"
    assert json.loads(call["function"]["arguments"]) == {"text": "x"}
    assert called == []
    assert len(model.calls) == 1


@pytest.mark.parametrize(
    ("max_turns", "count", "asked"), [(0, 0, 0), (1, 2, 1), (2, 2, 1), (3, 4, 2), (4, 4, 2), (5, 5, 3)]
)
def test_max_turns_counts_messages(make_swarm: MakeSwarm, max_turns: int, count: int, asked: int) -> None:
    """`max_turns` bounds the new messages, tool messages included; a batch under way is always finished."""
    oslo = [("look_up", {"city": "Oslo"})]
    model = ScriptedModel([oslo, oslo, "Done"])
    agent = weather_agent()
    response = make_swarm(model).run(agent, user(), {"key": "value"}, max_turns=max_turns)
    assert len(response.messages) == count
    assert len(model.calls) == asked
    assert response.agent is agent
    assert response.context_variables == {"key": "value"}


def test_max_turns_does_not_count_the_input(make_swarm: MakeSwarm) -> None:
    """The messages passed in do not count against `max_turns`."""
    messages = [*user("1"), {"role": "assistant", "content": "2"}, *user("3")]
    response = make_swarm(ScriptedModel(["Hello"])).run(Agent(), messages, max_turns=1)
    assert [message["content"] for message in response.messages] == ["Hello"]


def test_arguments_by_position(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """The arguments of `run` have Swarm's order, so programs may pass them by position."""
    model = ScriptedModel([["look_up"]])
    agent = Agent(instructions=lambda context: f"You help {context['name']}.", functions=[look_up])
    response = plain_run(make_swarm(model), agent, user(), {"name": "Ada"}, "gpt-4o-mini", False, False, 5, False)
    assert model.calls[0]["model"] == "gpt-4o-mini"
    assert model.calls[0]["messages"][0]["content"] == "You help Ada."
    assert roles(response) == ["assistant"]


def test_arguments_by_name(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """All arguments of `run` may be passed by name, with Swarm's names."""
    response = plain_run(
        make_swarm(ScriptedModel(["Hello"])),
        agent=Agent(),
        messages=user(),
        context_variables={"key": "value"},
        model_override=None,
        stream=False,
        debug=False,
        max_turns=float("inf"),
        execute_tools=True,
    )
    assert response.messages[-1]["content"] == "Hello"
    assert response.context_variables == {"key": "value"}


def test_input_is_never_changed(make_swarm: MakeSwarm, run: Run) -> None:
    """Messages and context variables passed in stay as they are, in depth, whatever the tools do."""

    def upset(context_variables: dict[str, Any]) -> str:
        context_variables["added"] = True
        context_variables["nested"]["list"].append(4)
        return "done"

    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    context = {"nested": {"list": [1, 2, 3]}}
    messages_before, context_before = copy.deepcopy(messages), copy.deepcopy(context)
    response = run(make_swarm(ScriptedModel([["upset"], "Done"])), Agent(functions=[upset]), messages, context)
    assert messages == messages_before
    assert context == context_before
    assert response.context_variables == {"nested": {"list": [1, 2, 3, 4]}, "added": True}


def test_default_context_is_not_shared(make_swarm: MakeSwarm) -> None:
    """What one run puts into its context variables does not show in the next run without any."""

    def remember(context_variables: dict[str, Any]) -> str:
        context_variables["seen"] = True
        return "done"

    agent = Agent(functions=[remember])
    swarm = make_swarm(ScriptedModel([["remember"], "Done", "Hello"]))
    assert swarm.run(agent, user()).context_variables == {"seen": True}
    assert swarm.run(agent, user()).context_variables == {}


def test_conversation_goes_on(make_swarm: MakeSwarm, run: Run) -> None:
    """Old messages plus the response's, its agent and its context make the next run, as in Swarm's demo loop."""
    model = ScriptedModel([[("look_up", {"city": "Oslo"})], "Sunny.", "You are welcome."])
    swarm = make_swarm(model)
    messages = user("How is Oslo?")
    first = run(swarm, weather_agent(), messages, {"name": "Ada"})
    messages = [*messages, *first.messages, *user("Thanks!")]
    second = run(swarm, first.agent, messages, first.context_variables)
    assert [message["content"] for message in second.messages] == ["You are welcome."]
    assert second.context_variables == {"name": "Ada"}
    assert [message["role"] for message in model.calls[-1]["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]


def test_messages_of_the_response_are_plain_data(make_swarm: MakeSwarm) -> None:
    """The response's messages are dictionaries that JSON takes, as Swarm's demo and evaluations need."""
    model = ScriptedModel([[("look_up", {"city": "Oslo"})], "Sunny."])
    response = make_swarm(model).run(weather_agent(), user())
    assert json.loads(json.dumps(response.messages)) == response.messages
