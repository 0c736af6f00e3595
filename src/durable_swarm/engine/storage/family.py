"""Which run started which: one row for each run that a tool call of another run started.

The start record of a child run says the same, but cannot be searched from the parent. A row is written before the
child's own, so a parent knows every child; a row whose run was never recorded counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import sqlalchemy
from sqlalchemy import Column, ColumnElement, Connection, Index, Text, column, select, table

from durable_swarm.engine.database.diagnosis import reporting_errors
from durable_swarm.engine.database.dialects import insert_into, notes_column
from durable_swarm.engine.database.urls import schema_of
from durable_swarm.engine.records import names
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.storage.own_table import OwnTable
from durable_swarm.engine.storage.ownership import UNFINISHED
from durable_swarm.requests import Ancestor


@dataclass(frozen=True)
class ChildLink:
    """A child run, the run whose tool call `call` started it, and the top run of the family."""

    run_id: str
    parent: str
    root: str
    call: str

    @classmethod
    def read(cls, run_id: str, start: Record) -> Self | None:
        """Return the link that a run's start record tells of, or None. The call is known if the run's id names it."""
        parent, root = start.get("parent"), start.get("root")
        if not isinstance(parent, str) or not isinstance(root, str):
            return None
        return cls(run_id, parent, root, run_id.rpartition("/")[0] if names.parent_in(run_id) == parent else "")

    @property
    def in_id(self) -> bool:
        """True if the id of the run says the same."""
        return names.parent_in(self.run_id) == self.parent


class Relatives(NamedTuple):
    """The ids of a run's parent and children."""

    parent: str | None
    children: list[str]


def _line(run_id: str, links: dict[str, tuple[str, object]]) -> list[Ancestor]:
    found: list[Ancestor] = []
    while run_id in links and len(found) <= len(links):
        run_id, noted = links[run_id]
        found.insert(0, Ancestor(run_id, str(noted.get("agent", "")) if isinstance(noted, dict) else ""))
    return found


class Family(OwnTable):
    """The child runs of one database. Every method raises `ConfigurationError` if the database cannot be used."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine) -> None:
        schema = schema_of(url)
        columns = [Column(name, Text, primary_key=name == "run_id") for name in ("run_id", "parent", "root", "call")]
        rows = sqlalchemy.Table("durable_swarm_children", sqlalchemy.MetaData(schema=schema), *columns)
        Index("durable_swarm_children_parent", rows.c.parent)
        super().__init__(url, engine, rows)
        noted = notes_column(url)
        more = ("created_at", "status")
        self._runs = table("workflow_status", *map(column, ("workflow_uuid", *more)), noted, schema=schema)

    def add(self, link: ChildLink) -> None:
        """Store who starts a run, before the run itself is recorded. The first one to start it counts."""
        insert = insert_into(self._engine, self._rows)
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
        return next(iter(self._links(self._wanted().where(self._rows.c.run_id == run_id))), None)

    def children(self, run_ids: Iterable[str], *, open_calls: bool = False) -> list[ChildLink]:
        """Return the recorded child runs of these runs, in the order of the calls, without grandchildren.

        With `open_calls` without those whose tool call has ended.
        """
        rows, runs = self._rows.c, self._runs.c
        recorded = self._wanted().join(self._runs, runs.workflow_uuid == rows.run_id)
        if open_calls:
            recorded = recorded.where(~self._call_ended())
        links = self._links(recorded.where(rows.parent.in_(list(run_ids))).order_by(runs.created_at))
        return sorted(links, key=lambda link: names.place_in(link.run_id))

    def below(self, run_ids: Iterable[str], *, open_calls: bool = False) -> list[ChildLink]:
        """Return the child runs of these runs, their children, and so on, each after its parent.

        With `open_calls` without those whose tool call has ended, and what is below these.
        """
        found: list[ChildLink] = []
        level = set(run_ids)
        while level:
            links = self.children(level, open_calls=open_calls)
            found += links
            level = {link.run_id for link in links}
        return found

    def above(self, run_ids: Iterable[str]) -> dict[str, list[Ancestor]]:
        """Return for each of these runs the runs above it, the top one first."""
        asked, links = set(run_ids), dict[str, tuple[str, object]]()
        rows, runs = self._rows.c, self._runs.c
        level = set(asked)
        while level:
            wanted = select(rows.run_id, rows.parent, runs.attributes).where(rows.run_id.in_(level))
            found = self._read(wanted.join(self._runs, runs.workflow_uuid == rows.parent))
            level = {parent for _, parent, _ in found} - links.keys()
            links |= {run_id: (parent, noted) for run_id, parent, noted in found}
        return {run_id: _line(run_id, links) for run_id in asked}

    def relatives(self, run_ids: Iterable[str]) -> dict[str, Relatives]:
        """Return the parent and the children of each of these runs."""
        ids = list(run_ids)
        up = self._links(self._wanted().where(self._rows.c.run_id.in_(ids)))
        parents = {link.run_id: link.parent for link in up}
        children: dict[str, list[str]] = {}
        for link in self.children(ids):
            children.setdefault(link.parent, []).append(link.run_id)
        return {
            run_id: Relatives(parents.get(run_id) or names.parent_in(run_id), children.get(run_id, []))
            for run_id in ids
        }

    def within(self, connection: Connection, run_ids: Iterable[str]) -> list[str]:
        """Return the ids of the child runs of these runs, in a transaction of the caller."""
        if not self.exists():
            return []
        rows = self._rows.c
        return list(connection.execute(select(rows.run_id).where(rows.parent.in_(list(run_ids)))).scalars())

    def _wanted(self) -> sqlalchemy.Select[Any]:
        rows = self._rows.c
        return select(rows.run_id, rows.parent, rows.root, rows.call)

    def _call_ended(self) -> ColumnElement[bool]:
        """True for a child run whose tool call has ended. A `@step` tool has no row that would say so."""
        calls = self._runs.alias()
        ended = (calls.c.workflow_uuid == self._rows.c.call) & calls.c.status.not_in([*UNFINISHED, "CANCELLED"])
        return select(calls.c.workflow_uuid).where(ended).exists()

    def _links(self, wanted: sqlalchemy.Select[Any]) -> list[ChildLink]:
        return [ChildLink(*row) for row in self._read(wanted)]
