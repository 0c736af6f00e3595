"""Locks on bytes of a file that belong to one opening of it.

A POSIX lock (`fcntl.lockf`) belongs to the process and is freed when the process closes *any* descriptor of the file,
as every tool does that reads, copies or hashes it. An open-file-description lock is freed only by closing its own
descriptor or by the death of the process. The two kinds exclude each other, so programs of earlier releases, which take
POSIX locks on the same bytes, are excluded too.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import struct
import sys
import weakref
from collections.abc import Callable
from typing import Any

from durable_swarm.errors import ConfigurationError

log = logging.getLogger("durable_swarm")


def _import_fcntl() -> Any:
    try:
        return importlib.import_module("fcntl")
    except ImportError:  # Windows.
        return None


_fcntl = _import_fcntl()

_MACOS = sys.platform == "darwin"
_SETLK = 90 if _MACOS else getattr(_fcntl, "F_OFD_SETLK", 37)
"""The command for a lock of an open file description; macOS has it since 10.11, but not in Python's module."""


def require() -> None:
    """Raise `ConfigurationError` on a system without file locks."""
    if _fcntl is None:
        raise ConfigurationError(
            "DurableSwarm needs Linux or macOS, because it locks files with fcntl; on Windows use WSL, or Swarm, which "
            "keeps runs in memory"
        )


class ByteLocks:
    """An opening of a file, for locks on its bytes. A forked child process does not keep them."""

    def __init__(self, path: str, flags: int = os.O_RDWR) -> None:
        require()
        self.file = os.open(path, flags | os.O_CLOEXEC, 0o600)
        self.outlives_readers = self._has_own_locks()
        """True if reading and closing the file elsewhere in this process frees no lock."""
        if not self.outlives_readers:
            log.warning(
                "this system has no open-file-description locks: a program that reads %s in its own process frees its "
                "locks. Keep tools away from the database's files, or use PostgreSQL.",
                path,
            )
        _open.add(self)

    def exclusive(self, start: int, length: int = 1) -> bool:
        """Lock bytes for this opening alone; return False if another opening holds one of them."""
        return self._set(_fcntl.F_WRLCK, start, length)

    def shared(self, start: int, length: int = 1) -> bool:
        """Lock bytes together with other openings that share them; return False if one of them is held exclusively."""
        return self._set(_fcntl.F_RDLCK, start, length)

    def free(self, start: int, length: int = 1) -> None:
        """Unlock bytes."""
        self._set(_fcntl.F_UNLCK, start, length)

    def number(self) -> int:
        """Return the system's number (inode) of the opened file."""
        return os.fstat(self.file).st_ino

    def close(self) -> None:
        """Free all locks of this opening."""
        _open.discard(self)
        if self.file >= 0:
            file, self.file = self.file, -1
            os.close(file)

    def _set(self, kind: int, start: int, length: int) -> bool:
        if self.file < 0:
            return False  # Closed, or inherited by a fork.
        try:
            if self.outlives_readers:
                _fcntl.fcntl(self.file, _SETLK, _description(kind, start, length))
            else:
                command = {_fcntl.F_WRLCK: _fcntl.LOCK_EX, _fcntl.F_RDLCK: _fcntl.LOCK_SH, _fcntl.F_UNLCK: 0}[kind]
                _fcntl.lockf(self.file, command | _fcntl.LOCK_NB if command else _fcntl.LOCK_UN, length, start)
        except OSError:
            return False
        return True

    def _has_own_locks(self) -> bool:
        try:
            _fcntl.fcntl(self.file, _SETLK, _description(_fcntl.F_UNLCK, 0, 1))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return False
        return True


def _description(kind: int, start: int, length: int) -> bytes:
    """Return the system's `struct flock`; the process id in it must be 0."""
    if _MACOS:
        return struct.pack("@qqihh", start, length, 0, kind, os.SEEK_SET)
    return struct.pack("@hhqqi4x", kind, os.SEEK_SET, start, length, 0)


_open: weakref.WeakSet[ByteLocks] = weakref.WeakSet()


def _close_after_fork() -> None:
    # A child shares the descriptions. If it kept them, the locks would outlive its parent, and hide the parent's death.
    for locks in list(_open):
        locks.close()
    for forget in _forgetting:
        forget()


_forgetting: list[Callable[[], None]] = []


def after_fork(forget: Callable[[], None]) -> None:
    """Call `forget` in every forked child, once its locks are closed."""
    _forgetting.append(forget)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_after_fork)
