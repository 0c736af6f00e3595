"""The runs that this process executes, has taken over, or could not continue: each has an entry with its state.

No run changes its state here except by `move`, along the table `MOVES`; recovery, `waits_for`, drain and `/healthz`
read it. What has another key or another life is kept elsewhere: by the id of a call, the calls that wait
(`waiting.py`), the data of calls (`child_calls.py`) and counted calls (`crash_guard.py`); by outage, the runs that wait
for a provider (`provider_waits.py`); by claim, what was found idle (`lost_claims.py`); while a history is read, the
runs that read it (`sessions.py`); in `Execution`, what is true of one of several executions of a run.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from durable_swarm import errors
from durable_swarm.concurrency import CallerThreadExecutor
from durable_swarm.engine.execution.execution import Execution
from durable_swarm.engine.records.executions import EndedExecution
from durable_swarm.tools.calls import Cast

DECLINE, LONGEST = 60.0, 3600.0
"""Seconds for which a run that could not continue here is left to others: the first time, and at most."""

State = Literal["elsewhere", "taken", "running", "suspended", "retrying", "held", "stopped"]
"""The states of a run in a process:

- elsewhere: unknown, ended, lost to another process, or left to others, perhaps until a time
- taken: taken over, or about to be, and not begun here
- running: executed here; its calls may all wait
- suspended: has left memory until the database wakes it
- retrying: stopped because the database could not be written, and tried again every two seconds
- held: stopped for a reason that an agent or a person has to remove
- stopped: interrupted here: this process or another may take it over
"""
Event = Literal[
    "taken",
    "not_taken",
    "begun",
    "suspended",
    "outage",
    "held",
    "lifted",
    "left",
    "interrupted",
    "over",
    "offered",
    "gone",
]

INTERRUPTED: tuple[State, ...] = ("suspended", "retrying", "held", "stopped")
"""The states of a run that nobody executes, though its row may name this process."""
ALL: tuple[State, ...] = ("elsewhere", "taken", "running", *INTERRUPTED)

MOVES: dict[Event, tuple[tuple[State, ...], State | None]] = {
    "taken": (("elsewhere", *INTERRUPTED), "taken"),  # Not from "running": an execution here has yet to notice.
    "not_taken": (("taken",), None),
    "begun": (ALL, "running"),
    "suspended": (("running",), "suspended"),
    "outage": (ALL, "retrying"),
    "held": (ALL, "held"),
    "lifted": (("held",), "stopped"),
    "left": (("running",), "stopped"),  # Not from "taken": a hold may be lifted before its execution has left.
    "interrupted": (("elsewhere", "taken", "running"), "stopped"),
    "over": (("running",), "elsewhere"),  # Its end is recorded, or another execution owns it.
    "offered": (INTERRUPTED, "elsewhere"),
    "gone": (INTERRUPTED, "elsewhere"),  # It has ended, or another process has it.
}
"""The states from which each event leads, and to which; None is the state before. From others, it changes nothing."""


@dataclass
class LocalRun:
    """One run, as this process knows it."""

    state: State = "elsewhere"
    earlier: State = field(default="elsewhere", compare=False)
    """Its state before that."""
    reason: errors.DurableSwarmError | None = field(default=None, compare=False)
    """Why it was held last."""
    outage: str | None = None
    """Why it was tried again last, until it ends."""
    cast: Cast = field(default_factory=dict)
    """Agents that the run uses here when it continues: those given with its id, or those it was suspended with."""
    caller_threads: list[CallerThreadExecutor] = field(default_factory=list)
    """Threads that wait for the run and execute its plain functions meanwhile."""
    before: EndedExecution | None = None
    """The execution in another process that ended with a takeover by this one, until an execution begins here."""
    was_paused: bool = False
    """True if that process lives, but was paused."""
    pause: float = 0.0
    """Seconds for which the run was left to others last."""
    until: float = 0.0
    """The time until which it is left to others, by the monotonic clock."""

    def move(self, event: Event) -> None:
        """Change the state as the table says."""
        sources, to = MOVES[event]
        if self.state in sources:
            self.state, self.earlier = to or self.earlier, self.state

    def decline(self) -> None:
        """Leave the run to others, longer each time, so that processes that lack something do not pass it around."""
        self.pause = min(2 * self.pause or DECLINE, LONGEST)
        self.until = time.monotonic() + self.pause

    @property
    def held(self) -> errors.DurableSwarmError | None:
        """Return why the run is held, or None if it is not."""
        return self.reason if self.state == "held" else None

    @property
    def is_interrupted(self) -> bool:
        """Return True if the run stopped here without an outcome, and was not taken over since."""
        return self.state in INTERRUPTED

    @property
    def is_declined(self) -> bool:
        """Return True if the run is left to others at present."""
        return time.monotonic() < self.until


class LocalRuns:
    """The runs of which this process knows something. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._known: dict[str, LocalRun] = {}
        self.executions: dict[str, Execution] = {}
        """The last execution of each run that has begun here and has not left; to be read only."""

    def of(self, run_id: str) -> LocalRun:
        """Return what is known of a run, to be read only."""
        return self._known.get(run_id) or LocalRun()

    def in_state(self, *states: State) -> dict[str, LocalRun]:
        """Return the runs that are in one of these states."""
        with self._lock:
            return {run_id: known for run_id, known in self._known.items() if known.state in states}

    @contextlib.contextmanager
    def _entry(self, run_id: str) -> Iterator[LocalRun]:
        """Change an entry: one that says nothing afterwards is removed."""
        with self._lock:
            known = self._known.setdefault(run_id, LocalRun())
            try:
                yield known
            finally:
                if known == LocalRun():
                    del self._known[run_id]

    def move(self, run_id: str, event: Event) -> None:
        """Change the state of a run as the table says."""
        with self._entry(run_id) as known:
            known.move(event)

    # Executions

    def begin(self, run: Execution) -> None:
        """Note that an execution begins here, in the place of an earlier one; it gets what was kept for the run."""
        with self._entry(run.run_id) as known:
            known.move("begun")
            run.caller_threads, run.before, run.was_paused = known.caller_threads, known.before, known.was_paused
            run.cast = known.cast | run.cast
            known.before, known.was_paused, known.cast = None, False, {}
            self.executions[run.run_id] = run

    def leave(self, run: Execution, event: Event = "left") -> None:
        """Note that an execution ends here, or was interrupted at its start, unless another has taken its place."""
        with self._entry(run.run_id) as known:
            if self.executions.get(run.run_id, run) is run:
                self.executions.pop(run.run_id, None)
                known.move("over" if run.lost or run.has_ended else event)
                if known.state in ("elsewhere", "suspended"):
                    known.outage = None

    def retry(self, run_id: str, outage: str) -> None:
        """Note that a run stopped because the database could not be written."""
        with self._entry(run_id) as known:
            known.move("outage")
            known.outage = outage

    def hold(self, run_id: str, reason: errors.DurableSwarmError, execution: Execution | None) -> None:
        """Note why a run cannot continue here, and leave it to others; unless an execution has begun since this one."""
        with self._entry(run_id) as known:
            if self.executions.get(run_id) is execution:
                known.move("held")
                known.reason = reason
                known.decline()

    # Takeovers

    def take(self, run_id: str, before: EndedExecution | None, *, was_paused: bool) -> None:
        """Note that a run is about to be taken over, and keep for its execution what ends with that."""
        with self._entry(run_id) as known:
            known.before, known.was_paused = before or known.before, was_paused or known.was_paused
            known.move("taken")

    def give_back(self, run_id: str) -> None:
        """Note that a run was not taken over after all."""
        with self._entry(run_id) as known:
            known.before, known.was_paused = None, False
            known.move("not_taken")

    def lend(self, run_id: str, cast: Cast) -> None:
        """Make the next execution of a run here use these agents, even if others share their names."""
        with self._entry(run_id) as known:
            known.cast = known.cast | cast
            known.move("lifted")

    def forget(self, run_id: str, *, ended: bool) -> None:
        """Note that a run was found to have ended, or to be with another process, unless it is executed here."""
        with self._entry(run_id) as known:
            if ended and known.is_interrupted:
                known.cast = {}
            known.move("gone")
            if known.state == "elsewhere":
                known.outage = None
                if ended:
                    known.pause = known.until = 0.0

    def decline(self, run_id: str) -> None:
        """Leave a run to others for a time."""
        with self._entry(run_id) as known:
            known.decline()

    def decline_none(self) -> None:
        """Leave no run to others any more: what was lacking may be here now."""
        with self._lock:
            for run_id in list(self._known):
                with self._entry(run_id) as known:
                    known.pause = known.until = 0.0

    @contextlib.contextmanager
    def executor_in_this_thread(self, run_id: str, patience: float | None = None) -> Iterator[CallerThreadExecutor]:
        """Let the calling thread execute a run's plain functions for as long as it waits for the run."""
        with CallerThreadExecutor(patience) as home:
            with self._entry(run_id) as known:
                known.caller_threads.append(home)
            try:
                yield home
            finally:
                with self._entry(run_id) as known:
                    known.caller_threads.remove(home)
