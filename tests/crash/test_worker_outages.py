"""Workers whose database is cut off or away, and workers that stand still, again and again."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from durable_swarm import DurableSwarm
from durable_swarm.engine.records import names
from durable_swarm.postgres import Server
from tests.crash.matrix import LONG
from tests.crash.workers import Workers, enqueue, finish
from tests.engine.helpers import connected, rows, wait_until
from tests.support.postgres import SETTINGS, temporary_folder
from tests.support.proxy import ANYWHERE, BEFORE, BEHIND, Plan, proxied


@contextmanager
def workers_on(url: str) -> Iterator[Workers]:
    """Worker processes on a database, killed in the end."""
    found = Workers(url)
    try:
        yield found
    finally:
        found.end()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("flow", ["yes", ""] if LONG else ["yes"], ids=lambda flow: "calls" if flow else "steps")
def test_cut_connections_lose_nothing(flow: str, postgres_database: str) -> None:
    """Connections are cut at random bytes, and round commits: all runs end, and nothing finished is done again."""
    count = 100 if LONG else 10
    plan = Plan(random.Random(7), mean=120_000, commits=12)
    with (
        DurableSwarm(database=postgres_database) as swarm,
        proxied(postgres_database, plan) as url,
        workers_on(url) as workers,
    ):
        for _ in range(2):
            workers.cut.add(workers.start("app:swarm", "--concurrency", "5", FLOW=flow, PACE="0.2").pid)
        plan.cutting = True
        done = 0
        while plan.cuts.total() < count or plan.cuts.keys() != {ANYWHERE, BEFORE, BEHIND}:
            finish(enqueue(swarm, count, done), 600)
            done += count
        print("runs:", done, "cut:", dict(plan.cuts), "calls made again:", workers.check())


HOLDERS = """
    SELECT DISTINCT pid FROM pg_locks
    WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def end_a_session(url: str, chance: random.Random) -> None:
    """End one of the sessions that tell that their processes live."""
    with connected(url) as server:
        holders = sorted(server.exec_driver_sql(HOLDERS).scalars())
        server.exec_driver_sql(f"SELECT pg_terminate_backend({chance.choice(holders)})")


@pytest.mark.skipif(not LONG, reason="one process must be heard of again within a second")
def test_who_has_lost_only_its_connection_keeps_its_runs(postgres_database: str) -> None:
    """A worker that lives and loses the session that says so is not taken for dead: no call in hand is made again."""
    chance = random.Random(3)
    with workers_on(postgres_database) as workers, DurableSwarm(database=postgres_database) as swarm:
        runs = enqueue(swarm, 20)
        for _ in range(2):
            workers.start(PACE="8")
        for _ in range(20):
            time.sleep(1.1)
            end_a_session(postgres_database, chance)
        finish(runs)
    assert workers.check() == 0


def processor_time(pid: int) -> float:
    """Give the seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_server_is_away() -> None:
    """PostgreSQL is away for a while under two workers: runs wait quietly, and go on; each worker tells it once."""
    away, count = (60, 40) if LONG else (6, 8)
    with temporary_folder() as folder:
        server = Server(folder, settings=SETTINGS, use_docker=False)
        with workers_on(server.start()) as workers:
            with DurableSwarm(database=workers.url) as swarm:
                enqueue(swarm, count)
            two = [workers.start("app:swarm", "--concurrency", str(count // 2), PACE="0.5").pid for _ in range(2)]
            wait_until(lambda: Path("ledger").exists() and len(workers.history()) == count, 120)
            server.stop()
            begun, used = time.monotonic(), [processor_time(pid) for pid in two]
            time.sleep(away)
            used = [processor_time(pid) - before for pid, before in zip(two, used, strict=True)]
            shares = [seconds / (time.monotonic() - begun) for seconds in used]
            server.start()
            with DurableSwarm(database=workers.url) as swarm:
                finish([swarm.get(f"r{number}") for number in range(count)], 240)
            wait_until(lambda: all("can be written again" in log for log in workers.logs()), 120)
        print("share of a core:", shares)
        assert workers.check() == 0
        assert max(shares) < (0.3 if LONG else 0.6)  # A slow machine takes longer for the same few looks.
        for log in workers.logs():
            told = log.splitlines()
            assert len(told) == 2, log
            assert ("Runs in progress wait" in told[0], "can be written again" in told[1]) == (True, True)


class Recorded:
    """All checkpoints that were ever seen in a database."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.seen: dict[tuple[str, int], tuple[str, str]] = {}

    def look(self) -> None:
        """Check that nothing of what was seen has changed or is gone."""
        wanted = (
            "SELECT workflow_uuid, function_id, function_name, md5(row(output, error, completed_at_epoch_ms)::text)"
        )
        with connected(self._url) as connection:
            rows = connection.exec_driver_sql(f"{wanted} FROM dbos.operation_outputs").all()
        found = {(run_id, number): (name, digest) for run_id, number, name, digest in rows}
        changed = {key: (was, found.get(key)) for key, was in self.seen.items() if found.get(key) != was}
        assert not changed
        self.seen = found


def unfinished(url: str) -> int:
    """Give how many runs have not ended well."""
    return len([row for row in rows(url, "name, status") if row.name == names.RUN and row.status != "SUCCESS"])


@pytest.mark.skipif(not LONG, reason="takes minutes; the short form is test_a_worker_that_stood_still_lets_go")
@pytest.mark.timeout(1200)
def test_workers_that_stand_still_again_and_again(postgres_database: str) -> None:
    """Every few seconds a worker is stopped for twice its lease: all runs end, no record is written over."""
    chance, due = random.Random(11), dict[int, float]()
    recorded = Recorded(postgres_database)
    with workers_on(postgres_database) as workers, DurableSwarm(database=postgres_database) as swarm:
        runs = enqueue(swarm, 200)
        four = {process.pid: process for process in [workers.start(PACE="2") for _ in range(4)]}
        wait_until(lambda: unfinished(postgres_database) > 0)
        while due or unfinished(postgres_database) > 0:
            time.sleep(4)
            for pid in [pid for pid, wakes in due.items() if wakes < time.monotonic()]:
                workers.wake(four[pid])
                del due[pid]
            awake = sorted(four.keys() - due.keys())
            if len(awake) > 1 and unfinished(postgres_database) > 0:
                stopped = chance.choice(awake)
                workers.stop(four[stopped])
                due[stopped] = time.monotonic() + 30
            recorded.look()
        finish(runs)
        recorded.look()
        assert all(process.poll() is None for process in four.values())
    stops = sum(map(len, workers.naps.values()))
    print("stops:", stops, "records:", len(recorded.seen), "calls made again:", workers.check())
    assert stops >= 10
