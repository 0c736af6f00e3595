"""Workers: queued runs are executed, and whatever becomes of one worker, the others end its runs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from durable_swarm import DurableSwarm, Run
from durable_swarm.postgres import Server
from tests.crash.matrix import LONG
from tests.engine.helpers import wait_until
from tests.support.postgres import temporary_folder

TURNS = 4
APP = """
    import os, time
    from durable_swarm import Agent, DurableSwarm, current_call, step
    from durable_swarm.engine import identity, leases
    from durable_swarm.testing import ScriptedModel

    leases.LEASE = identity.LEASE = float(os.environ.get("LEASE", "15"))

    def note(what):
        with open("ledger", "a") as ledger:
            ledger.write(f"{current_call().idempotency_key} {what} {os.getpid()}\\n")

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


class Workers:
    """Worker processes on one database, and what they have left in the ledger."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.living: list[subprocess.Popen[str]] = []
        self.killed: set[int] = set()
        Path("app.py").write_text(textwrap.dedent(APP), encoding="utf-8")

    def start(self, target: str = "app:swarm", *options: str, **environment: str) -> subprocess.Popen[str]:
        """Start a worker, and wait until it works."""
        process = subprocess.Popen(
            [sys.executable, "-m", "durable_swarm", "worker", target, "--database", self.url, *options],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdout=subprocess.PIPE,
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

    def end(self) -> None:
        """Kill all that live."""
        for process in list(self.living):
            process.send_signal(signal.SIGCONT)
            self.kill(process)

    def history(self) -> dict[str, list[tuple[int, str, int]]]:
        """Give for each run what happened, in order: the turn, whether it began or ended, and in which process."""
        found = defaultdict(list)
        for line in Path("ledger").read_text().splitlines():
            key, what, pid = line.split()
            run_id, _, call = key.rpartition("/")
            found[run_id].append((int(call.split(".")[0]), what, int(pid)))
        return dict(found)

    def check(self, stopped: int = 0) -> int:
        """Check that no finished call was made again, and give how many calls in flight were."""
        again = 0
        for run_id, events in self.history().items():
            newest, begun_by = -1, 0
            for turn, what, pid in events:
                if what == "begin":
                    assert turn >= newest, f"{run_id}: turn {turn} began again after turn {newest}: {events}"
                    if turn == newest:
                        again += 1
                        assert begun_by in self.killed or begun_by == stopped, f"{run_id}: {events}"
                    newest, begun_by = turn, pid
            assert newest == TURNS - 1
        return again


@pytest.fixture
def workers(database_url: str) -> Iterator[Workers]:
    """Workers on SQLite and on PostgreSQL."""
    found = Workers(database_url)
    yield found
    found.end()


@pytest.fixture
def many(postgres_database: str) -> Iterator[Workers]:
    """Workers on PostgreSQL."""
    found = Workers(postgres_database)
    yield found
    found.end()


def enqueue(swarm: DurableSwarm, count: int) -> list[Run]:
    """Queue so many runs, in a program that has no agent."""
    return [
        swarm.enqueue("Clerk", [{"role": "user", "content": "Go."}], run_id=f"r{number}") for number in range(count)
    ]


def finish(runs: list[Run], seconds: float = 60) -> None:
    """Wait for the runs, and check their transcripts."""
    for run in runs:
        contents = [message["content"] for message in run.result(seconds).messages if message["role"] == "tool"]
        assert contents == [f"did {turn}" for turn in range(TURNS)]


@pytest.mark.slow
def test_two_workers_share_the_queue(workers: Workers) -> None:
    """What a program without agents has queued is executed by workers, each call once."""
    with DurableSwarm(database=workers.url) as swarm:
        [early] = enqueue(swarm, 1)
        assert early.status == "queued"
        for _ in range(2):
            workers.start("app:swarm", "--concurrency", "3", PACE="0.2")
        finish(enqueue(swarm, 12))
    assert workers.check() == 0
    assert len({pid for events in workers.history().values() for _, _, pid in events}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("flow", ["", "yes"], ids=["steps", "child workflows"])
def test_killed_workers_lose_nothing(flow: str, many: Workers) -> None:
    """One worker after the other is killed and replaced until all runs have ended; nothing finished is done again."""
    count, number = (200, 4) if LONG else (20, 2)
    chance = random.Random(5)
    with DurableSwarm(database=many.url) as swarm:
        runs = enqueue(swarm, count)
        for _ in range(number):
            many.start("app:swarm", "--concurrency", "5", FLOW=flow, PACE="0.3")
        while any(run.status in ("queued", "running") for run in runs):
            time.sleep(2.0 if LONG else 0.7)
            if len(many.killed) < (1000 if LONG else 4):
                many.kill(chance.choice(many.living))
                many.start("app:swarm", "--concurrency", "5", FLOW=flow, PACE="0.3")
        finish(runs)
    assert many.killed
    many.check()


@pytest.mark.slow
def test_a_worker_that_stood_still_lets_go(many: Workers) -> None:
    """A worker is stopped for longer than its lease: others end its runs, and woken it writes over nothing."""
    with DurableSwarm(database=many.url) as swarm:
        runs = enqueue(swarm, 6)
        frozen = many.start(PACE="0.4", LEASE="2")
        wait_until(lambda: Path("ledger").exists() and len(many.history()) == 6)
        frozen.send_signal(signal.SIGSTOP)
        many.start(PACE="0.05", LEASE="2")
        finish(runs)
        frozen.send_signal(signal.SIGCONT)
        more = swarm.enqueue("Clerk", [{"role": "user", "content": "Go."}], run_id="more")
        finish([more])
        time.sleep(1)
        finish(runs)
        assert frozen.poll() is None
    many.check(stopped=frozen.pid)


@pytest.mark.slow
def test_a_worker_that_is_asked_to_stop_finishes_what_is_in_hand(workers: Workers) -> None:
    """SIGTERM lets the calls in hand end, begins no other, and leaves the runs to the next worker."""
    with DurableSwarm(database=workers.url) as swarm:
        runs = enqueue(swarm, 4)
        first = workers.start(PACE="0.5")
        wait_until(lambda: Path("ledger").exists() and len(workers.history()) == 4)
        first.send_signal(signal.SIGTERM)
        said, _ = first.communicate(timeout=20)
        assert (first.returncode, "Stopping" in said) == (0, True)
        workers.living.remove(first)
        assert all(events[-1][1] == "end" for events in workers.history().values())
        assert {run.status for run in runs} == {"running"}
        workers.start()
        finish(runs)
    assert workers.check() == 0


@pytest.mark.slow
def test_the_server_is_restarted() -> None:
    """PostgreSQL is stopped, or crashes, again and again under two workers: all runs end, nothing done is repeated."""
    count, restarts = (100, 10) if LONG else (8, 1)
    with temporary_folder() as folder:
        server = Server(folder, use_docker=False)
        workers = Workers(server.start())
        try:
            with DurableSwarm(database=workers.url) as swarm:
                runs = enqueue(swarm, count)
                for _ in range(2):
                    workers.start("app:swarm", "--concurrency", "5", PACE="0.5")
                for number in range(restarts):
                    time.sleep(1)
                    server.stop() if number % 2 else crash(folder)
                    time.sleep(1)
                    server.start()
                finish(runs, 120)
        finally:
            workers.end()
        workers.check()


def crash(folder: Path) -> None:
    """Have the server of a folder end without a word to anybody."""
    pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])
    os.kill(pid, signal.SIGQUIT)
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
