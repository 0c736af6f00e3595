"""The events of all runs in one feed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from durable_swarm.engine.history.follower import EventReader
from durable_swarm.engine.records.encoding import Unreadable
from durable_swarm.engine.storage.changes import Mark
from durable_swarm.engine.storage.run_list import Query, listed
from durable_swarm.engine.storage.runs import Store
from durable_swarm.errors import ReplayMismatch, RunNotFound
from durable_swarm.events import Event
from durable_swarm.runs import State

MOST = 1000
"""The number of runs of one status that a feed follows at once: the newest."""

SOON, LATE = 0.25, 2.0
"""Seconds between looks at the runs in progress; and at all others, if nothing seems to have changed."""


@dataclass
class _Reader:
    events: EventReader
    mark: Mark | None = None
    last: int = 0
    """The number of the last event that was read."""


class Feed:
    """The events of all runs from now on: of runs in progress the new ones, of runs that start later all."""

    def __init__(self, store: Store, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._store = store
        self._since = now()
        self._readers: dict[str, _Reader] = {}
        self._over: dict[str, int] = {}
        """The runs that have ended, with the number of the last event."""
        self._mark: Mark | None = None
        self._due = 0.0
        for run_id in self._in_progress():
            list(self._news(run_id, self._take(run_id)))

    def read(self) -> list[tuple[str, Event]]:
        """Return the new events, each with the id of its run; those of one run in order."""
        mark = self._store.changes.of_database()
        if mark != self._mark or time.monotonic() > self._due:
            self._mark, self._due = mark, time.monotonic() + LATE
            for run_id in self._begun():
                if run_id not in self._readers:
                    self._take(run_id)
        found: list[tuple[str, Event]] = []
        for run_id, reader in list(self._readers.items()):
            found += [(run_id, event) for event in self._news(run_id, reader)]
        return found

    def _news(self, run_id: str, reader: _Reader) -> Iterator[Event]:
        mark = self._store.changes.of_run(run_id)
        if mark == reader.mark:
            return
        reader.mark = mark
        try:
            for event in reader.events.read():
                reader.last = event.seq
                yield event
        except (Unreadable, ReplayMismatch, RunNotFound):  # It has no events that can be read here, or is deleted.
            self._drop(run_id)
        if reader.events.over:
            self._drop(run_id)

    def _drop(self, run_id: str) -> None:
        self._over[run_id] = self._readers.pop(run_id).last

    def _take(self, run_id: str) -> _Reader:
        after = self._over.pop(run_id, 0)
        reader = _Reader(EventReader(lambda: self._store, run_id, after), last=after)
        self._readers[run_id] = reader
        return reader

    def _in_progress(self) -> list[str]:
        states: tuple[State, ...] = ("running", "waiting", "queued")
        return [row.workflow_id for state in states for row in listed(self._store, Query(state, limit=MOST))]

    def _begun(self) -> list[str]:
        """Return the runs that were started since the feed began and were not read, and those that were resumed."""
        started = [row.workflow_id for row in reversed(listed(self._store, Query(since=self._since, limit=MOST)))]
        return [*(run_id for run_id in started if run_id not in self._over), *self._in_progress()]
