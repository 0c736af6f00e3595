"""The runs of sessions: a row for each, with its number, its state, and the tokens that it has taken."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import sqlalchemy
from sqlalchemy import Column, Connection, Index, Integer, Text, column, select, update
from sqlalchemy import table as table_of

from durable_swarm import errors
from durable_swarm.codec import dumps
from durable_swarm.engine.database.urls import schema_of
from durable_swarm.engine.storage.own_table import OwnTable
from durable_swarm.engine.storage.session_state import BEGUN, LEFT_OUT, WAITS, WITHDRAWN, Left


class SessionChanged(Exception):
    """The session is not as it was read: what was to be written must not be."""


class SessionRuns(OwnTable):
    """The runs of the sessions of one database. Methods that take a connection work in its transaction."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine) -> None:
        schema = schema_of(url)
        self.table = sqlalchemy.Table(
            "durable_swarm_session_runs",
            sqlalchemy.MetaData(schema=schema),
            Column("session", Text, primary_key=True),
            Column("number", Integer, primary_key=True, autoincrement=False),
            *[Column(name, Text) for name in ("run_id", "state", "queue", "usage")],
        )
        Index("durable_swarm_session_runs_run", self.table.c.run_id)
        super().__init__(url, engine, self.table)
        self._workflows = table_of("workflow_status", column("workflow_uuid"), column("status"), schema=schema)

    # Looking

    def ids(
        self, session: str, *, before: int | None = None, states: Iterable[str] = (BEGUN,), limit: int | None = None
    ) -> list[tuple[int, str]]:
        """Return the runs of a session as (number, id), the newest first; with `before`, those of lower numbers."""
        rows = self.table.c
        wanted = select(rows.number, rows.run_id).where(rows.session == session, rows.state.in_(list(states)))
        if before is not None:
            wanted = wanted.where(rows.number < before)
        return [(row[0], row[1]) for row in self._read(wanted.order_by(rows.number.desc()).limit(limit))]

    def number_of(self, session: str, run_id: str) -> int:
        """Return the number of a run whose turn has come in a session. Raises `ConfigurationError` for any other."""
        rows = self.table.c
        this = (rows.session == session) & (rows.run_id == run_id) & rows.state.in_([BEGUN, LEFT_OUT])
        found = self._read(select(rows.number).where(this))
        if not found:
            raise errors.ConfigurationError(f"run {run_id!r} is not part of session {session!r}; `runs()` has those")
        return int(found[0][0])

    def session_of(self, run_id: str) -> str | None:
        """Return a session that has a run, or None."""
        rows = self.table.c
        return next((row[0] for row in self._read(select(rows.session).where(rows.run_id == run_id).limit(1))), None)

    def first_waiting(self, session: str) -> tuple[int, str, str] | None:
        """Return number, id and queue of the first run that waits for its turn, or None."""
        rows = self.table.c
        wanted = self._waiting(rows.number, rows.run_id, rows.queue).where(rows.session == session)
        return next(((row[0], row[1], row[2]) for row in self._read(wanted.order_by(rows.number).limit(1))), None)

    def waits_in(self, run_id: str) -> str | None:
        """Return the session in which a run waits for its turn, or None."""
        rows = self.table.c
        return next((row[0] for row in self._read(self._waiting(rows.session).where(rows.run_id == run_id))), None)

    def _waiting(self, *columns: sqlalchemy.ColumnElement[Any]) -> sqlalchemy.Select[Any]:
        """Return a query of the runs that wait for their turn, and were not cancelled."""
        rows, runs = self.table.c, self._workflows
        waiting = select(*columns).select_from(self.table).join(runs, runs.c.workflow_uuid == rows.run_id)
        return waiting.where(rows.state == WAITS, runs.c.status == "DELAYED")

    def usages(self, session: str) -> list[dict[str, int]]:
        """Return the tokens of the ended runs of a session that counted some."""
        rows = self.table.c
        wanted = select(rows.usage).where(rows.session == session, rows.usage.is_not(None))
        return [json.loads(row[0]) for row in self._read(wanted)]

    def all_ids(self) -> sqlalchemy.Select[Any]:
        """Return a query of the runs of all sessions."""
        return select(self.table.c.run_id)

    def row_of(self, connection: Connection, session: str, run_id: str) -> Any:
        """Return the row of a run in a session, or None."""
        rows = self.table.c
        this = (rows.session == session) & (rows.run_id == run_id)
        return connection.execute(select(rows.number, rows.state).where(this)).first()

    def any_waits(self, connection: Connection, session: str) -> bool:
        """Return True if a run of a session waits for its turn, or was cancelled while it did."""
        rows = self.table.c
        wanted = select(rows.number).where(rows.session == session, rows.state == WAITS).limit(1)
        return connection.execute(wanted).first() is not None

    def is_built_on(self, connection: Connection, session: str, number: int, run_id: str) -> bool:
        """Return True if newer runs of a session, or a fork of it, stand on a run."""
        rows = self.table.c
        newer = (rows.session == session) & (rows.number > number) & (rows.state != WITHDRAWN)
        forked = (rows.session != session) & (rows.run_id == run_id)
        return connection.execute(select(rows.number).where(newer | forked).limit(1)).first() is not None

    # Writing

    def add(self, connection: Connection, session: str, number: int, run_id: str, state: str, queue: str) -> None:
        """Store a run with its number."""
        values = {"session": session, "number": number, "run_id": run_id, "state": state, "queue": queue}
        connection.execute(sqlalchemy.insert(self.table).values(**values))

    def set_state(self, connection: Connection, session: str, number: int, state: str) -> None:
        """Set the state of a run."""
        connection.execute(self._row(session, number).values(state=state))

    def note_end(self, connection: Connection, session: str, number: int, left: Left) -> None:
        """Store whether the messages of an ended run count, and its tokens."""
        usage = None if left.usage is None else dumps(left.usage)
        state = BEGUN if left.counts else LEFT_OUT
        connection.execute(self._row(session, number).values(state=state, usage=usage))

    def _row(self, session: str, number: int) -> sqlalchemy.Update:
        return update(self.table).where(self.table.c.session == session, self.table.c.number == number)

    def withdraw(self, connection: Connection, session: str, before: int | None) -> None:
        """Note that the runs before a number, or all, were cancelled before their turn.

        Raises `SessionChanged` if one of them waits still.
        """
        rows = self.table.c
        these = rows.session == session if before is None else (rows.session == session) & (rows.number < before)
        if connection.execute(self._waiting(rows.number).where(these).limit(1)).first() is not None:
            raise SessionChanged
        connection.execute(update(self.table).where(these, rows.state == WAITS).values(state=WITHDRAWN))

    def copy(self, connection: Connection, session: str, number: int, to: str) -> None:
        """Give another session the runs of a session up to a number."""
        rows = self.table.c
        kept = (rows.session == session) & (rows.number <= number) & rows.state.in_([BEGUN, LEFT_OUT])
        columns = [column.name for column in rows]
        same = [sqlalchemy.literal(to), *[rows[name] for name in columns[1:]]]
        connection.execute(sqlalchemy.insert(self.table).from_select(columns, select(*same).where(kept)))

    def remove(self, connection: Connection, session: str) -> list[str]:
        """Delete the rows of a session, and return its runs that no other session has."""
        rows, other = self.table.c, self.table.alias()
        shared = select(other.c.run_id).where(other.c.run_id == rows.run_id, other.c.session != session)
        alone = select(rows.run_id).where(rows.session == session, ~shared.exists())
        found = list(connection.execute(alone).scalars())
        connection.execute(sqlalchemy.delete(self.table).where(rows.session == session))
        return found
