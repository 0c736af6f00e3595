"""Begins the runs of schedules, in every process that has a swarm of their name open.

The run of an occurrence has an id made of the schedule's name and the time, so however many processes look, it begins
once. The next time is set after the run is recorded: a process that dies in between leaves an occurrence that the next
one begins again, under the same id.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime

from durable_swarm.engine.execution.swarms import Swarms
from durable_swarm.engine.storage.runs import Store
from durable_swarm.errors import DurableSwarmError

log = logging.getLogger("durable_swarm")

EVERY = 2.0
"""Seconds between looks at the table, if it may have changed, and before one that failed begins again."""


class ScheduleWatch:
    """Looks for schedules that are due."""

    def __init__(self, store: Store, swarms: Swarms) -> None:
        self._store = store
        self._swarms = swarms
        self._next = 0.0
        """When to read the table, in seconds since 1970."""

    def hurry(self) -> None:
        """Read the table at the next look, because it may have changed."""
        self._next = 0.0

    def look(self, clock: Callable[[], float] = time.time) -> None:
        """Begin what is due. The table is read only if something is, or after `hurry`."""
        now = clock()
        if now < self._next:
            return
        self._next, planned, soonest = now + EVERY, math.inf, math.inf
        for row in self._store.schedules.ahead({swarm.name for swarm in self._swarms}):
            swarm, first = self._swarms.named(row.swarm), row.next_at
            if swarm is None or first is None:
                continue
            if first.timestamp() > now:
                planned = first.timestamp()
                break
            moment, soonest = datetime.fromtimestamp(now, UTC), now + EVERY
            try:
                for at in row.timing.due(first, moment):
                    swarm.begin_occurrence(row, at)
                self._store.schedules.advance(row, row.timing.next_after(max(first, moment)))
            except DurableSwarmError as error:
                log.warning("schedule %r begins nothing: %s", row.name, error)
        self._next = min(planned, soonest)
