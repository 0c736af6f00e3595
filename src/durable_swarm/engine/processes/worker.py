"""What makes a process a worker: the queues that it serves, and the runs that it leaves to others."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError

from durable_swarm import agents, errors
from durable_swarm.engine.backend import queues
from durable_swarm.engine.execution.swarms import QueueLimits, Settings
from durable_swarm.engine.processes.maintenance import CLOSING
from durable_swarm.engine.records import names
from durable_swarm.engine.storage.runs import QUEUED, notes_on

if TYPE_CHECKING:
    from durable_swarm.engine.processes.process import Process

POLL, PATIENCE = 0.1, 5.0
"""Seconds between a worker's looks at its queue; and until a run that waits in a worker leaves its place to another."""
IN_THREADS = 32
"""How many runs at most are executed in a thread each, where nothing in them is to be awaited: that costs least."""
FIRST, LONGEST = 1.0, 5.0
"""Seconds for which a worker begins nothing from its queue after a run that it cannot execute: at first, at most."""


class QueueWorker:
    """The work that a process does for others; none, until it serves a queue."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._served: dict[Settings, tuple[Any, int]] = {}
        """The queues of swarms, and how many runs are executed at once."""
        self._works = False
        """Whether a queue was ever served here: what was claimed from it last may not go on, either."""
        self._pause, self._until = 0.0, 0.0
        """For how many seconds, and until when, others go first, who may have what this worker lacks."""

    def serve(self, swarm: Settings, limits: QueueLimits) -> None:
        """Execute the queued runs of a swarm from now on, and those of dead processes."""
        rate = None if limits.rate is None else {"limit": limits.rate[0], "period": limits.rate[1]}
        queue = queues.serve_queue(
            names.work_queue(swarm.name),
            POLL,
            worker_concurrency=limits.concurrency,
            global_concurrency=limits.queue_concurrency,
            limiter=rate,
            by_thread=lambda: limits.concurrency <= IN_THREADS and swarm.clients.is_blocking and agents.is_blocking(),
        )
        self._served[swarm] = queue, limits.concurrency
        self._works = True
        self._process.room.patience = PATIENCE

    def queue_of(self, row: Any) -> str:
        """Give the queue for which a run was started, if it is served here, else ''."""
        noted = notes_on(row)
        served = any(swarm.name == noted.get("swarm") for swarm in self._served)
        return names.work_queue(noted["swarm"]) if served and noted.get(QUEUED) is True else ""

    def look(self) -> None:
        """Begin less from the queues while more comes from elsewhere, or runs that cannot go on here."""
        for queue, concurrency in list(self._served.values()):
            suspended_on = time.monotonic() < self._until or self._process.trials.is_alone
            most = 0 if suspended_on else concurrency
            queues.limit_queue(queue, most, len(self._process.runs))

    def back_off(self) -> None:
        """Let others go first for a while, and for longer each time: a run cannot go on here, and more may follow."""
        if time.monotonic() >= self._until:
            self._pause = min(2 * self._pause or FIRST, LONGEST)
            self._until = time.monotonic() + self._pause
            self.look()

    def fit(self) -> None:
        """Note that a run from the queue goes on here."""
        self._pause = 0.0

    def keep(self) -> None:
        """Leave to others what cannot go on here, and look for what the dead have left."""
        self._offer()
        if self._served:
            self._process.orphans.look_for_dead()

    def _offer(self) -> None:
        """Leave runs to workers that have what they need: another program, another key."""
        here = self._process
        for_others = {run_id for run_id, why in list(here.held.items()) if self._is_for_others(why)}
        if stopped := for_others & here.orphans.interrupted:
            here.orphans.offer(stopped)
            for run_id in stopped:
                here.held.pop(run_id, None)

    def _is_for_others(self, reason: errors.DurableSwarmError) -> bool:
        """Whether another process may have what a held run lacks here: only workers leave all of what they hold."""
        if isinstance(reason, errors.ModelError):  # The key of this process was refused.
            return True
        return self._works and not isinstance(reason, errors.AgentChanged)

    def drain(self, seconds: float) -> bool:
        """Begin nothing more, and wait until what is under way has come to a record; False if that takes longer."""
        here = self._process
        here.is_closed = True
        here.room.close()
        queues.stop_queues(CLOSING)
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

    def stop(self, swarm: Settings) -> None:
        """Begin no more of the queued runs of a swarm, which is closed."""
        queue, _ = self._served.pop(swarm, (None, 0))
        if queue is not None and all(queue is not other for other, _ in self._served.values()):
            queues.forget_queue(queue)
