"""Loops of agents end: at `max_turns` messages, with a history that a provider accepts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm
from durable_swarm.testing import ScriptedModel
from tests.contract.helpers import MakeSwarm, Run, user

LIMIT = 9


def ping_pong() -> Agent:
    """Give two agents that hand over to each other."""

    def to_pong() -> Agent:
        return pong

    def to_ping() -> Agent:
        return ping

    ping = Agent(name="Ping", functions=[to_pong])
    pong = Agent(name="Pong", functions=[to_ping])
    return ping


def self_absorbed() -> Agent:
    """Give an agent that hands over to itself."""

    def to_myself() -> Agent:
        return narcissus

    narcissus = Agent(name="Narcissus", functions=[to_myself])
    return narcissus


def busy() -> Agent:
    """Give an agent with a tool that is never enough."""

    def look() -> str:
        return ""

    return Agent(name="Busy", functions=[look])


LOOPS = [ping_pong, self_absorbed, busy]


def call_whatever_there_is(request: dict[str, Any]) -> Any:
    """Answer as a model that never stops calling the first tool it has."""
    tools = request.get("tools")
    return [tools[0]["function"]["name"]] if tools else "I have no tools."


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_a_loop_ends_at_the_limit(loop: Callable[[], Agent], make_swarm: MakeSwarm, run: Run) -> None:
    """Handoffs in a circle, handoffs to oneself and calls without end stop at `max_turns`, all calls answered."""
    model = ScriptedModel(call_whatever_there_is)
    swarm = make_swarm(model)
    response = run(swarm, loop(), user(), max_turns=LIMIT)
    assert len(response.messages) == LIMIT + 1
    assert len(model.calls) == (LIMIT + 1) // 2
    assert response.messages[-1]["role"] == "tool"
    # The strict model refuses a history that is not in order.
    again = run(swarm, Agent(name="Closer"), [*user(), *response.messages, *user("So?")])
    assert again.messages[-1]["content"] == "I have no tools."


@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_answer_ends_the_run(empty: str | None, make_swarm: MakeSwarm, run: Run) -> None:
    """A model that answers nothing, and calls nothing, has answered: it is not asked again."""
    model = ScriptedModel(lambda _: {"content": empty})
    response = run(make_swarm(model), busy(), user())
    assert [message["role"] for message in response.messages] == ["assistant"]
    assert len(model.calls) == 1


def test_an_ended_loop_is_a_run_like_others(tmp_path: Path) -> None:
    """A durable run that stopped at the limit is done, and its answer is given again, not made longer."""
    model, agent = ScriptedModel(call_whatever_there_is), ping_pong()
    with DurableSwarm(model, database=f"sqlite:///{tmp_path}/runs.sqlite") as swarm:
        first = swarm.run(agent, user(), max_turns=LIMIT, run_id="loop")
        assert swarm.get("loop").status == "done"
        again = swarm.run(agent, user(), max_turns=LIMIT, run_id="loop")
    assert again.messages == first.messages
    assert len(model.calls) == (LIMIT + 1) // 2
