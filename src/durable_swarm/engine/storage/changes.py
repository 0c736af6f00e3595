"""Tells cheaply whether anything has changed, in a database or in one run, since somebody looked.

A page that is open asks every few seconds, and most times nothing has happened.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy
from sqlalchemy import column, func, literal, select, table

from durable_swarm.engine.database.diagnosis import reporting_errors
from durable_swarm.engine.database.reconnecting import read
from durable_swarm.engine.database.urls import schema_of
from durable_swarm.engine.storage.events import KEY
from durable_swarm.engine.storage.requests import Inbox

AROUND = 1500
"""Milliseconds for which a time that has passed still counts as the next one."""

Mark = tuple[object, ...]
"""Two marks are equal if nothing has changed between them. They mean nothing else."""


class Changes:
    """The marks of one database. Raises `ConfigurationError` if it cannot be used."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine, inbox: Inbox) -> None:
        self._url, self._engine, self._inbox = url, engine, inbox
        schema = schema_of(url)
        times = ("created_at", "updated_at", "started_at_epoch_ms", "completed_at")
        names = ("workflow_uuid", "parent_workflow_id", "status", "queue_name", "executor_id", "delay_until_epoch_ms")
        self._runs = table("workflow_status", *map(column, (*names, *times)), schema=schema)
        self._steps = table(
            "operation_outputs", *map(column, ("workflow_uuid", "completed_at_epoch_ms")), schema=schema
        )
        self._events = table("streams", *map(column, ("workflow_uuid", "key", "offset")), schema=schema)

    def of_database(self) -> Mark:
        """Return the mark of all runs, steps and requests; streamed pieces of text and deleted runs do not change it.

        Each part of it is the end of an index, or is read from the unfinished runs alone.
        """
        return self._values(*self._parts())

    def with_next(self, at: int) -> tuple[Mark, int | None]:
        """Return the mark of the database, and the first time around or after `at` for which a run waits."""
        runs = self._runs.c
        later = (runs.status == literal("DELAYED", literal_execute=True)) & (runs.delay_until_epoch_ms > at - AROUND)
        mark = self._values(*self._parts(), select(func.min(runs.delay_until_epoch_ms)).where(later))
        return mark[:-1], mark[-1]

    def _parts(self) -> list[sqlalchemy.Select[Any]]:
        runs, steps = self._runs.c, self._steps.c
        # As literals, and with the condition of the index: without these SQLite would read the whole table.
        begun = runs.status.in_([literal(name, literal_execute=True) for name in ("ENQUEUED", "PENDING")])
        delayed = runs.status == literal("DELAYED", literal_execute=True)
        return [
            select(func.max(runs.created_at)),
            select(func.max(runs.started_at_epoch_ms)).where(runs.started_at_epoch_ms.is_not(None)),
            select(func.max(runs.completed_at)).where(runs.completed_at.is_not(None)),
            select(func.max(steps.completed_at_epoch_ms)),
            *(
                select(part).where(some)
                for some in (begun, delayed)
                for part in (func.max(runs.updated_at), func.count())
            ),
            *self._inbox.marks(),
        ]

    def _values(self, *parts: sqlalchemy.Select[Any]) -> tuple[Any, ...]:
        """Return the value of each query, all of one statement."""
        with reporting_errors(self._url):
            found = read(self._engine, select(*(part.scalar_subquery() for part in parts)))
        return tuple(found[0])

    def of_run(self, run_id: str) -> Mark:
        """Return the mark of one run: of its row, its steps, its tool calls, its events and its requests."""
        runs, steps, events, calls = self._runs.c, self._steps.c, self._events.c, self._runs.alias()
        ended = select(func.count(calls.c.completed_at)).where(calls.c.parent_workflow_id == run_id)
        recorded = select(func.count()).select_from(self._steps).where(steps.workflow_uuid == run_id)
        last = select(func.max(events.offset)).where(events.workflow_uuid == run_id, events.key == KEY)
        noted = (runs.status, runs.queue_name, runs.executor_id, runs.updated_at, runs.completed_at)
        parts = [part.scalar_subquery() for part in (ended, recorded, last, *self._inbox.marks(run_id))]
        with reporting_errors(self._url):
            found = read(self._engine, select(*noted, *parts).where(runs.workflow_uuid == run_id))
        return tuple(value for row in found for value in row)
