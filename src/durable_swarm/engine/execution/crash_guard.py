"""Tools that end their process: counts the executions of each open call, and gives the call up at a limit.

A crash makes the call in progress run again. If the call itself is the cause (it calls `os._exit`, breaks in native
code, exhausts the memory), it would crash each process that recovers the run, endlessly, and interrupt the other runs
of that process each time. So a call that is executed again after a crash is counted in its run's row, and given up in
the end. Not counted: a clean shutdown, a process that lives and was paused for longer than its lease, a tool that
sleeps durably, a tool that recorded one of its own steps meanwhile.

The rule that blames no other call: before a call is given up, its last execution runs alone. It waits until the calls
in progress have ended or have run for `PROVEN` seconds; from then until its outcome is recorded, no tool or model call
begins. Calls of runs that the suspect started itself are exempt, because it may wait for them. While the suspect still
waits, calls of runs that a call in progress started no longer than `PROVEN` seconds ago are exempt too. After `PROVEN`
seconds the suspect need not be alone any more. So no wait is endless, and two calls that wait for each other lose a
minute. While no call is suspected, the cost is a look at a few lists. Model calls must not run beside a suspect either,
but are not counted themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple, TypeGuard

from durable_swarm import ends, errors
from durable_swarm.concurrency import Runtime, in_thread
from durable_swarm.engine.backend.ownership import OwnershipLost
from durable_swarm.engine.execution.child_calls import OpenCall
from durable_swarm.engine.execution.errors import engines_code
from durable_swarm.engine.records import names
from durable_swarm.engine.signals import RunSuspended, StepFailed
from durable_swarm.engine.storage.run_state import TRIED, notes_on
from durable_swarm.engine.storage.runs import Store

log = logging.getLogger("durable_swarm")

EXECUTIONS = 3
"""The maximum number of executions of a call that ends its process each time."""

PROVEN, EXECUTIONS_OF_LONG = 60.0, 10
"""Seconds after which the call is no longer suspected of ending the process, and its limit of executions from then on,
because a tool that takes hours may well be in progress at every restart."""

PAUSE = 0.1
"""Seconds between checks for the turn of a suspect."""


class AttemptCount(NamedTuple):
    """The counts of an open call, as stored in its run's row."""

    inner: int
    """How many records of its own the call had stored when it was last begun."""
    times: int
    """How often it was begun at this point."""
    long: bool = False
    """True if it has run for `PROVEN` seconds."""

    @property
    def limit(self) -> int:
        """Return the maximum number of executions of the call."""
        return EXECUTIONS_OF_LONG if self.long else EXECUTIONS


class CrashLoopGuard:
    """Counts the executions of calls that a crash left open; the last of each runs alone."""

    def __init__(self, store: Store, still_open: Callable[[], None]) -> None:
        self._store = store
        self._still_open = still_open
        self._lock = threading.Lock()
        self._open: dict[str, tuple[str, AttemptCount]] = {}
        """The counted calls that were begun here and have not ended, with their runs."""
        self._under_way: dict[str, float] = {}
        """The start time of each tool or model call that is being executed here."""
        self._waiting: set[str] = set()
        """The calls that wait until they are alone."""
        self._turns: dict[str, float] = {}
        """The call whose turn it is to be alone; after it, the call of a run that it started, and so on. Each with the
        time at which its turn began."""
        self._recorded: list[str] = []
        """The calls that are in `until_recorded`, which ends their turn."""
        self._lent: dict[str, str] = {}
        """Runs that a call in progress has started or waits for, with that call."""

    @contextlib.asynccontextmanager
    async def execution(self, key: str, waits: Runtime, again: OpenCall | None = None) -> AsyncIterator[None]:
        """Wrap the execution of a tool or model call; `again` is true if an earlier execution may have begun it.

        Raises `StepFailed` if the call has reached its limit of executions.
        """
        with engines_code(f"call {key!r}"):
            tried = None if again is None else await self._next(key, again)
            await self._begin(key, waits, alone=tried is not None and tried.times >= tried.limit)
        proof: asyncio.Task[None] | None = None
        try:
            if again is not None and tried is not None:
                with engines_code(f"call {key!r}"):
                    await in_thread(self._count, again, key, tried)
                self._open[key] = again.run_id, tried
                proof = asyncio.create_task(self._prove(again.run_id, key, tried))
            yield
        except RunSuspended:
            if again is not None and tried is not None:
                self._open.pop(key, None)
                await in_thread(self._write, again.run_id, key, tried._replace(times=tried.times - 1))
            raise
        except BaseException as error:
            if ends.failure_of(error) is not None:
                # It counts even if the program ends before the failure is recorded, as one does whose tasks are all
                # cancelled by the tool.
                self._open.pop(key, None)
            raise
        finally:
            if proof is not None:
                proof.cancel()
            self._end(key)

    def lend(self, run_id: str, key: str) -> None:
        """Note that the call `key`, which is in progress, has started the run or waits for it."""
        with self._lock:
            if key in self._under_way:
                self._lent[run_id] = key

    @contextlib.contextmanager
    def until_recorded(self, key: str) -> Iterator[None]:
        """Wrap a call from before its last execution until its outcome is recorded: until then it counts as open.

        The next suspect must not begin earlier, because it would be blamed if this call ended the process.
        """
        with self._lock:
            self._recorded.append(key)
        try:
            yield
            self._open.pop(key, None)
        except (StepFailed, RunSuspended, OwnershipLost):
            self._open.pop(key, None)
            raise
        finally:
            with self._lock:
                self._recorded.remove(key)
                self._turns.pop(key, None)

    async def _next(self, key: str, again: OpenCall) -> AttemptCount | None:
        """Return the counts to store in the row once the call is begun; None if the call is not to be counted."""
        if key in self._open:  # Begun here before: no crash in between.
            return None
        before, sleeps = await in_thread(self._read, again.run_id, key, again.flow)
        if sleeps:
            return None
        if again.was_paused:
            before = before._replace(times=max(0, before.times - 1))
        if before.times >= before.limit:
            raise _given_up(again.run_id, again.tool, before.times)
        return before._replace(times=before.times + 1)

    @property
    def is_alone(self) -> bool:
        """Return True if a call is executed alone here, or is about to be: calls begun meanwhile wait for it."""
        with self._lock:
            return bool(self._turn() or self._waiting)

    async def _begin(self, key: str, waits: Runtime, *, alone: bool) -> None:
        """Wait until the call may begin, and count it among those in progress."""
        if alone:
            log.warning("call %r was in progress at several deaths of its process; it is made alone, others wait", key)
            self._waiting.add(key)
        try:
            while not self._begins(key, alone):
                self._still_open()
                await waits.sleep(PAUSE)
        finally:
            self._waiting.discard(key)

    def _begins(self, key: str, alone: bool) -> bool:
        with self._lock:
            if not self._is_free(key, alone):
                return False
            if alone:
                self._turns[key] = time.monotonic()
            self._under_way[key] = time.monotonic()
            return True

    def _is_free(self, key: str, alone: bool) -> bool:
        turn = self._turn()
        if turn is not None and not self._belongs(key, turn):
            return False
        if not alone and not self._waiting:
            return True
        # Not the runs of a call that has run for long, because it might start one after the other.
        suspected = time.monotonic() - PROVEN
        kin = [self._belongs(key, other) for other, begun in self._under_way.items() if begun > suspected]
        return all(kin) if alone else any(kin)

    def _turn(self) -> str | None:
        """Return the call whose turn it is. After `PROVEN` seconds a call need not be alone any more."""
        suspected = time.monotonic() - PROVEN
        self._turns = {key: begun for key, begun in self._turns.items() if begun > suspected}
        return next(reversed(self._turns), None)

    def _belongs(self, key: str, other: str) -> bool:
        """Return True if a call belongs to a run that the `other` call started, or to one of that run's, and so on."""
        family = [other]
        for member in family:  # The list grows meanwhile.
            family += [
                run for run, host in self._lent.items() if f"{host}/".startswith(f"{member}/") and run not in family
            ]
        return any(key.startswith(f"{member}/") for member in family)

    def _end(self, key: str) -> None:
        with self._lock:
            self._under_way.pop(key, None)
            # Its run may have left before the turn began, because it was taken over: nothing else would end the turn.
            if key not in self._recorded:
                self._turns.pop(key, None)
            if self._lent:
                self._lent = {run: host for run, host in self._lent.items() if host != key}

    def _read(self, run_id: str, key: str, flow: bool) -> tuple[AttemptCount, bool]:
        """Return how often the call was executed since its last record, and True if it sleeps."""
        steps = self._store.steps(key) if flow else []
        row = self._store.row(run_id, load_output=False)
        noted = None if row is None else notes_on(row).get(_name(key))
        last = steps[-1] if steps else None
        sleeps = last is not None and last.function_name == "DBOS.sleep" and _later(last.output)
        sleeps = sleeps or self._store.inbox.asks(key)
        if _is_tried(noted) and noted[0] == len(steps):
            return AttemptCount(*noted), sleeps
        return AttemptCount(len(steps), 1), sleeps  # The previous execution came to this point and began the open call.

    def _count(self, again: OpenCall, key: str, tried: AttemptCount) -> None:
        again.verify_ownership()  # The call may have waited: another process may be making it, and counting.
        self._write(again.run_id, key, tried)

    def _write(self, run_id: str, key: str, tried: AttemptCount) -> None:
        self._store.annotate(run_id, **{_name(key): list(tried)})

    async def _prove(self, run_id: str, key: str, tried: AttemptCount) -> None:
        """Note, after `PROVEN` seconds, that the call does not end its process soon, if at all."""
        await asyncio.sleep(PROVEN)
        with contextlib.suppress(errors.DurableSwarmError):
            await in_thread(self._write, run_id, key, tried._replace(long=True))

    def close(self) -> None:
        """Withdraw the counts of calls in progress, because this is a clean shutdown."""
        for key, (run_id, tried) in list(self._open.items()):
            with contextlib.suppress(errors.DurableSwarmError):
                self._write(run_id, key, tried._replace(times=tried.times - 1))
        self._open.clear()


def _name(key: str) -> str:
    return TRIED + key.rpartition("/")[2]


def _is_tried(noted: object) -> TypeGuard[list[Any]]:
    if not isinstance(noted, list) or not 2 <= len(noted) <= 3:
        return False
    return all(type(number) is int for number in noted[:2]) and all(type(flag) is bool for flag in noted[2:])


def _later(moment: object) -> bool:
    return isinstance(moment, int | float) and moment > time.time()


def _given_up(run_id: str, tool: str, count: int) -> StepFailed:
    step = names.tool_step(tool)
    error = errors.RunFailed(
        f"run {run_id!r} was given up: tool {tool!r} was being executed when its process died or all its tasks "
        f"were cancelled, {count} times in a row; fix the tool and call Run.resume()",
        run_id=run_id,
    )
    return StepFailed(error, step)
