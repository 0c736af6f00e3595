"""What durability costs per turn: our loop against a DBOS loop written by hand, alternating in one process.

A turn is one model call and one tool call; both loops use the same scripted model, database and settings. Prints the
ratio of the medians. Run: python benchmarks/overhead.py [DATABASE_URL] [--turns 50] [--rounds 9]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dbos import DBOS, SetWorkflowID

from durable_swarm import Agent, DurableSwarm, step
from durable_swarm.testing import ScriptedModel, call

USER = [{"role": "user", "content": "Go on until you are done."}]


def scripted(turns: int, tool: str) -> ScriptedModel:
    """Give a model that calls `tool` once a turn and then says goodbye."""

    def reply(request: dict[str, Any]) -> Any:
        done = sum(message["role"] == "assistant" for message in request["messages"])
        return [call(tool, number=done)] if done < turns else "Goodbye."

    return ScriptedModel(reply, strict=False)


def stamp(number: int) -> str:
    """Stamp a number."""
    return f"stamped {number}"


as_step = step(stamp)


def hand_written_model(client: Any, history: list[dict[str, Any]]) -> dict[str, Any]:
    """Make one model call, as one would by hand."""
    tools = [{"type": "function", "function": {"name": "stamp", "parameters": {"type": "object", "properties": {}}}}]
    answer = client.chat.completions.create(model="gpt-4o", messages=history, tools=tools)
    return json.loads(answer.choices[0].message.model_dump_json())


@DBOS.workflow(name="by_hand")
def by_hand(turns: int) -> int:
    """The loop one would write on DBOS: a step for the model, a step for each tool call."""
    client, history = CLIENTS["now"], list(USER)
    while True:
        message = DBOS.run_step({"name": "model"}, hand_written_model, client, history)
        history.append(message)
        if not message.get("tool_calls"):
            return len(history)
        for made in message["tool_calls"]:
            arguments = json.loads(made["function"]["arguments"])
            text = DBOS.run_step({"name": "stamp"}, stamp, **arguments)
            history.append({"role": "tool", "tool_call_id": made["id"], "content": text})


@DBOS.workflow(name="by_hand_async")
async def by_hand_async(turns: int) -> int:
    """The same on an event loop."""
    client, history = CLIENTS["now"], list(USER)

    async def model() -> dict[str, Any]:
        return hand_written_model(client, history)

    while True:
        message = await DBOS.run_step_async({"name": "model"}, model)
        history.append(message)
        if not message.get("tool_calls"):
            return len(history)
        for made in message["tool_calls"]:
            arguments = json.loads(made["function"]["arguments"])
            text = await DBOS.run_step_async({"name": "stamp"}, stamp, **arguments)
            history.append({"role": "tool", "tool_call_id": made["id"], "content": text})


CLIENTS: dict[str, Any] = {}


def contenders(swarm: DurableSwarm, turns: int) -> dict[str, Callable[[], Any]]:
    """Give what is measured, by name; each call is one run of `turns` turns."""
    stepped = Agent(name="Stepped", functions=[as_step])
    plain = Agent(name="Plain", functions=[stamp])

    def ours(agent: Agent) -> None:
        swarm.run(agent, USER)

    def hand() -> None:
        with SetWorkflowID(str(uuid.uuid4())):
            by_hand(turns)

    async def hand_async() -> None:
        with SetWorkflowID(str(uuid.uuid4())):
            await by_hand_async(turns)

    return {
        "by hand": hand,
        "@step tools": lambda: ours(stepped),
        "undecorated tools": lambda: ours(plain),
        "by hand, async": lambda: asyncio.run(hand_async()),
        "@step tools, async": lambda: asyncio.run(_ours_async(swarm, stepped)),
    }


async def _ours_async(swarm: DurableSwarm, agent: Agent) -> None:
    await swarm.run_async(agent, USER)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", nargs="?", help="default: a SQLite file in a temporary folder")
    parser.add_argument("--turns", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = options.database or f"sqlite:///{Path(folder) / 'bench.sqlite'}"
        swarm = DurableSwarm(scripted(options.turns, "stamp"), database=url)
        CLIENTS["now"] = scripted(options.turns, "stamp")
        swarm.runs()
        race = contenders(swarm, options.turns)
        times: dict[str, list[float]] = {name: [] for name in race}
        for _ in range(options.rounds + 1):
            for name, run in race.items():
                begun = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - begun) / options.turns * 1000)
        swarm.close()
    # The first round warms up.
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    print(f"{url.split(':')[0]}, {options.turns} turns, median of {options.rounds} alternating rounds")
    for name, value in medians.items():
        base = medians["by hand, async" if name.endswith("async") else "by hand"]
        print(f"  {name:20} {value:6.2f} ms a turn   {value / base:5.2f}x by hand")


if __name__ == "__main__":
    main()
