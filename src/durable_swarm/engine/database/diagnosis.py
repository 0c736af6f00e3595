"""The meaning of database errors, and their remedies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError

from durable_swarm.engine.database.urls import is_sqlite, schema_of, shown
from durable_swarm.errors import ConfigurationError


@contextlib.contextmanager
def reporting_errors(url: sqlalchemy.URL) -> Iterator[None]:
    """Raise `ConfigurationError` if the database cannot be used in this block."""
    try:
        yield
    except SQLAlchemyError as error:
        raise unusable(url, error) from error


def unusable(url: sqlalchemy.URL, error: BaseException) -> ConfigurationError:
    """Return the one clear error for a database that cannot be used."""
    text = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    where = shown(url)
    return ConfigurationError(f"the database {where} cannot be used: {text}. {_remedy(url, text)}")


def is_unusable(error: BaseException) -> bool:
    """Return True for the error of `unusable`: the database is away, or cannot be used as it is."""
    return isinstance(error, ConfigurationError) and isinstance(error.__cause__, SQLAlchemyError | OSError)


def error_text(error: BaseException) -> str:
    """Return the text of a database error without the statement and its values, which are users' data."""
    line = str(getattr(error, "orig", None) or error).strip().partition("\n")[0][:500]
    return ". ".join(part for part in (line, size_hint(line)) if part)


def is_transient(error: BaseException | None) -> bool:
    """Return True if a refused statement may succeed when retried, which is not so for a value that is too large."""
    return isinstance(error, SQLAlchemyError) and not size_hint(error_text(error))


def size_hint(text: str) -> str:
    """Return the remedy for a database error about a value's size, else ''."""
    if any(sign in text for sign in ("too big", "too large", "too long", "invalid memory alloc")):
        return "One value is larger than the database stores: keep it elsewhere, and its name in the run"
    return ""


def _remedy(url: sqlalchemy.URL, text: str) -> str:
    if "not a database" in text or "malformed" in text:
        return "The file is not SQLite, or damaged: name another file, or restore this one from a backup."
    if "deleted or replaced" in text:
        return "Put the file back, or stop this program: what it records now would be lost."
    if hint := size_hint(text):
        return f"{hint}."
    if "is full" in text or "No space" in text:
        return "Free some space on its disk."
    if "I/O error" in text:
        return "Check its disk."
    if not is_sqlite(url) and (remedy := _right(url, text)):
        return remedy
    if "readonly" in text or "read-only" in text or "Permission" in text or "permission" in text:
        return "Give this user the right to write it and its folder, or name another database."
    if is_sqlite(url):
        return "Check that its folder exists and can be written, or name another database."
    return "Check that the server runs and that host, port, user, password and database name are right."


def _right(url: sqlalchemy.URL, text: str) -> str:
    """Return the remedy for an operation that a PostgreSQL server refuses to this user, or ''."""
    if "permission denied to create database" in text:
        return f"Have its administrator create it, or give {url.username} the right CREATEDB."
    if "permission denied for database" in text:
        return f"Give {url.username} the right CREATE on it, to make the schema {schema_of(url)}."
    if "permission denied" in text:
        return f"Make {url.username} the owner of the schema {schema_of(url)} and of what is in it."
    if "SSL" in text or "certificate" in text:
        return "Check what sslmode and sslrootcert in the URL ask for, and what the server has."
    return ""
