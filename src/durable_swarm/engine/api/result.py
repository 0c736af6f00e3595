"""The wait for the end of a run, in the process that executes it or in any other."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from durable_swarm import errors
from durable_swarm.agents import find_or_none
from durable_swarm.concurrency import CallerThreadExecutor, exiting, running_loop
from durable_swarm.engine.api.run_requests import DecisionListener, RunRequests
from durable_swarm.engine.database.reconnecting import bearing
from durable_swarm.engine.history import fork as history_fork
from durable_swarm.engine.history.recorded_errors import cancelled, error_of
from durable_swarm.engine.history.story import story
from durable_swarm.engine.records.agent_versions import HELD_FOR
from durable_swarm.engine.records.rows import RunRow
from durable_swarm.engine.signals import Closed, look_aside, program_ended, refused
from durable_swarm.engine.storage.run_state import notes_on, reason_noted, state_of
from durable_swarm.engine.storage.runs import Store
from durable_swarm.loop import Ask
from durable_swarm.runs import ENDED, State
from durable_swarm.swarm.arguments import respond
from durable_swarm.tools.context import calling
from durable_swarm.types import Response
from durable_swarm.validation import check_seconds

if TYPE_CHECKING:
    from durable_swarm.engine.execution.execution import Execution
    from durable_swarm.engine.processes.local_runs import LocalRuns

_PAUSE, _LOOK, _LISTEN = 0.005, 0.25, 0.02
"""Seconds between polls of the database: for a run that ends here, for one elsewhere, and for a living process."""


class Executor(history_fork.Host, DecisionListener, Protocol):
    """The parts of the process that a handle needs, if the process can execute runs."""

    local: LocalRuns
    loops: weakref.WeakSet[asyncio.AbstractEventLoop]

    @property
    def is_closed(self) -> bool:
        """Return True if the engine is closed."""

    def lives_elsewhere(self, row: RunRow) -> bool:
        """Return True if another living process executes the run of this row."""

    def take_over(self, *run_ids: str) -> list[str]:
        """Take over these runs if no living process executes them and their agents are defined here."""

    def waits_for(self, run_id: str) -> str | None:
        """Return the reason why a run does not continue in this process, or None."""


class RunResult(RunRequests):
    """The part of `Run` that waits for the end, and makes sure that a process executes the run until then."""

    def __init__(
        self,
        run_id: str,
        store: Callable[[], Store],
        executor: Callable[[], Executor | None],
        live: Execution | None = None,
        swarm: str | None = None,
    ):
        self.id = run_id
        self._swarm = swarm
        self._store = store
        self._executor = executor
        self._live = live
        self._seen = 0.0
        self.is_new = False
        """True in the handle that a start returned which recorded the run, False in one of an existing run."""
        self.on_end: Callable[[State], None] | None = None
        """Called when the end of the run is read by this handle."""

    def __repr__(self) -> str:
        return f"Run({self.id!r})"

    def _row(self, *, load_output: bool = False, waits: bool = False) -> RunRow:
        return self._store().found(self.id, load_output=load_output, waits=waits)

    @property
    def waits_for(self) -> str | None:
        """The reason why the unfinished run does not continue, here or where it was tried last; or None."""
        executor = self._executor()
        here = executor.waits_for(self.id) if executor else None
        row = self._row(waits=True)
        return here or reason_noted(row) or self._store().waits.reason_below(row)

    def result(self, timeout: float | None = None) -> Response:
        """Wait for the run's end and return its response.

        `timeout` is in seconds; after it TimeoutError is raised and the run continues. Raises the error the run ended
        with (`RunFailed` if it is read back), `RunCancelled`, `RunNotFound`, and the error that keeps the run from
        continuing in this process, such as `AmbiguousAgent`, `AgentChanged` and `ReplayMismatch`.
        """
        _check_timeout(timeout)
        self._refuse_to_block("result")
        deadline = None if timeout is None else time.monotonic() + timeout
        began = self._began()
        with self._home(lend=timeout is None) as home:
            while True:
                ended = self.look(began)
                if ended is not None:
                    return ended
                pause = self._pause()
                if deadline is not None:
                    pause = min(pause, deadline - time.monotonic())
                    if pause <= 0:
                        raise TimeoutError(self._not_yet(timeout))
                home.serve(pause)

    def _teller(self) -> Executor | None:
        return self._executor()

    def executor(self) -> Executor | None:
        """Return the executor of runs in this process, if there is one."""
        return self._executor()

    def check_open(self, executor: Executor | None) -> None:
        """Check that the engine with which a reader began is open: else it would open another, and execute the run.

        Raises `ConfigurationError`; in a tool, `RunHeld`, which leaves its run as well.
        """
        if executor is not None and executor.is_closed:
            raise refused(
                Closed(
                    f"the DurableSwarm was closed while run {self.id!r} was read; it continues where it is opened "
                    "next, and events(after=...) behind what was read"
                )
            )

    def _began(self) -> Executor | None:
        """Return the engine whose closing ends a wait: in a tool, the one that executes the tool's run."""
        return None if calling() is None else self._executor()

    def bearing(self) -> contextlib.AbstractContextManager[None]:
        """Wait, in this block, for a database that is away; raise `ConfigurationError` for its other errors."""
        return bearing(lambda: self._store().url, self._parked)

    def _home(self, *, lend: bool) -> contextlib.AbstractContextManager[CallerThreadExecutor]:
        """Return the executor with which this thread waits. With a timeout it runs no tool, which might outlast it."""
        executor = self._executor()
        if executor is None or not lend:
            return CallerThreadExecutor()
        return executor.local.executor_in_this_thread(self.id)

    def _refuse_to_block(self, method: str) -> None:
        executor, loop = self._executor(), running_loop()
        if loop is not None and executor is not None and loop in executor.loops:
            raise errors.ConfigurationError(
                f"{method}() would stop the event loop on which this run is executed; use {method}_async()"
            )

    async def result_async(self, timeout: float | None = None) -> Response:
        """Wait as `result` does, on the event loop."""
        _check_timeout(timeout)
        try:
            async with asyncio.timeout(timeout) as bound:
                return await self._end_of_run()
        except TimeoutError:
            if not bound.expired():
                raise
            raise TimeoutError(await look_aside(self._not_yet, timeout)) from None

    def _not_yet(self, timeout: float | None) -> str:
        """Return the message that the run has not ended in time, with its state."""
        how = "it continues"
        with contextlib.suppress(errors.ConfigurationError):  # The wait may be caused by the database.
            row, why = self._row(waits=True), self.waits_for
            if why is not None:
                how = f"it waits: {why}"
            elif state_of(row) == "queued":
                name = notes_on(row).get("swarm", "")
                how = f"it waits for a worker of a swarm {f'named {name!r}' if name else 'without a name'}"
        return f"run {self.id!r} has not ended within {timeout:g} s; {how}"

    async def _end_of_run(self) -> Response:
        began = await look_aside(self._began)
        while True:
            ended = await look_aside(self.look, began)
            if ended is not None:
                return ended
            live = self.live()
            if live is None or live.over.done():
                await asyncio.sleep(self._pause())
            else:
                await asyncio.wait([asyncio.wrap_future(live.over)])

    def _pause(self) -> float:
        live = self.live()
        if live is None or live.released or live.lost:
            return _LOOK
        return _PAUSE if live.over.done() else _LISTEN

    def live(self) -> Execution | None:
        """Return the run's current or last execution in this process, if there is one."""
        if (executor := self._executor()) is not None:
            self._live = executor.local.executions.get(self.id, self._live)
        return self._live

    def look(self, began: Executor | None = None) -> Response | None:
        """Return the response if the run has ended, raise its error, or make sure that a process executes it.

        Raises `ConfigurationError` if the engine with which the caller `began` is closed.
        """
        self.check_open(began)
        live, ended = self.live(), None
        if live is not None and not live.over.done():
            return None
        with self.bearing():
            ended = self._ended(live)
        if ended is not None and self.on_end is not None:
            self.on_end(_state_at(ended))
        if isinstance(ended, BaseException):
            raise ended
        return ended

    def _ended(self, live: Execution | None) -> Response | BaseException | None:
        row = self._row(load_output=True)
        if state_of(row) in ENDED:
            return self._end(row, live)
        self._raise_if_held()
        self._see_to_it()
        if notes_on(row).get(HELD_FOR) and self.lives_elsewhere():
            raise self._change(row)
        return None

    def _change(self, row: RunRow) -> errors.AgentChanged:
        """Return the change for which another process holds the run, from its notes."""
        following = story(self._store(), row).following
        turn, _, version = str(notes_on(row).get(HELD_FOR, "")).partition(":")
        return errors.AgentChanged(
            reason_noted(row) or f"an agent of run {self.id!r} has changed",
            run_id=self.id,
            agent=following.agent if isinstance(following, Ask) else "",
            turn=int(turn) if turn.isdigit() else 0,
            version=version,
        )

    def _parked(self) -> bool:
        """True if the run waits because of a database error: it continues by itself."""
        executor = self._executor()
        return executor is not None and executor.local.of(self.id).outage is not None

    def lives_elsewhere(self) -> bool:
        """Return True if another living process executes the run."""
        return (executor := self._executor()) is None or executor.lives_elsewhere(self._row())

    def _see_to_it(self) -> None:
        """Once a second: if the process that executes the run has died, take the run over."""
        executor, now = self._executor(), time.monotonic()
        if executor is None or executor.local.of(self.id).held or now - self._seen < 1:
            return
        is_here = self.id in executor.local.executions
        if is_here and not exiting():
            return
        looked_before, self._seen = self._seen > 0, now
        # An execution here that is over has a second to record its end.
        if exiting() and (looked_before or not is_here):
            raise refused(program_ended())
        if not is_here:
            with self.bearing():
                executor.take_over(self.id)

    def _raise_if_held(self) -> None:
        """Raise the reason of a hold, except for a missing agent, which may appear without a person's help."""
        executor = self._executor()
        reason = executor.local.of(self.id).held if executor else None
        if reason is not None and not isinstance(reason, errors.UnknownAgent):
            raise refused(reason)

    def _end(self, row: RunRow, live: Execution | None) -> Response | BaseException:
        """Return the result of the run: its response, or the error it ended with."""
        state = state_of(row)
        if state == "cancelled":
            return cancelled(self.id)
        if state == "failed":
            return live.error if live is not None and live.error is not None else error_of(self._store(), row)
        if live is not None and live.response is not None:
            return live.response
        ending = story(self._store(), row).ending
        if ending is None:
            raise errors.ReplayMismatch(f"run {self.id!r} is done, but its records are not complete", run_id=self.id)
        return respond(ending, find_or_none(ending.agent), self.id)


def _state_at(ended: Response | BaseException) -> State:
    if isinstance(ended, errors.RunCancelled):
        return "cancelled"
    return "failed" if isinstance(ended, BaseException) else "done"


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None:
        check_seconds("timeout", timeout)
