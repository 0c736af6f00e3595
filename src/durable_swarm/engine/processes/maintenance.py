"""The maintenance thread of a process: it looks for decisions, resumptions and runs left by other processes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from durable_swarm.engine.backend import queues
from durable_swarm.engine.storage.ownership import now
from durable_swarm.engine.storage.requests import LONGEST
from durable_swarm.engine.storage.retention import Retention
from durable_swarm.engine.storage.runs import Store
from durable_swarm.errors import DurableSwarmError

log = logging.getLogger("durable_swarm")

FAST, SLOW = 0.05, 0.25
"""Seconds between looks at the queue of runs taken over: just after a takeover, and otherwise."""
LOOK, KEEP = 0.25, 2.0
"""Seconds between calls of `look`, and of `keep`."""
CLOSING = 5.0
"""Maximum seconds that closing waits for a look in progress."""


class MaintenanceLoop:
    """Calls `look` often and `keep` less often, until it is closed; also sets how often DBOS looks at our queue."""

    def __init__(self, queue: Any, look: Callable[[], None], keep: Callable[[], None]) -> None:
        self._queue = queue
        self._look = look
        self._keep = keep
        self._hurry = threading.Event()
        self._closed = False
        self.expect()
        self._thread = threading.Thread(target=self._work, name="durable-swarm-keeper", daemon=True)
        self._thread.start()

    def hurry(self) -> None:
        """Look at once."""
        self._hurry.set()

    def expect(self) -> None:
        """Make DBOS look at the queue often for some seconds, because a run is about to arrive."""
        self._fast_until = time.monotonic() + 3
        queues.set_poll(self._queue, FAST)

    def close(self) -> None:
        """Stop looking.

        A look in progress is awaited, because its connection must not be closed during it.
        """
        self._closed = True
        self._hurry.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSING)

    def _work(self) -> None:
        kept = time.monotonic()
        while True:
            self._hurry.wait(LOOK)
            self._hurry.clear()
            if self._closed:
                return
            if time.monotonic() > self._fast_until:
                queues.set_poll(self._queue, SLOW)
            self._try(self._look)
            if time.monotonic() - kept > KEEP:
                kept = time.monotonic()
                self._try(self._keep)

    def _try(self, look: Callable[[], None]) -> None:
        try:
            look()
        except (SQLAlchemyError, DurableSwarmError):
            pass  # Reported where the database is used; the next look may succeed.
        except Exception:
            # Answers, resumptions and takeovers would stop if this thread ended.
            log.warning("could not look for what others have decided", exc_info=True)


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
