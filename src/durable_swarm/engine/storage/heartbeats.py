"""When each process was last heard of, in PostgreSQL: one that stands still for long is as good as dead.

A lock tells death at once, but a process that was stopped (SIGSTOP, a suspended machine) keeps it, and so does one
whose network was cut, until the server notices. Times are the database's, so no machine's clock matters. On SQLite
there is no such table: what stands still there stands on the same machine, and goes on when it is woken.
"""

from __future__ import annotations

import sqlalchemy
from sqlalchemy import Column, Double, Text, func, select
from sqlalchemy.dialects import postgresql

from durable_swarm.engine.database.connection import create_table
from durable_swarm.engine.database.reconnecting import persistently, read
from durable_swarm.engine.database.urls import schema_of

LEASE = 15.0
"""Seconds without a sign of life after which others may take a process's runs over."""

_NOW = func.extract("epoch", func.clock_timestamp())


class Leases:
    """The last sign of life of each process of one database. Raises SQLAlchemy's errors."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine) -> None:
        self._engine = engine
        self._rows = sqlalchemy.Table(
            "durable_swarm_processes",
            sqlalchemy.MetaData(schema=schema_of(url)),
            Column("name", Text, primary_key=True),
            Column("seen_at", Double, nullable=False),
        )
        create_table(engine, self._rows)

    def renew(self, name: str) -> None:
        """Give a sign of life."""
        insert = postgresql.insert(self._rows).values(name=name, seen_at=_NOW)
        sign = insert.on_conflict_do_update(index_elements=["name"], set_={"seen_at": _NOW})

        def give() -> None:
            with self._engine.begin() as connection:
                connection.execute(sign)

        persistently(give)

    def last(self, name: str) -> tuple[float, float] | None:
        """Return when a process has given its last sign of life, and how many seconds ago; None if it has none."""
        last = select(self._rows.c.seen_at, _NOW - self._rows.c.seen_at).where(self._rows.c.name == name)
        return next(((float(at), float(ago)) for at, ago in read(self._engine, last)), None)

    def forget(self, name: str) -> None:
        """Forget a process that has ended, and those that were killed long ago."""
        rows = self._rows
        with self._engine.begin() as connection:
            connection.execute(rows.delete().where((rows.c.name == name) | (_NOW - rows.c.seen_at > 86_400)))
