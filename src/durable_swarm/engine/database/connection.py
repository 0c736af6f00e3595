"""The database: its choice, its checks, and connections with the settings that durability needs.

SQLite runs in WAL mode with `synchronous=FULL`: a commit that was reported is on disk. The file is created with mode
0600.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, InvalidatePoolError

from durable_swarm.engine.database import byte_locks
from durable_swarm.engine.database.diagnosis import unusable
from durable_swarm.engine.database.file_guard import Guard, close_guarded, open_guarded
from durable_swarm.engine.database.urls import is_sqlite, schema_of, shown
from durable_swarm.errors import ConfigurationError

log = logging.getLogger("durable_swarm")


def connect(url: sqlalchemy.URL, *, create: bool, on_write: Callable[[], None] | None = None) -> sqlalchemy.Engine:
    """Return connections to the database; `create` creates it if it does not exist.

    `on_write` is called after each commit that changed a SQLite file. Raises `ConfigurationError` with the remedy if
    the database cannot be reached or used.
    """
    byte_locks.require()
    try:
        return _sqlite(url, create, on_write) if is_sqlite(url) else _postgres(url, create)
    except (DBAPIError, OSError, sqlite3.Error) as error:
        raise unusable(url, error) from error


def let_go(engine: sqlalchemy.Engine) -> None:
    """Close the connections: idle ones now, the others when their thread returns them."""
    event.listen(engine.pool, "checkin", lambda connection, _: connection is not None and connection.close())
    engine.dispose()


_READS = re.compile(
    r"\s*(SELECT|PRAGMA|EXPLAIN|VALUES|WITH(?!.*\b(INSERT|UPDATE|DELETE|REPLACE)\b))\b", re.IGNORECASE | re.DOTALL
)
"""Statements that write nothing."""


class _Cursor(sqlite3.Cursor):
    """A cursor whose writes wait until no other thread or process writes."""

    def execute(self, sql: str, *values: Any) -> _Cursor:
        with self._turn(sql):
            super().execute(sql, *values)
        return self

    def executemany(self, sql: str, values: Iterable[Any]) -> _Cursor:
        with self._turn(sql):
            super().executemany(sql, values)
        return self

    @contextlib.contextmanager
    def _turn(self, sql: str) -> Iterator[None]:
        connection = cast(_Connection, self.connection)
        if connection.writing or not _READS.match(sql):
            connection.begin()
        try:
            yield
        finally:
            connection.end()


class _Connection(sqlite3.Connection):
    """A connection that reports writes, and writes nothing to a file that was deleted.

    It holds the locks of `file_guard.py` beside SQLite's own, from `use` to `leave` and while it writes.
    """

    on_write: Callable[[], None] | None = None
    is_gone: Callable[[], bool]
    guard: Guard | None = None
    writing = False
    _use: int | None = None
    _written = 0

    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)

    def commit(self) -> None:
        writes = self.total_changes > self._written
        if writes and self.is_gone():
            raise file_is_gone()
        super().commit()
        self.end()
        self._written = self.total_changes
        if writes and self.on_write is not None:
            self.on_write()

    def rollback(self) -> None:
        super().rollback()
        self.end()
        self._written = self.total_changes  # Changes that were rolled back were not written.

    def use(self) -> None:
        """Keep checkpoints away until `leave`."""
        if self.guard is not None and self._use is None:
            self._use = self.guard.enter()

    def leave(self) -> None:
        """Allow checkpoints again, and make the one that is due."""
        if self.guard is not None and self._use is not None:
            use, self._use = self._use, None
            self.guard.leave(use, self)

    def empty_journal(self) -> None:
        """Move the whole journal into the file, unless others use it at the moment."""
        if self.guard is not None and self._use is not None:
            self.guard.empty_journal(self._use, self)

    def begin(self) -> None:
        """Wait for the right to write."""
        if self.guard is not None and not self.writing:
            self.guard.begin()
            self.writing = True

    def end(self) -> None:
        """Release the right to write, once no transaction is open."""
        if self.guard is not None and self.writing and not self.in_transaction:
            self.writing = False
            self.guard.end()

    def close(self) -> None:
        guard, self.guard = self.guard, None
        if guard is None:
            super().close()
            return
        try:
            close_guarded(guard, super().close)
        finally:
            if self.writing:
                guard.end()
            if self._use is not None:
                guard.leave(self._use)


def _sqlite(url: sqlalchemy.URL, create: bool, on_write: Callable[[], None] | None) -> sqlalchemy.Engine:
    path = str(url.database)
    if not create and not Path(path).exists():
        raise ConfigurationError(
            f"there is no database {path}; run a program with DurableSwarm there first, or name it with --database"
        )
    if create and not Path(path).exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        _sync_folder(path)

    first = file_number(path)

    def is_gone() -> bool:
        return file_number(path) != first

    def open_file() -> sqlite3.Connection:
        if is_gone():
            raise file_is_gone()

        def plain() -> _Connection:
            return _Connection(
                f"file:{quote(path)}?mode=rw",  # Not `rwc`, because a new empty file is not a database.
                uri=True,
                check_same_thread=False,
                isolation_level="IMMEDIATE",
                timeout=30,
            )

        connection, guard = open_guarded(path, plain)
        connection.on_write, connection.is_gone, connection.guard = on_write, is_gone, guard
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        # DBOS's two ways to ask for the time: whole seconds below Python 3.12; from 3.12 on, one that SQLite before
        # 3.42 does not know, also in files that were created there.
        connection.create_function("strftime", 2, _seconds)
        connection.create_function("unixepoch", 1, lambda _: time.time())
        return connection

    engine = sqlalchemy.create_engine(
        "sqlite://",
        creator=open_file,
        poolclass=sqlalchemy.QueuePool,
        pool_size=0,  # Without bound: else who has the right to write might wait for those who wait for that right.
        hide_parameters=True,
        json_deserializer=_json,
    )
    event.listen(engine, "checkout", lambda connection, *_: connection.use())
    event.listen(engine, "checkin", lambda connection, _: connection is not None and connection.leave())
    with writing(engine):
        pass
    return engine


def empty_journal(engine: sqlalchemy.Engine) -> None:
    """Move the journal of a SQLite file into the file, so that the file can be copied alone; on an error it stays."""
    with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError), engine.connect() as connection:
        driver: object = connection.connection.driver_connection
        if isinstance(driver, _Connection):
            driver.empty_journal()
        else:  # An engine of the program's own DBOS.
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def _json(text: str) -> object:
    """Return the value of a JSON column, None if it is damaged: one row must not prevent reading the others."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError, TypeError):
        return None


def _sync_folder(path: str) -> None:
    """Sync the folder, because a power cut could lose a new file's entry, and with it everything written."""
    folder = os.open(Path(path).parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def file_number(path: str) -> int | None:
    """Return the system's number (inode) of the file, which differs if it was replaced; None if it was deleted."""
    try:
        return Path(path).stat().st_ino
    except OSError:
        return None


def file_is_gone() -> sqlite3.OperationalError:
    """Return the error for a SQLite file that no longer exists."""
    error = sqlite3.OperationalError("the file was deleted or replaced while in use")
    error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
    return error


def _seconds(_format: str, _moment: str) -> str:
    return f"{time.time():.3f}"


def _postgres(url: sqlalchemy.URL, create: bool) -> sqlalchemy.Engine:
    engine = sqlalchemy.create_engine(
        url,
        pool_size=20,
        max_overflow=0,
        # Few connections, used often: a statement is prepared on each after some uses.
        pool_use_lifo=True,
        hide_parameters=True,
        connect_args={"connect_timeout": 10},
    )

    @event.listens_for(engine, "connect")
    def end_frozen_transactions(connection: Any, _record: object) -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET idle_in_transaction_session_timeout = 60000")
            connection.commit()
        except BaseException:
            connection.close()  # The pool does not have it yet.
            raise

    _try_idle_ones(engine)
    try:
        with engine.connect() as connection:
            has_schema = connection.exec_driver_sql("SELECT to_regnamespace(%s)", (schema_of(url),)).scalar()
        if create and not has_schema:
            log.info(
                "the database %s has no schema %s yet; the first process that uses it creates it",
                shown(url),
                schema_of(url),
            )
    except DBAPIError as error:
        if not create or not is_missing(error):
            raise
        _create_postgres(url)
    return engine


def _create_postgres(url: sqlalchemy.URL) -> None:
    try:
        _on_server(url, "CREATE DATABASE {}")
        # A warning, because it is shown without any setting: the name may be mistyped.
        log.warning("there was no database %s; it was created", shown(url))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) not in ("42P04", "23505"):  # Another process created it first.
            raise


@contextlib.contextmanager
def for_one_statement(engine: sqlalchemy.Engine) -> Iterator[sqlalchemy.Connection]:
    """Return a connection for one statement. On PostgreSQL a transaction around it would be two more round trips."""
    if engine.dialect.name == "sqlite":
        with engine.begin() as connection:
            yield connection
    else:
        with engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")


@contextlib.contextmanager
def writing(engine: sqlalchemy.Engine) -> Iterator[sqlalchemy.Connection]:
    """Open a transaction that writes. SQLite locks its file at once: it would refuse a lock after a first read."""
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection


IDLE = 1.0
"""Seconds of idleness after which a connection is tested before use: its server may have ended it."""


def _try_idle_ones(engine: sqlalchemy.Engine) -> None:
    """Make a pool skip connections lost while idle, without a round trip for those in use."""

    @event.listens_for(engine, "checkin")
    def given_back(_connection: object, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def taken(connection: Any, record: Any, _proxy: object) -> None:
        if time.monotonic() - record.info.get("idle_since", math.inf) > IDLE:
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise InvalidatePoolError("the connection was lost while it was idle") from error


def create_tables(engine: sqlalchemy.Engine, *tables: sqlalchemy.Table) -> None:
    """Create the tables of ours that do not exist, each with those of its metadata: one look, and one commit."""
    missing = _missing(engine, tables)
    while missing:
        try:
            # In one transaction: on SQLite another process would see one of two tables, and fail to create it.
            with writing(engine) as connection:
                for rows in missing:
                    rows.metadata.create_all(connection)
            return
        except DBAPIError:
            # PostgreSQL lets one of two processes fail that create a table at once.
            still = _missing(engine, missing)
            if still == missing:
                raise
            missing = still


def _missing(engine: sqlalchemy.Engine, tables: Sequence[sqlalchemy.Table]) -> list[sqlalchemy.Table]:
    """Return the tables of one schema that do not exist with all those of their metadata."""
    there = set(sqlalchemy.inspect(engine).get_table_names(schema=tables[0].schema))
    return [rows for rows in tables if not {table.name for table in rows.metadata.tables.values()} <= there]


def has_table(engine: sqlalchemy.Engine, rows: sqlalchemy.Table) -> bool:
    """Return True if a table of ours exists; a database of an earlier version may lack it."""
    return sqlalchemy.inspect(engine).has_table(rows.name, schema=rows.schema)


def is_missing(error: BaseException | None) -> bool:
    """Return True if the error says that the server has no database of that name."""
    reason = getattr(error, "orig", None)
    return getattr(reason, "sqlstate", None) == "3D000" or "does not exist" in str(reason)


def drop(url: sqlalchemy.URL) -> None:
    """Drop a PostgreSQL database and its open connections. Raises `ConfigurationError` if that is refused."""
    try:
        _on_server(url, "DROP DATABASE IF EXISTS {} WITH (FORCE)")
    except DBAPIError as error:
        raise unusable(url, error) from error


def copy(template: sqlalchemy.URL, to: sqlalchemy.URL) -> None:
    """Create a PostgreSQL database as a copy of another one on its server, which must have no connections.

    Raises `ConfigurationError` if that is refused.
    """
    try:
        _on_server(to, "CREATE DATABASE {} TEMPLATE {}", template)
    except DBAPIError as error:
        raise unusable(to, error) from error


def _on_server(url: sqlalchemy.URL, statement: str, *others: sqlalchemy.URL) -> None:
    """Run a statement on the server of `url`, with the names of the databases inserted."""
    server = sqlalchemy.create_engine(
        url.set(drivername="postgresql+psycopg", database="postgres"),
        isolation_level="AUTOCOMMIT",
        poolclass=sqlalchemy.NullPool,
    )
    with server.connect() as connection:
        names = [server.dialect.identifier_preparer.quote(str(one.database)) for one in (url, *others)]
        connection.exec_driver_sql(statement.format(*names))
