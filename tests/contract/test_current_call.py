"""`current_call`: what a tool knows of the call that is being made."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, NotInRun, current_call
from durable_swarm.testing import ScriptedModel, call
from tests.contract.helpers import MakeSwarm, Run, tool_contents, tool_messages, user


def test_current_call(make_swarm: MakeSwarm, run: Run) -> None:
    """A tool learns its run, agent, name and the model's id of the call; the key counts turns and calls of the run."""
    seen: list[Any] = []

    def look(city: str) -> str:
        seen.append(current_call())
        return city

    async def look_async(city: str) -> str:
        seen.append(current_call())
        return city

    calls = [call("look", city="Oslo"), call("look", city="Rome")]
    model = ScriptedModel([calls, [call("look_async", city="Lima")], "Done"])
    swarm = make_swarm(model)
    response = run(swarm, Agent(name="Guide", functions=[look, look_async]), user())
    assert [made.tool for made in seen] == ["look", "look", "look_async"]
    assert [made.call_id for made in seen] == [message["tool_call_id"] for message in tool_messages(response)]
    assert {made.agent for made in seen} == {"Guide"}
    assert {made.attempt for made in seen} == {1}
    (run_id,) = {made.run_id for made in seen}
    assert run_id
    assert [made.idempotency_key for made in seen] == [f"{run_id}/0.0", f"{run_id}/0.1", f"{run_id}/1.0"]
    if isinstance(swarm, DurableSwarm):
        assert response.run_id == run_id


def test_current_call_of_calls_that_run_together(make_swarm: MakeSwarm, run: Run) -> None:
    """Each of several async calls under way at once sees its own call."""

    async def look(city: str) -> str:
        before = current_call()
        await asyncio.sleep(0.01)
        assert current_call() == before
        return before.idempotency_key.rpartition("/")[2]

    calls = [call("look", city=city) for city in ("Oslo", "Rome", "Lima")]
    response = run(make_swarm(ScriptedModel([calls, "Done"])), Agent(functions=[look]), user())
    assert tool_contents(response) == ["0.0", "0.1", "0.2"]


def test_keys_of_two_runs_differ(make_swarm: MakeSwarm) -> None:
    """No two runs share an idempotency key, although the model's call ids repeat."""
    keys: list[str] = []

    def note() -> str:
        keys.append(current_call().idempotency_key)
        return "noted"

    swarm = make_swarm(ScriptedModel([["note"], "Done"] * 2))
    agent = Agent(functions=[note])
    swarm.run(agent, user())
    swarm.run(agent, user())
    assert len(set(keys)) == 2


def test_current_call_outside_a_tool(make_swarm: MakeSwarm) -> None:
    """Outside a tool, before and after a run, `current_call` raises NotInRun."""
    with pytest.raises(NotInRun, match="outside a tool"):
        current_call()
    make_swarm(ScriptedModel(["Hello"])).run(Agent(), user())
    with pytest.raises(NotInRun, match="outside a tool"):
        current_call()


def test_an_agent_as_a_tool_outside_a_run() -> None:
    """An agent's tool that a program calls itself says where it belongs, whatever it is given."""
    ask = Agent(name="Asked alone").as_tool()
    for given in ({"message": "Hi"}, {"message": "Hi", "context_variables": {}}):
        with pytest.raises(NotInRun, match="'Asked alone' was asked as a tool outside a run"):
            asyncio.run(ask(**given))
