"""This process's identity: a name that no living process shares, guarded by a lock that its death releases.

The database stores this name as the owner of a run. A process that finds a run of a name whose lock is free knows that
its owner is dead, and takes the run over; if the lock is held, the run is left alone. SQLite: a byte of `<file>.lock`,
locked through the operating system. PostgreSQL: an advisory lock of a session kept open for it, and a lease for a
process that is paused without dying (`leases.py`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator

from durable_swarm.engine.database.locks import Locks
from durable_swarm.engine.storage.heartbeats import LEASE, Leases
from durable_swarm.errors import ConfigurationError

log = logging.getLogger("durable_swarm")


RENEW, PAUSE = 2.0, 0.01
"""Seconds between heartbeats, and between tries, while this process waits for another that takes runs over."""

SURE = 1.0
"""Seconds between two looks that must both find a process dead.

A process that has lost only the connection that holds its lock takes the lock back at its next look.
"""

DOUBLINGS = 5
"""Maximum number of times the lease is doubled for a run that is taken over from process to process."""


class Identity:
    """This process's name in the database, and its knowledge of the other living processes."""

    def __init__(self, locks: Locks, name: str | None) -> None:
        self._locks = locks
        self._guard = threading.Lock()
        self.leases: Leases | None = None
        """The heartbeats, if the database keeps them; set once it has its tables."""
        self._sessions = locks.sessions()
        self._suspects: dict[str, tuple[float, float]] = {}
        """Names whose lock was found free, with their last heartbeat and the time of the discovery."""
        self._still: set[str] = set()
        """Names of processes found paused: their lock is held, and their lease has expired."""
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
        """Wait for a lock, sending heartbeats so as not to be taken for dead; `unlock` releases what stays locked."""
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
        """Take the name back at once if its session has ended, because other processes now see this one as dead."""
        if self._has_lost() or self._sessions != self._locks.sessions():
            with contextlib.suppress(ConfigurationError), self.alone():  # `keep` tries again.
                self._locks.take(self.name)

    def hears(self) -> bool:
        """Return True if the database may have changed since the last call. It sends no statement."""
        if not self._guard.acquire(blocking=False):
            return True
        try:
            return self._locks.hear()
        finally:
            self._guard.release()

    def _has_returned(self) -> None:
        """Send a heartbeat if the locks were lost and taken back, so that they are not found free twice without one."""
        if self._sessions != self._locks.sessions():
            with contextlib.suppress(ConfigurationError):  # `keep` sends the next.
                self._renew()
                self._sessions = self._locks.sessions()

    def _has_lost(self) -> bool:
        if not self._guard.acquire(blocking=False):
            return False  # The process that uses the locks just now finds out.
        try:
            return self._locks.lost()
        finally:
            self._guard.release()

    def keep(self) -> None:
        """Send a heartbeat, and hold the name: a lost session of the database loses its locks too.

        The heartbeat is sent over the session that holds the name, and shows that this session lives.
        """
        if self.leases is not None:
            self._wait_for(lambda: self._guard.acquire(timeout=PAUSE))
            try:
                if self._locks.keep(self.leases.beat(self.name)):
                    return
            finally:
                self._guard.release()
        self._renew()
        with self.alone():
            self._locks.take(self.name)

    def _renew(self) -> None:
        if self.leases is not None:
            self.leases.renew(self.name)

    def is_dead(self, name: str, pauses: int = 0) -> bool:
        """Return True if no living process has that name, or only a paused one. Call it inside `alone`.

        With heartbeats, a free lock alone proves nothing: a process that has lost its connections for a moment lives,
        and takes the lock back with a new heartbeat. So the lock must be found free twice, `SURE` seconds apart,
        without a heartbeat. A paused process gets twice the time for each of the `pauses` times that the same run was
        taken over for a pause, because its work may just take longer than the lease.
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
            over = last is not None and last[1] > LEASE * 2 ** min(pauses, DOUBLINGS)
            (self._still.add if over else self._still.discard)(name)
            return over
        self._still.discard(name)
        if last is None or last[1] > LEASE:
            self._suspects.pop(name, None)
            return True
        return self._has_been_silent(name, last[0])

    def _has_been_silent(self, name: str, last: float) -> bool:
        """Return True if a name's lock was found free before without a heartbeat since; else note that it is free."""
        seen, found = self._suspects.get(name, (math.nan, 0.0))
        if seen != last:
            self._suspects[name] = last, time.monotonic()
            return False
        return time.monotonic() - found >= SURE

    def suspects(self, names: Iterable[str]) -> bool:
        """Return True if any of the names may turn out to be dead at a look `SURE` seconds later."""
        begun = time.monotonic() - SURE
        return any(self._suspects.get(name, (0.0, -math.inf))[1] > begun for name in names)

    def stands_still(self, name: str) -> bool:
        """Return True if the process of that name was found to be alive but paused."""
        return name in self._still

    def close(self) -> None:
        """Release the name."""
        if self.leases is not None:
            with contextlib.suppress(ConfigurationError):
                self.leases.forget(self.name)
        self._locks.close()
