"""The worker part of a process: the queues that it serves, and the runs that it leaves to others."""

from __future__ import annotations

import contextlib
import threading
import time
from functools import cached_property
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from durable_swarm import agents, errors
from durable_swarm.engine.backend import queues
from durable_swarm.engine.execution.execution import Execution
from durable_swarm.engine.execution.swarms import QueueLimits, Settings
from durable_swarm.engine.processes.local_runs import INTERRUPTED
from durable_swarm.engine.processes.maintenance import CLOSING
from durable_swarm.engine.processes.report import ProcessReport
from durable_swarm.engine.records import names
from durable_swarm.engine.records.rows import RunRow
from durable_swarm.engine.storage.process_facts import QueueFacts
from durable_swarm.engine.storage.run_state import QUEUED, notes_on

if TYPE_CHECKING:
    from durable_swarm.engine.processes.process import Process

POLL, PATIENCE = 0.1, 5.0
"""Seconds between a worker's looks at its queue; and until a run that waits in a worker gives its slot to another."""
IN_THREADS = 32
"""Maximum runs executed in a thread each, where nothing in them is to be awaited: that costs least."""
FIRST, LONGEST = 1.0, 5.0
"""Back-off after claiming a run that this worker cannot execute: initial and maximum seconds."""


class QueueWorker:
    """The work that a process does for others; none, until it serves a queue."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._looking = threading.Lock()
        """Held from the count of the executions to the limit that follows from it."""
        self._served: dict[Settings, tuple[queues.ServedQueue, int]] = {}
        """The queues of swarms, and how many runs are executed at once."""
        self._works = False
        """True if a queue was ever served here: the last runs claimed from it may be unable to continue, too."""
        self._limits: dict[Settings, QueueLimits] = {}
        """What was given with them."""
        self._pause, self._until = 0.0, 0.0
        """The seconds, and the end, of the back-off that lets workers with the missing part go first."""

    @cached_property
    def _report(self) -> ProcessReport:
        return ProcessReport(self._process.store, self._process.identity.name)

    def serve(self, swarm: Settings, limits: QueueLimits) -> None:
        """Execute the queued runs of a swarm from now on, and those of dead processes."""
        rate: queues.QueueRate | None = (
            None if limits.rate is None else {"limit": limits.rate[0], "period": limits.rate[1]}
        )
        queue = queues.serve_queue(
            names.work_queue(swarm.name),
            POLL,
            worker_concurrency=limits.concurrency,
            global_concurrency=limits.queue_concurrency,
            limiter=rate,
            by_thread=lambda: limits.concurrency <= IN_THREADS and swarm.clients.is_blocking and agents.is_blocking(),
        )
        self._served[swarm], self._limits[swarm] = (queue, limits.concurrency), limits
        self._works = True
        self._process.waiting_calls.patience = PATIENCE

    def queue_of(self, row: RunRow) -> str:
        """Return the queue for which a run was started, if it is served here, else ''."""
        noted = notes_on(row)
        served = any(swarm.name == noted.get("swarm") for swarm in self._served)
        return names.work_queue(noted["swarm"]) if served and noted.get(QUEUED) is True else ""

    def look(self) -> None:
        """Begin fewer runs from the queues while more come from elsewhere, or while runs cannot continue here."""
        with self._looking:
            for swarm, (queue, concurrency) in list(self._served.items()):
                suspended_on = time.monotonic() < self._until or self._process.crash_guard.is_alone
                # DBOS counts the runs that it has claimed from the queue, begun or not: these are all the others.
                others = sum(
                    run.swarm.name == swarm.name and run.queue != queue.name
                    for run in list(self._process.local.executions.values())
                )
                queues.limit_queue(queue, 0 if suspended_on else concurrency - others)

    def entered(self, run: Execution) -> None:
        """Note that the execution of a run has begun: one that came from elsewhere takes a place at once."""
        if self._served and not run.queue:
            self.look()

    def back_off(self) -> None:
        """Back off, longer each time: a run cannot continue here, and more may follow."""
        if time.monotonic() >= self._until:
            self._pause = min(2 * self._pause or FIRST, LONGEST)
            self._until = time.monotonic() + self._pause
            self.look()

    def fit(self) -> None:
        """Note that a run from the queue continues here."""
        self._pause = 0.0

    def keep(self) -> None:
        """Leave runs that cannot continue here to others, and look for runs left by dead processes."""
        self._offer()
        if self._served:
            self._process.recovery.look_for_dead()

    def report(self, failing: dict[str, str]) -> None:
        """Report what this process is and serves, and which jobs of its maintenance fail."""
        self._report.look(sorted({swarm.name for swarm in self._process.swarms}), self._queues(), failing)

    def close(self) -> None:
        """Take this process from those that work on the database."""
        with contextlib.suppress(errors.ConfigurationError, SQLAlchemyError):
            self._report.end()

    def _queues(self) -> dict[str, QueueFacts]:
        """Return the queues that are served here, by the names of their swarms, as they are reported."""
        return {
            swarm.name: {"places": limits.concurrency, "everywhere": limits.queue_concurrency, "rate": limits.rate}
            for swarm, limits in self._limits.items()
        }

    def _offer(self) -> None:
        """Leave runs to workers that have what they need: another program, another key."""
        here = self._process
        held = here.local.in_state("held")
        if for_others := {run_id for run_id, run in held.items() if run.held and self._is_for_others(run.held)}:
            here.recovery.offer(for_others)

    def _is_for_others(self, reason: errors.DurableSwarmError) -> bool:
        """Return True if another process may have what a held run lacks here: only workers leave all held runs."""
        if isinstance(reason, errors.ModelError):  # The key of this process was refused.
            return True
        return self._works and not isinstance(reason, errors.AgentChanged)

    def drain(self, seconds: float) -> bool:
        """Begin no more runs, and wait until those in progress reach a record; return False if that takes longer."""
        here = self._process
        here.is_closed = True
        here.waiting_calls.close()
        queues.stop_queues(CLOSING)
        end = time.monotonic() + seconds
        self._leave()
        while here.local.executions and time.monotonic() < end:
            time.sleep(0.05)
            if here.local.in_state(*INTERRUPTED):
                self._leave()
        return not here.local.executions

    def _leave(self) -> None:
        """Leave the runs that have stopped here to others, without waiting for the end of this process."""
        here = self._process
        with contextlib.suppress(errors.ConfigurationError, SQLAlchemyError):
            here.recovery.offer(here.local.in_state(*INTERRUPTED), handed=True)

    def stop(self, swarm: Settings) -> None:
        """Stop beginning queued runs of a swarm, which is closed."""
        queue, _ = self._served.pop(swarm, (None, 0))
        self._limits.pop(swarm, None)
        if queue is not None and all(queue is not other for other, _ in self._served.values()):
            queues.forget_queue(queue)
