"""Notices that the database may have changed, so that a process with nothing to do asks it almost nothing.

SQLite's index shows each transaction of any process. On PostgreSQL our own writes notify the other processes; what else
writes (DBOS itself, when a time has come, or an earlier version) is found by comparing marks from time to time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from durable_swarm.engine.storage.changes import Mark
from durable_swarm.engine.storage.ownership import now

SOON, MARK = 1.0, 3.0
"""Seconds between two comparisons of marks: after a notification, and otherwise."""
ANYWAY = 30.0
"""Seconds after which everything is looked at, whatever was noticed."""
LATE = 3.0
"""Seconds after its time in which DBOS queues a run that was to wait until then; its processes look once a second."""


class ChangeWatch:
    """Counts the moments at which the database may have changed. Any thread may read and `touch` it.

    `heard` returns True if it may have changed since the last call, at the cost of no statement. `compare` returns a
    mark of the database, and the next time, in milliseconds since 1970, for which a run waits.
    """

    def __init__(self, heard: Callable[[], bool], compare: Callable[[], tuple[Mark, int | None]]) -> None:
        self._heard = heard
        self._compare = compare
        self._mark: Mark | None = None
        self._compared = 0.0
        self._next: int | None = None
        self._anyway = time.monotonic() + ANYWAY
        self.count = 0

    def touch(self) -> None:
        """Note a change that only this process knows of."""
        self.count += 1

    def look(self) -> None:
        """Count a change, if there may have been any. It sends no statement."""
        present = time.monotonic()
        comes = self._next is not None and 0 <= now() - self._next <= LATE * 1000
        if self._heard() or comes or present >= self._anyway:
            self._anyway = present + ANYWAY
            self.count += 1

    def is_due(self) -> bool:
        """Return True if marks are to be compared although nothing was noticed since the last time."""
        return time.monotonic() - self._compared >= MARK

    def compare(self) -> None:
        """Count a change if the mark of the database is not the last one."""
        self._compared = time.monotonic()
        mark, self._next = self._compare()
        if mark != self._mark:
            self._mark = mark
            self.count += 1
