"""This process and its database: one DBOS, launched at first use, shared by all `DurableSwarm` objects.

If the program has launched DBOS itself, that one is used and never closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import time
import weakref

import sqlalchemy

from durable_swarm import agents, errors
from durable_swarm.background import background, background_loop
from durable_swarm.concurrency import running_loop
from durable_swarm.engine.backend import admission, launch, ownership, patches, pools, queues, steps
from durable_swarm.engine.backend.public import DBOS
from durable_swarm.engine.database import connection as database_connection
from durable_swarm.engine.database import urls
from durable_swarm.engine.database.locks import open_locks
from durable_swarm.engine.database.outages import Outage, noted
from durable_swarm.engine.execution.budget import budget_of
from durable_swarm.engine.execution.child_calls import PendingCalls, ToolCall
from durable_swarm.engine.execution.crash_guard import CrashLoopGuard
from durable_swarm.engine.execution.errors import engines_code
from durable_swarm.engine.execution.event_writer import Writer
from durable_swarm.engine.execution.execution import Execution, beginning_here, is_under_way
from durable_swarm.engine.execution.provider_waits import LOOK, ProviderWaits
from durable_swarm.engine.execution.swarms import Swarms
from durable_swarm.engine.execution.tool_call import CallRequests
from durable_swarm.engine.execution.transactions import Transactions
from durable_swarm.engine.execution.waiting import WaitingCalls
from durable_swarm.engine.history.story import step_number
from durable_swarm.engine.history.trace import collecting
from durable_swarm.engine.processes.changes import SOON, ChangeWatch
from durable_swarm.engine.processes.identity import Identity
from durable_swarm.engine.processes.local_runs import LocalRuns
from durable_swarm.engine.processes.lost_claims import LostClaims
from durable_swarm.engine.processes.maintenance import (
    CLOSING,
    FAST,
    KEEP,
    Job,
    MaintenanceLoop,
    Sweeper,
    only_on_change,
)
from durable_swarm.engine.processes.recovery import Recovery
from durable_swarm.engine.processes.schedules import EVERY, ScheduleWatch
from durable_swarm.engine.processes.sessions import SessionTurns
from durable_swarm.engine.processes.webhooks import WebhookSender
from durable_swarm.engine.processes.worker import IN_THREADS, QueueWorker
from durable_swarm.engine.records import base, names
from durable_swarm.engine.records import runs as records_runs
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.records.compactions import read_plan
from durable_swarm.engine.records.encoding import input_of
from durable_swarm.engine.records.owners import BELONGS_TO
from durable_swarm.engine.records.rows import RunRow
from durable_swarm.engine.records.sessions import place_in
from durable_swarm.engine.signals import RunHeld, engine_closed
from durable_swarm.engine.storage.heartbeats import Leases
from durable_swarm.engine.storage.ownership import UNFINISHED, now
from durable_swarm.engine.storage.rates import Rates
from durable_swarm.engine.storage.run_state import owner_of
from durable_swarm.engine.storage.runs import Store
from durable_swarm.loop import Start
from durable_swarm.observing import observers_of
from durable_swarm.requests import Request
from durable_swarm.swarm.compaction import SessionHistory
from durable_swarm.types import AgentLike

log = logging.getLogger("durable_swarm")

SEE_OFF = 1.0
"""Maximum seconds that closing waits for runs that are only waiting themselves."""


class Process:
    """The state that exists as long as DBOS is launched here."""

    def __init__(self, url: sqlalchemy.URL, worker_id: str | None) -> None:
        self.url = url
        self.pid = os.getpid()
        self.hosted = launch.launched()
        self.pending_calls = PendingCalls()
        self.swarms = Swarms()
        self.local = LocalRuns()
        self.loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet([background_loop()])
        """The event loops on which runs were executed."""
        self.recovery = Recovery(self, strangers=worker_id is not None or (self.hosted and launch.LATE))
        self.lost_claims = LostClaims(self)
        self.is_closed = False
        """True if this engine is closed, or about to be: waiting here is then pointless."""
        self.worker = QueueWorker(self)
        self.sessions = SessionTurns(self)
        self.outage = Outage(url, is_under_way)
        self.store = self._open_store()
        try:
            self._launch(worker_id)
            try:
                self._start_keeping()
            except BaseException:
                self._end_dbos()
                self.identity.close()
                raise
        except BaseException:
            self.store.close()
            raise

    # Launching and closing

    def _open_store(self) -> Store:
        if self.hosted:
            return Store(self.url, launch.host_database()[1], self.swarms.codec_for, owns=False)
        engine = database_connection.connect(self.url, create=True, on_write=self.outage.end)
        return Store(self.url, engine, self.swarms.codec_for)

    def _start_keeping(self) -> None:
        self.store.create_tables()
        if not urls.is_sqlite(self.url):
            self.identity.leases = Leases(self.url, self.store.engine)
            self.identity.leases.renew(self.identity.name)
        self.crash_guard = CrashLoopGuard(self.store, self.still_open)
        self.waiting_calls = WaitingCalls(self.store)
        self.providers = ProviderWaits(self.store, self.waiting_calls)
        self.rates = Rates(self.url, self.store.engine)
        self.transactions = Transactions(self.url, self.store.claims.owner)
        self.writer = Writer(self.store.events.write)
        self._sweeper = Sweeper(self.store)
        self.schedules = ScheduleWatch(self.store, self.swarms)
        self.webhooks = WebhookSender(self.store)
        self._unwatch = agents.watch(self.recovery.agent_defined)
        self.changes = ChangeWatch(self.identity.hears, lambda: self.store.changes.with_next(now()))
        self.maintenance = MaintenanceLoop(
            self._private, self._jobs(), self.changes, lambda: self.outage.reason is not None
        )
        background().hold()

    def _launch(self, worker_id: str | None) -> None:
        locks = open_locks(self.url)
        with contextlib.ExitStack() as undo:
            undo.callback(locks.close)
            undo.callback(patches.restore)
            self.identity = Identity(locks, DBOS.executor_id if self.hosted else worker_id)
            self.queue = names.QUEUE + self.identity.name
            self._private = queues.serve_queue(self.queue, FAST)
            undo.callback(queues.forget_queue, self._private)  # Otherwise the next launch would serve it, too.
            patches.refuse_pickle(everywhere=not self.hosted)
            steps.note_claims()
            if not self.hosted:
                launch.launch_dbos(self.url, self.store.engine, self.identity.name, 2 * IN_THREADS)
                self.outage.watch(self.store.engine)
            admission.install()
            undo.pop_all()

    def close(self) -> None:
        """Release all resources. Runs in progress stay unfinished in the database."""
        self.is_closed = True
        self.outage.close()
        self.maintenance.close()
        self.webhooks.close()
        self.sessions.close(CLOSING)
        self._unwatch()
        self.crash_guard.close()
        self._see_off(self.waiting_calls.close())
        self.writer.close()
        self.pending_calls.close()
        self._end_dbos()
        self.transactions.close()
        self.worker.close()
        self.identity.close()
        self.store.close()
        background().let_go()

    def _end_dbos(self) -> None:
        if not self.hosted:
            queues.stop_queues(CLOSING)
            pools.destroy()
        queues.forget_queue(self._private)
        patches.restore()

    def _see_off(self, waited: list[Execution]) -> None:
        """Allow runs that wait, or are about to, the time to leave; skip those whose own loop would block."""
        end = time.monotonic() + (0 if running_loop() in self.loops else SEE_OFF)
        runs = [*waited, *(run for run in list(self.local.executions.values()) if run.asks)]
        while time.monotonic() < end and not all(self._has_left(run) for run in runs):
            time.sleep(0.005)

    def _has_left(self, run: Execution) -> bool:
        return run.over.done() if run.watched else self.local.executions.get(run.run_id) is not run

    # Runs that this process executes

    def known(self, run_id: str, record: Record) -> Execution:
        """Return an execution of a run: with its own objects if it started here, else with those found by name."""
        begun = beginning_here()
        run = begun if begun is not None and begun.run_id == run_id else self._recovered(run_id, record)
        run.owner, run.keeper, run.process = ownership.owner_of(run_id), self, self.identity.name
        run.queue = queues.claimed_from(run_id)
        return run

    def _recovered(self, run_id: str, record: Record) -> Execution:
        name = base.read(record, f"the input of run {run_id!r}").get("swarm", "")
        swarm = self.swarms.named(name)
        if swarm is None:
            raise errors.ConfigurationError(f"run {run_id!r} belongs to a swarm named {name!r}, which is not open here")
        not_yet_read = Start("", [], {})
        root, debug = records_runs.root_of(run_id, record), record.get("debug") is True
        recovered = not steps.is_new(run_id)
        return Execution(run_id, not_yet_read, swarm, root, debug=debug, recovered=recovered)

    def may_be_late(self, run: Execution) -> bool:
        """Return True if the run may have been taken over before this execution began, perhaps by this process."""
        return run is not beginning_here() and (run.recovered or run.run_id in self.local.executions)

    def enter(self, run: Execution, record: Record, history: SessionHistory) -> None:
        """Begin to execute a run; `history` has the messages of its session that precede its own."""
        run_id = run.run_id
        opened = run.record_codec.open(record, input_of(run_id), f"the input of run {run_id!r}")
        run.start, run.place = records_runs.read_start(opened, history.sent), place_in(opened)
        run.history, run.compaction = history, read_plan(opened)
        run.streams, run.belongs_to = opened.get("stream") is True, opened.get(BELONGS_TO)
        run.patience = records_runs.read_patience(opened, run.swarm.provider_patience)
        run.budget = budget_of(self.store.ledger, run_id, run.owner, opened)
        run.publisher.open(opened, self.writer, run_id, run.owner, run.record_codec, again=run.recovered)
        if observers_of(run.swarm) and not run.recovered and "forked" not in opened:
            run.trace = collecting(run_id, opened)
        run.entered = True
        self.local.begin(run)
        self.worker.entered(run)

    def check_ownership(self, run: Execution) -> bool:
        """Return True if a run is in progress and this execution owns it; also note the number of messages added to it.

        Raises `OwnershipLost` if another execution owns it.
        """
        asked_at = time.time()
        status, owner, run.said = self.store.mailbox.stand(run.run_id)
        if status in UNFINISHED and owner != run.owner:
            raise ownership.OwnershipLost(run.run_id)
        run.sure_at = asked_at if status in UNFINISHED else 0.0
        if run.answered and not run.recovered:
            self.worker.fit()
        return status in UNFINISHED

    def verify_ownership(self, run: Execution) -> None:
        """Check that a run is in progress and still owned by this execution, before a delayed part of it begins.

        Raises `OwnershipLost`, `Cancelled`, and `RunHeld` if the database cannot answer.
        """
        if run.lost or self.local.executions.get(run.run_id, run) is not run:
            raise ownership.OwnershipLost(run.run_id)
        with engines_code(f"the state of run {run.run_id!r}"):
            check_ownership = self.check_ownership(run)
        if not check_ownership:
            raise ownership.Cancelled(f"run {run.run_id!r} was cancelled")

    def leave(self, run: Execution, *, lost: bool = False) -> None:
        """End executing a run, whatever its outcome; if ownership was lost, another execution continues it."""
        self.local.leave(run)
        if not lost:
            self.sessions.left(run)
        if not run.watched:
            run.end()

    def still_wanted(self, run: Execution) -> None:
        """Check that this execution of a run is to continue: a run may be resumed while an earlier one is in a tool.

        Raises `RunHeld` if this engine was closed, and DBOS's own signal if a later execution owns the run.
        """
        self.still_open()
        if run.lost or self.local.executions.get(run.run_id, run) is not run:
            raise ownership.OwnershipLost(run.run_id)

    def still_open(self) -> None:
        """Check that this engine was not closed. Raises `RunHeld`."""
        if self.is_closed:
            raise engine_closed()

    def check_fork(self) -> None:
        """Check that this is the process that opened the database: neither connections nor locks survive a fork."""
        if self.pid != os.getpid():
            raise errors.ConfigurationError(
                "this process was forked from one that uses DurableSwarm, and cannot use its database connection; "
                'start it with the "spawn" method, or fork before the first use'
            )

    def hold(self, run_id: str, held: RunHeld, run: Execution | None) -> None:
        """Note why a run cannot continue here, and the condition for it to continue.

        `run` is its execution that stops; None if it did not come to exist.
        """
        reason, execution = held.reason, self.local.executions.get(run_id)
        replaced = run is not None and run.entered and execution is not None and execution is not run
        if self.is_closed or replaced:  # A later execution in this process is in progress, and not held.
            return
        if held.passes:
            # Logged once, an outage once for all runs. Not noted in the database, which could not be written just now.
            if self.local.of(run_id).outage != str(reason) and not (noted(held) or noted(reason)):
                log.warning("run %r waits: %s", run_id, reason)
            self.local.retry(run_id, str(reason))
            return
        self.recovery.tell_held(run_id, reason)
        with contextlib.suppress(errors.ConfigurationError):
            self.store.note_waiting(run_id, reason)
        # Last, because a reader that sees the hold, here or in the database, may resume the run at once.
        self.local.hold(run_id, reason, execution)
        if not isinstance(reason, errors.AgentChanged):
            self.worker.back_off()

    def at_call(self, made: ToolCall, key: str) -> CallRequests:
        """Return the handler of a tool call's requests."""
        number = functools.partial(step_number, self.store, made.run.run_id)
        return CallRequests(made, key, self.store.inbox, self.waiting_calls, self.transactions, number)

    def rest(self, run: Execution) -> None:
        """Suspend a run: it leaves memory until the database wakes it."""
        self.local.lend(run.run_id, run.cast)  # Others may share their names, or the program may drop them.
        try:
            self.store.rest(run.run_id, run.owner, run.suspended_on, run.away)
        except errors.ConfigurationError as error:
            self.hold(run.run_id, RunHeld(error, passes=True), run)
        else:
            self.local.leave(run, "suspended")

    def decided(self, request: Request) -> None:
        """Let the run that waited for this request continue at once, if it is executed here."""
        self.waiting_calls.notify(request.id)
        self.maintenance.hurry()

    def waits_for(self, run_id: str) -> str | None:
        """Return why a run does not continue in this process, or None."""
        known, live = self.local.of(run_id), self.local.executions.get(run_id)
        if known.held is not None:
            return str(known.held)
        return known.outage if live is None else self.outage.reason or live.rated

    # Takeover

    def take_over(self, *run_ids: str) -> list[str]:
        """Take over the unfinished runs that no living process executes; with `run_ids`, only those."""
        return self.recovery.take(*run_ids, *self.sessions.ahead_of(run_ids))

    @property
    def version(self) -> str:
        """The application version whose runs DBOS executes here."""
        return DBOS.application_version

    def lend(self, run_id: str, agent: AgentLike) -> None:
        """Make a recovered run of this id use this agent, even if other agents share its name."""
        live = self.local.executions.get(run_id)
        if live is None:
            self.local.lend(run_id, {agent.name: agent})
        else:
            live.cast.setdefault(agent.name, agent)

    def queue_for(self, agent: str, swarm: str) -> str:
        """Return the queue on which a new run of the agent begins soonest: this process's own, if it can execute it."""
        named = self.swarms.named(swarm)
        if agent in agents.names() and named is not None and named.clients.is_ready:
            self.maintenance.expect()
            return self.queue
        self.recovery.wanted.add(agent)
        return names.UNCLAIMED

    def lives_elsewhere(self, row: RunRow) -> bool:
        """Return True if another process executes the run of this row, and nothing suggests that it has died."""
        owner = owner_of(row)
        with self.identity.alone():
            dead = owner in ("", self.identity.name) or self.identity.is_dead(owner)
            return not dead and not self.identity.suspects([owner])

    def _jobs(self) -> list[Job]:
        """Return what this process does beside its runs: first what somebody waits for, then what has time."""
        compare = [] if urls.is_sqlite(self.url) else [Job("changes", self.changes.compare, SOON, self.changes.is_due)]
        return [
            Job("locks", self.identity.look),
            *compare,
            Job("patience", self.waiting_calls.release),
            Job("answers", self.waiting_calls.look, wants=self.waiting_calls.has_new),
            Job("providers", self.providers.look),
            Job("new outages", self.providers.look_for_new, LOOK, only_on_change),
            Job("new schedules", self.schedules.hurry, EVERY, only_on_change),
            Job("schedules", self.schedules.look),
            Job("queues", self.worker.look),
            Job("unclaimed runs", self.recovery.look_at_queues, wants=self.recovery.has_queued),
            Job("heartbeat", self.identity.keep, KEEP),
            Job("outage", self.outage.look, KEEP),
            Job("lost runs", self.lost_claims.look, KEEP, self.lost_claims.wants),
            Job("deletion", lambda: self._sweeper.look([(swarm.name, swarm.keep_for) for swarm in self.swarms]), KEEP),
            Job("work for others", self.worker.keep, KEEP),
            Job("sessions", self.sessions.look, KEEP, self.sessions.is_unsettled),
            Job("interrupted runs", self._retry, KEEP),
            Job("report", lambda: self.worker.report(self.maintenance.errors()), KEEP),
        ]

    def _retry(self) -> None:
        """Take over the runs that stopped here because the database could not be written."""
        if stopped := self.local.in_state("retrying"):
            self.recovery.take(*stopped)
