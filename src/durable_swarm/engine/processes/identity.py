"""Who this process is: a name that no living process shares, held by a lock that death frees.

The owner of a run stands in the database by this name. A process that finds a run of a name whose lock is free knows
that its owner is dead, and takes the run over; one whose lock is held is left alone. SQLite: a byte of `<file>.lock`,
locked through the operating system. PostgreSQL: an advisory lock of a session kept open for it, and a lease for what
stands still without dying (`leases.py`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator

import sqlalchemy

from durable_swarm.engine.database.locks import Locks
from durable_swarm.engine.storage.heartbeats import LEASE, Leases
from durable_swarm.errors import ConfigurationError

log = logging.getLogger("durable_swarm")


RENEW, PAUSE = 2.0, 0.01
"""Seconds between signs of life, and between tries, while this process waits for another that takes runs over."""

SURE = 1.0
"""Seconds between two looks that both must find a process dead: one that has lost no more than the connection that
holds its lock takes the lock back at its next look."""

DOUBLINGS = 5
"""How often at most the lease is doubled for a run that is taken over from process to process."""


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
