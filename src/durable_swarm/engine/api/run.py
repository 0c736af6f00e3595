"""`Run`: the handle of one run, in the process that executes it or in any other."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, Protocol

from durable_swarm import errors
from durable_swarm.agents import find_or_none
from durable_swarm.concurrency import CallerThreadExecutor, exiting, running_loop
from durable_swarm.engine.api.run_requests import DecisionListener, RunRequests
from durable_swarm.engine.database.reconnecting import bearing
from durable_swarm.engine.execution.execution import Execution
from durable_swarm.engine.history import fork as history_fork
from durable_swarm.engine.history.follower import LATEST, EventReader, RecordedEvents, check_after
from durable_swarm.engine.history.fork import ForkArguments
from durable_swarm.engine.history.recorded_errors import cancelled, error_of
from durable_swarm.engine.history.story import step_infos, story
from durable_swarm.engine.records import names
from durable_swarm.engine.records import runs as records_runs
from durable_swarm.engine.records.agent_versions import HELD_FOR
from durable_swarm.engine.signals import Closed, look_aside, program_ended, refused
from durable_swarm.engine.storage.runs import Store, moment, notes_on, reason_noted, started_at, state_of
from durable_swarm.events import Event
from durable_swarm.loop import Ask
from durable_swarm.runs import ENDED, State, StepInfo
from durable_swarm.streaming import from_any_thread
from durable_swarm.swarm.arguments import respond
from durable_swarm.tools.context import calling
from durable_swarm.types import EndedBy, Message, Response, Usage
from durable_swarm.validation import check_seconds

_PAUSE, _LOOK, _LISTEN = 0.005, 0.25, 0.02
"""Seconds between polls of the database: for a run that ends here, for one elsewhere, and for a living process."""


class Executor(history_fork.Host, DecisionListener, Protocol):
    """The parts of the process that a handle needs, if the process can execute runs."""

    runs: dict[str, Execution]
    held: dict[str, errors.DurableSwarmError]
    parked: dict[str, str]
    loops: weakref.WeakSet[asyncio.AbstractEventLoop]

    @property
    def is_closed(self) -> bool:
        """Return True if the engine is closed."""

    def lives_elsewhere(self, row: Any) -> bool:
        """Return True if another living process executes the run of this row."""

    def executor_in_this_thread(self, run_id: str) -> contextlib.AbstractContextManager[CallerThreadExecutor]:
        """Let the run's plain functions use the calling thread."""

    def take_over(self, *run_ids: str) -> list[str]:
        """Take over these runs if no living process executes them and their agents are defined here."""

    def waits_for(self, run_id: str) -> str | None:
        """Return the reason why a run does not continue in this process, or None."""


class Run(RunRequests):
    """One run: its state, result and history. Made by `start`, `get` and `runs`; holds no connection of its own."""

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

    def __repr__(self) -> str:
        return f"Run({self.id!r})"

    def _row(self, *, load_output: bool = False) -> Any:
        return self._store().found(self.id, load_output=load_output)

    @property
    def status(self) -> State:
        """`queued`, `running`, `waiting`, `done`, `failed` or `cancelled`, as the database has it now."""
        return state_of(self._row())

    @property
    def agent(self) -> str:
        """The name of the agent the run was started with."""
        return str(notes_on(self._row()).get("agent", ""))

    @property
    def created_at(self) -> datetime:
        """The time at which the run was started, in UTC."""
        return started_at(self._row())

    @property
    def updated_at(self) -> datetime:
        """The time of the run's last change, in UTC: its last checkpoint, or its end."""
        row = self._row()
        steps = self._store().steps(self.id)
        last = max((step.completed_at_epoch_ms or 0 for step in steps), default=0)
        return max(self.created_at, moment(row.updated_at), moment(last))

    @property
    def usage(self) -> Usage | None:
        """The tokens of the run so far, or None if the provider counts none."""
        return story(self._store(), self._row()).usage

    @property
    def ended_by(self) -> EndedBy | None:
        """The cause of a done run's end, as in `Response.ended_by`; None for any other run."""
        row = self._row(load_output=True)
        if state_of(row) != "done":
            return None
        noted = records_runs.read_end(row.output)
        ending = None if noted else story(self._store(), row).ending
        return noted if ending is None else ending.ended_by

    @property
    def waits_for(self) -> str | None:
        """The reason why the unfinished run does not continue, here or where it was tried last; or None."""
        executor = self._executor()
        here = executor.waits_for(self.id) if executor else None
        return here or reason_noted(self._row())

    def messages(self) -> list[Message]:
        """Return the run's new messages so far: always a history that a provider accepts."""
        return story(self._store(), self._row()).messages

    def steps(self) -> list[StepInfo]:
        """Return the recorded steps, those inside tools after their tool."""
        return step_infos(self._store(), self._row(load_output=True))

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

    def events(self, after: int = 0) -> Iterator[Event]:
        """Yield the run's events after number `after`: the past ones, then the new ones, until it ends.

        The numbers are the same for every reader, in every process, live or later: an interrupted reader continues with
        `after` set to the last number it has seen. Text that a process shows before it is stored, and then loses in a
        crash, is followed by `text.reset`; so the pieces since the last reset are the text of the turn. A slow reader,
        or one that stops, costs the run nothing.

        Raises `ConfigurationError` for an invalid number, and the errors of `result` while the run cannot continue.
        """
        check_after(after)
        self._refuse_to_block("events")
        return self._events(self.follower(after))

    def _teller(self) -> Executor | None:
        return self._executor()

    def executor(self) -> Executor | None:
        """Return the executor of runs in this process, if there is one."""
        return self._executor()

    def follower(self, after: int) -> EventReader:
        """Return the reader of the events after number `after` in the database."""
        return EventReader(self._store, self.id, after)

    def _events(self, follower: EventReader) -> Iterator[Event]:
        changed, executor = threading.Event(), self._executor()
        while not follower.over:
            self.check_open(executor)
            live = self._living()
            if live is None:
                yield from self._read(follower)
                if not follower.over:
                    self._raise_if_held()
                    self._see_to_it()
                    time.sleep(follower.pause)
                continue
            live.over.add_done_callback(lambda _: changed.set())
            with live.feed.listening(changed.set):
                while not live.over.done():
                    self.check_open(executor)
                    changed.clear()
                    events = follower.live(live.feed)
                    yield from self._read(follower) if events is None else events
                    if not events:
                        changed.wait(LATEST)

    def events_async(self, after: int = 0) -> AsyncIterator[Event]:
        """Yield the events as `events` does, on the event loop."""
        check_after(after)
        return self._events_async(self.follower(after))

    async def _events_async(self, follower: EventReader) -> AsyncIterator[Event]:
        loop, changed, executor = asyncio.get_running_loop(), asyncio.Event(), await look_aside(self._executor)

        def wake(*_: object) -> None:
            from_any_thread(loop, changed)

        while not follower.over:
            self.check_open(executor)
            live = await look_aside(self._living) if self._live is None else self._living()
            if live is None:
                for event in await look_aside(self._read, follower):
                    yield event
                if not follower.over:
                    self._raise_if_held()
                    await look_aside(self._see_to_it)
                    await asyncio.sleep(follower.pause)
                continue
            live.over.add_done_callback(wake)
            with live.feed.listening(wake):
                while not live.over.done():
                    self.check_open(executor)
                    changed.clear()
                    events = follower.live(live.feed)
                    for event in await look_aside(self._read, follower) if events is None else events:
                        yield event
                    if not events:
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(changed.wait(), LATEST)

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

    def _read(self, follower: EventReader) -> list[Event]:
        with self._bearing():
            return follower.read()
        return []

    def _bearing(self) -> contextlib.AbstractContextManager[None]:
        return bearing(lambda: self._store().url, self._parked)

    def _living(self) -> Execution | None:
        live = self.live()
        return None if live is None or live.over.done() else live

    def _home(self, *, lend: bool) -> contextlib.AbstractContextManager[CallerThreadExecutor]:
        """Return the executor with which this thread waits. With a timeout it runs no tool, which might outlast it."""
        executor = self._executor()
        return CallerThreadExecutor() if executor is None or not lend else executor.executor_in_this_thread(self.id)

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
        how = "it goes on"
        with contextlib.suppress(errors.ConfigurationError):  # The wait may be caused by the database.
            row, why = self._row(), self.waits_for
            if why is not None:
                how = f"it waits: {why}"
            elif state_of(row) == "queued":
                how = f"it waits for a worker of a swarm named {notes_on(row).get('swarm', '')!r}"
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
            self._live = executor.runs.get(self.id, self._live)
        return self._live

    def look(self, began: Executor | None = None) -> Response | None:
        """Return the response if the run has ended, raise its error, or make sure that a process executes it.

        Raises `ConfigurationError` if the engine with which the caller `began` is closed.
        """
        self.check_open(began)
        live, ended = self.live(), None
        if live is not None and not live.over.done():
            return None
        with self._bearing():
            ended = self._ended(live)
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

    def _change(self, row: Any) -> errors.AgentChanged:
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
        return executor is not None and self.id in executor.parked

    def lives_elsewhere(self) -> bool:
        """Return True if another living process executes the run."""
        return (executor := self._executor()) is None or executor.lives_elsewhere(self._row())

    def _see_to_it(self) -> None:
        """Once a second: if the process that executes the run has died, take the run over."""
        executor, now = self._executor(), time.monotonic()
        if executor is None or self.id in executor.runs or self.id in executor.held:
            return
        if now - self._seen > 1:
            self._seen = now
            if exiting():
                raise refused(program_ended())
            with self._bearing():
                executor.take_over(self.id)

    def _raise_if_held(self) -> None:
        """Raise the reason of a hold, except for a missing agent, which may appear without a person's help."""
        executor = self._executor()
        reason = executor.held.get(self.id) if executor else None
        if reason is not None and not isinstance(reason, errors.UnknownAgent):
            raise refused(reason)

    def _end(self, row: Any, live: Execution | None) -> Response | BaseException:
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

    def cancel(self) -> None:
        """Stop the run at its next checkpoint. A call in progress ends unrecorded; an ended run stays as it is."""
        if self.status not in ENDED:
            executor = self._executor()
            self._store().cancel(self.id)
            if executor is not None:
                executor.held.pop(self.id, None)

    def resume(self) -> None:
        """Let a failed or cancelled run continue from its first unfinished step; nothing finished is repeated.

        It continues in this process if its agents are defined here, else in the next that defines them. For a run that
        is held because an agent of it has changed (`AgentChanged`), this accepts the version it is held for, and the
        process that holds it continues it. Any other run stays as it is; so if several callers resume a run at once,
        one of them succeeds.
        """
        row, store, executor = self._row(), self._store(), self._executor()
        stopped, held = state_of(row) in ("failed", "cancelled"), bool(notes_on(row).get(HELD_FOR))
        if held:
            store.accept(row)
        if stopped:
            RecordedEvents(store, self.id).keep_end()
            if store.resume(row, names.UNCLAIMED):
                self._live = None
        if executor is not None and (stopped or held):
            executor.held.pop(self.id, None)
            executor.take_over(self.id)

    def fork(
        self,
        turn: int,
        *,
        agent: Any = None,
        messages: Sequence[Message] | None = None,
        run_id: str | None = None,
    ) -> Run:
        """Start a new run that keeps the turns before `turn`, counted from 0, and continues from there.

        A turn is one model reply and its tool calls. Nothing kept is executed again. From there on the fork uses the
        current code: the agent whose turn it is, or `agent` (an agent or its name), which need not have taken part so
        far. `messages` are added after the kept ones. The fork is executed here if its agent is defined here, else by
        the next process that defines it. The run itself, which may have ended or not, stays as it is.

        The same `run_id` again, with the same arguments, returns the existing fork. Raises `ConfigurationError` for a
        turn that does not exist or is not recorded as finished, `RunConflict`, `NotSerializable`, `RunNotFound`.
        """
        asked = ForkArguments(turn, agent, messages, run_id)
        fork_id = history_fork.fork(self._store(), self._executor(), self._row(), asked, self._swarm)
        return Run(fork_id, self._store, self._executor, swarm=self._swarm)

    async def fork_async(
        self,
        turn: int,
        *,
        agent: Any = None,
        messages: Sequence[Message] | None = None,
        run_id: str | None = None,
    ) -> Run:
        """Fork as `fork` does, on the event loop."""
        return await look_aside(lambda: self.fork(turn, agent=agent, messages=messages, run_id=run_id))

    async def messages_async(self) -> list[Message]:
        """Return the messages as `messages` does, on the event loop."""
        return await look_aside(self.messages)

    async def steps_async(self) -> list[StepInfo]:
        """Return the steps as `steps` does, on the event loop."""
        return await look_aside(self.steps)

    async def cancel_async(self) -> None:
        """Cancel as `cancel` does, on the event loop."""
        await look_aside(self.cancel)

    async def resume_async(self) -> None:
        """Resume as `resume` does, on the event loop."""
        await look_aside(self.resume)


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None:
        check_seconds("timeout", timeout)
