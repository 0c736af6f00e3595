"""Named locks that the death of a process frees: bytes of a file, or advisory locks of PostgreSQL."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import select
import time
from typing import Any, Protocol

import sqlalchemy

from durable_swarm.engine.database.byte_locks import ByteLocks
from durable_swarm.engine.database.connection import file_number
from durable_swarm.engine.database.diagnosis import reporting_errors, unusable
from durable_swarm.engine.database.file_guard import head_of_index
from durable_swarm.engine.database.notices import CHANNEL
from durable_swarm.engine.database.urls import is_sqlite
from durable_swarm.errors import ConfigurationError

log = logging.getLogger("durable_swarm")

RETURN = 5.0
"""Seconds after a lost session in which a free lock proves nothing: the server may have lost all sessions."""


class Locks(Protocol):
    """Named locks that the death of a process frees. Raises `ConfigurationError` if the database cannot be used."""

    def tell(self) -> bool:
        """Return True if a free lock proves that its process is dead."""

    def take(self, name: str) -> bool:
        """Take the lock for this process; return False if another living process has it."""

    def give(self, name: str) -> None:
        """Free the lock."""

    def wrest(self, name: str) -> None:
        """Take the lock away from a stopped process, if the database allows it."""

    def keep(self, beat: sqlalchemy.Executable) -> bool:
        """Send a statement over the session that holds the locks; return False if there is none that holds them all."""

    def lost(self) -> bool:
        """Return True if the session that holds the locks has visibly ended."""

    def hear(self) -> bool:
        """Return True if the database may have changed since the last call. It sends no statement."""

    def sessions(self) -> int:
        """Return the number of sessions that have held the locks, one after the other."""

    def close(self) -> None:
        """Free all locks."""


def open_locks(url: sqlalchemy.URL) -> Locks:
    """Return the locks of a database. Raises `ConfigurationError` if they cannot be used."""
    if not is_sqlite(url):
        return PostgresLocks(url)
    try:
        return FileLocks(f"{url.database}.lock", str(url.database))
    except OSError as error:
        raise unusable(url, error) from error


def _number(name: str) -> int:
    """Return the number under which a name is locked: 62 bits, so that two names practically never share one."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 2


class FileLocks:
    """Locks on the bytes of one file, beside `database`; they are not inherited by a fork and end with the process.

    Reading the file frees none of them, because they belong to the opening and not to the process (`byte_locks.py`).
    """

    def __init__(self, path: str, database: str = "") -> None:
        self._path, self._database = path, database
        self._heard: bytes | None = None
        self._file = ByteLocks(path, os.O_RDWR | os.O_CREAT)
        self._held: set[str] = set()

    def tell(self) -> bool:
        return True

    def take(self, name: str) -> bool:
        self._make_sure()
        if taken := self._file.exclusive(_number(name)):
            self._held.add(name)
        return taken

    def _make_sure(self) -> None:
        """If the file was deleted, others would lock a new one, so lock the names held here in the new file too.

        Raises `ConfigurationError` once the locks are closed.
        """
        if self._file.file < 0:
            raise ConfigurationError("the database was closed here; open it again to look at its runs")
        if file_number(self._path) == self._file.number():
            return
        log.error(
            "the file %s was deleted or replaced: it shows which programs are alive, and until now others could take "
            "this program's runs over. It is made again; leave it where it is.",
            self._path,
        )
        try:
            lost, self._file = self._file, ByteLocks(self._path, os.O_RDWR | os.O_CREAT)
        except OSError:
            return  # A full disk, or a deleted folder: reported above, and retried at the next check.
        lost.close()
        for name in self._held:
            self._file.exclusive(_number(name))

    def give(self, name: str) -> None:
        self._held.discard(name)
        self._file.free(_number(name))

    def wrest(self, name: str) -> None:
        """Do nothing: only its holder can free a lock of the system."""

    def keep(self, beat: sqlalchemy.Executable) -> bool:
        return False

    def lost(self) -> bool:
        return False

    def hear(self) -> bool:
        before, self._heard = self._heard, head_of_index(self._database)
        return self._heard is None or self._heard != before

    def sessions(self) -> int:
        return 1

    def close(self) -> None:
        self._file.close()


def _hears(socket: int) -> bool:
    """Return True if a socket has data to read; an idle session receives nothing but notifications and its end."""
    ear = select.poll()
    ear.register(socket, select.POLLIN)
    return bool(ear.poll(0))


_LOST = (sqlalchemy.exc.DBAPIError, sqlalchemy.exc.PendingRollbackError, sqlalchemy.exc.ResourceClosedError)
"""The errors of a lost session: at once, on later uses, and once its connection was closed."""


class PostgresLocks:
    """Advisory locks of one session. If the session is lost, `take` opens another and takes back its locks."""

    def __init__(self, url: sqlalchemy.URL) -> None:
        self._url = url
        self._engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
        self._heard, self._ended = True, False
        with reporting_errors(url):
            self._connection = self._connected()
        self._held: set[str] = set()
        self._missing: set[str] = set()
        """Locks of the last session that another process had just then, perhaps to find out whether they are free."""
        self._lost_at = -math.inf
        self._sessions = 1

    def tell(self) -> bool:
        return time.monotonic() - self._lost_at > RETURN

    def take(self, name: str) -> bool:
        with reporting_errors(self._url):
            try:
                taken = self._ask("pg_try_advisory_lock", name)
            except _LOST:
                self._reconnect()
                taken = self._ask("pg_try_advisory_lock", name)
        if taken:
            self._held.add(name)
            self._missing.discard(name)
        return taken

    def give(self, name: str) -> None:
        self._held.discard(name)
        self._missing.discard(name)
        with contextlib.suppress(*_LOST):  # A lost session has freed it already.
            self._ask("pg_advisory_unlock", name)

    def wrest(self, name: str) -> None:
        holders = sqlalchemy.text(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            "AND (classid::bigint << 32) + objid::bigint = :key"
        )
        with contextlib.suppress(*_LOST):
            self._connection.execute(holders, {"key": _number(name)})

    def _connected(self) -> sqlalchemy.Connection:
        connection = self._engine.connect()
        session: Any = connection.connection.driver_connection
        session.add_notify_handler(self._note)  # For those that come with the answer to a statement.
        connection.exec_driver_sql(f"LISTEN {CHANNEL}")
        return connection

    def _note(self, *_: object) -> None:
        self._heard = True

    def keep(self, beat: sqlalchemy.Executable) -> bool:
        if self.lost() or self._missing:
            return False
        try:
            self._connection.execute(beat)
        except _LOST:
            return False
        return True

    def lost(self) -> bool:
        self._ended = self._ended or self._listen()
        return self._ended

    def _listen(self) -> bool:
        """Read the notifications that have come; return True if the session has received anything else."""
        if self._connection.closed or self._connection.invalidated:
            return True
        session: Any = self._connection.connection.driver_connection
        try:
            receives = _hears(session.fileno())
            session.pgconn.consume_input()
            while session.pgconn.notifies() is not None:
                receives = False
                self._note()
        except self._engine.dialect.loaded_dbapi.Error:
            return True
        return receives

    def hear(self) -> bool:
        heard, self._heard = self.lost() or self._heard, False
        return heard

    def _ask(self, function: str, name: str) -> bool:
        answer = self._connection.execute(sqlalchemy.text(f"SELECT {function}(:key)"), {"key": _number(name)}).scalar()
        self._ended = False
        return bool(answer)

    def _reconnect(self) -> None:
        with contextlib.suppress(sqlalchemy.exc.DBAPIError):
            self._connection.close()
        self._connection = self._connected()
        self._heard = True
        self._lost_at = time.monotonic()
        self._sessions += 1
        self._missing = {name for name in self._held if not self._ask("pg_try_advisory_lock", name)}

    def sessions(self) -> int:
        return self._sessions

    def close(self) -> None:
        with contextlib.suppress(sqlalchemy.exc.DBAPIError):
            self._connection.close()
        self._engine.dispose()
