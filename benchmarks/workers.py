"""Workers on PostgreSQL: how soon a killed one's run goes on elsewhere, and short runs a second beside a DBOS queue.

python benchmarks/workers.py takeover|throughput URL

`takeover` kills, 15 times, the worker that executes a run, and takes the time until another begins the run's next step.
`throughput` has 1, 2 and 4 workers execute 300 runs of two model calls and one tool call, and the same number of
processes execute the same from a DBOS queue, in a loop written by hand for these steps, with the same scripted model.
The workers are stopped while the queue is filled, and the time is from waking them to the last end. The two take turns;
the ratio is the median of the pairs.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from support.fleet import APP, end, fresh, ready, send, started, until_done, worker

from durable_swarm import DurableSwarm
from durable_swarm.engine.database import connection, urls

RUNS, KILLS, PAIRS = 300, 15, 7
BY_HAND = """
import json, sys, time
from dbos import DBOS, DBOSClient
from durable_swarm.testing import ScriptedModel

def reply(request):
    return "Done." if request["messages"][-1]["role"] == "tool" else [("work", {"number": 0})]

model = ScriptedModel(reply, strict=False)

@DBOS.step()
def ask(messages):
    answer = model.chat.completions.create(model="gpt-4o", messages=messages)
    return answer.choices[0].message.model_dump(exclude_none=True)

@DBOS.step()
def work(number):
    return "worked"

@DBOS.workflow()
def flow(messages):
    while True:
        messages.append(ask(messages))
        calls = messages[-1].get("tool_calls")
        if not calls:
            return messages
        for call in calls:
            told = work(**json.loads(call["function"]["arguments"]))
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": told})

url, name, count = sys.argv[1:]
GO = [{"role": "user", "content": "Go."}]
if name == "client":
    client = DBOSClient(system_database_url=url)
    for number in range(int(count)):
        client.enqueue({"queue_name": "work", "workflow_name": "flow", "app_version": "1"}, GO)
else:
    DBOS(config={"name": "by-hand", "system_database_url": url, "executor_id": name, "application_version": "1",
                 "log_level": "CRITICAL"})
    DBOS.launch()
    DBOS.register_queue("work", worker_concurrency=10, polling_interval_sec=0.1)
print("ready", flush=True)
time.sleep(600)
"""


def latest() -> tuple[int, float]:
    """Give who began the last step, and when."""
    lines = Path("ledger").read_text().splitlines() if Path("ledger").exists() else []
    return (int(lines[-1].split()[1]), float(lines[-1].split()[2])) if lines else (0, 0.0)


def takeover(url: str) -> None:
    """Kill the worker that executes a run, again and again."""
    url, taken = fresh(url), []
    with DurableSwarm(database=url) as swarm:
        workers = {process.pid: process for process in (worker(url, 0.2, 1000) for _ in range(2))}
        swarm.enqueue("Clerk", [{"role": "user", "content": "Go."}], run_id="r")
        for _ in range(KILLS):
            time.sleep(3)
            owner, _ = latest()
            killed = time.time()
            end(workers.pop(owner))
            replaced = worker(url, 0.2, 1000)
            workers[replaced.pid] = replaced
            while latest()[0] == owner:
                time.sleep(0.02)
            taken.append(latest()[1] - killed)
        end(*workers.values())
    print(f"takeover, {KILLS} kills: median {statistics.median(taken):.1f} s, worst {max(taken):.1f} s")


def ours(url: str, count: int) -> float:
    """Give the seconds that workers take for all runs."""
    url = fresh(url)
    with ready(url, RUNS, count) as workers:
        send(signal.SIGCONT, workers)
        return until_done(url)


def by_hand(url: str, count: int) -> float:
    """Give the seconds that the loop written by hand takes."""
    url = fresh(url)
    connection.connect(urls.choose(url), create=True).dispose()
    Path("by_hand.py").write_text(BY_HAND, encoding="utf-8")
    workers = [started(["by_hand.py", url, f"worker-{number}", "0"]) for number in range(count)]
    send(signal.SIGSTOP, workers)
    end(started(["by_hand.py", url, "client", str(RUNS)]))
    send(signal.SIGCONT, workers)
    seconds = until_done(url)
    end(*workers)
    return seconds


def throughput(url: str) -> None:
    """Compare ours with the loop written by hand."""
    for count in (1, 2, 4):
        pairs = [(ours(url, count), by_hand(url, count)) for _ in range(PAIRS)]
        mine, theirs = (statistics.median(part) for part in zip(*pairs, strict=True))
        ratios = sorted(other / own for own, other in pairs)
        print(
            f"{count} workers: {RUNS / mine:.0f} runs/s, by hand {RUNS / theirs:.0f}; "
            f"ratio {statistics.median(ratios):.2f}, from {ratios[0]:.2f} to {ratios[-1]:.2f} of {PAIRS} pairs"
        )


def main() -> None:
    """Run one part in a folder of its own."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if len(sys.argv) < 3:
        print(__doc__)
        return
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("app.py").write_text(APP, encoding="utf-8")
        {"takeover": takeover, "throughput": throughput}[sys.argv[1]](sys.argv[2])


if __name__ == "__main__":
    main()
