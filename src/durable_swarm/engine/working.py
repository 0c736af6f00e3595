"""What makes a process a worker: the queues that it serves, and the runs that it leaves to others."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError

from durable_swarm import errors
from durable_swarm.engine import internals, records
from durable_swarm.engine.keeper import CLOSING
from durable_swarm.engine.live import Limits

if TYPE_CHECKING:
    from durable_swarm.engine.process import Process

POLL, PATIENCE = 0.1, 5.0
"""Seconds between a worker's looks at its queue; and until a run that waits in a worker leaves its place to another."""


class Working:
    """The work that a process does for others; none, until it serves a queue."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._served: list[tuple[Any, int]] = []
        """The queues, and how many runs are executed at once."""

    def serve(self, swarm: str, limits: Limits) -> None:
        """Execute the queued runs of a swarm from now on, and those of dead processes."""
        rate = None if limits.rate is None else {"limit": limits.rate[0], "period": limits.rate[1]}
        queue = internals.serve_queue(
            records.work_queue(swarm),
            POLL,
            worker_concurrency=limits.concurrency,
            global_concurrency=limits.queue_concurrency,
            limiter=rate,
        )
        self._served.append((queue, limits.concurrency))
        self._process.room.patience = PATIENCE

    def look(self) -> None:
        """Begin less from the queues while more comes from elsewhere."""
        for queue, concurrency in self._served:
            internals.limit_queue(queue, concurrency, len(self._process.runs))

    def keep(self) -> None:
        """Leave to others what cannot go on here, and look for what the dead have left."""
        if self._served:
            self._offer()
            self._process.orphans.look_for_dead()

    def _offer(self) -> None:
        """Leave runs to workers that have what they need: another program, another key."""
        here = self._process
        for_others = {run_id for run_id, why in list(here.held.items()) if not isinstance(why, errors.AgentChanged)}
        if stopped := for_others & here.orphans.interrupted:
            here.orphans.offer(stopped)
            for run_id in stopped:
                here.held.pop(run_id, None)

    def drain(self, seconds: float) -> bool:
        """Begin nothing more, and wait until what is under way has come to a record; False if that takes longer."""
        here = self._process
        here.closing.set()
        here.room.close()
        internals.stop_queues(CLOSING)
        end = time.monotonic() + seconds
        self._leave()
        while here.runs and time.monotonic() < end:
            time.sleep(0.05)
            if here.orphans.interrupted:
                self._leave()
        return not here.runs

    def _leave(self) -> None:
        """Leave to others what has stopped here, without waiting for the end of this process."""
        orphans = self._process.orphans
        with contextlib.suppress(errors.ConfigurationError, SQLAlchemyError):
            orphans.offer(set(orphans.interrupted), handed=True)

    def close(self) -> None:
        """Serve no queue any more."""
        for queue, _ in self._served:
            internals.forget_queue(queue.name)
