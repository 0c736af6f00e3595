"""Async code behind plain functions is as durable as any: a kill repeats no finished step of it."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, step, tool, tool_from_schema
from durable_swarm.testing import ScriptedModel, call
from durable_swarm.testing.crash.ledger import read_lines, report
from tests.crash.lives import Lives

QUESTION = [{"role": "user", "content": "Please."}]


def timed(function: Any) -> Any:
    """Wrap it as decorators do that lose all marks."""

    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


def paying(url: str, shape: str, colour: str, dies: bool) -> str:
    """Run an agent whose tool charges in a step and then dies, if it `dies`; gives what the model was told."""

    async def post(amount: int) -> str:
        report("charge", {"amount": amount})
        return f"charged {amount}"

    charge = step(name="charge")(timed(post))

    async def body(amount: int) -> str:
        text: str = await charge(amount)
        if dies:
            await asyncio.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        return text

    class Till:
        def __call__(self, amount: int) -> Any:
            return body(amount)

    def delegate(of: Any, amount: int) -> Any:
        return of(amount)

    async def begun(amount: int) -> Any:
        return asyncio.ensure_future(body(amount))

    schema = {"properties": {"amount": {"type": "integer"}}, "required": ["amount"]}
    shapes: dict[str, Any] = {
        "object": Till(),
        "partial": functools.partial(delegate, body),
        "task": begun,
        "schema": tool_from_schema("pay", "Pay.", schema, body),
    }
    pay = tool(name="pay", retries=2)(shapes[shape])
    model = ScriptedModel(
        lambda request: [call("pay", amount=5)] if request["messages"][-1]["role"] == "user" else "Done."
    )
    with DurableSwarm(model, database=url) as swarm:
        agent = Agent(functions=[pay])
        if colour == "async":
            return str(asyncio.run(swarm.run_async(agent, QUESTION, run_id="run-1")).messages[1]["content"])
        return str(swarm.run(agent, QUESTION, run_id="run-1").messages[1]["content"])


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("shape", ["object", "partial", "task", "schema"])
def test_a_finished_step_is_not_repeated_behind_any_wrapper(
    shape: str, colour: str, lives: Lives, tmp_path: Path
) -> None:
    """A kill behind a finished step of such a tool does not charge twice, also where the step only looks plain."""
    url, ledger = f"sqlite:///{tmp_path}/runs.sqlite", tmp_path / "ledger"
    assert lives.live(paying, url, shape, colour, True, ledger=ledger).killed
    second = lives.live(paying, url, shape, colour, False, ledger=ledger)
    assert second.value == "charged 5"
    assert len(read_lines(ledger)) == 1
