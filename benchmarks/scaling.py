"""What one PostgreSQL carries, and where it bends: workers, connections, statements, and tables that have grown.

python benchmarks/scaling.py throughput|connections|statements|growth [URL]

Without a URL a server is started for it, and goes at the end. All parts have workers execute short runs: two model
calls and one tool call, so three steps, with a scripted model that answers at once.

`throughput`: 1, 2, 4 and 8 workers of 10 and of 50 places, with the CPU a run that workers and server take.
`connections`: how many a worker has open when it is idle and when it is busy, and what other programs have.
`statements`: which statements a run causes, by purpose. The server must have `pg_stat_statements` loaded.
`growth`: one worker, with 0, 100,000 and 1,000,000 finished steps in the database (or as many as STEPS says).
"""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from support.fleet import APP, end, fresh, ready, send, until_done, worker
from support.server import Load, asked, connections, serving, size

from durable_swarm import DurableSwarm

RUNS, STEPS_A_RUN, ROUNDS = 300, 3, 3
GO = [{"role": "user", "content": "Go."}]


@dataclass(frozen=True)
class Measured:
    """One measurement: runs a second, and milliseconds of CPU a run in the server and in the workers."""

    rate: float
    server: float
    workers: float


def measured(url: str, workers: int, concurrency: int, runs: int = RUNS, name: str = "r") -> Measured:
    """Have so many workers execute so many runs, which are named with numbers, in the database."""
    with ready(url, runs, workers, concurrency, name) as processes:
        load = Load(url, [process.pid for process in processes])
        send(signal.SIGCONT, processes)
        seconds = until_done(url)
        server, others = load.taken()
    return Measured(runs / seconds, 1000 * server / runs, 1000 * others / runs)


def median(some: list[Measured]) -> Measured:
    """Give the median of each figure."""
    figures = zip(*((one.rate, one.server, one.workers) for one in some), strict=True)
    return Measured(*map(statistics.median, figures))


def throughput(url: str) -> None:
    """Compare numbers of workers and places with one worker of ten places."""
    shapes = [(workers, concurrency) for concurrency in (10, 50) for workers in (1, 2, 4, 8)]
    rounds = [{shape: measured(fresh(url), *shape) for shape in shapes} for _ in range(ROUNDS)]
    base = median([each[shapes[0]] for each in rounds]).rate
    for shape in shapes:
        of = median([each[shape] for each in rounds])
        print(
            f"{shape[0]} workers of {shape[1]} places: {of.rate:.0f} runs/s, {of.rate * STEPS_A_RUN:.0f} steps/s "
            f"({of.rate / base:.2f}x); CPU a run: workers {of.workers:.1f} ms, server {of.server:.1f} ms"
        )


def most(url: str, seconds: float) -> int:
    """Give the most connections that are open within these seconds."""
    found, end_at = 0, time.monotonic() + seconds
    while time.monotonic() < end_at:
        found = max(found, connections(url))
        time.sleep(0.05)
    return found


def busy(url: str, concurrency: int) -> int:
    """Give the most connections of one worker with so many places, all of them taken."""
    url = fresh(url)
    counts = [0]
    with ready(url, 10 * concurrency, 1, concurrency) as processes:
        send(signal.SIGCONT, processes)
        until_done(url, lambda: counts.append(connections(url)))
    return max(counts) - 1  # The one that looks whether all is done.


def connections_of(url: str) -> None:
    """Count the connections of workers and programs."""
    idle = fresh(url)
    alone = worker(idle, 0, 1)
    print(f"a worker that is idle: {most(idle, 5)}")
    with DurableSwarm(database=idle) as swarm:
        print(f"and a program that has opened the database: {most(idle, 3)}", end="")
        for number in range(100):
            swarm.enqueue("Clerk", GO, run_id=f"r{number}")
        print(f"; once it has put 100 runs on the queue, and the worker has taken them: {most(idle, 5)}")
    end(alone)
    for concurrency in (10, 50, 200):
        print(f"a worker of {concurrency} places, all taken: {busy(url, concurrency)} at most")


PURPOSES = {
    "claim from the queue": r"SKIP LOCKED|SET status=\S+, executor_id|application_versions",
    "load what was claimed": r"^SELECT dbos.workflow_status.workflow_uuid, .* IN \(",
    "look for an earlier life": r"^SELECT dbos.operation_outputs.function_id|^SELECT dbos.streams",
    "before a step: is the run still ours, and what was said to it": r"^SELECT dbos.workflow_status.status, |"
    r"^SELECT dbos.workflow_status.status FROM|^SELECT dbos.operation_outputs.output",
    "record a step": r"^SELECT dbos.workflow_status.owner_xid|^INSERT INTO dbos.operation_outputs",
    "record the end": r"^WITH updated AS|^INSERT INTO dbos.durable_swarm_messages|^INSERT INTO dbos.workflow_output",
    "events": r"INTO dbos.streams|^SELECT dbos.workflow_status.workflow_uuid, dbos.workflow_status.owner_xid|"
    r"lock_timeout",
    "begin and end of transactions": r"^(BEGIN|COMMIT|ROLLBACK|SET LOCAL)",
}
"""How the statements of a run are known, by their purpose; the first that fits counts."""
NOT_OURS = r"SELECT count\(\*\) FROM dbos.workflow_status WHERE status IN|pg_stat_"


def purpose(statement: str) -> str:
    """Give what a statement is for."""
    text = " ".join(statement.split())
    return next((name for name, known in PURPOSES.items() if re.search(known, text)), "what a worker does anyway")


def statements(url: str) -> None:
    """Count the statements that a run causes."""
    asked(url, "CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    made = fresh(url)
    with ready(made, RUNS, 1) as processes:
        asked(url, "SELECT pg_stat_statements_reset()")
        send(signal.SIGCONT, processes)
        until_done(made)
        name = made.rpartition("/")[2].partition("?")[0]
        found = asked(
            url,
            "SELECT query, calls, total_exec_time FROM pg_stat_statements(true) "
            f"WHERE dbid = (SELECT oid FROM pg_database WHERE datname = '{name}')",
        )
    calls: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    for query, count, milliseconds in found:
        if not re.search(NOT_OURS, str(query)):
            calls[purpose(str(query))] += int(str(count))
            spent[purpose(str(query))] += float(str(milliseconds))  # type: ignore[assignment]
    for name in [*PURPOSES, *(calls.keys() - PURPOSES.keys())]:
        print(f"{name}: {calls[name] / RUNS:.1f} statements a run, {1000 * spent[name] / RUNS:.0f} us in the server")
    print(f"together: {calls.total() / RUNS:.1f} round trips a run, {1000 * spent.total() / RUNS:.0f} us in the server")


TABLES = ("workflow_status", "workflow_input", "workflow_output", "operation_outputs", "durable_swarm_messages")


def grow(url: str, runs: int) -> None:
    """Add so many copies of the run r0, which has ended, to the database, with all its rows."""
    for table in TABLES:
        key = "run_id" if table.startswith("durable") else "workflow_uuid"
        found = asked(
            url,
            "SELECT column_name FROM information_schema.columns "
            f"WHERE table_schema = 'dbos' AND table_name = '{table}' AND is_generated = 'NEVER'",
        )
        others = [f'"{name}"' for (name,) in found if name != key]
        columns = ", ".join([key, *others])
        asked(
            url,
            f"INSERT INTO dbos.{table} ({columns}) SELECT 'old-' || n, {', '.join(others)} "
            f"FROM dbos.{table}, generate_series(1, {runs}) AS n WHERE {key} = 'r0'",
        )
    asked(url, "VACUUM ANALYZE")


def listing(url: str) -> float:
    """Give how many seconds it takes to list the newest runs."""
    began = time.monotonic()
    command = [sys.executable, "-m", "durable_swarm", "runs", "--database", url]
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - began


def growth(url: str) -> None:
    """Measure one worker, and a listing, in a database of more and more steps."""
    base = 0.0
    for steps in [int(text) for text in os.environ.get("STEPS", "0 100000 1000000").split()]:
        made = fresh(url)
        measured(made, 1, 10, 10)
        grow(made, steps // STEPS_A_RUN)
        of = median([measured(made, 1, 10, name=f"a{number}-") for number in range(ROUNDS)])
        base = base or of.rate
        print(
            f"{steps} steps ({size(made) / 1e6:.0f} MB): {of.rate:.0f} runs/s ({of.rate / base:.2f}x), CPU a run: "
            f"workers {of.workers:.1f} ms, server {of.server:.1f} ms; `runs` takes {listing(made):.2f} s"
        )


PARTS = {"throughput": throughput, "connections": connections_of, "statements": statements, "growth": growth}


def main() -> None:
    """Run one part in a folder of its own."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if len(sys.argv) < 2 or sys.argv[1] not in PARTS:
        print(__doc__)
        return
    with tempfile.TemporaryDirectory() as folder, serving(sys.argv[2] if len(sys.argv) > 2 else None) as url:
        os.chdir(folder)
        Path("app.py").write_text(APP, encoding="utf-8")
        PARTS[sys.argv[1]](url)


if __name__ == "__main__":
    main()
