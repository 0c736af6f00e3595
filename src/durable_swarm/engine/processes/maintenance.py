"""The maintenance of a process: the thread that looks for decisions, resumptions and runs left by other processes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError

from durable_swarm.credentials import without_secrets
from durable_swarm.engine.backend import queues
from durable_swarm.engine.processes.changes import ChangeWatch
from durable_swarm.engine.storage.ownership import now
from durable_swarm.engine.storage.requests import LONGEST
from durable_swarm.engine.storage.retention import Retention
from durable_swarm.engine.storage.runs import Store
from durable_swarm.errors import DurableSwarmError

LENGTH = 500
"""Maximum characters of a job's error."""

log = logging.getLogger("durable_swarm")

FAST, EXPECTED, REMAINS = 0.05, 3.0, 0.1
"""Seconds between looks at the queue of this process, and for which it is open: for a new run, and for one that stays.
"""
TICK, LOOK, KEEP = 0.05, 0.25, 2.0
"""Seconds between looks for changes, between rounds, and at least between two times of what is less urgent."""
CLOSING = 5.0
"""Maximum seconds that closing waits for a round in progress."""


@dataclass
class Job:
    """One thing that a process does in each round, or after these seconds; `error` is that of the last time.

    With `wants`, it is done only if the database may have changed since the last time, if that failed, or if `wants`
    returns True. It must find everything that changes in the database, because it may not be done again otherwise.
    """

    name: str
    do: Callable[[], object]
    seconds: float = 0.0
    wants: Callable[[], bool] | None = None
    error: str | None = None
    done: float = field(default_factory=time.monotonic)
    changes: int = -1

    def is_due(self, present: float, changes: int) -> bool:
        """Return True if it is to be done now; `changes` is the number of changes until now."""
        if present < self.done + self.seconds:
            return False
        return self.wants is None or self.changes != changes or self.error is not None or self.wants()

    def run(self, present: float, changes: int) -> None:
        """Do it once. An error is kept; it is logged when it is new, unless the database tells it where it is used."""
        self.done, self.changes = present, changes
        before, self.error = self.error, None
        try:
            self.do()
        except Exception as error:
            self.error = without_secrets(f"{type(error).__name__}: {error}")[:LENGTH]
            if self.error != before and not isinstance(error, SQLAlchemyError | DurableSwarmError):
                log.warning("maintenance: %s failed, and is tried again", self.name, exc_info=True)


def only_on_change() -> bool:
    """Return False, as the `wants` of a job that has nothing to do while the database does not change."""
    return False


class MaintenanceLoop:
    """Does jobs, each by itself, until it is closed; also lets DBOS look at our queue while a run may be there.

    `is_away` returns True while the database cannot be used, which ends a round: the other jobs would wait for it, too.
    """

    def __init__(
        self, queue: queues.ServedQueue, jobs: Sequence[Job], changes: ChangeWatch, is_away: Callable[[], bool]
    ) -> None:
        self._queue = queue
        self._jobs = jobs
        self._changes = changes
        self._open_until = 0.0
        self._is_away = is_away
        self._hurry = threading.Event()
        self._closed = False
        self.expect()
        self._thread = threading.Thread(target=self._work, name="durable-swarm-keeper", daemon=True)
        self._thread.start()

    def hurry(self) -> None:
        """Begin a round at once, because something has changed."""
        self._changes.touch()
        self._hurry.set()

    def expect(self, seconds: float = EXPECTED) -> None:
        """Make DBOS look at the queue for some seconds, because a run is there or is about to arrive."""
        self._open_until = max(self._open_until, time.monotonic() + seconds)
        queues.open_queue(self._queue, True)

    def errors(self) -> dict[str, str]:
        """Return the errors of the jobs that failed the last time, by their names."""
        return {job.name: error for job in self._jobs if (error := job.error) is not None}

    def close(self) -> None:
        """Stop.

        A round in progress is awaited, because its connection must not be closed during it.
        """
        self._closed = True
        self._hurry.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSING)

    def _work(self) -> None:
        began, known, quiet = time.monotonic(), self._changes.count, False
        while not self._closed:
            hurries = self._hurry.wait(TICK)
            self._hurry.clear()
            present = time.monotonic()
            queues.open_queue(self._queue, present <= self._open_until)
            self._changes.look()
            changed = self._changes.count != known
            if hurries or present >= began + LOOK or (changed and quiet):
                # After a quiet time at once, then at most every `LOOK`: other processes may write all the time.
                began, known, quiet = present, self._changes.count, not changed
                self._round(present)

    def _round(self, present: float) -> None:
        for job in self._jobs:
            if self._closed:
                return
            changes = self._changes.count
            if job.is_due(present, changes):
                job.run(present, changes)
                if job.error is not None and self._is_away():
                    return


SOME, EVERY = 200, 3600.0
"""Maximum runs deleted per look, and seconds between looks if that limit was not reached."""


class Sweeper:
    """Deletes expired runs of this process's swarms from time to time (`DurableSwarm(keep_for=...)`)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._next = 0.0

    def look(self, kept: Iterable[tuple[str, float | None]]) -> None:
        """Delete some expired runs, given for each swarm name the seconds for which ended runs are kept."""
        if time.monotonic() < self._next:
            return
        more = False
        for swarm, seconds in kept:
            if seconds is not None:
                before = now() - round(min(seconds, LONGEST) * 1000)
                deleted = Retention(self._store, before, swarm=swarm).delete(SOME)
                if deleted:
                    log.info(
                        "deleted %d runs of swarm %r, which keeps them for %g s (keep_for)", deleted, swarm, seconds
                    )
                more |= deleted >= SOME
        self._next = time.monotonic() + (0 if more else EVERY)
