"""The program under attack: triage, handoffs, parallel tools, `once`, approvals, questions, sleeps, child runs.

The environment says which database and which flavour: `plain`, `async` or `mixed` tools. The model's replies depend on
the request alone, but each carries a mark of its own, so that a reply that was made twice shows.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from typing import Any

from durable_swarm import Agent, DurableSwarm
from durable_swarm.testing import AsyncScriptedModel, ScriptedModel
from faults.storms import async_tools, ledger, plain_tools
from faults.storms.effects import begin, end

FLAVOUR = os.environ["NEMESIS_FLAVOUR"]


def tools() -> list[Callable[..., Any]]:
    """Return the tools of this flavour; of `mixed` every other one is async."""
    pairs = enumerate(zip(plain_tools.TOOLS, async_tools.TOOLS, strict=True))
    return [pair[FLAVOUR == "async" or (FLAVOUR == "mixed" and number % 2)] for number, pair in pairs]


def to_clerk(n: int) -> Agent:
    """Hand over to the clerk."""
    end(begin())
    return clerk


def reply(request: dict[str, Any]) -> Any:
    """Answer by the plan in the first message: `RUN: tool,tool; tool`, the tools of one turn after the other."""
    messages = [message for message in request["messages"] if message["role"] != "system"]
    run_id, _, plan = messages[0]["content"].partition(": ")
    turns = [names.split(",") for names in plan.split("; ")]
    said = [message["content"] for message in messages if message["role"] == "assistant"]
    heard = {message["tool_call_id"]: message["content"] for message in messages if message["role"] == "tool"}
    turn = len(said)
    text = f"{run_id} turn {turn} {secrets.token_hex(4)} and so on"
    ledger.write("model", run=run_id, turn=turn, said=said, heard=heard)
    if turn >= len(turns):
        return text
    calls = [
        {
            "id": f"t{turn}c{index}",
            "type": "function",
            "function": {"name": name, "arguments": f'{{"{"amount" if name == "refund" else "n"}": {100 + turn}}}'},
        }
        for index, name in enumerate(turns[turn])
    ]
    return {"role": "assistant", "content": text if turn % 2 == 0 else None, "tool_calls": calls}


found = tools()
clerk = Agent(name="Clerk", functions=[*found])
triage = Agent(name="Triage", functions=[found[0], to_clerk])
helper = Agent(name="Helper", functions=[*found[:3]])
model = (ScriptedModel if os.environ["NEMESIS_CLIENT"] == "plain" else AsyncScriptedModel)(reply, pace=0.004)
swarm = DurableSwarm(model, database=os.environ["NEMESIS_URL"], tool_concurrency=3)
