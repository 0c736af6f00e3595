"""Sessions in the database: which runs a session has, in which order, and whose turn it is.

A session is a row, and each of its runs a row with its number. The row of a session is locked before anything in it
changes, so numbers are given in order of arrival, one run is in progress, and the end of a run and the beginning of the
next are one transaction. A run that waits for its turn is recorded at once, on a queue that no process serves.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable

import sqlalchemy
from sqlalchemy import BigInteger, Column, Connection, Index, Integer, Text, column, func, select, table, update

from durable_swarm import errors
from durable_swarm.codec import dumps, storable
from durable_swarm.engine.database.dialects import insert_into, notes_column
from durable_swarm.engine.database.notices import notify
from durable_swarm.engine.database.urls import is_sqlite, schema_of
from durable_swarm.engine.records import names as records_names
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.records.encoding import RecordCodec, arguments_text, context_of
from durable_swarm.engine.records.sessions import Admission, SessionPlace
from durable_swarm.engine.storage.own_table import OwnTable
from durable_swarm.engine.storage.ownership import UNFINISHED, moved, now
from durable_swarm.engine.storage.session_runs import SessionChanged, SessionRuns
from durable_swarm.engine.storage.session_state import (
    BEGUN,
    LEFT_OUT,
    WAITS,
    Arrival,
    Following,
    Left,
    SessionRow,
    SessionState,
    no_session,
    state_of_session,
)
from durable_swarm.engine.storage.visible import seen_by
from durable_swarm.swarm.session import SEND_LATER, busy


class Sessions(OwnTable):
    """The sessions of one database. Every method raises `ConfigurationError` if the database cannot be used."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine, codec_for: Callable[[str], RecordCodec]) -> None:
        self._codec_for = codec_for
        self._lite = is_sqlite(url)
        schema = schema_of(url)
        self.runs = SessionRuns(url, engine)
        """The runs in them."""
        self._places = self.runs.table
        texts = ("swarm", "agent", "context", "base")
        times = ("created_at", "updated_at")
        numbers = [Column("last", Integer), Column("ahead", Integer)]
        rows = sqlalchemy.Table(
            "durable_swarm_sessions",
            self._places.metadata,
            Column("id", Text, primary_key=True),
            *[Column(name, Text) for name in texts],
            *numbers,
            *[Column(name, BigInteger) for name in times],
        )
        Index("durable_swarm_sessions_updated", rows.c.updated_at)
        super().__init__(url, engine, rows)
        self._seen: sqlalchemy.ColumnElement[bool] = sqlalchemy.true()
        columns = ("workflow_uuid", "status", "queue_name", "completed_at", "updated_at", "owner_xid")
        more = ("recovery_attempts", "started_at_epoch_ms")
        noted = notes_column(url)
        self._workflows = table("workflow_status", *map(column, (*columns, *more)), noted, schema=schema)
        self._inputs = table("workflow_input", column("workflow_uuid"), column("inputs"), schema=schema)

    def seen_by(self, person: str) -> Sessions:
        """Return these sessions without those of which a run belongs to somebody else."""
        seen = copy.copy(self)
        seen._seen = ~self._theirs(person)
        return seen

    def is_hidden(self, session: str) -> bool:
        """Return True if there is a session of this id, which is left out here."""
        this = select(self._rows.c.id).where(self._rows.c.id == session, ~self._seen)
        return storable(session) and bool(self._read(this))

    def _theirs(self, person: str) -> sqlalchemy.ColumnElement[bool]:
        """True for the row of a session of which a run belongs to somebody else than this person."""
        rows, places, runs = self._rows, self._places.alias(), self._workflows.alias()
        there = (places.c.session == rows.c.id) & (places.c.run_id == runs.c.workflow_uuid)
        return select(places.c.run_id).where(there, ~seen_by(person, runs.c.attributes, lite=self._lite)).exists()

    def _locked(self, connection: Connection, session: str) -> SessionState | None:
        """Lock the row of a session, if there is one, and return its state. SQLite has locked the whole file."""
        if not self._lite:
            row = select(self._rows.c.id).where(self._rows.c.id == session).with_for_update()
            if connection.execute(row).first() is None:
                return None  # Also if another process makes it right now: it would be read without a lock.
        return self.look(session, connection)

    # Looking

    def look(self, session: str, connection: Connection | None = None) -> SessionState | None:
        """Return the state of a session, or None if there is none of this id."""
        found = self._states(self._rows.c.id == session, connection) if storable(session) else []
        return found[0] if found else None

    def _states(
        self, where: sqlalchemy.ColumnElement[bool], connection: Connection | None = None, limit: int | None = None
    ) -> list[SessionState]:
        rows, places, runs = self._rows, self._places, self._workflows
        ahead = rows.outerjoin(places, (places.c.session == rows.c.id) & (places.c.number == rows.c.ahead))
        ahead = ahead.outerjoin(runs, runs.c.workflow_uuid == places.c.run_id)
        wanted = (
            select(rows, places.c.run_id, runs.c.status, runs.c.completed_at)
            .select_from(ahead)
            .where(where, self._seen)
        )
        wanted = wanted.order_by(rows.c.updated_at.desc(), rows.c.id).limit(limit)
        found = self._read(wanted) if connection is None else connection.execute(wanted)
        return [state_of_session(SessionRow(*row)) for row in found]

    def listed(self, agent: str | None = None, limit: int | None = None) -> list[SessionState]:
        """Return sessions, the one with the latest change first: all, or those whose agent is `agent`."""
        where = sqlalchemy.true() if agent is None else self._rows.c.agent == agent
        return self._states(where, limit=limit)

    def beginning(self, prefix: str, limit: int) -> list[SessionState]:
        """Return sessions whose ids begin with a text."""
        return self._states(self._rows.c.id.startswith(prefix, autoescape=True), limit=limit)

    def unsettled(self, swarms: set[str]) -> list[str]:
        """Return the sessions of these swarms whose run in progress has ended, or that wait though none is."""
        rows, places, runs = self._rows, self._places, self._workflows
        here = (places.c.session == rows.c.id) & (places.c.number == rows.c.ahead)
        goes_on = select(runs.c.workflow_uuid).where(
            here, runs.c.workflow_uuid == places.c.run_id, runs.c.status.in_(UNFINISHED)
        )
        ours = rows.c.swarm.in_(swarms)
        over = select(rows.c.id).where(ours, rows.c.ahead.is_not(None), ~goes_on.exists())
        waits = select(places.c.session).where(places.c.session == rows.c.id, places.c.state == WAITS)
        idle = select(rows.c.id).where(ours, rows.c.ahead.is_(None), waits.exists())
        return [row[0] for row in self._read(sqlalchemy.union(over, idle))]

    def context(self, state: SessionState) -> Record:
        """Return the context variables of a session, encoded. Raises `Unreadable` if its codec is missing here."""
        what = f"the context variables of session {state.id!r}"
        record = self._codec_for(state.swarm).open(json.loads(state.context), context_of(state.id), what)
        return dict(record.get("context", {}))

    def _closed(self, swarm: str, session: str, context: Record) -> str:
        record = {"v": records_names.VERSION, "context": context}
        return dumps(self._codec_for(swarm).close(record, context_of(session)))

    # Sending

    def admit(self, connection: Connection, sent: Arrival) -> Admission:
        """Give a run its number, in the transaction that records the run (`writing`); return how it is recorded.

        Raises `SessionBusy` if it may not wait, and `ConfigurationError` if the session belongs to another swarm.
        """
        state = self._found_or_new(connection, sent)
        self._refuse_others(connection, sent)
        again = self.runs.row_of(connection, sent.session, sent.run_id)
        if again is not None:  # An attempt whose answer was lost has admitted it already.
            return _admission(again.number, sent, waits=again.state == WAITS)
        waits = state.ahead is not None or self.runs.any_waits(connection, sent.session)
        if waits and not sent.may_wait and not (state.ahead is not None and state.ahead.over):
            raise busy(sent.session, None if state.ahead is None else state.ahead.run_id, SEND_LATER)
        waits = waits or not _as_expected(state, sent.expected)
        number = state.last + 1
        self.runs.add(connection, sent.session, number, sent.run_id, WAITS if waits else BEGUN, sent.queue)
        ahead = {} if waits else {"ahead": number}
        this = self._rows.c.id == sent.session
        connection.execute(update(self._rows).where(this).values(last=number, updated_at=now(), **ahead))
        return _admission(number, sent, waits=waits)

    def _found_or_new(self, connection: Connection, sent: Arrival) -> SessionState:
        state = self._locked(connection, sent.session)
        if state is None:
            values: dict[str, object] = {
                "id": sent.session,
                "swarm": sent.swarm,
                "agent": sent.agent,
                "context": self._closed(sent.swarm, sent.session, sent.context),
            }
            values |= {"last": 0, "created_at": now(), "updated_at": now()}
            new = insert_into(self._engine, self._rows).values(**values)
            connection.execute(new.on_conflict_do_nothing())
            state = self._locked(connection, sent.session)  # Another process may have made it first.
        if state is None:
            raise errors.ConfigurationError(f"session {sent.session!r} was deleted meanwhile; send the message again")
        if state.swarm != sent.swarm:
            raise errors.ConfigurationError(
                f"session {sent.session!r} belongs to a swarm named {state.swarm!r}, and this one is named "
                f"{sent.swarm!r}; choose another id, or give DurableSwarm the name= of that one"
            )
        return state

    def _refuse_others(self, connection: Connection, sent: Arrival) -> None:
        """Raise `RunNotFound` if a run is sent for a person to a session of somebody else."""
        if sent.belongs_to is not None:
            this = self._rows.c.id == sent.session
            if connection.execute(select(self._rows.c.id).where(this, self._theirs(sent.belongs_to))).first():
                raise no_session(sent.session)

    # Whose turn it is

    def pass_turn(self, state: SessionState, left: Left | None, following: Following | None) -> bool:
        """Note what the run in progress has left, and begin the next one: both, or nothing.

        Return False if the session has changed since `state` was read.
        """
        try:
            with self._writing() as connection:
                present = self._locked(connection, state.id)
                if present is None or (present.ahead, present.base) != (state.ahead, state.base):
                    raise SessionChanged
                # Not the present, because the end may be noted long after it.
                ended = 0 if state.ahead is None else state.ahead.completed_at or 0
                values: dict[str, object] = {"updated_at": max(state.updated_at, ended), "ahead": None}
                if left is not None and state.ahead is not None:
                    context = self._closed(state.swarm, state.id, left.context)
                    values |= {"agent": left.agent, "context": context, "base": left.base}
                    self.runs.note_end(connection, state.id, state.ahead.number, left)
                if following is not None:
                    values |= {"ahead": following.number, "updated_at": now()}
                    self._begin(connection, state.id, following)
                self.runs.withdraw(connection, state.id, None if following is None else following.number)
                connection.execute(update(self._rows).where(self._rows.c.id == state.id).values(**values))
                notify(connection)
        except SessionChanged:
            return False
        return True

    def _begin(self, connection: Connection, session: str, following: Following) -> None:
        """Begin a run that waits for its turn."""
        runs, this = self._workflows, self._workflows.c.workflow_uuid == following.run_id
        waits = this & (runs.c.status == "DELAYED") & (runs.c.queue_name == records_names.TURNS)
        if connection.execute(update(runs).where(waits).values(**moved("ENQUEUED", following.queue))).rowcount != 1:
            raise SessionChanged
        noted = connection.execute(select(runs.c.attributes).where(this)).scalar()
        about = {**(noted if isinstance(noted, dict) else {}), "agent": following.agent}
        connection.execute(update(runs).where(this).values(attributes=about))
        inputs, text = self._inputs, arguments_text([following.stored])
        connection.execute(update(inputs).where(inputs.c.workflow_uuid == following.run_id).values(inputs=text))
        self.runs.set_state(connection, session, following.number, BEGUN)

    def reopen(self, connection: Connection, place: SessionPlace, run_id: str) -> bool:
        """Let an ended run continue in its session; return False if its turn has not come, so that it waits for it.

        Raises `RunConflict` if newer runs stand on it.
        """
        rows, session = self._rows, place.session
        self._locked(connection, session)
        found = self.runs.row_of(connection, session, run_id)
        if found is None:  # Its session was deleted.
            return True
        if self.runs.is_built_on(connection, session, found.number, run_id):
            raise errors.RunConflict(
                f"session {session!r} has continued after run {run_id!r}, which therefore cannot be resumed; fork the "
                "run, or the session",
                run_id=run_id,
            )
        begun = found.state in (BEGUN, LEFT_OUT)
        self.runs.set_state(connection, session, found.number, BEGUN if begun else WAITS)
        if begun:
            values = {"ahead": found.number, "base": place.base, "updated_at": now()}
            connection.execute(update(rows).where(rows.c.id == session).values(**values))
        return begun

    def fork(self, state: SessionState, session: str, number: int, left: Left | None) -> None:
        """Make a session that has the runs of another up to a number, and what the last of them has left.

        Raises `RunConflict` if it exists.
        """
        agent, base, context = state.agent, state.base, self.context(state) if left is None else left.context
        if left is not None:
            agent, base = left.agent, left.base
        values = {"id": session, "swarm": state.swarm, "agent": agent, "base": base, "last": number}
        values |= {"context": self._closed(state.swarm, session, context), "created_at": now(), "updated_at": now()}
        with self._writing() as connection:
            self._locked(connection, state.id)
            new = insert_into(self._engine, self._rows).values(**values).on_conflict_do_nothing()
            # psycopg drops the row count of an INSERT unless it is asked to keep it.
            if connection.execute(new.execution_options(preserve_rowcount=True)).rowcount != 1:
                raise errors.RunConflict(f"session {session!r} exists already; give the fork another id")
            self.runs.copy(connection, state.id, number, session)

    def remove(self, connection: Connection, session: str) -> list[str]:
        """Delete the rows of a session, and return its runs that no other session has.

        Raises `SessionBusy` while one is in progress or waits.
        """
        state = self._locked(connection, session)
        if state is None:
            return []
        if (state.ahead is not None and not state.ahead.over) or self.runs.any_waits(connection, session):
            raise busy(session, None if state.ahead is None else state.ahead.run_id)
        found = self.runs.remove(connection, session)
        connection.execute(sqlalchemy.delete(self._rows).where(self._rows.c.id == session))
        return found

    def expired(self, before: int, *, swarm: str | None, lasting: Iterable[str]) -> list[tuple[str, int]]:
        """Return the sessions that have not changed since a time, with the number of their runs.

        `lasting` are states of runs that keep their session.
        """
        rows, places, runs = self._rows, self._places, self._workflows
        here = places.c.session == rows.c.id
        kept = select(runs.c.workflow_uuid).where(
            here, runs.c.workflow_uuid == places.c.run_id, runs.c.status.in_([*lasting, *UNFINISHED])
        )
        counted = select(func.count()).where(here).select_from(places).scalar_subquery()
        old = select(rows.c.id, counted).where(rows.c.updated_at < before, ~kept.exists())
        if swarm is not None:
            old = old.where(rows.c.swarm == swarm)
        return [(row[0], row[1]) for row in self._read(old.order_by(rows.c.updated_at))]


def _as_expected(state: SessionState, expected: SessionState | None) -> bool:
    """Return True if the record of a run that was made for `expected` builds on what the session has now."""
    if expected is None:
        return state.last == 0
    return (state.last, state.base) == (expected.last, expected.base) and state.context == expected.context


def _admission(number: int, sent: Arrival, *, waits: bool) -> Admission:
    queue = ("DELAYED", records_names.TURNS) if waits else ("ENQUEUED", sent.queue) if sent.is_shared else None
    return Admission(queue, {"session": sent.session, "number": number}, sent.priority)
