"""Finds unfinished runs that no living process executes, and takes them over."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

from durable_swarm import agents, errors
from durable_swarm.engine.backend import queues
from durable_swarm.engine.execution.swarms import Settings
from durable_swarm.engine.processes.identity import SURE
from durable_swarm.engine.processes.local_runs import INTERRUPTED
from durable_swarm.engine.processes.maintenance import EXPECTED, REMAINS
from durable_swarm.engine.records import names as records_names
from durable_swarm.engine.records.executions import DIED, HANDED, STOPPED, EndedExecution, read_ended, with_ended
from durable_swarm.engine.records.rows import RunRow
from durable_swarm.engine.storage.ownership import now
from durable_swarm.engine.storage.run_state import NEEDS, PAUSES, QUEUED, notes_on, owner_of
from durable_swarm.runs import ENDED

if TYPE_CHECKING:
    from durable_swarm.engine.processes.process import Process

log = logging.getLogger("durable_swarm")

TOLD = 5
"""How many of the runs taken over from one process the log names."""


class Recovery:
    """Looks for unfinished runs whose owner is dead, and whose agents are defined here."""

    def __init__(self, process: Process, *, strangers: bool) -> None:
        self._process = process
        self._strangers = strangers
        """True if an earlier process used the same `worker_id`: its unfinished runs carry our name but nobody runs
        them."""
        self.taken: set[str] = set()
        """Runs that were ever taken over here."""
        self.wanted: set[str] = set()
        """Names of agents for which runs wait; defining one starts a look for them."""
        self._doubtful = False
        """True if a process that has runs may turn out to be dead at the next look."""
        self._later: threading.Thread | None = None
        """Looks again, some time after the very first look."""
        self._tells_no_client = False
        """True if the lack of a model client in this process was logged."""
        self._handed: set[str] = set()
        """What waited on the queue of this process at the last look."""
        self._unclaimed = False
        """True if runs waited for any process then, which may be this one later."""

    def take(self, *run_ids: str, sure: bool = False) -> list[str]:
        """Take over the unfinished runs that no living process executes and whose agents are defined here.

        With `run_ids`, only those; without, also those that were declined. With `sure`, wait until the death of each
        suspected process is certain or disproved; else the next look decides. Returns the ids of the runs taken over.
        """
        if not run_ids:
            self._process.local.decline_none()
        if sure and self._later is not None:
            self._later.join()
        taken = self._take(run_ids)
        if sure and self._doubtful:
            time.sleep(SURE)
            taken += self._take(run_ids)
        return taken

    def begin(self, *told: list[str]) -> None:
        """Take over the runs of dead processes at first use and add them to the lists: some of them a little later."""

        def tell(taken: list[str]) -> None:
            for some in told:
                some.extend(taken)

        tell(self.take())
        if self._doubtful:

            def again() -> None:
                time.sleep(SURE)
                tell(self._take_quietly())

            self._later = threading.Thread(target=again, name="durable-swarm-take-over", daemon=True)
            self._later.start()

    def _take(self, run_ids: tuple[str, ...]) -> list[str]:
        here = self._process
        if here.is_closed:  # Or about to be: runs taken now would wait for its end.
            return []
        with here.identity.alone():
            rows = here.store.unfinished(here.version)
            abandoned = [row for row in rows if self._is_abandoned(row)]
            self._strangers = False
            self._doubtful = here.identity.suspects({owner_of(row) for row in rows})
            wanted = [row for row in abandoned if row.workflow_id in run_ids or not (run_ids or self._is_declined(row))]
            runs = [row for row in wanted if self._can_run(row)]
            runs = self._without_queued(runs)
            return sorted(self._claim(runs)) if runs else []

    def _without_queued(self, runs: list[RunRow]) -> list[RunRow]:
        """Return the runs without the queued ones left by others before their first step: only a worker begins those.

        The worker puts them on the queue again, where its limits apply.
        """
        here, left = self._process, [row for row in runs if row.queue_name == records_names.UNCLAIMED]
        queued = {row.workflow_id: row for row in left if notes_on(row).get(QUEUED) is True}
        waiting = here.store.claims.without_steps(queued)
        served = defaultdict(list)
        for run_id in waiting:
            served[here.worker.queue_of(queued[run_id])].append(queued[run_id])
        for row in served.pop("", []):
            here.local.decline(row.workflow_id)
        for queue, rows in served.items():
            # Begun once: an execution without an outcome may have published events.
            here.store.claims.transfer(rows, queue, attempts=1)
        return [row for row in runs if row.workflow_id not in waiting]

    def _claim(self, runs: list[RunRow]) -> set[str]:
        """Take the runs over with their calls.

        A call whose execution waits among the pending calls here, for a run that was held, is still in progress and
        stays, unless its row shows that another process had it since: then the pending entry is void.
        """
        here, ids = self._process, {row.workflow_id for row in runs}
        pending = {key: owner for key, owner in here.pending_calls.owners().items() if key.rpartition("/")[0] in ids}
        spared = {key: owner for key, owner in pending.items() if owner and here.store.claims.owner(key) == owner}
        for key in pending.keys() - spared.keys():
            here.pending_calls.void(key)
        here.maintenance.expect()
        again = {run_id for run_id in ids if here.local.of(run_id).is_interrupted}
        still = {row.workflow_id: row for row in runs if here.identity.stands_still(owner_of(row))}
        notes = {run_id: dict[str, object]({PAUSES: _pauses(row) + 1}) for run_id, row in still.items()}
        left = here.store.processes.left()
        ended = {row.workflow_id: self._ended_execution(row, again, still, left) for row in runs}
        for row in runs:
            if (before := ended[row.workflow_id]) is not None:
                notes[row.workflow_id] = notes.get(row.workflow_id, {}) | with_ended(notes_on(row), before)
        for run_id, before in ended.items():  # Before the transfer, after which a run may begin here at once.
            here.local.take(run_id, before, was_paused=run_id in still)
        moved: set[str] = set()
        try:
            moved = here.store.claims.transfer(runs, here.queue, spared=spared, notes=notes)
        finally:
            for run_id in ids - moved:
                here.local.give_back(run_id)
        self.taken |= moved
        self._tell([row for row in runs if row.workflow_id in moved])
        return moved

    def _ended_execution(
        self, row: RunRow, again: set[str], still: Container[str], left: Container[str]
    ) -> EndedExecution | None:
        """Return the execution in another process that ends with this takeover, or None if there was none."""
        me, run_id, at = self._process.identity.name, row.workflow_id, now()
        owner, last = owner_of(row), row.executor_id
        if run_id in again:
            return None
        if not owner:  # Left by its process, or resumed by a person after its end, which is noted already.
            known = read_ended(notes_on(row))
            resumed = bool(known) and known[-1].process == last and known[-1].how in ENDED
            return None if last is None or last == me or resumed else EndedExecution(last, at, HANDED)
        return EndedExecution(owner, at, STOPPED if run_id in still else HANDED if owner in left else DIED)

    def _tell(self, taken: list[RunRow]) -> None:
        """Log the runs taken over from each dead process."""
        left = defaultdict(list)
        for row in taken:
            left[owner_of(row)].append(row.workflow_id)
        for owner, run_ids in left.items():
            if owner not in ("", self._process.identity.name):
                more = f" and {len(run_ids) - TOLD} more" if len(run_ids) > TOLD else ""
                log.info("continues what %s has left: %s%s", owner, ", ".join(run_ids[:TOLD]), more)

    def tell_held(self, run_id: str, reason: errors.DurableSwarmError) -> None:
        """Log why a run is held: once for all that lack the same agent."""
        if isinstance(reason, errors.UnknownAgent | errors.AmbiguousAgent):
            if reason.agent in self.wanted:
                return
            self.wanted.add(reason.agent)
        log.warning("run %r waits: %s", run_id, reason)

    def _is_abandoned(self, row: RunRow) -> bool:
        identity = self._process.identity
        if row.status == "ENQUEUED":
            queue = row.queue_name or ""
            owner = queue.removeprefix(records_names.QUEUE)
            return queue == records_names.UNCLAIMED or (queue != owner and identity.is_dead(owner, _pauses(row)))
        if row.executor_id == identity.name:
            run_id = row.workflow_id
            known = self._process.local.of(run_id)
            if isinstance(known.held, errors.AgentChanged):
                return False  # A person lets it continue.
            seen = queues.executing() | self._process.local.executions.keys()
            return known.is_interrupted or (self._strangers and run_id not in seen)
        return identity.is_dead(owner_of(row), _pauses(row))

    def _can_run(self, row: RunRow) -> bool:
        here, noted, run_id = self._process, notes_on(row), row.workflow_id
        agent, swarm = noted.get(NEEDS) or noted.get("agent", ""), noted.get("swarm", "")
        known = agent in agents.names() or agent in here.local.of(run_id).cast
        opened = here.swarms.named(swarm)
        if known and opened is not None:
            return self._has_client(run_id, opened) and (not noted.get("waits_for") or self._forget_waiting(run_id))
        if agent not in self.wanted:
            lack = f"a swarm named {swarm!r} is not open" if known else f"its agent {agent!r} is not defined"
            # Runs of another program, and those queued by a program without agents, are not worth a log line here.
            news = known or (opened is not None and (noted.get(QUEUED) is not True or here.worker.queue_of(row)))
            log.log(logging.WARNING if news else logging.DEBUG, "run %r waits: %s in this process", run_id, lack)
            self.wanted.add(agent)
        here.local.decline(run_id)
        return False

    def _has_client(self, run_id: str, swarm: Settings) -> bool:
        """Return True if the models of a run can be asked here: else the run is left to a process that has a client."""
        try:
            swarm.clients.ready()
        except errors.ConfigurationError as error:
            if not self._tells_no_client:
                log.warning("run %r, and others, are not continued in this process: %s", run_id, error)
            self._tells_no_client = True
            self._process.local.decline(run_id)
            return False
        self._tells_no_client = False
        return True

    def _is_declined(self, row: RunRow) -> bool:
        return self._process.local.of(row.workflow_id).is_declined

    def _forget_waiting(self, run_id: str) -> bool:
        try:
            self._process.store.note_waiting(run_id, None)
        except errors.ConfigurationError as error:
            log.warning("run %r cannot be taken over: %s", run_id, error)
            return False
        return True

    def offer(self, run_ids: Iterable[str], *, handed: bool = False) -> None:
        """Leave runs that were interrupted here, with their calls, to any process that can continue them.

        With `handed`, also runs that were handed to this process and have not begun: this process stops.
        """
        here = self._process
        with here.identity.alone():
            # Not those taken back meanwhile.
            left = here.local.in_state(*INTERRUPTED).keys() & set(run_ids) - here.local.executions.keys()
            rows = [row for row in here.store.unfinished(here.version) if self._is_left(row, left, handed)]
            here.store.claims.transfer(rows, records_names.UNCLAIMED)
            for run_id in left:
                here.local.move(run_id, "offered")

    def _is_left(self, row: RunRow, left: set[str], handed: bool) -> bool:
        """Return True if this process may leave a run to others: another may have taken it over meanwhile."""
        if row.status == "ENQUEUED" and row.queue_name == self._process.queue:
            return handed or row.workflow_id in left
        mine = row.status == "PENDING" and row.executor_id == self._process.identity.name
        return mine and row.workflow_id in left

    def agent_defined(self, name: str) -> None:
        """Look for the runs that wait for an agent of this name, if any do."""
        if name in self.wanted:
            self.wanted.discard(name)
            self._process.local.decline_none()
            look = threading.Thread(
                target=self._take_quietly, kwargs={"sure": True}, name="durable-swarm-take-over", daemon=True
            )
            look.start()

    def look_at_queues(self) -> None:
        """Begin runs that were handed to this process, and take over those left for any that can continue them."""
        here = self._process
        rows = here.store.to_begin(here.queue)
        handed = {row.workflow_id for row in rows if row.queue_name == here.queue}
        if handed:
            here.maintenance.expect(EXPECTED if handed - self._handed else REMAINS)
        unclaimed = [row for row in rows if row.queue_name != here.queue]
        self._handed, self._unclaimed = handed, bool(unclaimed)
        if not all(self._is_declined(row) for row in unclaimed):
            self._take_quietly()

    def has_queued(self) -> bool:
        """Return True if the last look found runs that have not begun."""
        return bool(self._handed) or self._unclaimed

    def look_for_dead(self) -> None:
        """Take over if any process with unfinished runs is dead; runs waiting for a worker add no cost."""
        names = self._process.store.claims.owners()
        if self._dead(names) or self._process.identity.suspects(names):
            time.sleep(SURE)
            if self._dead(names):
                self._take_quietly()

    def _dead(self, names: set[str]) -> set[str]:
        identity = self._process.identity
        with identity.alone():
            return {name for name in names if identity.is_dead(name)}

    def _take_quietly(self, *, sure: bool = False) -> list[str]:
        """Take over without a caller that asks for it: an obstacle is logged in one line, and tried again later."""
        try:
            taken = self._take(())
            if sure and self._doubtful:
                time.sleep(SURE)
                taken += self._take(())
            return taken
        except Exception as error:
            if not self._process.is_closed:
                log.warning("could not look for runs to take over: %s", type(error).__name__)
            return []


def _pauses(row: RunRow) -> int:
    """Return how often a run was taken over from a paused process."""
    return int(notes_on(row).get(PAUSES, 0))
