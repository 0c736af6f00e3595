"""The workflows, registered when this module is imported: whatever DBOS recovers, their functions are known.

Each exists in two colours under one name. The one in the calling thread serves `run()`; the one on an event loop serves
everything else, and every recovery.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from typing import Any

from dbos import DBOS, SetWorkflowID
from dbos import error as dbos_errors

from durable_swarm import roster
from durable_swarm.codec import Place
from durable_swarm.engine import internals, records
from durable_swarm.engine.failures import engines_code, step_done, step_failure, step_record
from durable_swarm.engine.live import LiveRun, ToolCall
from durable_swarm.engine.narrator import Row, numbers_in
from durable_swarm.engine.performer import Colour, Durable, InThread, OnEventLoop, perform
from durable_swarm.engine.process import Process, current, wait_for_current
from durable_swarm.engine.records import Record
from durable_swarm.engine.sealing import Seal, failure_of, output_of
from durable_swarm.engine.signals import Broken, Failed, Held
from durable_swarm.engine.store import Store
from durable_swarm.engine.turns import calls_of, turns_in
from durable_swarm.errors import ConfigurationError, ReplayMismatch
from durable_swarm.loop import drive, turns
from durable_swarm.swarm import respond
from durable_swarm.waits import Blocking, OnLoop, Waits, finish, in_thread, running_loop, threads

log = logging.getLogger("durable_swarm")


@internals.workflow(records.RUN, recovers=False)
def run_in_thread(record: Record) -> Record:
    """Execute a run in the calling thread."""
    return finish(_conduct(current(), _own_id(), record, lambda run: InThread(_child_in_thread, run.seal)))


@internals.workflow(records.RUN, recovers=True)
async def run_on_loop(record: Record) -> Record:
    """Execute a run on the running event loop."""
    return await _conduct(await wait_for_current(), _own_id(), record, _on_loop)


@internals.workflow(records.TOOL, recovers=False)
def tool_in_thread() -> Record:
    """Execute an undecorated tool call in the calling thread."""
    key = _own_id()
    made = current().desk.place(key).result()
    return finish(_tool(made, key, Blocking()))


@internals.workflow(records.TOOL, recovers=True)
async def tool_on_loop() -> Record:
    """Execute an undecorated tool call on the running event loop, when its run has come to it."""
    key = _own_id()
    process = await wait_for_current()
    made = await asyncio.wrap_future(process.desk.place(key))
    return await _tool(made, key, _on_loop(made.run).waits)


def _own_id() -> str:
    return str(DBOS.workflow_id)


async def _conduct(process: Process, run_id: str, record: Record, colour: Callable[[LiveRun], Colour]) -> Record:
    run: LiveRun | None = None
    try:
        with engines_code(f"the start of run {run_id!r}"):
            run = process.enter(run_id, record)
            if run.recovered:
                run.feed.add(*await in_thread(_earlier, process.store, run))
        with internals.reading():
            ending = await drive(
                turns(run.start),
                Durable(run, colour(run), _on_loop, process.desk.put, process.still_wanted, process.trials),
            )
        run.response = respond(ending, run.cast.get(ending.agent) or roster.find_or_none(ending.agent), run_id)
        return {"v": records.VERSION, "agent": ending.agent}
    except Failed as failed:
        raise _broken(process, run_id, run, failed) from None
    except Held as held:
        process.hold(run_id, held)
        raise
    finally:
        if run is not None:
            process.leave(run)


def _earlier(store: Store, run: LiveRun) -> tuple[list[Row], list[int]]:
    """Give what earlier lives have stored of a run's events: rows, and the numbers in the outcomes of calls."""
    row = store.found(run.run_id, load_output=False)
    made = turns_in(store.steps(run.run_id), calls_of(store, row), store, row, len(run.start.kept))
    try:
        rows = store.events.read(run.run_id, run.seal)
    except ReplayMismatch as error:
        log.warning("run %r goes on, but what was told of its text is void: %s", run.run_id, error)
        rows = []
    numbers = [seq for turn in made for outcome in turn.outcomes if outcome for seq in numbers_in(outcome)]
    return rows, numbers


def _broken(process: Process, run_id: str, run: LiveRun | None, failed: Failed) -> Broken | Held:
    """Give what ends the run with a failure; if the failure's record cannot be made, what holds the run."""
    seal = Seal(None if run is None else run.swarm.codec)
    try:
        record = seal.close_step(records.failure_record(run_id, failed.error, step=failed.step), failure_of(run_id))
    except Held as held:
        process.hold(run_id, held)
        return held
    if run is not None:
        run.error = failed.error
    return Broken(record)


async def _tool(made: ToolCall, key: str, waits: Waits) -> Record:
    desk = current().desk  # Now: the process may be closed when the tool ends.
    try:
        record = await perform(made, key, StepRecorder(made.run.run_id, key, made.run.seal), waits)
        return made.run.seal.close_step(record, output_of(key))
    except (Failed, Held) as broken:
        made.wait.break_off(broken)
        raise
    finally:
        desk.clear(key, made)


def _on_loop(run: LiveRun) -> OnEventLoop:
    return OnEventLoop(_child_on_loop, run.seal, OnLoop(_Pool(run)))


class _Pool:
    """Where a run's plain functions run: in the thread that waits for the run if there is one, else in a pool."""

    def __init__(self, run: LiveRun) -> None:
        self._run = run

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Future[Any]:
        alone = self._run.swarm.tool_concurrency == 1
        homes = self._run.homes[-1:] if alone else []
        return (homes[0] if homes else threads()).submit(function, *args)


def _child_in_thread(key: str) -> Record:
    with SetWorkflowID(key):
        record: Record = tool_in_thread()
    return record


async def _child_on_loop(key: str) -> Record:
    with SetWorkflowID(key):
        record: Record = await tool_on_loop()
    return record


class StepRecorder:
    """Makes the steps of an undecorated tool checkpoints of its child workflow."""

    def __init__(self, run_id: str, key: str, seal: Seal) -> None:
        self._run_id = run_id
        self._key = key
        self._seal = seal

    def step(self, name: str, body: Callable[[], Any]) -> Any:
        reserved = internals.reserve()
        place = internals.place_of(reserved, name)
        if inspect.iscoroutinefunction(body):
            return self._on_loop(place, body, reserved)
        with engines_code(f"step {name!r}"), internals.reading():
            record = internals.run_step(name, functools.partial(self._recorded, place, body), reserved)
            done = step_done(self._seal.open(record, place, f"the record of step {name!r}"))
        return done.value()

    async def _on_loop(self, place: Place, body: Callable[[], Awaitable[Any]], reserved: Any) -> Any:
        async def recorded() -> Record:
            try:
                with internals.trusting():
                    record = step_record(await body())
            except Exception as error:
                record = step_failure(self._run_id, place.step, error)
            return self._seal.close_step(record, place)

        with engines_code(f"step {place.step!r}"), internals.reading():
            record = await internals.run_step_async(place.step, recorded, reserved)
            done = step_done(self._seal.open(record, place, f"the record of step {place.step!r}"))
        return done.value()

    def _recorded(self, place: Place, body: Callable[[], Any]) -> Record:
        try:
            with internals.trusting():
                record = step_record(body())
        except Exception as error:
            record = step_failure(self._run_id, place.step, error)
        return self._seal.close_step(record, place)

    def sleep(self, seconds: float) -> None:
        if running_loop() is not None:
            raise ConfigurationError("sleep() would stop the event loop; in an async tool use `await sleep_async(...)`")
        with engines_code("a sleep"):
            left = internals.record_sleep(seconds)
        for pause in _pauses(left):
            time.sleep(pause)
            self._stop_if_cancelled()

    async def sleep_async(self, seconds: float) -> None:
        with engines_code("a sleep"):
            left = await in_thread(internals.record_sleep, seconds)
        for pause in _pauses(left):
            await asyncio.sleep(pause)
            await in_thread(self._stop_if_cancelled)

    def _stop_if_cancelled(self) -> None:
        with engines_code("a sleep"):
            cancelled = current().store.is_cancelled(self._key)
        if cancelled:
            raise dbos_errors.DBOSWorkflowCancelledError(f"tool call {self._key!r} was cancelled while it slept")


def _pauses(seconds: float) -> Iterator[float]:
    """Divide a sleep into pauses after which to look whether it is still wanted: short ones first."""
    end, pause = time.monotonic() + seconds, 0.5
    while (left := end - time.monotonic()) > 0:
        yield min(left, pause)
        pause = min(pause * 1.5, 5.0)
