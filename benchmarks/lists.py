"""Lists and one run of a large database: 100,000 runs with 600,000 tool calls, made by SQL.

Prints how long each question to the service layer takes, and each page of the console without a browser and a network:
the milliseconds and those of processor time of this process, the median of some askings. Run: python
benchmarks/lists.py [DATABASE_URL] [--runs N]; the database of the URL must be new.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy
from sqlalchemy import text

from durable_swarm import Agent, DurableSwarm, Limits
from durable_swarm.server import console
from durable_swarm.service import Query, Runs, open_runs
from durable_swarm.testing import ScriptedModel, call

USER = [{"role": "user", "content": "Where is order A1?"}]
AGENTS = ("Triage", "Refunds", "Rare")
RARE = 10
"""How many runs the rare agent has."""
PAGES = {"page of the runs": "/runs", "page of a run of 1,000 turns": "/runs/long", "page of the inbox": "/inbox"}
TIMES = 7


def look_up(order: str) -> str:
    """Look an order up."""
    return f"Order {order} is on its way. " * 20


def leave_runs(url: str) -> None:
    """Leave the runs that are multiplied: each has three turns with two tool calls in the first two."""
    twice = [call("look_up", order="A1"), call("look_up", order="A2")]
    for agent in AGENTS:
        with DurableSwarm(ScriptedModel([twice, twice, "It is on its way."]), database=url) as swarm:
            swarm.run(Agent(name=agent, functions=[look_up]), USER, run_id=f"seed-{agent}")
    replies: list[Any] = [*([call("look_up", order=f"A{number}")] for number in range(999)), "Done."]
    with DurableSwarm(ScriptedModel(replies), database=url) as swarm:
        swarm.run(Agent(name="Long", functions=[look_up]), USER, run_id="long", limits=Limits(requests=5_000))


def multiply(url: str, runs: int) -> None:
    """Copy the rows of the seeds by SQL, a second apart; one in ten copies is cancelled."""
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    lite = engine.dialect.name == "sqlite"
    schema = None if lite else "dbos"
    recursive = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :runs)"
    numbers = recursive if lite else "WITH n AS (SELECT generate_series(1, :runs) AS i)"
    with engine.begin() as connection:
        for name in ("workflow_status", "workflow_input", "workflow_output", "operation_outputs"):
            table = name if lite else f"{schema}.{name}"
            columns = [column["name"] for column in sqlalchemy.inspect(engine).get_columns(name, schema=schema)]
            wanted = ", ".join(copied(name, runs).get(column, f"s.{column}") for column in columns)
            chosen = f"SELECT {wanted} FROM n JOIN {table} s ON {is_seed('s.workflow_uuid', runs)}"
            into = f"INSERT INTO {table} ({', '.join(columns)})"
            statement = f"{numbers} {into} {chosen}" if lite else f"{into} {numbers} {chosen}"
            connection.execute(text(statement), {"runs": runs})
        if not lite:
            connection.execute(text("ANALYZE"))  # As PostgreSQL does by itself, after a while.
    engine.dispose()


def seed(runs: int) -> str:
    """Return the id of the run that is copied, by the number of the copy."""
    rare = f"WHEN i % {runs // RARE} = 0 THEN 'seed-Rare'"
    return f"CASE {rare} WHEN i % 3 = 0 THEN 'seed-Refunds' ELSE 'seed-Triage' END"


def is_seed(column: str, runs: int) -> str:
    """True for the run that is copied, and for its tool calls."""
    return f"({column} = {seed(runs)} OR {column} LIKE {seed(runs)} || '/%')"


def copied(table: str, runs: int) -> dict[str, str]:
    """Return the columns of a copy that differ from those of its seed."""

    def name(column: str) -> str:
        return f"CASE WHEN {column} IS NOT NULL THEN 'run-' || i || substr({column}, length({seed(runs)}) + 1) END"

    if table == "operation_outputs":
        return {"workflow_uuid": name("s.workflow_uuid"), "child_workflow_id": name("s.child_workflow_id")}
    if table == "workflow_status":
        a_run = "s.parent_workflow_id IS NULL"
        return {
            "workflow_uuid": name("s.workflow_uuid"),
            "parent_workflow_id": name("s.parent_workflow_id"),
            "created_at": "s.created_at - (:runs - i) * 1000",
            "status": f"CASE WHEN {a_run} AND i % 10 = 0 THEN 'CANCELLED' ELSE s.status END",
        }
    return {"workflow_uuid": name("s.workflow_uuid")}


def questions(runs: Runs, count: int) -> dict[str, Callable[[], Any]]:
    """Return what is asked, by its name."""
    middle = runs.list(Query(limit=1, search=f"run-{count // 2}"))[0].id
    return {
        "first page of 50": lambda: runs.list(Query(limit=50)),
        "page of 50 behind the middle": lambda: runs.list(Query(limit=50, before=middle)),
        "a rare agent": lambda: runs.list(Query(limit=50, agent="Rare")),
        "an agent that no run has": lambda: runs.list(Query(limit=50, agent="None")),
        "a swarm that no run has": lambda: runs.list(Query(limit=50, swarm="None")),
        "text in the id": lambda: runs.list(Query(limit=50, search=f"run-{count // 2}")),
        "done": lambda: runs.list(Query("done", limit=50)),
        "failed (none)": lambda: runs.list(Query("failed", limit=50)),
        "cancelled": lambda: runs.list(Query("cancelled", limit=50)),
        "waiting (none)": lambda: runs.list(Query("waiting", limit=50)),
        "interrupted (none)": lambda: runs.list(Query("running", limit=50, idle=True)),
        "a run of three turns": lambda: runs.show("run-77"),
        "200 steps of a run of 1,000 turns": lambda: runs.page("long"),
        "a run of 1,000 turns": lambda: runs.show("long"),
        "the question if anything changed": runs.mark,
    }


def main() -> None:
    """Make the database, ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--runs", type=int, default=100_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = given.url or f"sqlite:///{Path(folder) / 'runs.sqlite'}"
        begun = time.perf_counter()
        leave_runs(url)
        multiply(url, given.runs)
        print(f"{given.runs:,} runs made in {time.perf_counter() - begun:.0f} s")
        gc.freeze()  # As `durable-swarm console` does.
        with open_runs(url) as runs:
            for name, ask in questions(runs, given.runs).items():
                found = ask()
                for _ in times(name, f"{len(found) if isinstance(found, list) else 1} found"):
                    ask()
        asyncio.run(ask_pages(url))


async def ask_pages(url: str) -> None:
    """Ask the console for pages, and print."""
    app = console(url, user=lambda _: "benchmark")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://127.0.0.1") as client:
        for name, path in PAGES.items():
            found = (await client.get(path)).raise_for_status()
            for _ in times(name, f"{len(found.content):,} bytes"):
                await client.get(path)
    app.close()


def times(name: str, more: str) -> Iterator[int]:
    """Yield some numbers, and print how long the work after each takes."""
    took = []
    for number in range(TIMES):
        begun = time.perf_counter(), time.process_time()
        yield number
        took.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    wall, processor = (statistics.median(each) * 1000 for each in zip(*took, strict=True))
    print(f"{name:34} {wall:8.1f} ms {processor:8.1f} ms of processor time  ({more})")


if __name__ == "__main__":
    main()
