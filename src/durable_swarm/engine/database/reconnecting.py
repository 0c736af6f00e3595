"""Connections that break, and servers that are away for a while: what is asked once more, and who goes on waiting."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy.exc import (
    DBAPIError,
    InvalidatePoolError,
    OperationalError,
    PendingRollbackError,
    ResourceClosedError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from durable_swarm.engine.database.diagnosis import unusable
from durable_swarm.errors import ConfigurationError

T = TypeVar("T")

_REFUSED = ("authentication failed", "does not exist", "pg_hba", "permission denied", "certificate")
"""What a server says that answers, and refuses this user: no waiting mends that."""


def is_lost(error: BaseException | None) -> bool:
    """Whether an error says that the server, or the connection to it, is away: it may be back by itself."""
    lost = error if isinstance(error, SQLAlchemyError) else getattr(error, "__cause__", None)
    if isinstance(lost, PendingRollbackError | ResourceClosedError | InvalidatePoolError | PoolTimeout):
        return True
    if not isinstance(lost, DBAPIError) or isinstance(lost.orig, sqlite3.Error):
        return False
    state = getattr(lost.orig, "sqlstate", None)
    if state is None:  # No server has answered, or the one that lets nobody in.
        refused = isinstance(lost, OperationalError) and not any(sign in str(lost.orig) for sign in _REFUSED)
        return lost.connection_invalidated or refused
    return lost.connection_invalidated or state.startswith(("08", "57P")) or state == "53300"


TRIES = 3
"""How often at most what meets a broken connection is asked: with the first all others of the pool are renewed."""


def persistently(ask: Callable[[], T]) -> T:
    """Ask the database, and once more where only the connection was broken, which a pool cannot know before."""
    for _ in range(TRIES - 1):
        try:
            return ask()
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
    return ask()


def read(engine: sqlalchemy.Engine, wanted: sqlalchemy.Executable) -> Sequence[Any]:
    """Return what a statement that changes nothing finds. Raises SQLAlchemy's errors."""

    def ask() -> Sequence[Any]:
        with engine.connect() as connection:
            return connection.execute(wanted).all()

    return persistently(ask)


@contextlib.contextmanager
def bearing(url: Callable[[], sqlalchemy.URL], parked: Callable[[], bool]) -> Iterator[None]:
    """Round what is read by who waits for a run: a server that is away is waited for, as where the run is `parked`.

    Raises `ConfigurationError` for any other trouble of the database.
    """
    try:
        yield
    except (SQLAlchemyError, ConfigurationError) as error:
        if parked() or is_lost(error):
            return
        if isinstance(error, SQLAlchemyError):
            raise unusable(url(), error) from error
        raise
