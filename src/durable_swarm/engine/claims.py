"""Who has which run: looking at that, and handing runs on. Rows of DBOS's own table, written under a lock of each."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import sqlalchemy
from sqlalchemy import column, select, table, update

from durable_swarm.engine import records
from durable_swarm.engine.database import is_sqlite, schema_of, usable

UNFINISHED = ("PENDING", "ENQUEUED", "DELAYED")
"""What DBOS calls a run that has not ended; one that rests until it is woken is DELAYED."""


def now() -> int:
    """Give the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Claims:
    """The runs and tool calls of one database, and who has them. Raises `ConfigurationError` where it is unusable."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine) -> None:
        self._url = url
        self._engine = engine
        schema = schema_of(url)
        names = ("workflow_uuid", "status", "queue_name", "owner_xid", "name", "updated_at")
        more = ("recovery_attempts", "started_at_epoch_ms", "executor_id")
        self._runs = table("workflow_status", *map(column, (*names, *more)), schema=schema)
        self._ours = self._runs.c.name.in_([records.RUN, records.TOOL])
        self._steps = table("operation_outputs", column("workflow_uuid"), schema=schema)

    def hand_to(self, rows: Iterable[Any], queue: str, attempts: int = 0) -> set[str]:
        """Hand runs and tool calls to who serves `queue`; gives the ids of those that are handed over.

        `attempts` is how often they count as begun.

        Only what is as it was when its row was read: not what was cancelled since, as DBOS's own resumption would, nor
        what another process has taken over meanwhile.
        """
        runs, taken = self._runs, set()
        with usable(self._url), self._engine.begin() as connection:
            if is_sqlite(self._url):
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            for row in rows:
                as_read = (
                    (runs.c.workflow_uuid == row.workflow_id)
                    & (runs.c.status == row.status)
                    & runs.c.executor_id.is_not_distinct_from(row.executor_id)
                    & runs.c.queue_name.is_not_distinct_from(row.queue_name)
                )
                moving = update(runs).where(as_read).values(**moved("ENQUEUED", queue, attempts))
                if connection.execute(moving).rowcount:
                    taken.add(row.workflow_id)
        return taken

    def unfinished(self) -> list[str]:
        """Give the unfinished runs and tool calls, but for those that wait for a worker."""
        runs = self._runs
        begun = (runs.c.status == "PENDING") | (
            (runs.c.status == "ENQUEUED") & runs.c.queue_name.not_like(f"{records.work_queue('')}%")
        )
        with usable(self._url), self._engine.connect() as connection:
            return list(connection.execute(select(runs.c.workflow_uuid).where(self._ours, begun)).scalars())

    def without_steps(self, run_ids: Iterable[str]) -> set[str]:
        """Give those of the runs that have finished no step."""
        ids, steps = set(run_ids), self._steps
        finished = select(steps.c.workflow_uuid).where(steps.c.workflow_uuid.in_(ids)).distinct()
        with usable(self._url), self._engine.connect() as connection:
            return ids.difference(connection.execute(finished).scalars()) if ids else ids

    def claims(self, name: str) -> list[tuple[str, str]]:
        """Give the runs that stand as under way in the process of this name, each with its execution's token."""
        runs = self._runs
        mine = (runs.c.name == records.RUN) & (runs.c.status == "PENDING") & (runs.c.executor_id == name)
        with usable(self._url), self._engine.connect() as connection:
            found = connection.execute(select(runs.c.workflow_uuid, runs.c.owner_xid).where(mine)).all()
            return [(str(run_id), str(owner)) for run_id, owner in found]

    def owners(self) -> set[str]:
        """Give the names of the processes that have unfinished runs or tool calls."""
        runs, queue = self._runs, self._runs.c.queue_name
        pending = select(runs.c.executor_id).where(self._ours, runs.c.status == "PENDING")
        queued = select(queue).where(self._ours, runs.c.status == "ENQUEUED", queue.like(f"{records.QUEUE}%"))
        with usable(self._url), self._engine.connect() as connection:
            found = connection.execute(sqlalchemy.union(pending, queued)).scalars()
            return {str(name).removeprefix(records.QUEUE) for name in found if name != records.UNCLAIMED}

    def owner(self, workflow_id: str) -> str | None:
        """Give DBOS's token of the execution that has a run or a tool call now."""
        runs = self._runs
        with usable(self._url), self._engine.connect() as connection:
            owner = connection.execute(select(runs.c.owner_xid).where(runs.c.workflow_uuid == workflow_id)).scalar()
            return None if owner is None else str(owner)


def moved(status: str, queue: str, attempts: int = 0) -> dict[str, Any]:
    """Give the columns of a run that nobody executes, and that begins anew where it goes on."""
    return {
        "status": status,
        "queue_name": queue,
        "owner_xid": None,
        "recovery_attempts": attempts,
        "started_at_epoch_ms": None,
        "updated_at": now(),
    }
