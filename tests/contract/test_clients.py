"""Clients of the model: any shape that has `chat.completions.create`, sync or async, on both faces."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm
from durable_swarm.testing import ScriptedModel
from tests.contract.helpers import (
    MakeSwarm,
    Run,
    async_mock_client,
    completion,
    mock_client,
    roles,
    tool_contents,
    tool_messages,
    user,
)

CLIENTS = {"sync": mock_client, "async": async_mock_client}


@pytest.mark.parametrize("kind", CLIENTS)
def test_sync_and_async_clients(make_swarm: MakeSwarm, run: Run, kind: str) -> None:
    """A client of either kind serves both faces, with OpenAI's own response objects."""
    get_weather_mock = Mock()

    def get_weather(location: str) -> str:
        get_weather_mock(location=location)
        return "It's sunny today."

    client = CLIENTS[kind](completion("", [("get_weather", {"location": "San Francisco"})]), completion("Sunny!"))
    response = run(make_swarm(client), Agent(name="Test Agent", functions=[get_weather]), user())
    get_weather_mock.assert_called_once_with(location="San Francisco")
    assert roles(response) == ["assistant", "tool", "assistant"]
    assert response.messages[-1]["content"] == "Sunny!"
    assert client.chat.completions.create.call_count == 2


def test_client_that_is_a_mock_through_and_through(make_swarm: MakeSwarm, run: Run) -> None:
    """A client that answers to every attribute is taken for what it is: something with `create`."""
    client = MagicMock()
    client.chat.completions.create.return_value = completion("Hello")
    response = run(make_swarm(client), Agent(), user())
    assert response.messages[-1]["content"] == "Hello"


@pytest.mark.parametrize("kind", CLIENTS)
def test_one_id_for_every_call(make_swarm: MakeSwarm, run: Run, kind: str) -> None:
    """Models repeat call ids; calls of one id, in one reply and in later ones, are still all made, each for itself."""
    made: list[int] = []

    def add(number: int) -> str:
        made.append(number)
        return f"added {number}"

    replies = [
        completion(calls=[("add", {"number": 1}), ("add", {"number": 2})]),
        completion(calls=[("add", {"number": 3})]),
        completion("Done"),
    ]
    response = run(make_swarm(CLIENTS[kind](*replies)), Agent(functions=[add]), user())
    assert made == [1, 2, 3]
    assert tool_contents(response) == ["added 1", "added 2", "added 3"]
    assert {message["tool_call_id"] for message in tool_messages(response)} == {"mock_tc_id"}


def test_execute_tools_false_with_openai_objects(make_swarm: MakeSwarm) -> None:
    """The tool calls of an OpenAI message come back as plain data."""
    client = mock_client(completion("", [("get_weather", {"location": "Rome"})]))
    response = make_swarm(client).run(Agent(functions=[]), user(), execute_tools=False)
    (call,) = response.messages[-1]["tool_calls"]
    assert call["id"] == "mock_tc_id"
    assert call["function"]["name"] == "get_weather"
    assert json.loads(call["function"]["arguments"]) == {"location": "Rome"}


def test_usage_is_summed(make_swarm: MakeSwarm, run: Run) -> None:
    """The response's usage is the sum over all model calls, with their number."""

    def note() -> str:
        return "noted"

    client = mock_client(completion(calls=[("note", {})], tokens=(10, 2)), completion("Done", tokens=(15, 3)))
    usage = run(make_swarm(client), Agent(functions=[note]), user()).usage
    assert usage is not None
    assert usage.model_dump() == {
        "requests": 2,
        "prompt_tokens": 25,
        "completion_tokens": 5,
        "total_tokens": 30,
        "cached_tokens": 0,
        "cache_write_tokens": 0,
        "reasoning_tokens": 0,
    }


def test_usage_unknown(make_swarm: MakeSwarm) -> None:
    """Where the client counts no tokens the usage is None, not zero."""
    assert make_swarm(mock_client(completion("Hello"))).run(Agent(), user()).usage is None


def test_run_id(make_swarm: MakeSwarm, run: Run) -> None:
    """A durable run has an id: the given one, or a fresh one each time."""
    swarm = make_swarm(ScriptedModel(["one", "two", "three"]))
    if not isinstance(swarm, DurableSwarm):
        pytest.skip("runs in memory have no id to find them by")
    agent = Agent()
    assert run(swarm, agent, user(), run_id="order-7").run_id == "order-7"
    first, second = run(swarm, agent, user()).run_id, run(swarm, agent, user()).run_id
    assert first
    assert second
    assert first != second


@pytest.mark.parametrize("wrong", [object(), "gpt-4o", ScriptedModel])
def test_something_that_is_no_client(make_swarm: MakeSwarm, wrong: Any) -> None:
    """An object without `chat.completions` is refused at once, with what to pass instead."""
    with pytest.raises(ConfigurationError, match=r"chat\.completions\.create"):
        make_swarm(wrong)
