"""Programs with guardrails, killed at every boundary: no tool before the verdict, no verdict asked twice."""

from __future__ import annotations

import time
from typing import Any

import pytest

from durable_swarm import Agent, Block, DurableSwarm, current_call, tool
from durable_swarm.testing import ScriptedModel, call, crash_test, effect, when
from tests.crash.matrix import LONG

QUESTION = [{"role": "user", "content": "Pay."}]
MODEL: list[Any] = [
    when(said="Pay.", reply=[call("look")]),
    when(tool="look", reply=[call("pay")]),
    when(tool="pay", reply="Paid."),
]


@tool(effect="read")
def look() -> str:
    """Look at the account."""
    return "enough"


def slow(messages: Any) -> None:
    """An input guardrail that takes longer than the first model call and the tool that reads."""
    time.sleep(0.2)
    effect("judged")


async def polite(output: str) -> Block | None:
    """An output guardrail."""
    return Block("not polite", "Paid, with our thanks.") if "thanks" not in output else None


def rude(messages: Any) -> Block:
    """An input guardrail that stops the run after a while."""
    time.sleep(0.2)
    return Block("rude", "No.")


@tool(effect="once", check=lambda: None)  # The service knows the key.
def pay() -> str:
    """Pay."""
    effect("pay", key=current_call().idempotency_key)
    return "paid"


def run(agent: Agent, *, streamed: bool = False) -> Any:
    """Run an agent and return what came of it."""
    with DurableSwarm(ScriptedModel(MODEL)) as swarm:
        if not streamed:
            response = swarm.run(agent, QUESTION, run_id="guarded")
        else:
            *_, last = swarm.run(agent, QUESTION, run_id="guarded", stream=True)
            response = last["response"]
        told = [event.type for event in swarm.get("guarded").events()]
        told = [kind for kind in told if not kind.startswith("text.") and kind != "run.recovered"]
        return response.ended_by, response.messages[-1]["content"], told


def passing() -> Any:
    """Input that passes late, and an answer that is replaced."""
    return run(Agent(name="Guarded", functions=[look, pay], input_guardrails=[slow], output_guardrails=[polite]))


def passing_streamed() -> Any:
    """The same, on an event loop."""
    agent = Agent(name="Guarded too", functions=[look, pay], input_guardrails=[slow], output_guardrails=[polite])
    return run(agent, streamed=True)


def blocked() -> Any:
    """Input that is blocked after the tool that reads; the other tool would leave an effect."""
    return run(Agent(name="Blocked", functions=[look, pay], input_guardrails=[rude]))


@pytest.mark.alternates  # What is killed is the same; that it survives is seen on both.
@pytest.mark.slow
@pytest.mark.timeout(3600 if LONG else 120)
@pytest.mark.parametrize("scenario", [passing, passing_streamed, blocked])
def test_killed_at_every_boundary(scenario: Any, database_url: str) -> None:
    """Wherever the program is killed, it ends as without; the tool is entered once or never, a verdict asked once."""
    url = database_url if database_url.startswith("postgresql") else None
    only = None if LONG else [2, 3, 4, 5]
    report = crash_test(scenario, database=url, at_least_once=["judged"], only=only, check=False)
    assert not report.findings, str(report)
    assert report.kills == report.cases >= 8
