"""Heartbeats of processes in PostgreSQL: a process whose lease has expired is treated as dead.

A lock shows death at once. But a process that was stopped (SIGSTOP, a suspended machine) keeps its lock, and so does
one whose network was cut, until the server notices. Times are the database's, so the clocks of machines do not matter.
SQLite has no such table: a stopped process is on the same machine, and continues when it is woken.
"""

from __future__ import annotations

import sqlalchemy
from sqlalchemy import Column, Double, Text, func, select

from durable_swarm.engine.database.connection import create_tables
from durable_swarm.engine.database.diagnosis import reporting_errors
from durable_swarm.engine.database.dialects import insert_into
from durable_swarm.engine.database.reconnecting import persistently, read
from durable_swarm.engine.database.urls import schema_of

LEASE = 15.0
"""The lease: seconds without a heartbeat after which other processes may take over a process's runs."""

_NOW = func.extract("epoch", func.clock_timestamp())


class Leases:
    """The last heartbeat of each process of one database. Raises `ConfigurationError` if it cannot be used."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine) -> None:
        self._url, self._engine = url, engine
        self._rows = sqlalchemy.Table(
            "durable_swarm_processes",
            sqlalchemy.MetaData(schema=schema_of(url)),
            Column("name", Text, primary_key=True),
            Column("seen_at", Double, nullable=False),
        )
        with reporting_errors(url):
            create_tables(engine, self._rows)

    def beat(self, name: str) -> sqlalchemy.Executable:
        """Return the statement that is a heartbeat."""
        insert = insert_into(self._engine, self._rows).values(name=name, seen_at=_NOW)
        return insert.on_conflict_do_update(index_elements=["name"], set_={"seen_at": _NOW})

    def renew(self, name: str) -> None:
        """Send a heartbeat over any connection."""

        def give() -> None:
            with self._engine.begin() as connection:
                connection.execute(self.beat(name))

        with reporting_errors(self._url):
            persistently(give)

    def last(self, name: str) -> tuple[float, float] | None:
        """Return the time of a process's last heartbeat, and its age in seconds; None if it has none."""
        last = select(self._rows.c.seen_at, _NOW - self._rows.c.seen_at).where(self._rows.c.name == name)
        with reporting_errors(self._url):
            return next(((float(at), float(ago)) for at, ago in read(self._engine, last)), None)

    def ages(self) -> dict[str, float]:
        """Return the seconds since the last heartbeat of each process."""
        last = select(self._rows.c.name, _NOW - self._rows.c.seen_at)
        with reporting_errors(self._url):
            return {name: float(ago) for name, ago in read(self._engine, last)}

    def forget(self, name: str) -> None:
        """Remove a process that has ended, and the processes that were killed long ago."""
        rows = self._rows
        with reporting_errors(self._url), self._engine.begin() as connection:
            connection.execute(rows.delete().where((rows.c.name == name) | (_NOW - rows.c.seen_at > 86_400)))
