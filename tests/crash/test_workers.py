"""Workers: queued runs are executed, and whatever becomes of one worker, the others end its runs."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from durable_swarm import DurableSwarm
from durable_swarm.postgres import Server
from tests.crash.matrix import LONG
from tests.crash.workers import Workers, enqueue, finish
from tests.engine.helpers import wait_until
from tests.support.patience import PATIENCE
from tests.support.postgres import temporary_folder


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
    assert len({event.pid for events in workers.history().values() for event in events}) == 2


@pytest.mark.slow
def test_limits_hold_beside_a_worker_without_the_agents(many: Workers) -> None:
    """What a worker of another program takes from the queue goes back to it, is executed, and counts for its limits."""
    Path("other.py").write_text(Path("app.py").read_text().replace('name="Clerk"', 'name="Other"'))
    with DurableSwarm(database=many.url) as swarm:
        runs = enqueue(swarm, 12)
        many.start("other:swarm", "--concurrency", "10")
        wait_until(lambda: "'Clerk'" in many.logs()[0])
        many.start("app:swarm", "--concurrency", "5", "--queue-concurrency", "2", PACE="0.1")
        finish(runs)
    assert many.check() == 0
    moments = sorted((event.at, event.what) for events in many.history().values() for event in events)
    there = list(itertools.accumulate(1 if what == "begin" else -1 for _, what in moments))
    assert max(there) == 2
    assert many.logs()[0].count("'Clerk'") == 1


def calls_of(workers: Workers) -> int:
    """Give how many calls have begun and ended so far."""
    return sum(map(len, workers.history().values())) if Path("ledger").exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("flow", ["", "yes"], ids=["steps", "child workflows"])
def test_killed_workers_lose_nothing(flow: str, many: Workers) -> None:
    """One worker after the other is killed and replaced until all runs have ended; nothing finished is done again."""
    count, number = (200, 4) if LONG else (12, 2)
    chance = random.Random(5)
    with DurableSwarm(database=many.url) as swarm:
        for _ in range(number):
            many.start("app:swarm", "--concurrency", "5", FLOW=flow, PACE="0.3")
        runs = enqueue(swarm, count)
        while any(run.status in ("queued", "running") for run in runs):
            begun = calls_of(many)
            wait_until(lambda begun=begun: calls_of(many) > begun + 5 or all(run.status == "done" for run in runs))
            if len(many.killed) < (1000 if LONG else 3):
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
        frozen = many.start(PACE="0.4", LEASE="6")
        wait_until(lambda: Path("ledger").exists() and len(many.history()) == 6)
        many.stop(frozen)
        many.start(PACE="0.05", LEASE="6")
        finish(runs)
        many.wake(frozen)
        more = swarm.enqueue("Clerk", [{"role": "user", "content": "Go."}], run_id="more")
        finish([more])
        time.sleep(1)
        finish(runs)
        assert frozen.poll() is None
    many.check()


@pytest.mark.slow
def test_a_worker_that_is_asked_to_stop_finishes_what_is_in_hand(workers: Workers) -> None:
    """SIGTERM lets the calls in hand end, begins no other, and leaves the runs to the next worker."""
    with DurableSwarm(database=workers.url) as swarm:
        runs = enqueue(swarm, 4)
        first = workers.start(PACE="0.5")
        wait_until(lambda: Path("ledger").exists() and len(workers.history()) == 4)
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=PATIENCE)
        assert (first.returncode, "stopping" in workers.logs()[0]) == (0, True)
        workers.living.remove(first)
        assert all(events[-1].what == "end" for events in workers.history().values())
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
