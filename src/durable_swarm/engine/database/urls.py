"""URLs of databases: chosen, compared, and shown without their password."""

from __future__ import annotations

import os
from pathlib import Path

import sqlalchemy
from sqlalchemy.exc import ArgumentError

from durable_swarm.errors import ConfigurationError

DEFAULT_URL = "sqlite:///durable_swarm.sqlite"
VARIABLE = "DURABLE_SWARM_DATABASE_URL"


def choose(url: str | None) -> sqlalchemy.URL:
    """Return the database to use: `url`, else the environment's, else a file in the working directory.

    Raises `ConfigurationError` for an invalid URL, or one of an unsupported kind of database.
    """
    text = url or os.environ.get(VARIABLE) or DEFAULT_URL
    try:
        chosen = sqlalchemy.make_url(text.replace("postgres://", "postgresql://", 1))
    except (ArgumentError, ValueError):
        # The text is not shown: it may contain a misplaced password.
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
    """Return True if the database is a SQLite file."""
    return url.get_backend_name() == "sqlite"


def without_password(text: str) -> str:
    """Return a URL's text without the part between its first colon after `//` and its `@`."""
    head, at, tail = text.rpartition("@")
    return f"{head.rsplit(':', 1)[0]}:***{at}{tail}" if at and head.count(":") > 1 else text


def schema_of(url: sqlalchemy.URL) -> str | None:
    """Return the schema that contains the tables."""
    return None if is_sqlite(url) else "dbos"


def shown(url: sqlalchemy.URL) -> str:
    """Return the database's URL without its password, as users write it."""
    return str(url.database) if is_sqlite(url) else url.set(drivername="postgresql").render_as_string()


def check_same_database(open_url: sqlalchemy.URL, wanted: sqlalchemy.URL) -> None:
    """Check that the wanted database is the open one. Raises `ConfigurationError`."""
    if open_url.set(drivername=open_url.get_backend_name()) != wanted.set(drivername=wanted.get_backend_name()):
        raise ConfigurationError(
            f"this process already works on {shown(open_url)!r} and cannot open {shown(wanted)!r} too: one process has "
            "one database. Close the first DurableSwarm, or use another process."
        )
