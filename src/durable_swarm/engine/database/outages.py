"""Times when the database cannot be written: a full disk, an I/O error, a lost permission, a read-only server.

Completed effects (a paid model call, a sent mail) are kept in memory, and their checkpoints retried until the cause is
fixed. DBOS retries errors that it takes for a lost connection, and `Outage` makes it treat these errors as one. Only a
run in progress waits; a caller outside of runs, or one that starts a run, gets the error at once.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from typing import Any

import sqlalchemy
from sqlalchemy import event

from durable_swarm.concurrency import exiting
from durable_swarm.engine.database.connection import file_is_gone, file_number
from durable_swarm.engine.database.diagnosis import unusable
from durable_swarm.engine.database.reconnecting import was_cut
from durable_swarm.engine.database.urls import is_sqlite

log = logging.getLogger("durable_swarm")

_SQLITE = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}
_POSTGRES = {"25006", "42501", "58030"}
"""A read-only server (a standby), a revoked privilege, an I/O error; DBOS itself handles a full disk."""


def passes(error: BaseException | None) -> bool:
    """Return True if a database error can pass without any change of the program."""
    original = getattr(error, "orig", None) or error
    code = getattr(original, "sqlite_errorcode", None)
    return (code is not None and code & 0xFF in _SQLITE) or getattr(original, "sqlstate", None) in _POSTGRES


def noted(error: BaseException | None) -> bool:
    """Return True if an error of a run in progress comes from one that `Outage` turned into a lost connection."""
    while error is not None and not getattr(error, "connection_invalidated", False):
        error = error.__cause__ or error.__context__
    return error is not None


class Outage:
    """The state of the database, writable or not; logs once when it becomes unwritable, and once when it recovers.

    `patient` returns True if the running code may wait, which means a run in progress.
    """

    def __init__(self, url: sqlalchemy.URL, patient: Callable[[], bool]) -> None:
        self.reason: str | None = None
        self._told = False
        self._patient = patient
        self._url = url
        self._lock = threading.Lock()
        self._closed = False
        self._file: tuple[sqlalchemy.Engine, int | None] | None = None

    def watch(self, engine: sqlalchemy.Engine) -> None:
        """Make runs in progress wait for errors that pass, from now on."""
        event.listen(engine, "handle_error", self._failed)
        if is_sqlite(self._url):
            self._file = engine, file_number(str(self._url.database))
        else:
            event.listen(engine, "after_cursor_execute", self._executed)

    def look(self) -> None:
        """Refuse writes to a SQLite file that was deleted: they would be lost with this process."""
        if self._file is None:
            return
        engine, number = self._file
        if file_number(str(self._url.database)) != number:
            self.begin(file_is_gone())
            engine.dispose()

    def _failed(self, context: Any) -> None:
        refused = context.connection is None and not is_sqlite(self._url) and not was_cut(context.original_exception)
        lost = context.is_disconnect and not is_sqlite(self._url)
        lasts = refused or passes(context.original_exception)
        if not (lost or lasts) or self._closed:
            return
        self.begin(context.original_exception, lasts=lasts)
        if self._patient() and not exiting():
            context.is_disconnect = True

    def _executed(self, *call: Any) -> None:
        made = call[4]
        if self.reason is not None and made is not None and (made.isinsert or made.isupdate):
            self.end()

    def begin(self, error: Exception, *, lasts: bool = True) -> None:
        """Record that the database cannot be written, and log it the first time.

        A broken connection is not logged: the next one mostly works, and otherwise the outage lasts and is logged.
        """
        reason = str(unusable(self._url, error))
        with self._lock:
            self.reason, known, self._told = reason, self._told, self._told or lasts
        if lasts and not known:
            log.error("%s Runs in progress wait for that, and then continue by themselves.", reason)

    def end(self) -> None:
        """Record a successful write."""
        with self._lock:
            self.reason, known, self._told = None, self._told, False
        if known:
            log.warning("the database can be written again; runs continue")

    def close(self) -> None:
        """Stop all waiting: the database is about to be closed."""
        self._closed = True
