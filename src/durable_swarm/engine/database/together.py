"""Writes of several threads to a SQLite file, committed together.

A commit waits for the disk, and SQLite has one writer at a time. So the thread that writes takes along what others ask
for meanwhile: their writes are one transaction. A thread that is alone waits for nobody.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import sqlalchemy

log = logging.getLogger("durable_swarm")

Write = Callable[[sqlalchemy.Connection], bool]
"""Writes all that belongs together, or nothing; returns True if it has written."""


@dataclass(eq=False)
class _Asked:
    write: Write
    turn: threading.Event = field(default_factory=threading.Event)
    """Set when the write is done, or when this thread is to write for the others."""
    done: bool = False
    written: bool = False


class Together:
    """The writes to one file. With `alone`, each is a transaction of its own."""

    alone = False

    def __init__(self, engine: sqlalchemy.Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._asked: list[_Asked] = []
        self._writing = False

    def made(self, write: Write) -> bool:
        """Return True once the write is on disk, and False if nothing of it was written, whatever the reason."""
        mine, leads = _Asked(write), False
        try:
            with self._lock:
                self._asked.append(mine)
                leads, self._writing = not self._writing, True
            if not leads:
                mine.turn.wait()
                leads = not mine.done
            if leads:
                self._lead(mine)
            return mine.written
        finally:  # Also if this thread was interrupted while it waited: somebody must write for the others.
            with self._lock:
                if mine in self._asked:
                    self._asked.remove(mine)
                if leads or (mine.turn.is_set() and not mine.done):
                    self._writing = bool(self._asked)
                    if self._asked:
                        self._asked[0].turn.set()

    def _lead(self, mine: _Asked) -> None:
        with self._lock:
            batch = [mine] if self.alone else self._asked
            self._asked = [one for one in self._asked if one not in batch]
        written = [False] * len(batch)
        try:
            with self._engine.begin() as connection:
                made = [one.write(connection) for one in batch]
            written = made
        except Exception:
            # It may be another's: a text that cannot be encoded. Nothing of the batch is written; each thread makes its
            # own write in another way, and learns why.
            log.debug("writes that met are made singly", exc_info=True)
        finally:
            for one, is_written in zip(batch, written, strict=True):
                one.done, one.written = True, is_written
                one.turn.set()
