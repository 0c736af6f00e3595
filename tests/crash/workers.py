"""Worker processes for tests: started, killed, stopped and woken; a ledger outside tells what their tools did."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import defaultdict
from math import inf
from pathlib import Path
from typing import NamedTuple

from durable_swarm import DurableSwarm, Run
from tests.support import programs

TURNS = 4
HURRY = 60.0
"""Seconds after its wake in which a worker goes on with a call that it was about to make."""
APP = """
    import os, time
    from durable_swarm import Agent, DurableSwarm, current_call, step
    from durable_swarm.engine.processes import identity
    from durable_swarm.engine.storage import heartbeats
    from durable_swarm.testing import ScriptedModel
    from durable_swarm.engine.storage import heartbeats as storage_heartbeats

    heartbeats.LEASE = storage_heartbeats.LEASE = float(os.environ.get("LEASE", "15"))

    def note(what):
        with open("ledger", "a") as ledger:
            ledger.write(f"{current_call().idempotency_key} {what} {os.getpid()} {time.monotonic()}\\n")

    def work(number: int) -> str:
        note("begin")
        time.sleep(float(os.environ.get("PACE", "0.05")))
        note("end")
        return f"did {number}"

    def reply(request):
        turn = sum(message["role"] == "assistant" for message in request["messages"])
        return [("work", {"number": turn})] if turn < 4 else "Done."

    clerk = Agent(name="Clerk", functions=[work if os.environ.get("FLOW") else step(work)])
    swarm = DurableSwarm(ScriptedModel(reply, strict=False))
"""


class Event(NamedTuple):
    """What a tool has noted: the turn, whether the call began or ended, in which process, and when."""

    turn: int
    what: str
    pid: int
    at: float


class Workers:
    """Worker processes on one database, and what they have left in the ledger."""

    def __init__(self, url: str, app: str = APP) -> None:
        self.url = url
        self.living: list[subprocess.Popen[str]] = []
        self.killed: set[int] = set()
        self.naps: dict[int, list[tuple[float, float]]] = defaultdict(list)
        """When each process was stopped, and woken."""
        self.cut: set[int] = set()
        """Processes whose connections were cut: to the others they may have looked dead."""
        Path("app.py").write_text(textwrap.dedent(app), encoding="utf-8")

    def start(self, target: str = "app:swarm", *options: str, **environment: str) -> subprocess.Popen[str]:
        """Start a worker, and wait until it works."""
        number = len(self.logs())
        with Path(f"log-{number}").open("w") as log:
            process = programs.Program(
                [sys.executable, "-m", "durable_swarm", "worker", target, "--database", self.url, *options],
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.living.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Worker ")
        return process

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Kill a worker, as only SIGKILL can."""
        self.killed.add(process.pid)
        self.living.remove(process)
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def stop(self, process: subprocess.Popen[str]) -> None:
        """Have a worker stand still."""
        self.naps[process.pid].append((time.monotonic(), inf))
        process.send_signal(signal.SIGSTOP)

    def wake(self, process: subprocess.Popen[str]) -> None:
        """Have a worker go on that stands still."""
        fell, _ = self.naps[process.pid].pop()
        process.send_signal(signal.SIGCONT)
        self.naps[process.pid].append((fell, time.monotonic()))

    def end(self) -> None:
        """Kill all that live, and show what all have logged."""
        for process in list(self.living):
            process.send_signal(signal.SIGCONT)
            self.kill(process)
        for number, text in enumerate(self.logs()):
            print(f"-- worker {number}\n{text}")

    def logs(self) -> list[str]:
        """Give what each worker has logged."""
        return [path.read_text() for path in sorted(Path().glob("log-*"))]

    def history(self) -> dict[str, list[Event]]:
        """Give for each run what happened, in order."""
        found = defaultdict(list)
        for line in Path("ledger").read_text().splitlines():
            key, what, pid, at = line.split()
            run_id, _, call = key.rpartition("/")
            found[run_id].append(Event(int(call.split(".")[0]), what, int(pid), float(at)))
        return dict(found)

    def check(self) -> int:
        """Check that no finished call was made again, and give how many calls in flight were."""
        again = 0
        for run_id, events in self.history().items():
            first: dict[int, Event] = {}
            last: dict[int, Event] = {}
            for event in events:
                if event.what != "begin":
                    continue
                if before := last.get(event.turn):
                    again += 1
                    late = self._was_in_hand(event, first[event.turn])
                    assert late or (event.turn == max(last) and self._was_lost(before, event)), f"{run_id}: {events}"
                first.setdefault(event.turn, event)
                last[event.turn] = event
            assert sorted(last) == list(range(TURNS))
        return again

    def _was_lost(self, before: Event, again: Event) -> bool:
        """Whether who made a call before was killed, cut off, or stopped while it was in flight."""
        naps = self.naps[before.pid]
        stopped = any(fell <= again.at and woke >= before.at for fell, woke in naps)
        return before.pid in self.killed | self.cut or stopped

    def _was_in_hand(self, event: Event, first: Event) -> bool:
        """Whether a call was begun by who was stopped just before it began it, and before another did."""
        naps = self.naps[event.pid]
        return any(fell <= first.at and fell - 1 <= event.at <= woke + HURRY for fell, woke in naps)


def enqueue(swarm: DurableSwarm, count: int, first: int = 0) -> list[Run]:
    """Queue so many runs, numbered from `first` on, in a program that has no agent."""
    return [
        swarm.enqueue("Clerk", [{"role": "user", "content": "Go."}], run_id=f"r{number}")
        for number in range(first, first + count)
    ]


def finish(runs: list[Run], seconds: float = 60) -> None:
    """Wait for the runs, and check their transcripts."""
    for run in runs:
        contents = [message["content"] for message in run.result(seconds).messages if message["role"] == "tool"]
        assert contents == [f"did {turn}" for turn in range(TURNS)]
