"""Deletion of runs that ended long ago, with all their rows.

DBOS's own deletion is not used, because it does not know our tables and does not check again whether a run has ended: a
run resumed at the same moment must not lose its steps. Here the row is locked first, and checked again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator

import sqlalchemy
from sqlalchemy import ColumnClause, Connection, column, delete, select, table

from durable_swarm.engine.database.connection import writing
from durable_swarm.engine.database.diagnosis import reporting_errors
from durable_swarm.engine.database.urls import is_sqlite, schema_of
from durable_swarm.engine.records import names as records_names
from durable_swarm.engine.storage.runs import Store
from durable_swarm.errors import SessionBusy

TRANSACTIONS = "durable_swarm_transactions"
"""The table in the database where tools write, which on PostgreSQL is not in our schema."""

LEDGER = "durable_swarm_ledger"
"""The table of accounts, which sessions have, too."""

CHILDREN = "durable_swarm_children"

BELONGINGS = {
    **dict.fromkeys(("operation_outputs", "workflow_input", "workflow_output"), "workflow_uuid"),
    **dict.fromkeys(("streams", "workflow_events", "workflow_events_history"), "workflow_uuid"),
    "notifications": "destination_uuid",
    "durable_swarm_messages": "run_id",
    "durable_swarm_requests": "run_id",
    "durable_swarm_actions": "run_id",
    CHILDREN: "run_id",
    TRANSACTIONS: "call",
}
"""Every table with rows of runs or their tool calls, and the column with the id of either."""

WELL, BADLY = ("SUCCESS", "CANCELLED"), ("ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
"""DBOS's states of runs that have ended."""

BATCH = 50
"""The number of runs deleted in one transaction: other writers of a SQLite file wait meanwhile."""


class Retention:
    """The expired runs of a database, and their deletion. Raises `ConfigurationError` if it cannot be used."""

    def __init__(self, store: Store, before: int, *, keep_failed: bool = False, swarm: str | None = None) -> None:
        """Select runs that ended before a time, in milliseconds since 1970; with `swarm`, only its runs."""
        self._store = store
        self._before = before
        self._ended = WELL if keep_failed else WELL + BADLY
        self._swarm = swarm
        self._runs = _runs_table(store)
        self._there = _tables(store)

    def count(self) -> int:
        """Return the number of runs that would be deleted."""
        with reporting_errors(self._store.url), self._store.engine.connect() as connection:
            pages = self._pages(connection)
            alone = sum(len(_families(self._store, connection, ids, self._there)) for ids in pages)
        return alone + sum(runs for _, runs in self._sessions())

    def delete(self, most: int | None = None, progress: Callable[[int], None] | None = None) -> int:
        """Delete the runs, oldest first, at most `most` of them and the runs below the last; return their number.

        `progress` gets the number deleted so far, after each batch.
        """
        deleted, report = 0, progress or _silent
        with reporting_errors(self._store.url):
            for session, runs in self._sessions():
                if most is not None and deleted >= most:
                    break
                with contextlib.suppress(SessionBusy):  # It has continued meanwhile.
                    delete_session(self._store, session)
                    deleted += runs
                    report(deleted)
            while most is None or deleted < most:
                some = self._delete_some(BATCH if most is None else min(BATCH, most - deleted))
                if not some:
                    break
                deleted += some
                report(deleted)
        return deleted

    def _sessions(self) -> list[tuple[str, int]]:
        """Return the sessions to delete, with the number of their runs."""
        lasting = {*WELL, *BADLY}.difference(self._ended)
        return self._store.sessions.expired(self._before, swarm=self._swarm, lasting=lasting)

    def _delete_some(self, most: int) -> int:
        with writing(self._store.engine) as connection:
            runs = self._old(connection, most)
            if runs:
                _forget(self._store, connection, runs, self._there)
            return len(runs)

    def _old(self, connection: Connection, most: int) -> list[str]:
        """Return the oldest runs to delete and lock their rows; rows locked by other processes are left out."""
        found: list[str] = []
        for run_id in itertools.chain.from_iterable(self._pages(connection, lock=True)):
            found += _families(self._store, connection, [run_id], self._there, lock=True)
            if len(found) >= most:
                break
        return found

    def _pages(self, connection: Connection, *, lock: bool = False) -> Iterator[list[str]]:
        runs, last = self._runs, (-1, "")
        key = sqlalchemy.tuple_(runs.c.updated_at, runs.c.workflow_uuid)
        wanted = select(runs.c.workflow_uuid, runs.c.updated_at, runs.c.attributes).where(
            runs.c.name == records_names.RUN, runs.c.status.in_(self._ended), runs.c.updated_at < self._before
        )
        if self._store.sessions.exists():
            # Later runs of a session stand on the earlier ones: they are deleted together.
            wanted = wanted.where(runs.c.workflow_uuid.not_in(self._store.sessions.runs.all_ids()))
        if CHILDREN in self._there:  # A child run is deleted with the run above it.
            above, children = runs.alias(), _children_table(self._store)
            has_parent = select(children.c.run_id).where(children.c.run_id == runs.c.workflow_uuid)
            has_parent = has_parent.join(above, above.c.workflow_uuid == children.c.parent)
            wanted = wanted.where(~has_parent.exists())
        wanted = wanted.order_by(runs.c.updated_at, runs.c.workflow_uuid).limit(10 * BATCH)
        if lock and not is_sqlite(self._store.url):
            wanted = wanted.with_for_update(skip_locked=True)
        while rows := connection.execute(wanted.where(key > last)).all():
            yield [row.workflow_uuid for row in rows if self._swarm is None or _swarm_of(row.attributes) == self._swarm]
            last = (rows[-1].updated_at, rows[-1].workflow_uuid)


def _silent(_deleted: int) -> None:
    pass


def delete_session(store: Store, session: str) -> None:
    """Delete a session with its runs, except those that a fork of it has. Raises `SessionBusy`."""
    there = _tables(store)
    with reporting_errors(store.url), writing(store.engine) as connection:
        runs = store.sessions.remove(connection, session)
        for first in range(0, len(runs), BATCH):
            some = runs[first : first + BATCH]
            families = _families(store, connection, some, there, lock=True)
            if busy := set(some).difference(families):
                raise SessionBusy(
                    f"session {session!r} cannot be deleted while a child run of one of its runs is in progress; wait "
                    "for it, or cancel it",
                    session=session,
                    run_id=min(busy),
                )
            _forget(store, connection, families, there)


def _tables(store: Store) -> set[str]:
    with reporting_errors(store.url):
        inspector = sqlalchemy.inspect(store.engine)
        return {name for schema in {schema_of(store.url), None} for name in inspector.get_table_names(schema=schema)}


def _families(
    store: Store, connection: Connection, run_ids: list[str], there: set[str], *, lock: bool = False
) -> list[str]:
    """Return these runs with all runs below them, without those below which a run has not ended.

    A run below that is in a session is not returned: it is deleted with its session.
    """
    runs, children = _runs_table(store), _children_table(store)
    top, open_below, level = {run_id: run_id for run_id in run_ids}, set[str](), list(run_ids)
    while level and CHILDREN in there:
        below = select(children.c.run_id, children.c.parent, runs.c.status)
        below = below.join(runs, runs.c.workflow_uuid == children.c.run_id).where(children.c.parent.in_(level))
        if store.sessions.exists():
            below = below.where(runs.c.workflow_uuid.not_in(store.sessions.runs.all_ids()))
        if lock and not is_sqlite(store.url):
            below = below.with_for_update(of=runs)
        level = []
        for run_id, parent, status in connection.execute(below).all():
            top[run_id] = top[parent]
            level.append(run_id)
            if status not in WELL + BADLY:
                open_below.add(top[parent])
    return [run_id for run_id, highest in top.items() if highest not in open_below]


def _children_table(store: Store) -> sqlalchemy.TableClause:
    return table(CHILDREN, column("run_id"), column("parent"), schema=schema_of(store.url))


def _runs_table(store: Store) -> sqlalchemy.TableClause:
    names = ("workflow_uuid", "name", "status", "updated_at", "parent_workflow_id", "attributes")
    return table("workflow_status", *map(column, names), schema=schema_of(store.url))


def _forget(store: Store, connection: Connection, run_ids: list[str], there: set[str]) -> None:
    """Delete runs with everything that belongs to them."""
    runs = _runs_table(store)
    called = runs.c.parent_workflow_id.in_(run_ids) & (runs.c.name == records_names.TOOL)
    calls = select(runs.c.workflow_uuid).where(called)
    for name in there & BELONGINGS.keys():
        belongs: ColumnClause[str] = column(BELONGINGS[name])
        rows = table(name, belongs, schema=None if name == TRANSACTIONS else schema_of(store.url))
        connection.execute(delete(rows).where(belongs.in_(run_ids) | belongs.in_(calls)))
    if LEDGER in there:
        accounts = table(LEDGER, column("kind"), column("id"), schema=schema_of(store.url))
        connection.execute(delete(accounts).where(accounts.c.kind == "run", accounts.c.id.in_(run_ids)))
    connection.execute(delete(runs).where(called))
    connection.execute(delete(runs).where(runs.c.workflow_uuid.in_(run_ids)))


def _swarm_of(attributes: object) -> object:
    try:
        noted = json.loads(attributes) if isinstance(attributes, str) else attributes
    except ValueError:
        return None
    return noted.get("swarm") if isinstance(noted, dict) else None
