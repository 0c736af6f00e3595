"""Facts about the processes that work on a database, for people: where each runs, and what it serves.

Whether a process lives is decided by its lock and its heartbeat alone (`heartbeats.py`), never by a row here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import sqlalchemy
from sqlalchemy import BigInteger, Column, Integer, Text, delete, select

from durable_swarm.engine.database.diagnosis import reporting_errors
from durable_swarm.engine.database.dialects import insert_into
from durable_swarm.engine.database.urls import schema_of
from durable_swarm.engine.storage.own_table import OwnTable
from durable_swarm.engine.storage.ownership import now

KEPT = 7 * 86_400_000
"""Milliseconds for which the facts about a process that left unfinished runs are kept: their executions name it."""


class QueueFacts(TypedDict):
    """How one process serves a queue, as `ProcessFacts` explains it. From a row, the pair in `rate` is a list."""

    places: int
    everywhere: NotRequired[int | None]
    rate: NotRequired[tuple[int, float] | list[float] | None]


@dataclass(frozen=True)
class ProcessFacts:
    """One process. Times are in milliseconds since 1970; `seen_at` is when it has written this last.

    `swarms` are the names of its open swarms. `queues` are the swarms whose queue it serves, each with the number of
    runs that it executes at once, and with the limits that hold for all workers of the queue: `everywhere`, the number
    of runs at once, and `rate`, how many begin within how many seconds; None without. `failing` are the jobs of its
    maintenance that failed the last time, with their errors. `left_at` is when it ended in order, with unfinished runs
    that others continue, or None.
    """

    name: str
    host: str
    pid: int
    version: str
    started_at: int
    seen_at: int
    swarms: list[str]
    queues: dict[str, QueueFacts]
    failing: dict[str, str]
    left_at: int | None = None

    @property
    def places(self) -> int:
        """The number of queued runs that it executes at once."""
        return sum(queue["places"] for queue in self.queues.values())


class ProcessTable(OwnTable):
    """The facts of one database. Every method raises `ConfigurationError` if the database cannot be used."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine) -> None:
        texts = [Column(name, Text, primary_key=name == "name") for name in ("name", "host", "version", "facts")]
        times = [Column(name, BigInteger, nullable=False) for name in ("started_at", "seen_at")]
        pid = Column("pid", Integer, nullable=False)
        metadata = sqlalchemy.MetaData(schema=schema_of(url))
        super().__init__(url, engine, sqlalchemy.Table("durable_swarm_process_facts", metadata, *texts, pid, *times))

    def write(self, facts: ProcessFacts) -> None:
        """Store the facts about a process, in place of earlier ones; drop those of processes gone long ago."""
        rows = self._rows
        served = json.dumps(
            {"swarms": facts.swarms, "queues": facts.queues, "failing": facts.failing, "left_at": facts.left_at}
        )
        names = ("name", "host", "pid", "version", "started_at", "seen_at")
        values = {**{name: getattr(facts, name) for name in names}, "facts": served}
        insert = insert_into(self._engine, rows).values(values)
        with reporting_errors(self._url), self._engine.begin() as connection:
            connection.execute(insert.on_conflict_do_update(index_elements=["name"], set_=values))
            connection.execute(delete(rows).where(rows.c.seen_at < now() - KEPT))

    def forget(self, name: str) -> None:
        """Remove a process that has ended."""
        rows = self._rows
        if self.exists():
            with reporting_errors(self._url), self._engine.begin() as connection:
                connection.execute(delete(rows).where(rows.c.name == name))

    def all(self) -> list[ProcessFacts]:
        """Return the facts about all processes, oldest first, without those that have ended and left nothing."""
        return [_facts(*row) for row in self._read(select(self._rows).order_by(self._rows.c.started_at))]

    def left(self) -> set[str]:
        """Return the names of the processes that ended in order, with unfinished runs."""
        return {facts.name for facts in self.all() if facts.left_at is not None}


def _facts(name: str, host: str, version: str, facts: str, pid: int, started_at: int, seen_at: int) -> ProcessFacts:
    """Return the facts in the columns of a row; what another version wrote in another form counts as nothing."""
    try:
        served = json.loads(facts)
        swarms, queues = [str(name) for name in served["swarms"]], dict(served["queues"])
        assert all(isinstance(queue["places"], int) for queue in queues.values())
        failing = {str(job): str(error) for job, error in dict(served.get("failing", {})).items()}
        left = served.get("left_at")
    except (ValueError, TypeError, LookupError, AssertionError, AttributeError):
        swarms, queues, failing, left = [], {}, {}, None
    at = left if isinstance(left, int) else None
    return ProcessFacts(name, host, pid, version, started_at, seen_at, swarms, queues, failing, at)
