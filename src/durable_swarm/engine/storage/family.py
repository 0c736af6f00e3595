"""Which run started which: one row for each run that a tool call of another run started.

The start record of a child run says the same, but cannot be searched from the parent. A row is written before the
child's own, so a parent knows every child; a row whose run was never recorded counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy
from sqlalchemy import Column, Index, Text, column, select, table
from sqlalchemy.dialects import postgresql, sqlite

from durable_swarm.engine.database.connection import create_table, has_table
from durable_swarm.engine.database.diagnosis import reporting_errors
from durable_swarm.engine.database.reconnecting import persistently, read
from durable_swarm.engine.database.urls import is_sqlite, schema_of
from durable_swarm.engine.records import names


@dataclass(frozen=True)
class ChildLink:
    """A child run, the run whose tool call `call` started it, and the top run of the family."""

    run_id: str
    parent: str
    root: str
    call: str

    @property
    def in_id(self) -> bool:
        """True if the id of the run says the same."""
        return names.parent_in(self.run_id) == self.parent


class Family:
    """The child runs of one database. Every method raises `ConfigurationError` if the database cannot be used."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine) -> None:
        self._url = url
        self._engine = engine
        schema = schema_of(url)
        columns = [Column(name, Text, primary_key=name == "run_id") for name in ("run_id", "parent", "root", "call")]
        self._rows = sqlalchemy.Table("durable_swarm_children", sqlalchemy.MetaData(schema=schema), *columns)
        Index("durable_swarm_children_parent", self._rows.c.parent)
        self._runs = table("workflow_status", column("workflow_uuid"), column("created_at"), schema=schema)
        self._there = False

    def create(self) -> None:
        """Create the table if it does not exist."""
        with reporting_errors(self._url):
            create_table(self._engine, self._rows)
        self._there = True

    def _exists(self) -> bool:
        if not self._there:
            with reporting_errors(self._url):
                self._there = persistently(lambda: has_table(self._engine, self._rows))
        return self._there

    def add(self, link: ChildLink) -> None:
        """Store who starts a run, before the run itself is recorded. The first one to start it counts."""
        insert = (sqlite if is_sqlite(self._url) else postgresql).insert(self._rows)
        values = {"run_id": link.run_id, "parent": link.parent, "root": link.root, "call": link.call}
        self.create()
        with reporting_errors(self._url), self._engine.begin() as connection:
            connection.execute(insert.values(**values).on_conflict_do_nothing())

    def parent(self, run_id: str) -> str | None:
        """Return the id of the run that started this one.

        Runs of version 0.1.0 have no row; the id of a child run says who started it.
        """
        return link.parent if (link := self._link(run_id)) is not None else names.parent_in(run_id)

    def _link(self, run_id: str) -> ChildLink | None:
        return next(iter(self._read(self._wanted().where(self._rows.c.run_id == run_id))), None)

    def children(self, run_ids: Iterable[str]) -> list[ChildLink]:
        """Return the recorded child runs of these runs, in the order of the calls, without grandchildren."""
        rows, runs = self._rows.c, self._runs.c
        recorded = self._wanted().join(self._runs, runs.workflow_uuid == rows.run_id)
        links = self._read(recorded.where(rows.parent.in_(list(run_ids))).order_by(runs.created_at))
        return sorted(links, key=lambda link: names.place_in(link.run_id))

    def _wanted(self) -> sqlalchemy.Select[Any]:
        rows = self._rows.c
        return select(rows.run_id, rows.parent, rows.root, rows.call)

    def _read(self, wanted: sqlalchemy.Select[Any]) -> list[ChildLink]:
        if not self._exists():
            return []
        with reporting_errors(self._url):
            return [ChildLink(*row) for row in read(self._engine, wanted)]
