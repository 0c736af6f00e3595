"""Runs that wait: memory, idle CPU, statements, how soon an answer wakes one, and how soon a program with many starts.

python benchmarks/waiting.py [RUNS] [URL]
"""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
from support.idleness import idle

from durable_swarm import Agent, DurableSwarm, ask_human, ask_human_async, sleep, tool
from durable_swarm.testing import ScriptedModel

ANSWERED = 100


async def question(number: int) -> str:
    """Ask in an async tool."""
    return await ask_human_async(f"question {number}?")


def plain_question(number: int) -> str:
    """Ask in a plain tool."""
    return ask_human(f"question {number}?")


@tool(approval=True)
def approved(number: int) -> str:
    """Wait for an approval."""
    return f"approved {number}"


def nap(number: int) -> str:
    """Sleep for an hour."""
    sleep(3600)
    return "slept"


KINDS = ("question", "plain_question", "approved", "nap")
AGENT = Agent(name="Desk", functions=[question, plain_question, approved, nap])


def reply(request: dict[str, Any]) -> Any:
    """Call the tool that the user names, once."""
    last = request["messages"][-1]
    if last["role"] == "tool":
        return "Done."
    kind, number = last["content"].split()
    return [(kind, {"number": int(number)})]


def fill(swarm: DurableSwarm, client: ScriptedModel, count: int) -> None:
    """Start so many runs, and wait until all of them wait."""

    def one(number: int) -> None:
        swarm.start(AGENT, [{"role": "user", "content": f"{KINDS[number % 4]} {number}"}], run_id=f"w{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(count)))
    while swarm.runs(status="running", limit=1) or swarm.runs(status="queued", limit=1):
        time.sleep(0.5)
    client.calls.clear()


def resident() -> float:
    """Give the memory of this process in KB."""
    gc.collect()
    return psutil.Process().memory_info().rss / 1024


def idle_for(seconds: float = 10.0) -> str:
    """Measure what this process takes while nothing happens: its part of a core, and its statements to the database."""
    core, statements = idle(seconds)
    return f"{core:.1f} % of a core, {statements:.1f} statements a second"


def answers(swarm: DurableSwarm) -> list[float]:
    """Answer some questions one after the other, and give the seconds until each run has ended."""
    found = [request for request in swarm.requests() if request.kind == "question"][:ANSWERED]
    taken = []
    for request in found:
        began = time.monotonic()
        swarm.answer("yes", request.id)
        swarm.get(request.run_id).result(60)
        taken.append(time.monotonic() - began)
    return taken


def report(what: str, taken: list[float]) -> None:
    """Print how long answers took."""
    ordered = sorted(taken)
    print(
        f"{what}: answer to end of run, median {statistics.median(taken) * 1000:.0f} ms, "
        f"95% {ordered[int(len(ordered) * 0.95)] * 1000:.0f} ms"
    )


def first(url: str, count: int) -> None:
    """Fill a database with runs that wait, and measure the process that holds them."""
    client = ScriptedModel(reply)
    with DurableSwarm(client, database=url) as swarm:
        swarm.run(AGENT, [{"role": "user", "content": "nothing"}], max_turns=0)
        time.sleep(8)  # Shortly after a run has arrived, the queue is polled.
        print(f"idle, no run: {idle_for()}")
        base, began = resident(), time.monotonic()
        fill(swarm, client, count)
        print(f"{count} runs wait after {time.monotonic() - began:.0f} s")
        time.sleep(3)
        print(f"memory: {(resident() - base) / count:.1f} KB a run over {base / 1024:.0f} MB")
        print(f"idle: {idle_for()}")
        report("this process", answers(swarm))


def again(url: str) -> None:
    """Start a program on the database, and measure until it can answer."""
    began = time.monotonic()
    with DurableSwarm(ScriptedModel(reply), database=url) as swarm:
        swarm.recover()
        print(f"start with them in the database: {time.monotonic() - began:.2f} s")
        time.sleep(8)  # Those that waited in the memory of the process before are taken over, and wait in this one's.
        print(f"idle after the start: {idle_for()}")
        report("the next process", answers(swarm))


def main() -> None:
    """Fill a database in one process, and start another on it."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as folder:
        url = sys.argv[2] if len(sys.argv) > 2 else f"sqlite:///{folder}/waiting.sqlite"
        for part in ("first", "again"):
            subprocess.run([sys.executable, __file__, part, url, str(count)], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["first"]:
        first(sys.argv[2], int(sys.argv[3]))
        os._exit(0)
    elif sys.argv[1:2] == ["again"]:
        again(sys.argv[2])
    else:
        main()
