"""Who this process is: a name that no living process shares, held by a lock that death frees.

The owner of a run stands in the database by this name. A process that finds a run of a name whose lock is free knows
that its owner is dead, and takes the run over; one whose lock is held is left alone. SQLite: a byte of `<file>.lock`,
locked through the operating system. PostgreSQL: an advisory lock of a session kept open for it, and a lease for what
stands still without dying (`leases.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
import os
import select
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import sqlalchemy

from durable_swarm.engine.bytelocks import ByteLocks
from durable_swarm.engine.database import file_number
from durable_swarm.engine.leases import LEASE, Leases
from durable_swarm.errors import ConfigurationError

log = logging.getLogger("durable_swarm")


RENEW, PAUSE = 2.0, 0.01
"""Seconds between signs of life, and between tries, while this process waits for another that takes runs over."""

SURE = 1.0
"""Seconds between two looks that both must find a process dead: one that has lost no more than the connection that
holds its lock takes the lock back at its next look."""

DOUBLINGS = 5
"""How often at most the lease is doubled for a run that is taken over from process to process."""

RETURN = 5.0
"""Seconds after a lost session in which a free lock tells nothing: the server may have lost everybody's."""


class Locks(Protocol):
    """Named locks that the death of a process frees."""

    def tell(self) -> bool:
        """Whether a free lock tells that its process is dead."""

    def take(self, name: str) -> bool:
        """Take the lock for this process; False if another living process has it."""

    def give(self, name: str) -> None:
        """Free the lock."""

    def wrest(self, name: str) -> None:
        """Take the lock away from a process that stands still, where the database lets us."""

    def lost(self) -> bool:
        """Whether what holds the locks has visibly ended."""

    def sessions(self) -> int:
        """Count the sessions that have held the locks, one after the other."""

    def close(self) -> None:
        """Free all locks."""


def _number(name: str) -> int:
    """Give the number by which a name is locked: 62 bits, so that two names practically never share one."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 2


class FileLocks:
    """Locks on the bytes of one file; they are not inherited by a fork and end with the process.

    Reading the file frees none of them, because they belong to the opening and not to the process (`bytelocks.py`).
    """

    def __init__(self, path: str) -> None:
        self._path = path
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
        """If the file was deleted, which others would lock anew, lock there too what is held."""
        if file_number(self._path) == self._file.number():
            return
        log.error(
            "the file %s was deleted or replaced: it tells which programs live, and until now others could take this "
            "program's runs for orphans. It is made again; leave it where it is.",
            self._path,
        )
        try:
            lost, self._file = self._file, ByteLocks(self._path, os.O_RDWR | os.O_CREAT)
        except OSError:
            return  # A full disk, or a folder that is gone: told above, and tried again at the next look.
        lost.close()
        for name in self._held:
            self._file.exclusive(_number(name))

    def give(self, name: str) -> None:
        self._held.discard(name)
        self._file.free(_number(name))

    def wrest(self, name: str) -> None:
        """Nobody but its holder frees a lock of the system."""

    def lost(self) -> bool:
        return False

    def sessions(self) -> int:
        return 1

    def close(self) -> None:
        self._file.close()


def _hears(socket: int) -> bool:
    """Whether something has come to a socket; a session that is asked nothing hears nothing but its end."""
    ear = select.poll()
    ear.register(socket, select.POLLIN)
    return bool(ear.poll(0))


_LOST = (sqlalchemy.exc.DBAPIError, sqlalchemy.exc.PendingRollbackError, sqlalchemy.exc.ResourceClosedError)
"""How a session that is gone shows itself: at once, ever after, and once its connection was closed."""


class PostgresLocks:
    """Advisory locks of one session. If the session is lost, `take` opens another and takes back what it held."""

    def __init__(self, url: sqlalchemy.URL) -> None:
        self._engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, isolation_level="AUTOCOMMIT")
        self._connection = self._engine.connect()
        self._held: set[str] = set()
        self._lost_at = -math.inf
        self._sessions = 1

    def tell(self) -> bool:
        return time.monotonic() - self._lost_at > RETURN

    def take(self, name: str) -> bool:
        try:
            taken = self._ask("pg_try_advisory_lock", name)
        except _LOST:
            self._reconnect()
            taken = self._ask("pg_try_advisory_lock", name)
        if taken:
            self._held.add(name)
        return taken

    def give(self, name: str) -> None:
        self._held.discard(name)
        with contextlib.suppress(*_LOST):  # A lost session has given it already.
            self._ask("pg_advisory_unlock", name)

    def wrest(self, name: str) -> None:
        holders = sqlalchemy.text(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted "
            "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
            "AND (classid::bigint << 32) + objid::bigint = :key"
        )
        with contextlib.suppress(*_LOST):
            self._connection.execute(holders, {"key": _number(name)})

    def lost(self) -> bool:
        if self._connection.closed or self._connection.invalidated:
            return True
        session: Any = self._connection.connection.driver_connection
        return bool(session.closed) or _hears(session.fileno())

    def _ask(self, function: str, name: str) -> bool:
        return bool(
            self._connection.execute(sqlalchemy.text(f"SELECT {function}(:key)"), {"key": _number(name)}).scalar()
        )

    def _reconnect(self) -> None:
        with contextlib.suppress(sqlalchemy.exc.DBAPIError):
            self._connection.close()
        self._connection = self._engine.connect()
        self._lost_at = time.monotonic()
        self._sessions += 1
        for name in self._held:
            self._ask("pg_try_advisory_lock", name)

    def sessions(self) -> int:
        return self._sessions

    def close(self) -> None:
        with contextlib.suppress(sqlalchemy.exc.DBAPIError):
            self._connection.close()
        self._engine.dispose()


class Identity:
    """This process's name in the database, and its knowledge of who else lives."""

    def __init__(self, locks: Locks, name: str | None) -> None:
        self._locks = locks
        self._guard = threading.Lock()
        self.leases: Leases | None = None
        """Signs of life, where the database keeps them; set once it has its tables."""
        self._sessions = locks.sessions()
        self._suspects: dict[str, tuple[float, float]] = {}
        """Names whose lock was free, with the last sign of life, and when that was found."""
        self._still: set[str] = set()
        """Names that were found to stand still: their lock is held, and their lease is over."""
        self.name = name or f"process-{uuid.uuid4()}"
        with self.alone():
            if not self._locks.take(self.name):
                raise ConfigurationError(
                    f"a living process already works as worker_id {self.name!r}; give each process its own, or none"
                )

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only process, and the only thread, that looks for runs to take over."""
        self._wait_for(lambda: self._guard.acquire(timeout=PAUSE))
        try:
            self._wait_for(lambda: self._locks.take("take-over"), self._unlock)
            self._has_returned()
            try:
                yield
            finally:
                self._locks.give("take-over")
        finally:
            self._guard.release()

    def _wait_for(self, taken: Callable[[], bool], unlock: Callable[[], None] = lambda: None) -> None:
        """Wait for a lock with signs of life, not to be taken for dead meanwhile; `unlock` what stays locked."""
        begun = renewed = time.monotonic()
        while not taken():
            time.sleep(PAUSE)
            if time.monotonic() - renewed > RENEW:
                renewed = time.monotonic()
                self._renew()
            if time.monotonic() - begun > LEASE:
                begun = time.monotonic()
                unlock()

    def _unlock(self) -> None:
        log.warning("another process has been looking for runs to take over for %g s; is it stopped?", LEASE)
        self._locks.wrest("take-over")

    def look(self) -> None:
        """Take the name back at once if its session has ended: to others this process is dead meanwhile."""
        if self._has_lost() or self._sessions != self._locks.sessions():
            with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError), self.alone():  # `keep` tries again.
                self._locks.take(self.name)

    def _has_returned(self) -> None:
        """Give a sign of life if the locks were lost and taken back: who has found them free must not see it twice."""
        if self._sessions != self._locks.sessions():
            with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):  # `keep` gives the next.
                self._renew()
                self._sessions = self._locks.sessions()

    def _has_lost(self) -> bool:
        if not self._guard.acquire(blocking=False):
            return False  # Who uses the locks just now finds out.
        try:
            return self._locks.lost()
        finally:
            self._guard.release()

    def keep(self) -> None:
        """Give a sign of life, and hold the name: a lost session of the database takes its locks along."""
        self._renew()
        with self.alone():
            self._locks.take(self.name)

    def _renew(self) -> None:
        if self.leases is not None:
            self.leases.renew(self.name)

    def is_dead(self, name: str, stood: int = 0) -> bool:
        """Whether no living process has that name, or one that stands still. To be asked inside `alone`.

        Where there are signs of life, a free lock alone tells nothing: who has lost its connections for a moment lives,
        and takes it back with a new sign. So it must be found free twice, `SURE` seconds apart, without one. Who stands
        still has twice the time for each of the `stood` times at which the same run was taken over for that: what it
        does may just take longer than the lease.
        """
        if name == self.name:
            return False
        free = self._locks.take(name)
        if free:
            self._locks.give(name)
        if self.leases is None or (free and not self._locks.tell()):
            return free and self._locks.tell()
        last = self.leases.last(name)
        if not free:
            self._suspects.pop(name, None)
            over = last is not None and last[1] > LEASE * 2 ** min(stood, DOUBLINGS)
            (self._still.add if over else self._still.discard)(name)
            return over
        self._still.discard(name)
        if last is None or last[1] > LEASE:
            self._suspects.pop(name, None)
            return True
        return self._has_been_silent(name, last[0])

    def _has_been_silent(self, name: str, last: float) -> bool:
        """Whether a name's lock was found free before without a sign of life since; else that is noted."""
        seen, found = self._suspects.get(name, (math.nan, 0.0))
        if seen != last:
            self._suspects[name] = last, time.monotonic()
            return False
        return time.monotonic() - found >= SURE

    def suspects(self, names: Iterable[str]) -> bool:
        """Whether any of the names may turn out to be dead at a look `SURE` seconds later."""
        begun = time.monotonic() - SURE
        return any(self._suspects.get(name, (0.0, -math.inf))[1] > begun for name in names)

    def stands_still(self, name: str) -> bool:
        """Whether the process of that name was found to live, and to stand still."""
        return name in self._still

    def close(self) -> None:
        """Give the name up."""
        if self.leases is not None:
            with contextlib.suppress(sqlalchemy.exc.SQLAlchemyError):
                self.leases.forget(self.name)
        self._locks.close()
