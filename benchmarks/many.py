"""Many runs at once in one process: 200 runs of five turns, each with a model that takes 100 ms.

python benchmarks/many.py [URL] [--runs 200] [--rounds 3] [--against PYTHON]

Prints how many runs end a second, and the processor time of each, in three ways: in memory, each run in a thread of its
own (`Swarm`); durable, each in a thread; durable, on the event loop. Durable runs are made with an undecorated tool and
with a `@step` tool. The ways take turns, and the figures are medians. `--against` names the Python of another
environment, such as that of an older version, whose rounds take turns with ours. Without a URL the database is a SQLite
file; a PostgreSQL database is named with its URL.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from durable_swarm import Agent, DurableSwarm, Swarm, step
from durable_swarm.testing import AsyncScriptedModel, ScriptedModel, call, slowly

USER = [{"role": "user", "content": "Go on until you are done."}]
TURNS, LATENCY = 5, 0.1
WAYS = ("in memory", "thread, plain", "thread, @step", "loop, plain", "loop, @step")


def stamp(number: int) -> str:
    """Stamp a number."""
    return f"stamped {number}"


async def stamp_on_loop(number: int) -> str:
    """Stamp a number, without a thread."""
    return f"stamped {number}"


def reply(request: dict[str, Any]) -> Any:
    """Answer as the model: a tool call in each turn but the last."""
    done = sum(message["role"] == "assistant" for message in request["messages"])
    [tool] = (one["function"]["name"] for one in request["tools"])
    return slowly([call(tool, number=done)] if done < TURNS - 1 else "Goodbye.", latency=LATENCY)


def measured(way: str, url: str, runs: int) -> dict[str, float]:
    """Make the runs in one way; return the runs a second, and milliseconds of processor time a run."""
    where, _, kind = way.partition(", ")
    tool = stamp_on_loop if where == "loop" else stamp
    agent = Agent(name="Clerk", functions=[step(tool) if kind == "@step" else tool])
    if where == "loop":
        return asyncio.run(_on_loop(agent, url, runs))
    client = ScriptedModel(reply, strict=False)
    with ThreadPoolExecutor(runs) as pool:
        if where == "in memory":
            memory = Swarm(client)
            return _timed(lambda: list(pool.map(lambda _: memory.run(agent, USER), range(runs))), runs)
        with DurableSwarm(client, database=url) as swarm:
            swarm.run(agent, USER)
            return _timed(lambda: list(pool.map(lambda _: swarm.run(agent, USER), range(runs))), runs)


async def _on_loop(agent: Agent, url: str, runs: int) -> dict[str, float]:
    with DurableSwarm(AsyncScriptedModel(reply, strict=False), database=url) as swarm:
        await swarm.run_async(agent, USER)
        began, worked = time.perf_counter(), time.process_time()
        await asyncio.gather(*(swarm.run_async(agent, USER) for _ in range(runs)))
        return _figures(began, worked, runs)


def _timed(act: Any, runs: int) -> dict[str, float]:
    began, worked = time.perf_counter(), time.process_time()
    act()
    return _figures(began, worked, runs)


def _figures(began: float, worked: float, runs: int) -> dict[str, float]:
    return {"rate": runs / (time.perf_counter() - began), "cpu": (time.process_time() - worked) / runs * 1000}


def in_a_process(python: str, way: str, url: str | None, runs: int) -> dict[str, float]:
    """Measure one way in a process of its own, with a database that no other has used if it is SQLite."""
    with tempfile.TemporaryDirectory() as folder:
        where = url or f"sqlite:///{Path(folder) / 'runs.sqlite'}"
        command = [python, __file__, where, "--runs", str(runs), "--way", way]
        made = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(made.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", metavar="PYTHON")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measured(given.way, given.url, given.runs)))
        return
    pythons = {"": sys.executable, **({" (the other)": given.against} if given.against else {})}
    made: dict[str, list[dict[str, float]]] = {}
    for _ in range(given.rounds):
        for way in WAYS:
            for label, python in pythons.items():
                made.setdefault(way + label, []).append(in_a_process(python, way, given.url, given.runs))
    for way, figures in made.items():
        rate, cpu = (statistics.median(one[name] for one in figures) for name in ("rate", "cpu"))
        print(f"{way:28} {rate:6.1f} runs a second   {cpu:6.1f} ms of processor time a run")


if __name__ == "__main__":
    main()
