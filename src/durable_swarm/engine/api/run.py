"""`Run`: the handle of one run, in the process that executes it or in any other."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, overload

from durable_swarm.agents import find_or_none
from durable_swarm.engine.api.relatives import RunRelatives
from durable_swarm.engine.api.result import RunResult
from durable_swarm.engine.api.run_limits import RunLimits
from durable_swarm.engine.history import fork as history_fork
from durable_swarm.engine.history.family_events import FamilyReader
from durable_swarm.engine.history.follower import LATEST, EventReader, RecordedEvents, check_after
from durable_swarm.engine.history.fork import ForkArguments
from durable_swarm.engine.history.story import step_infos, story, usage_with_children
from durable_swarm.engine.records import names
from durable_swarm.engine.records import runs as records_runs
from durable_swarm.engine.records.agent_versions import HELD_FOR
from durable_swarm.engine.signals import look_aside
from durable_swarm.engine.storage.run_state import moment, notes_on, started_at, state_of
from durable_swarm.events import Event
from durable_swarm.models.verdict import read_output
from durable_swarm.runs import ENDED, State, StepInfo
from durable_swarm.streaming import from_any_thread
from durable_swarm.swarm.arguments import respond
from durable_swarm.types import EndedBy, Message, T, Usage

if TYPE_CHECKING:
    from typing_extensions import TypeForm

    from durable_swarm.engine.execution.execution import Execution


class Run(RunResult, RunRelatives, RunLimits):
    """One run: its state, result and history. Made by `start`, `get` and `runs`; holds no connection of its own."""

    @property
    def status(self) -> State:
        """`queued`, `running`, `waiting`, `done`, `failed` or `cancelled`, as the database has it now."""
        return state_of(self._row(waits=True))

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
        """The tokens of the run and of all runs below it so far, or None if the provider counts none."""
        return usage_with_children(self._store(), self._row())

    @property
    def ended_by(self) -> EndedBy | None:
        """The cause of a done run's end, as in `Response.ended_by`; None for any other run."""
        row = self._row(load_output=True)
        if state_of(row) != "done":
            return None
        noted = records_runs.read_end(row.output)
        ending = None if noted else story(self._store(), row).ending
        return noted if ending is None else ending.ended_by

    @overload
    def output(self, type: TypeForm[T]) -> T | None: ...
    @overload
    def output(self, type: object = None) -> Any: ...
    def output(self, type: object = None) -> Any:
        """Return the answer of a run that is done as a value; None if it has none, or is not done.

        It is a value of `type`, or of the last agent's `output_type` if that agent is defined here; otherwise, and if
        the agent's type has changed so that the answer does not fit it any more, plain data. Raises `InvalidOutput` if
        the answer does not fit `type`.
        """
        row = self._row(load_output=True)
        ending = story(self._store(), row).ending if state_of(row) == "done" else None
        if ending is None or ending.ended_by != "answer" or not ending.messages:
            return None
        if type is not None:
            return read_output(ending.messages[-1], ending.verdict, type)
        return respond(ending, find_or_none(ending.agent), self.id).output

    def messages(self) -> list[Message]:
        """Return the run's new messages so far: always a history that a provider accepts."""
        return story(self._store(), self._row()).messages

    def steps(self) -> list[StepInfo]:
        """Return the recorded steps, those inside tools after their tool."""
        return step_infos(self._store(), self._row(load_output=True))

    def events(self, after: int = 0, *, children: bool = False) -> Iterator[Event]:
        """Yield the run's events after number `after`: the past ones, then the new ones, until it ends.

        The numbers are the same for every reader, in every process, live or later: an interrupted reader continues with
        `after` set to the last number it has seen. Text that a process shows before it is stored, and then loses in a
        crash, is followed by `text.reset`; so the pieces since the last reset are the text of the turn. A slow reader,
        or one that stops, costs the run nothing.

        With `children` the events of all runs below it come as well, with their `run_id`, between the `child.started`
        and `child.finished` of the run above. `after` counts the run's own events; a child that had not finished then
        is read from its first event.

        Raises `ConfigurationError` for an invalid number, and the errors of `result` while the run cannot continue.
        """
        check_after(after)
        self._refuse_to_block("events")
        return self._events(self.follower(after, children=children))

    def follower(self, after: int, *, children: bool = False) -> EventReader:
        """Return the reader of the events after number `after` in the database, with `children` also of theirs."""
        return (FamilyReader if children else EventReader)(self._store, self.id, after)

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
            with live.publisher.listening(changed.set):
                while not live.over.done():
                    self.check_open(executor)
                    changed.clear()
                    events = follower.live(live.publisher)
                    yield from self._read(follower) if events is None else events
                    if not events:
                        changed.wait(LATEST)

    def events_async(self, after: int = 0, *, children: bool = False) -> AsyncIterator[Event]:
        """Yield the events as `events` does, on the event loop."""
        check_after(after)
        return self._events_async(self.follower(after, children=children))

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
            with live.publisher.listening(wake):
                while not live.over.done():
                    self.check_open(executor)
                    changed.clear()
                    events = follower.live(live.publisher)
                    for event in await look_aside(self._read, follower) if events is None else events:
                        yield event
                    if not events:
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(changed.wait(), LATEST)

    def _read(self, follower: EventReader) -> list[Event]:
        with self.bearing():
            return follower.read()
        return []

    def _living(self) -> Execution | None:
        live = self.live()
        return None if live is None or live.over.done() else live

    def cancel(self) -> None:
        """Stop the run and all runs below it, each at its next checkpoint. An ended run stays as it is.

        A call in progress ends unrecorded.
        """
        if self.status not in ENDED:
            executor = self._executor()
            self._store().cancel(self.id)
            if executor is not None:
                executor.local.move(self.id, "lifted")

    def resume(self) -> None:
        """Let a failed or cancelled run continue from its first unfinished step; nothing finished is repeated.

        It continues in this process if its agents are defined here, else in the next that defines them. For a run that
        is held because an agent of it has changed (`AgentChanged`), this accepts the version it is held for, and the
        process that holds it continues it. For a run that waits for its provider, this makes the next try due. Any
        other run stays as it is; so if several callers resume a run at once, one of them succeeds. Child runs for
        which it waits are resumed with it.
        """
        row, store, executor = self._row(), self._store(), self._executor()
        stopped, held = state_of(row) in ("failed", "cancelled"), bool(notes_on(row).get(HELD_FOR))
        if stopped or held:  # The children first, because the run asks for their results at once.
            for link in store.family.children([self.id], open_calls=True):
                self._other(link.run_id).resume()
        if held:
            store.accept(row)
        store.try_now(row)
        if stopped:
            RecordedEvents(store, self.id).keep_end()
            if store.resume(row, names.UNCLAIMED):
                self._live = None
        if executor is not None and (stopped or held):
            executor.local.move(self.id, "lifted")
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
        return self._other(history_fork.fork(self._store(), self._executor(), self._row(), asked, self._swarm))

    def _other(self, run_id: str) -> Run:
        return Run(run_id, self._store, self._executor, swarm=self._swarm)

    async def fork_async(
        self,
        turn: int,
        *,
        agent: object = None,
        messages: Sequence[Message] | None = None,
        run_id: str | None = None,
    ) -> Run:
        """Fork as `fork` does, on the event loop."""
        return await look_aside(lambda: self.fork(turn, agent=agent, messages=messages, run_id=run_id))

    async def output_async(self, type: object = None) -> Any:
        """Return the answer as `output` does, on the event loop."""
        return await look_aside(self.output, type)

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
