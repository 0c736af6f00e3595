"""Transactional tools: a tool's writes to a database are committed together with the record of its call.

The record is a row of our own table in the tool's database, which may be the database of the runs or another; a
repeated call finds it there. DBOS's datasources do the same, but must be declared before DBOS is launched, record a
tool's error as its permanent result, and write pickles where a host's DBOS does.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator

import sqlalchemy
from sqlalchemy import Column, Text, column, event, select, table
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from durable_swarm.codec import dumps
from durable_swarm.engine.backend import ownership, patches
from durable_swarm.engine.database import connection as database_connection
from durable_swarm.engine.database import urls
from durable_swarm.engine.database.diagnosis import is_transient, unusable
from durable_swarm.engine.database.urls import is_sqlite, schema_of
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.signals import RunHeld
from durable_swarm.errors import ConfigurationError

Body = Callable[[sqlalchemy.Connection], Record]

CONFLICTS = ("40001", "40P01")
"""PostgreSQL's codes for conflicting transactions: could not serialize, deadlock."""

TRIES, PAUSE = 20, 0.02
"""Maximum tries of a transaction that conflicts with others; seconds before the second try, doubled each time."""


ABORTED = "25P02"
"""PostgreSQL's code for a transaction in which a statement failed: it accepts no other, even if the tool continues."""

ENDS = re.compile(r"\s*(commit|end|abort|rollback)\b(?!.*\bto\b)", re.IGNORECASE | re.DOTALL)
"""A statement that ends the transaction; going back to a savepoint does not."""

ENDED = (
    "a transactional tool ended its transaction, which is committed with the record of its call; "
    "take commit(), rollback() and close() of the connection out of the tool, or use connection.begin_nested()"
)
SWALLOWED = (
    "a statement of a transactional tool failed, and with it the whole transaction, but the tool continued; "
    "let the error pass, or put the statement into connection.begin_nested()"
)


class Undone(BaseException):
    """An error raised by a tool in its transaction, as distinct from the database's errors around it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(type(error)))
        self.error = error


def _made(body: Body, connection: sqlalchemy.Connection) -> Record:
    try:
        with patches.trusting():
            return body(connection)
    except Exception as error:
        if _is_conflict(error):
            raise
        raise Undone(error) from error


def _is_conflict(error: BaseException | None) -> bool:
    return _sqlstate(error) in CONFLICTS


def _sqlstate(error: BaseException | None) -> object:
    return getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None


@contextlib.contextmanager
def _kept_open(connection: sqlalchemy.Connection) -> Iterator[None]:
    """Refuse statements that end the transaction, because rows committed without the record would be written again."""

    def refuse(_: sqlalchemy.Connection) -> None:
        raise ConfigurationError(ENDED)

    def refuse_words(_: sqlalchemy.Connection, __: object, statement: str, *___: object) -> None:
        if ENDS.match(statement):
            raise ConfigurationError(ENDED)

    listeners: dict[str, Callable[..., None]] = {
        "commit": refuse,
        "rollback": refuse,
        "before_cursor_execute": refuse_words,
    }
    for name, listener in listeners.items():
        event.listen(connection, name, listener)
    try:
        yield
    finally:
        for name, listener in listeners.items():
            event.remove(connection, name, listener)
        if not connection.closed and not connection.in_transaction():
            # SQLAlchemy takes it for ended, the database does not: another call must not receive it.
            connection.invalidate()


def _note_conflict(context: sqlalchemy.engine.ExceptionContext) -> None:
    """Note a conflict, because a tool may swallow it."""
    if context.connection is not None and _is_conflict(context.sqlalchemy_exception):
        context.connection.info[_note_conflict] = context.sqlalchemy_exception


def _connect(url: sqlalchemy.URL) -> sqlalchemy.Engine:
    try:
        return database_connection.connect(url, create=False)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"tool_database {urls.shown(url)} cannot be used: create it, with the tables that the tools write to, "
            "or name another in DurableSwarm(tool_database=...)"
        ) from error


class ToolDatabase:
    """One database on which transactional tools work, with connections of its own.

    The connections of the runs are not used, because a tool that waits for a lock must not block the writes of run
    records.
    """

    def __init__(self, url: sqlalchemy.URL, runs: sqlalchemy.URL) -> None:
        self.engine = database_connection.connect(url, create=False) if url == runs else _connect(url)
        event.listen(self.engine, "handle_error", _note_conflict)
        self._lite = is_sqlite(url)
        self._rows = sqlalchemy.Table(
            "durable_swarm_transactions",
            sqlalchemy.MetaData(),
            Column("call", Text, primary_key=True),
            Column("record", Text, nullable=False),
        )
        self._calls = None
        if url == runs:
            self._calls = table("workflow_status", column("workflow_uuid"), column("owner_xid"), schema=schema_of(url))
        database_connection.create_tables(self.engine, self._rows)

    def once(self, call: str, owner: str | None, body: Body, still_owns: Callable[[], bool]) -> Record:
        """Return the call's record; if none exists, create it in one transaction with the body's writes."""
        rows = self._rows
        with self._transaction() as connection:
            known = connection.execute(select(rows.c.record).where(rows.c.call == call)).scalar()
            if known is not None:
                found: Record = json.loads(known)
                return found
            connection.info.pop(_note_conflict, None)
            with _kept_open(connection):
                record = _made(body, connection)
            self._record(connection, call, record)
            if not (still_owns() if self._calls is None else self._owns(connection, call, owner)):
                raise ownership.OwnershipLost(call)
            return record

    def _record(self, connection: sqlalchemy.Connection, call: str, record: Record) -> None:
        if not connection.in_transaction():
            raise Undone(ConfigurationError(ENDED))
        try:
            connection.execute(sqlalchemy.insert(self._rows).values(call=call, record=dumps(record)))
        except DBAPIError as error:
            if _sqlstate(error) != ABORTED:
                raise
            raise connection.info.get(_note_conflict) or Undone(ConfigurationError(SWALLOWED)) from error

    def _owns(self, connection: sqlalchemy.Connection, call: str, owner: str | None) -> bool:
        """Return True if the execution still owns the call; its row is locked, so ownership lasts until the commit."""
        calls = self._calls
        assert calls is not None
        mine = select(calls.c.owner_xid).where(calls.c.workflow_uuid == call)
        return connection.execute(mine if self._lite else mine.with_for_update()).scalar() == owner

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlalchemy.Connection]:
        with self.engine.connect() as connection:
            if not self._lite:
                connection.execution_options(isolation_level="SERIALIZABLE")
            with connection.begin():
                if self._lite:
                    # Before any read, because SQLite's driver would begin at the first write only.
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                yield connection


class Transactions:
    """The databases on which transactional tools of this process work, opened at their first call."""

    def __init__(self, url: sqlalchemy.URL, owner_of: Callable[[str], str | None]) -> None:
        self._url = url
        self._owner_of = owner_of
        """Returns the token of the execution that owns a call now."""
        self._lock = threading.Lock()
        self._places: dict[sqlalchemy.URL, ToolDatabase] = {}

    def run(self, call: str, body: Body, other: str | None) -> Record:
        """Run the body in one transaction with its record, so that it is committed once only.

        Call it in the call's workflow. `other` is the URL of a database other than that of the runs. An error of the
        body is raised again; then nothing is written, and the call may be repeated. After a conflict with other
        transactions the body runs again. A database error holds the run.
        """
        url = self._url if other is None else urls.choose(other)
        try:
            return self._tried(self._place(url), call, body)
        except Undone as undone:
            raise undone.error from None
        except SQLAlchemyError as error:
            raise RunHeld(unusable(url, error), passes=is_transient(error)) from error

    def _tried(self, place: ToolDatabase, call: str, body: Body) -> Record:
        owner, pause = ownership.owner_of(call), PAUSE
        for tries_left in reversed(range(TRIES)):
            try:
                return place.once(call, owner, body, lambda: self._owner_of(call) == owner)
            except DBAPIError as error:
                if not tries_left or not _is_conflict(error):
                    raise
            time.sleep(pause)
            pause = min(pause * 2, 1.0)
        raise AssertionError("unreachable")

    def _place(self, url: sqlalchemy.URL) -> ToolDatabase:
        with self._lock:
            if url not in self._places:
                self._places[url] = ToolDatabase(url, self._url)
            return self._places[url]

    def close(self) -> None:
        """Close the databases."""
        with self._lock:
            for place in self._places.values():
                database_connection.let_go(place.engine)
            self._places.clear()
