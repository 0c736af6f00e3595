"""Twenty calls of tools that take 50 ms, in one reply: milliseconds from the model's reply to its next request.

Async tools sleep at the same time, so what is beyond 50 ms is ours; plain ones are called one after the other.
Run: python benchmarks/parallel.py [DATABASE_URL] [--rounds 9]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from durable_swarm import Agent, DurableSwarm, step
from durable_swarm.testing import ScriptedModel, call

CALLS = 20
USER = [{"role": "user", "content": "Look up all of them."}]
MARKS: list[float] = []


async def look_up(number: int) -> str:
    """Look something up on the event loop."""
    await asyncio.sleep(0.05)
    return f"found {number}"


def look_up_in_thread(number: int) -> str:
    """Look something up in a thread."""
    time.sleep(0.05)
    return f"found {number}"


def reply(request: dict[str, Any]) -> Any:
    """Call all tools once, and end."""
    MARKS.append(time.perf_counter())
    name = request["tools"][0]["function"]["name"]
    return "Done." if request["messages"][-1]["role"] == "tool" else [call(name, number=n) for n in range(CALLS)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", nargs="?", help="default: a SQLite file in a temporary folder")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    kinds = {
        "async tool": look_up,
        "async @step": step(look_up),
        "plain tool": look_up_in_thread,
        "plain @step": step(look_up_in_thread),
    }
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        url = options.database or f"sqlite:///{Path(folder) / 'bench.sqlite'}"
        with DurableSwarm(ScriptedModel(reply), database=url) as swarm:
            agents = {kind: Agent(name=kind, functions=[function]) for kind, function in kinds.items()}
            for _ in range(options.rounds + 1):
                for kind, agent in agents.items():
                    MARKS.clear()
                    if kind.startswith("async"):
                        asyncio.run(swarm.run_async(agent, USER))
                    else:
                        swarm.run(agent, USER)
                    taken[kind].append((MARKS[1] - MARKS[0]) * 1000)
    print(f"{url.split(':')[0]}, {CALLS} calls of 50 ms, median of {options.rounds} alternating rounds")
    for kind, values in taken.items():
        print(f"  {kind:12} {statistics.median(values[1:]):6.0f} ms")  # The first round warms up.


if __name__ == "__main__":
    main()
