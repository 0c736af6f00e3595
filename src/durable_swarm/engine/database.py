"""The database: which one, is it fit, and connections with the settings that durability needs.

SQLite runs in WAL mode with `synchronous=FULL`: a commit that was reported is on disk. The file is made with mode 0600.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, DBAPIError

from durable_swarm.errors import ConfigurationError

DEFAULT_URL = "sqlite:///durable_swarm.sqlite"
VARIABLE = "DURABLE_SWARM_DATABASE_URL"


def choose(url: str | None) -> sqlalchemy.URL:
    """Give the database to use: `url`, else the environment's, else a file in the working directory.

    Raises `ConfigurationError` for a URL that is none, or of another kind of database.
    """
    text = url or os.environ.get(VARIABLE) or DEFAULT_URL
    try:
        chosen = sqlalchemy.make_url(text.replace("postgres://", "postgresql://", 1))
    except (ArgumentError, ValueError):
        # The text is not shown: it may hold a password where none belongs.
        raise ConfigurationError(
            "the database is not given as a URL; use sqlite:///FILE or postgresql://USER@HOST/NAME"
        ) from None
    if is_sqlite(chosen):
        if not chosen.database or chosen.database == ":memory:":
            raise ConfigurationError("a database in memory survives nothing; name a file, or use Swarm")
        return chosen.set(database=str(Path(chosen.database).resolve()))
    if chosen.get_backend_name() != "postgresql" or not chosen.database:
        raise ConfigurationError(
            f"{chosen.render_as_string()!r} is neither SQLite nor PostgreSQL with a database name; "
            "use sqlite:///FILE or postgresql://USER@HOST/NAME"
        )
    return chosen.set(drivername="postgresql+psycopg")


def is_sqlite(url: sqlalchemy.URL) -> bool:
    """Whether the database is a SQLite file."""
    return url.get_backend_name() == "sqlite"


def without_password(text: str) -> str:
    """Give a URL's text without what stands between its first colon after `//` and its `@`."""
    head, at, tail = text.rpartition("@")
    return f"{head.rsplit(':', 1)[0]}:***{at}{tail}" if at and head.count(":") > 1 else text


def same(open_url: sqlalchemy.URL, wanted: sqlalchemy.URL) -> None:
    """Check that the database wanted is the one that is open. Raises `ConfigurationError`."""
    if open_url.set(drivername=open_url.get_backend_name()) != wanted.set(drivername=wanted.get_backend_name()):
        raise ConfigurationError(
            f"this process already works on {open_url.render_as_string()!r} and cannot open "
            f"{wanted.render_as_string()!r} too: one process has one database. Close the first DurableSwarm, or use "
            "another process."
        )


def connect(url: sqlalchemy.URL, *, create: bool) -> sqlalchemy.Engine:
    """Give connections to the database, made if it does not exist and `create` says so.

    Raises `ConfigurationError`, naming the remedy, if it cannot be reached or used.
    """
    try:
        return _sqlite(url, create) if is_sqlite(url) else _postgres(url, create)
    except (DBAPIError, OSError, sqlite3.Error) as error:
        raise unfit(url, error) from error


def _sqlite(url: sqlalchemy.URL, create: bool) -> sqlalchemy.Engine:
    path = str(url.database)
    if not create and not Path(path).exists():
        raise ConfigurationError(
            f"there is no database {path}; run a program with DurableSwarm there first, or name it with --database"
        )
    if create:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))

    def open_file() -> sqlite3.Connection:
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level="IMMEDIATE", timeout=30)
        _use_wal(connection)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        # DBOS's two ways to ask for the time: whole seconds below Python 3.12, and from there one that SQLite before
        # 3.42 does not know, also in files that were made there.
        connection.create_function("strftime", 2, _seconds)
        connection.create_function("unixepoch", 1, lambda _: time.time())
        return connection

    engine = sqlalchemy.create_engine(
        "sqlite://", creator=open_file, poolclass=sqlalchemy.QueuePool, pool_size=4, max_overflow=0
    )
    with engine.begin() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    return engine


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL. Of several processes that open a new file at once SQLite has only one wait its turn."""
    deadline = time.monotonic() + 30
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _seconds(_format: str, _moment: str) -> str:
    return f"{time.time():.3f}"


def _postgres(url: sqlalchemy.URL, create: bool) -> sqlalchemy.Engine:
    engine = sqlalchemy.create_engine(url, pool_size=20, max_overflow=0, connect_args={"connect_timeout": 10})

    @event.listens_for(engine, "connect")
    def end_frozen_transactions(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET idle_in_transaction_session_timeout = 60000")
        connection.commit()

    try:
        engine.connect().close()
    except DBAPIError as error:
        if not create or (getattr(error.orig, "sqlstate", None) != "3D000" and "does not exist" not in str(error.orig)):
            raise
        _create_postgres(url)
    return engine


def _create_postgres(url: sqlalchemy.URL) -> None:
    server = sqlalchemy.create_engine(
        url.set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool
    )
    with server.connect() as connection:
        name = server.dialect.identifier_preparer.quote(str(url.database))
        try:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in ("42P04", "23505"):  # Another process was faster.
                raise


def unfit(url: sqlalchemy.URL, error: Exception) -> ConfigurationError:
    """Give the one clear error for a database that cannot be used."""
    text = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    where = url.render_as_string(hide_password=True) if not is_sqlite(url) else str(url.database)
    return ConfigurationError(f"the database {where} cannot be used: {text}. {_remedy(url, text)}")


def _remedy(url: sqlalchemy.URL, text: str) -> str:
    if "not a database" in text or "malformed" in text:
        return "The file is not SQLite, or damaged: name another file, or restore this one from a backup."
    if "readonly" in text or "Permission" in text or "permission" in text:
        return "Give this user the right to write it and its folder, or name another database."
    if is_sqlite(url):
        return "Check that its folder exists and can be written, or name another database."
    return "Check that the server runs and that host, port, user, password and database name are right."
