"""Second locks on a SQLite file, for programs whose tools read its folder.

SQLite locks its files with POSIX locks, which the process loses as soon as it closes any descriptor of them: a tool
that searches, copies or hashes the folder is enough. Other processes then believe that they are alone: the next one
that closes the file deletes the journal, two write at once, or a checkpoint overwrites pages that are being read. So
every process holds locks beside SQLite's, which reading does not free (`byte_locks.py`):

- as long as a connection is open, SQLite's own bytes for "this database is open", shared, in the file and in `-shm`.
  Every SQLite respects them, in any program: no process closes the file as the last, deletes the journal, or empties
  the index;
- a byte of ours for each transaction that writes, exclusive;
- a byte of ours for each use of a connection, shared; exclusive for a checkpoint and for closing as the last. So
  SQLite's own checkpoints are switched off. They are made here once as many pages wait as SQLite would let wait.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from durable_swarm.engine.database import byte_locks
from durable_swarm.engine.database.byte_locks import ByteLocks

_FILE_OPEN = (0x40000002, 510)
_INDEX_OPEN = 128
"""SQLite's bytes: those that readers of the file share, and those that all users of the index share."""

_USE, _TURN, _WRITE = ((1 << 62) + number for number in range(3))
"""Our bytes, beyond the end of any file. For exclusive use, lock `_TURN`, at which newcomers wait, then `_USE`."""

BUSY = 30.0
"""Seconds to wait for a lock, as SQLite does, before "database is locked"."""
PAGES, MANY = 1000, 2000
"""Pages in the journal that trigger a checkpoint, and those at which others wait until there is one."""
YIELDING = 1.0
"""Seconds that a use waits at most for those of other threads to end, so that a checkpoint can run."""
PATIENCE = 0.2
"""Seconds that a checkpoint waits at most for other processes."""
HEAD = 48
"""Bytes at the head of SQLite's index that are written anew with each transaction."""
AGAIN = 0.1
"""Seconds after a checkpoint that could not move all pages before there is another."""


Opened = TypeVar("Opened", bound=sqlite3.Connection)


def locked() -> sqlite3.OperationalError:
    """Return the error for a lock that others keep for too long."""
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return error


def _within(seconds: float, take: Callable[[], bool]) -> bool:
    """Try to take a lock for some seconds, at growing intervals."""
    end, pause = time.monotonic() + seconds, 0.0005
    while not take():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
    return True


def _must(take: Callable[[], bool]) -> None:
    if not _within(BUSY, take):
        raise locked()


class Guard:
    """The locks of this process on one SQLite file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = ByteLocks(path)
        self.active = self._file.outlives_readers
        """False if the system has no locks that outlive readers: only SQLite's own locks apply then."""
        self._index: ByteLocks | None = None
        self.connections = 0
        self._uses: list[int] = []
        """Threads that use a connection, once for each use."""
        self._change = threading.Condition(threading.RLock())
        self._writer = threading.Lock()
        self._many = False
        self._not_before = 0.0

    # Opening and closing

    def open(self, connect: Callable[[], Opened]) -> Opened:
        """Open a connection in WAL mode, after which no process closes the file as the last."""
        if self.active and self.connections == 0:
            self._hold(connect)
        use = self.enter()
        try:
            connection = _in_wal(connect())
            try:
                if not self.active:
                    return connection
                connection.execute("PRAGMA wal_autocheckpoint=0").close()
                self._hold_index()
            except BaseException:
                sqlite3.Connection.close(connection)
                raise
        finally:
            self.leave(use)
        return connection

    def _hold(self, connect: Callable[[], sqlite3.Connection]) -> None:
        """Lock the file as open. It must be in WAL mode already, because changing the mode needs exclusive access."""
        first: sqlite3.Connection | None = None
        try:
            if not self._is_wal():
                _must(lambda: self._file.exclusive(_USE))
                first = _in_wal(connect())
            _must(lambda: self._file.shared(*_FILE_OPEN))
        finally:
            if first is not None:
                sqlite3.Connection.close(first)
            self._file.free(_USE)

    def _is_wal(self) -> bool:
        return os.pread(self._file.file, 2, 18) == b"\x02\x02"

    def _hold_index(self) -> None:
        if self._index is None:
            index = ByteLocks(f"{self._path}-shm")
            _must(lambda: index.shared(_INDEX_OPEN))
            self._index = index

    def close(self, close: Callable[[], None]) -> None:
        """Close a connection. The last one lets SQLite clean up, if no other process has the file open."""
        self.connections -= 1
        if self.connections:
            close()
            return
        try:
            if self.active and _within(PATIENCE, lambda: self._file.exclusive(_USE)):
                if self._index is not None:
                    self._index.free(_INDEX_OPEN)
                self._file.free(*_FILE_OPEN)
            close()
        finally:
            self.close_all()

    def close_all(self) -> None:
        """Free all locks."""
        for locks in (self._index, self._file):
            if locks is not None:
                locks.free(0, 0)
                _parked.append(locks)
        _close_parked()

    def forget(self) -> None:
        """Drop all locks without freeing them: this is a forked child, and they belong to its parent."""
        self.active = False
        self._change = threading.Condition(threading.RLock())
        self._writer = threading.Lock()

    # Using

    def enter(self) -> int:
        """Begin to use a connection: no checkpoint runs until `leave`, which takes the returned value."""
        thread = threading.get_ident()
        with self._change:
            if self._many and thread not in self._uses:
                self._change.wait_for(lambda: not self._uses, YIELDING)
            if self.active and not self._uses:
                length = 2 if self._many else 1  # With `_TURN`, to wait behind a process that wants exclusive use.
                _must(lambda: self._file.shared(_USE, length))
                if self._many:
                    self._file.free(_TURN)
            self._uses.append(thread)
        return thread

    def leave(self, use: int, connection: sqlite3.Connection | None = None) -> None:
        """End a use; make the checkpoint that is due over the connection, if all other uses have ended."""
        with self._change:
            self._uses.remove(use)
            self._change.notify_all()
            is_due = connection is not None and self.active and self._waiting() > PAGES
            if self._uses or not self.active:
                return
            try:
                if connection is not None and is_due and time.monotonic() > self._not_before:
                    self._checkpoint(connection)
            finally:
                self._file.free(_USE, 2)

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        if self._many and self._file.exclusive(_TURN):
            taken = _within(PATIENCE, lambda: self._file.exclusive(_USE))
        else:
            taken = self._file.exclusive(_USE)
        if taken:
            with contextlib.suppress(sqlite3.Error):  # A full disk: reported at the next write.
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").close()
            if self._waiting() > PAGES:
                self._not_before = time.monotonic() + AGAIN

    def empty_journal(self, use: int, connection: sqlite3.Connection) -> None:
        """Move the whole journal into the file over a connection in use, if no other use interferes for a moment."""
        with self._change:
            alone = self._change.wait_for(lambda: self._uses == [use], PATIENCE)
            if not self.active or (alone and _within(PATIENCE, lambda: self._file.exclusive(_USE))):
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
                self._file.shared(_USE)

    def _waiting(self) -> int:
        """Return the number of journal pages that are not in the file yet, from the head of SQLite's index."""
        if self._index is None:
            return 0
        head = os.pread(self._index.file, 100, 0)
        written, moved = (int.from_bytes(head[start : start + 4], sys.byteorder) for start in (16, 96))
        self._many = written - moved > MANY
        return written - moved

    def head_of_index(self) -> bytes | None:
        """Return the head of SQLite's index: its number of the last transaction, its length and its checksum."""
        return None if self._index is None else os.pread(self._index.file, HEAD, 0)

    # Writing

    def begin(self) -> None:
        """Become the only writer among all threads and processes."""
        if not self._writer.acquire(timeout=BUSY):
            raise locked()
        if self.active and not _within(BUSY, lambda: self._file.exclusive(_WRITE)):
            self._writer.release()
            raise locked()

    def end(self) -> None:
        """Let others write."""
        if self.active:
            self._file.free(_WRITE)
        self._writer.release()


def _in_wal(connection: Opened) -> Opened:
    """Switch to WAL. Retry, because SQLite lets only one of several processes that open a new file wait its turn."""
    deadline = time.monotonic() + BUSY
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            return connection
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                connection.close()
                raise
        time.sleep(0.01)


_guards: dict[tuple[int, int], Guard] = {}
_lock = threading.RLock()
_parked: list[ByteLocks] = []
"""Unused openings of files that this process still has open elsewhere: closing them would free those locks."""


def open_guarded(path: str, connect: Callable[[], Opened]) -> tuple[Opened, Guard]:
    """Open a connection to an existing file, with the guard that all connections of this process share."""
    with _lock:
        found = Path(path).stat()
        key = (found.st_dev, found.st_ino)
        guard = _guards.get(key) or Guard(path)
        try:
            connection = guard.open(connect)
        except BaseException:
            if guard.connections == 0:
                guard.close_all()
            raise
        guard.connections += 1
        _guards[key] = guard
        return connection, guard


def head_of_index(path: str) -> bytes | None:
    """Return the head of SQLite's index of the journal, which no two transactions of any process leave the same.

    None where it cannot be told: this process has no connection to the file by `open_guarded`, or opens one just now.
    """
    if not _lock.acquire(blocking=False):
        return None
    try:
        found = Path(path).stat()
        guard = _guards.get((found.st_dev, found.st_ino))
        return None if guard is None else guard.head_of_index()
    except OSError:
        return None
    finally:
        _lock.release()


def close_guarded(guard: Guard, close: Callable[[], None]) -> None:
    """Close a connection; after the last one SQLite cleans up, if no other process has the file open."""
    with _lock:
        if guard.connections == 1:
            for key in [key for key, one in _guards.items() if one is guard]:
                del _guards[key]
        guard.close(close)


def _close_parked() -> None:
    for locks in list(_parked):
        if not _is_open_elsewhere(locks):
            _parked.remove(locks)
            locks.close()


def _is_open_elsewhere(locks: ByteLocks) -> bool:
    """Return True if this process has the same file open in another way."""
    ours, mine = {parked.file for parked in _parked}, os.fstat(locks.file)
    try:
        files = [int(path.name) for path in Path("/dev/fd").iterdir()]
    except OSError:
        return False
    for file in files:
        with contextlib.suppress(OSError):
            if file not in ours and os.path.samestat(os.fstat(file), mine):
                return True
    return False


def _forget() -> None:
    global _lock
    _lock = threading.RLock()
    for guard in _guards.values():
        guard.forget()
    _guards.clear()
    _parked.clear()


byte_locks.after_fork(_forget)
