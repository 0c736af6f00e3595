"""Begins the runs of schedules, in every process that has a swarm of their name open.

The run of an occurrence has an id made of the schedule's name and the time, so however many processes look, it begins
once. The next time is set after the run is recorded: a process that dies in between leaves an occurrence that the next
one begins again, under the same id.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from durable_swarm.engine.execution.swarms import Swarms
from durable_swarm.engine.storage.runs import Store
from durable_swarm.errors import DurableSwarmError

log = logging.getLogger("durable_swarm")

EVERY = 2.0
"""Seconds between looks at the table: schedules of other processes are found so soon."""


class ScheduleWatch:
    """Looks for schedules that are due."""

    def __init__(self, store: Store, swarms: Swarms) -> None:
        self._store = store
        self._swarms = swarms
        self._next = 0.0

    def hurry(self) -> None:
        """Look at the table at the next look."""
        self._next = 0.0

    def look(self, clock: Callable[[], float] = time.time) -> None:
        """Begin what is due."""
        now = clock()
        if now < self._next:
            return
        self._next = now + EVERY
        for row in self._store.schedules.ahead({swarm.name for swarm in self._swarms}):
            swarm, first = self._swarms.named(row.swarm), row.next_at
            if swarm is None or first is None:
                continue
            if first.timestamp() > now:
                self._next = min(self._next, first.timestamp())
                break
            moment = datetime.fromtimestamp(now, UTC)
            try:
                for at in row.timing.due(first, moment):
                    swarm.begin_occurrence(row, at)
                self._store.schedules.advance(row, row.timing.next_after(max(first, moment)))
            except DurableSwarmError as error:
                log.warning("schedule %r begins nothing: %s", row.name, error)
