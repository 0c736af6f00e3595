"""Makes the steps of an undecorated tool checkpoints of its workflow."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from durable_swarm import ends
from durable_swarm.awaitables import settled
from durable_swarm.codec import Place
from durable_swarm.concurrency import LoopRuntime, Runtime, block, in_thread, running_loop
from durable_swarm.engine.backend import patches
from durable_swarm.engine.backend import steps as backend_steps
from durable_swarm.engine.execution.errors import engines_code
from durable_swarm.engine.execution.execution import Execution
from durable_swarm.engine.execution.tool_call import CallRequests
from durable_swarm.engine.records import names
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.records.failures import Done, raised_text, step_done, step_failure, step_record
from durable_swarm.errors import ConfigurationError
from durable_swarm.observing import StepTrace


@ends.signal
class Begun(BaseException):
    """A step whose function looked plain has returned an awaitable; not an `Exception`, so not recorded."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value


async def _given(done: Done) -> object:
    return done.value()


class StepRecorder:
    """Makes the steps of an undecorated tool checkpoints of its workflow."""

    def __init__(self, run: Execution, key: str, people: CallRequests) -> None:
        self._run_id = run.run_id
        self._key = key
        self._record_codec = run.record_codec
        self._people = people
        self._trace = run.trace
        self._made: dict[int, StepTrace] = {}

    async def mark(self, waits: Runtime) -> bool:
        """Record that the tool is about to be entered; return True if that is new."""
        new = False

        def body() -> None:
            nonlocal new
            new = True

        async def on_loop() -> None:
            body()

        marked = self.step(names.BEGUN, on_loop if isinstance(waits, LoopRuntime) else body)
        if marked is not None:
            await marked
        return new

    def step(self, name: str, body: Callable[[], object]) -> Any:
        reserved = backend_steps.reserve()
        place = backend_steps.place_of(reserved, name)
        if inspect.iscoroutinefunction(body):
            return self._on_loop(place, body, reserved)
        with engines_code(f"step {name!r}"), patches.reading():
            try:
                record = backend_steps.run_step(name, functools.partial(self._recorded, place, body), reserved)
            except Begun as begun:  # Nothing is recorded yet: the step's awaitable is still to be awaited.
                return self._on_loop(place, functools.partial(settled, begun.value), reserved)
            done = step_done(self._record_codec.open(record, place, f"the record of step {name!r}"))
        return _given(done) if done.awaited else done.value()

    async def _on_loop(
        self, place: Place, body: Callable[[], Awaitable[object]], reserved: backend_steps.Reserved | None
    ) -> Any:
        async def recorded() -> Record:
            try:
                with patches.trusting():
                    record = step_record(await body())
            except BaseException as error:
                record = self._failure(place, error)
            if place.step != names.BEGUN:
                record["awaited"] = True  # The code may look plain in another execution, under a new decorator.
            self._note(place, started, record)
            return self._record_codec.close_step(record, place)

        started = time.time()
        with engines_code(f"step {place.step!r}"), patches.reading():
            record = await backend_steps.run_step_async(place.step, recorded, reserved)
            done = step_done(self._record_codec.open(record, place, f"the record of step {place.step!r}"))
        return done.value()

    def _recorded(self, place: Place, body: Callable[[], object]) -> Record:
        started = time.time()
        try:
            with patches.trusting():
                value = body()
                if inspect.isawaitable(value):
                    raise Begun(value)
                record = step_record(value)
        except BaseException as error:
            record = self._failure(place, error)
        self._note(place, started, record)
        return self._record_codec.close_step(record, place)

    def _note(self, place: Place, started: float, record: Record) -> None:
        if self._trace is not None:
            raised = record.get("raised")
            error = "" if raised is None else raised_text(raised)
            self._made[place.number] = StepTrace(place.step, started, time.time(), error)

    def trace_steps(self) -> None:
        """Add the steps to the trace of the run, if one is collected. DBOS's own steps were not made here."""
        if self._trace is None:
            return
        if len(self._made) < backend_steps.drawn():
            self._trace.whole = False
        steps = [made for _, made in sorted(self._made.items()) if made.name != names.BEGUN]
        self._trace.made_steps(self._key, steps)

    def _failure(self, place: Place, error: BaseException) -> Record:
        """Return the record of an error raised by a step; a signal is raised again without a record."""
        failure = ends.failure_of(error)
        if failure is None:
            raise error
        return step_failure(self._run_id, place.step, failure)

    def sleep(self, seconds: float) -> None:
        if running_loop() is not None:
            raise ConfigurationError("sleep() would stop the event loop; in an async tool use `await sleep_async(...)`")
        with engines_code("a sleep"):
            left = backend_steps.record_sleep(seconds)
        block(replace(self._people, holds_thread=True).pause(min(left, seconds)))

    async def sleep_async(self, seconds: float) -> None:
        with engines_code("a sleep"):
            left = await in_thread(backend_steps.record_sleep, seconds)
        await self._people.pause(min(left, seconds))
