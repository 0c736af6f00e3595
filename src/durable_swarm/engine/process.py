"""This process and its database: one DBOS, launched at first use, shared by all `DurableSwarm` objects.

If the program has launched DBOS itself, that one is used and never closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import sqlalchemy
from dbos import DBOS, DBOSConfig

from durable_swarm import errors, roster
from durable_swarm.engine import database, internals, records
from durable_swarm.engine.identity import FileLocks, Identity, PostgresLocks
from durable_swarm.engine.live import Desk, LiveRun, Settings
from durable_swarm.engine.records import Record
from durable_swarm.engine.store import Store
from durable_swarm.waits import background_loop

log = logging.getLogger("durable_swarm")

POLL = 0.05
"""Seconds between looks at the queue of runs this process has taken over."""


class Process:
    """What lives as long as DBOS is launched here."""

    def __init__(self, url: sqlalchemy.URL, worker_id: str | None) -> None:
        self.url = url
        self.hosted = internals.launched()
        self.desk = Desk()
        self.runs: dict[str, LiveRun] = {}
        self.swarms: list[Settings] = []
        self.held: dict[str, errors.DurableSwarmError] = {}
        self.loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet([background_loop()])
        """The event loops on which runs were executed."""
        self.wanted: set[str] = set()
        """Names of agents for which runs wait; defining one starts a look for them."""
        self.lent: dict[str, Any] = {}
        """Agents that were given with the id of a run before it was recovered."""
        self._expected: dict[str, LiveRun] = {}
        self._lock = threading.RLock()
        self.store = Store(url, database.connect(url, create=True))
        try:
            self._launch(worker_id)
        except BaseException:
            self.store.close()
            raise
        self._unwatch = roster.watch(self._agent_defined)

    # Launching and closing

    def _launch(self, worker_id: str | None) -> None:
        locks = FileLocks(f"{self.url.database}.lock") if database.is_sqlite(self.url) else PostgresLocks(self.url)
        try:
            self.identity = Identity(locks, DBOS.executor_id if self.hosted else worker_id)
            self.queue = records.QUEUE + self.identity.name
            internals.private_queue(self.queue, POLL)
            internals.refuse_pickle(everywhere=not self.hosted)
            if not self.hosted:
                self._launch_dbos()
        except BaseException:
            locks.close()
            raise

    def _launch_dbos(self) -> None:
        internals.silence()
        config: DBOSConfig = {
            "name": "durable-swarm",
            "system_database_url": self.url.render_as_string(hide_password=False),
            "system_database_engine": self.store.engine,
            "application_version": records.WIRE,
            "executor_id": self.identity.name,
            "serializer": internals.JSON,
            "log_level": "CRITICAL",
            "max_executor_threads": 32,
            "notification_listener_polling_interval_sec": 0.1,  # How long closing may take.
        }
        try:
            DBOS(config=config)
            DBOS.launch()
        except Exception as error:
            DBOS.destroy()
            raise database.unfit(self.url, error) from error

    def close(self) -> None:
        """Give everything back. Runs under way stay unfinished in the database."""
        self._unwatch()
        if not self.hosted:
            DBOS.destroy()
            internals.refuse_pickle(everywhere=False)
            self._restore_loops()
        internals.forget_queue(self.queue)
        self.store.close()
        self.identity.close()

    def _restore_loops(self) -> None:
        """DBOS makes its threads the default pool of every loop it meets, and has now ended them."""
        loops = [loop for loop in self.loops if not loop.is_closed()]
        for loop in loops:
            loop.call_soon_threadsafe(loop.set_default_executor, ThreadPoolExecutor(thread_name_prefix="asyncio"))

    # Runs that this process executes

    def expect(self, run: LiveRun) -> None:
        """Know the objects of a run that is about to start here."""
        with self._lock:
            self._expected[run.run_id] = run

    def enter(self, run_id: str, record: Record) -> LiveRun:
        """Begin to execute a run: with its own objects if it started here, else with those found by name."""
        with self._lock:
            run = self._expected.pop(run_id, None) or self._recovered(run_id, record)
            run.start = records.read_start(records.read(record, f"run {run_id!r}"))
            run.entered = True
            self.runs[run_id] = run
            self.held.pop(run_id, None)
            return run

    def _recovered(self, run_id: str, record: Record) -> LiveRun:
        swarm = self.swarm_named(record.get("swarm", ""))
        if swarm is None:
            raise errors.ConfigurationError(f"run {run_id!r} belongs to a swarm named {record.get('swarm')!r}, not open here")
        lent = self.lent.pop(run_id, None)
        cast = {} if lent is None else {lent.name: lent}
        start = records.read_start(record)
        return LiveRun(run_id, start, swarm, debug=record.get("debug", False), cast=cast, recovered=True)

    def swarm_named(self, name: str) -> Settings | None:
        """Give the newest open swarm of that name."""
        return next((swarm for swarm in reversed(self.swarms) if swarm.name == name), None)

    def leave(self, run: LiveRun) -> None:
        """End executing a run, whatever came of it."""
        with self._lock:
            if self.runs.get(run.run_id) is run:
                del self.runs[run.run_id]
        run.over.set()

    def forget(self, run: LiveRun) -> None:
        """Expect the run no more; somebody else executes it."""
        with self._lock:
            self._expected.pop(run.run_id, None)

    def hold(self, run: LiveRun, reason: errors.DurableSwarmError) -> None:
        """Note why a run cannot go on here, and what would let it."""
        self.held[run.run_id] = reason
        agent = getattr(reason, "agent", None)
        if agent:
            self.wanted.add(agent)
        log.warning("run %r waits: %s", run.run_id, reason)

    # Taking over

    def take_over(self, *run_ids: str) -> list[str]:
        """Take over the unfinished runs that no living process executes and whose agents are defined here.

        With `run_ids`, only those. Gives the ids of the runs taken over.
        """
        with self.identity.alone():
            orphans = [row for row in self.store.unfinished() if self._is_orphan(row)]
            runs = [row for row in orphans if row.name == records.RUN and row.workflow_id in (run_ids or (row.workflow_id,))]
            taken = {row.workflow_id for row in runs if self._can_run(row)}
            children = {row.workflow_id for row in orphans if row.parent_workflow_id in taken}
            if taken:
                self.store.resume_on([*taken, *children], self.queue)
        return sorted(taken)

    def _is_orphan(self, row: Any) -> bool:
        owner = row.executor_id if row.status == "PENDING" else (row.queue_name or "").removeprefix(records.QUEUE)
        if owner == self.identity.name:
            mine = row.workflow_id in self.runs or row.workflow_id in self._expected or row.workflow_id in self.desk.keys()
            return row.status == "PENDING" and not mine
        return row.queue_name == records.UNCLAIMED or self.identity.is_dead(owner)

    def _can_run(self, row: Any) -> bool:
        about = row.attributes or {}
        agent = str(about.get("agent"))
        if (agent in roster.names() or row.workflow_id in self.lent) and self.swarm_named(str(about.get("swarm", ""))):
            return True
        if agent not in self.wanted:
            log.warning("run %r waits: its agent %r is not defined in this process", row.workflow_id, agent)
            self.wanted.add(agent)
        return False

    def _agent_defined(self, name: str) -> None:
        if name in self.wanted:
            self.wanted.discard(name)
            threading.Thread(target=self._take_over_quietly, name="durable-swarm-take-over", daemon=True).start()

    def _take_over_quietly(self) -> None:
        with contextlib.suppress(Exception):
            self.take_over()


_current: Process | None = None
_users = 0
_guard = threading.RLock()


def current() -> Process:
    """Give the process's engine, which a `DurableSwarm` has opened."""
    if _current is None:
        raise errors.ConfigurationError("no DurableSwarm is open in this process")
    return _current


async def wait_for_current() -> Process:
    """Give the process's engine as soon as there is one: a host's DBOS may recover runs before it is opened."""
    while _current is None:
        await asyncio.sleep(POLL)
    return _current


def open_for(swarm: Settings, url: str | None, worker_id: str | None) -> Process:
    """Give the process's engine, launched if need be, and count `swarm` among its users.

    Raises `ConfigurationError` if the process already works on another database.
    """
    global _current
    with _guard:
        wanted = database.choose(url)
        if _current is None:
            process = Process(wanted, worker_id)
            process.swarms.append(swarm)
            _current = process
        else:
            database.same(_current.url, wanted)
            _current.swarms.append(swarm)
        return _current


def close_for(swarm: Settings) -> None:
    """Count `swarm` no more; the last one closes the engine."""
    global _current
    with _guard:
        if _current is None or swarm not in _current.swarms:
            return
        _current.swarms.remove(swarm)
        if not _current.swarms:
            _current.close()
            _current = None
