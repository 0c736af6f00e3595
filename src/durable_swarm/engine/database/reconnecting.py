"""Broken connections and unreachable servers: the statements that are retried, and the callers that keep waiting."""

from __future__ import annotations

import contextlib
import sqlite3
import time
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
"""A server's answers that refuse this user: waiting does not help."""


def is_lost(error: BaseException | None) -> bool:
    """Return True if the server or the connection to it is lost, which may pass without intervention."""
    lost = error if isinstance(error, SQLAlchemyError) else getattr(error, "__cause__", None)
    if isinstance(lost, PendingRollbackError | ResourceClosedError | InvalidatePoolError | PoolTimeout):
        return True
    if not isinstance(lost, DBAPIError) or isinstance(lost.orig, sqlite3.Error):
        return False
    state = getattr(lost.orig, "sqlstate", None)
    if state is None:  # No server has answered, or the server admits no connection at the moment.
        refused = isinstance(lost, OperationalError) and not any(sign in str(lost.orig) for sign in _REFUSED)
        return lost.connection_invalidated or refused
    return lost.connection_invalidated or state.startswith(("08", "57P")) or state == "53300"


TRIES = 3
"""The maximum number of attempts on broken connections: the first one renews all others of the pool."""


def persistently(ask: Callable[[], T]) -> T:
    """Ask the database, and once more if only the connection was broken, which a pool cannot know before."""
    for _ in range(TRIES - 1):
        try:
            return ask()
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
    return ask()


def was_cut(error: BaseException | None) -> bool:
    """Return True if a connection that the server had taken was cut, also while it was set up."""
    if isinstance(error, ConfigurationError):
        error = error.__cause__
    original = getattr(error, "orig", None) or error
    set_up = getattr(original, "sqlstate", None) == "57P01" or str(original).startswith("consuming input failed")
    return set_up or isinstance(error, InvalidatePoolError) or getattr(error, "connection_invalidated", False) is True


OPENING, SOON, SELDOM = 10.0, 0.05, 1.0
"""Seconds for which opening is tried again once a connection was cut, and between two tries: at first, at most."""


def opened(open_once: Callable[[], T]) -> T:
    """Open a database, which takes many statements, and once more while its connections are cut.

    A server that takes no connection at first is not waited for, because nothing here depends on it yet. Raises the
    last error.
    """
    end, pause = None, SOON
    while True:
        try:
            return open_once()
        except (SQLAlchemyError, ConfigurationError) as error:
            if end is None and was_cut(error):
                end = time.monotonic() + OPENING
            if end is None or not is_lost(error) or time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        pause = min(2 * pause, SELDOM)


def read(engine: sqlalchemy.Engine, wanted: sqlalchemy.Executable) -> Sequence[Sequence[Any]]:
    """Return the rows of a statement that changes nothing. Raises SQLAlchemy's errors."""

    def ask() -> Sequence[Sequence[object]]:
        with engine.connect() as connection:
            return connection.execute(wanted).all()

    return persistently(ask)


@contextlib.contextmanager
def bearing(url: Callable[[], sqlalchemy.URL], parked: Callable[[], bool]) -> Iterator[None]:
    """Make a reader that waits for a run wait for an unreachable server, too, as if the run were `parked`.

    Raises `ConfigurationError` for any other database error.
    """
    try:
        yield
    except (SQLAlchemyError, ConfigurationError) as error:
        if parked() or is_lost(error):
            return
        if isinstance(error, SQLAlchemyError):
            raise unusable(url(), error) from error
        raise
