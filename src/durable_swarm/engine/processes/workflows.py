"""The workflows, registered when this module is imported, so that their functions are known whenever DBOS recovers one.

Each exists in two colours under one name. The one in the calling thread serves `run()`; the one on an event loop serves
all other calls, and every recovery.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TypeVar

from durable_swarm import agents
from durable_swarm.background import threads
from durable_swarm.concurrency import BlockingRuntime, LoopRuntime, Runtime, finish, in_thread
from durable_swarm.engine.backend import awaited_calls, deferred_calls, ownership, patches
from durable_swarm.engine.backend import steps as backend_steps
from durable_swarm.engine.backend.public import DBOS, SetWorkflowID
from durable_swarm.engine.execution.child_calls import ToolCall
from durable_swarm.engine.execution.colours import Colour, InThread, OnEventLoop
from durable_swarm.engine.execution.compacting import compact
from durable_swarm.engine.execution.errors import engines_code
from durable_swarm.engine.execution.execution import Execution, beginning_here
from durable_swarm.engine.execution.limit_requests import LimitRequests
from durable_swarm.engine.execution.model_memo import RunMemo
from durable_swarm.engine.execution.performer import Durable
from durable_swarm.engine.execution.tool_batch import CallServices
from durable_swarm.engine.execution.tool_call import ToolCallExecution
from durable_swarm.engine.execution.tool_steps import StepRecorder
from durable_swarm.engine.history.projection import Row, numbers_in
from durable_swarm.engine.history.trace import trace_of
from durable_swarm.engine.processes.here import current, wait_for_current
from durable_swarm.engine.processes.process import Process
from durable_swarm.engine.records import failures, names, runs
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.records.encoding import RecordCodec, failure_of
from durable_swarm.engine.records.turns import calls_of, turns_in
from durable_swarm.engine.signals import Broken, RunHeld, RunSuspended, StepFailed
from durable_swarm.engine.storage.runs import Store
from durable_swarm.errors import ReplayMismatch
from durable_swarm.guardrails import guarded_turns
from durable_swarm.loop import Ending, drive, total
from durable_swarm.observing import RunEnd, RunTrace, observers_of, run_ended
from durable_swarm.swarm.arguments import respond

log = logging.getLogger("durable_swarm")


@backend_steps.workflow(names.RUN, recovers=False)
def run_in_thread(record: Record) -> Record:
    """Execute a run in the calling thread."""
    return finish(_conduct(current(), _own_id(), record, _in_thread))


@backend_steps.workflow(names.RUN, recovers=True)
async def run_on_loop(record: Record) -> Record:
    """Execute a run on the running event loop."""
    return await _conduct(await wait_for_current(), _own_id(), record, _on_loop)


@backend_steps.workflow(names.TOOL, recovers=False)
def tool_in_thread() -> Record:
    """Execute an undecorated tool call in the calling thread."""
    key = _own_id()
    made = current().pending_calls.place(key, ownership.owner_of(key)).result()
    return finish(_tool(made, key, BlockingRuntime()))


@backend_steps.workflow(names.TOOL, recovers=True)
async def tool_on_loop() -> Record:
    """Execute an undecorated tool call on the running event loop, when its run has come to it."""
    key = _own_id()
    process = await wait_for_current()
    made = await asyncio.wrap_future(process.pending_calls.place(key, ownership.owner_of(key)))
    return await _tool(made, key, _on_loop(made.run).waits)


def _own_id() -> str:
    return str(DBOS.workflow_id)


async def _conduct(process: Process, run_id: str, record: Record, colour: Callable[[Execution], Colour]) -> Record:
    run, lost = None, False
    try:
        with engines_code(f"the start of run {run_id!r}"):
            run = process.known(run_id, record)
            if process.may_be_late(run):
                await in_thread(run.check_ownership)
            process.enter(run, record, await in_thread(process.sessions.begin, run, record))
            if run.recovered or run.budget.above:
                run.publisher.add(*await in_thread(_earlier, process.store, run))
        ending = await _performed(process, run, colour)
        await _tell(process, run, RunEnd("done", time.time(), ending.ended_by))
        run.response = respond(ending, run.cast.get(ending.agent) or agents.find_or_none(ending.agent), run_id)
        return runs.end_record(ending)
    except StepFailed as failed:
        raise await _failed(process, run_id, run, failed) from None
    except RunHeld as held:
        process.hold(run_id, held, run)
        raise
    except RunSuspended:
        if run is not None:
            await in_thread(process.rest, run)
        raise
    except ownership.OwnershipLost:
        lost = True
        if run is not None:
            process.lost_claims.lose(run)
        raise
    finally:
        if run is not None:
            process.leave(run, lost=lost)


async def _performed(process: Process, run: Execution, colour: Callable[[Execution], Colour]) -> Ending:
    check = ownership.OwnershipCheck(run.check_ownership, is_first=not run.recovered)
    with patches.reading(), ownership.checked_by(run.run_id, check):
        performer = Durable(
            run,
            colour(run),
            CallServices(_on_loop, process.pending_calls.put, process.crash_guard, process.at_call),
            process.still_wanted,
            process.store.mailbox,
            process.rates,
            LimitRequests(process.store.inbox, process.waiting_calls),
            process.store.accepted,
            process.providers,
            functools.partial(RunMemo, process.store),
        )
        try:
            await compact(performer, run.compaction)
            ending = await drive(guarded_turns(run.start), performer)
        except ownership.Cancelled:
            await _tell(process, run, RunEnd("cancelled", time.time()))
            raise
        return replace(ending, usage=total([run.summarizing, ending.usage]))


async def _failed(process: Process, run_id: str, run: Execution | None, failed: StepFailed) -> Broken | RunHeld:
    """Return what ends the run, or holds it; those who observe the swarm are told of an end."""
    if run is not None:
        with contextlib.suppress(RunHeld), engines_code(f"the limits of run {run_id!r}"):
            await in_thread(run.budget.leave)
    broken = _broken(process, run_id, run, failed)
    if isinstance(broken, Broken):
        await _tell(process, run, RunEnd("failed", time.time(), error=type(failed.error).__name__), broken.data)
    return broken


async def _tell(process: Process, run: Execution | None, end: RunEnd, failure: Record | None = None) -> None:
    """Tell those who observe the swarm that the run is about to end."""
    if run is not None and observers_of(run.swarm):
        if failure is not None:
            failure = run.record_codec.open(
                {"v": names.VERSION, **failure}, failure_of(run.run_id), "the run's failure"
            )
        await in_thread(run_ended, run.swarm, functools.partial(_trace, process.store, run, end, failure))


def _trace(store: Store, run: Execution, end: RunEnd, failure: Record | None) -> RunTrace:
    if run.trace is not None and run.trace.whole and end.status == "done":
        return run.trace.ended(end)
    return trace_of(store, run.run_id, end, failure)


def _earlier(store: Store, run: Execution) -> tuple[list[Row], list[int]]:
    """Return the stored events of earlier executions: rows, and the numbers in the outcomes of calls.

    What limits the run beyond its own records is read, too.
    """
    run.budget.load(recovered=run.recovered)
    if not run.recovered:
        return [], []
    steps, made = store.steps(run.run_id), []
    if steps:
        row = store.found(run.run_id, load_output=False)
        made = turns_in(steps, calls_of(store, row), store, row, len(run.start.kept))
        run.input_guardrails = made[0].read().input_guardrails if made and not run.start.kept else None
    try:
        rows = store.events.read(run.run_id, run.record_codec)
    except ReplayMismatch as error:
        log.warning("run %r continues, but the stored events of its text cannot be read: %s", run.run_id, error)
        rows = []
    outcomes = [outcome for turn in made for outcome in turn.outcomes if outcome]
    run.budget.has_worked(max(map(runs.seconds_worked, outcomes), default=0.0))
    return rows, [seq for outcome in outcomes for seq in numbers_in(outcome)]


def _broken(process: Process, run_id: str, run: Execution | None, failed: StepFailed) -> Broken | RunHeld:
    """Return the failure that ends the run; if the failure's record cannot be made, the hold of the run."""
    record_codec = RecordCodec(None if run is None else run.swarm.codec)
    try:
        record = record_codec.close_step(
            failures.failure_record(run_id, failed.error, step=failed.step), failure_of(run_id)
        )
    except RunHeld as held:
        process.hold(run_id, held, run)
        return held
    if run is not None:
        run.error = failed.error
    # Not the message, which may be the user's data; and if a caller waits for the run, it is raised there.
    kind = type(failed.error).__name__
    log.info("run %r failed in %s: %s; `durable-swarm show %s` has more", run_id, failed.step, kind, run_id)
    return Broken(record)


async def _tool(made: ToolCall, key: str, waits: Runtime) -> Record:
    process = current()
    pending_calls = process.pending_calls  # Read now, because the process may be closed when the tool ends.
    try:
        people = process.at_call(made, key)
        check = ownership.OwnershipCheck(made.run.check_ownership, is_first=made.attempt == 1)
        with ownership.checked_by(key, check):
            recorder = StepRecorder(made.run, key, people)
            record = await ToolCallExecution(made, key, recorder, waits, people).record()
            recorder.trace_steps()
        return made.run.record_codec.close_step(record, deferred_calls.place_of_outcome(key))
    except (StepFailed, RunHeld, RunSuspended) as broken:
        made.wait.abort(broken)
        raise
    finally:
        pending_calls.clear(key, made)
        awaited_calls.ends(key)


def _in_thread(run: Execution) -> InThread:
    # A caller in whose thread the run is executed would gain nothing from its suspension.
    run.stays = beginning_here() is run
    return InThread(functools.partial(_child_in_thread, run), run.record_codec)


def _on_loop(run: Execution) -> OnEventLoop:
    return OnEventLoop(functools.partial(_child_on_loop, run), run.record_codec, LoopRuntime(_Pool(run)))


T = TypeVar("T")


class _Pool:
    """Runs a run's plain functions: in the thread that waits for the run if there is one, else in a pool."""

    def __init__(self, run: Execution) -> None:
        self._run = run

    def submit(self, function: Callable[..., T], /, *args: object) -> Future[T]:
        alone = self._run.swarm.tool_concurrency == 1
        caller_threads = self._run.caller_threads[-1:] if alone else []
        return (caller_threads[0] if caller_threads else threads()).submit(function, *args)


def _child_in_thread(run: Execution, key: str) -> Record:
    with SetWorkflowID(key), deferred_calls.deferring(run.run_id, key) as call:
        record: Record = tool_in_thread()
    return run.record_codec.open(record, call.place, f"the record of tool call {key!r}")


async def _child_on_loop(run: Execution, key: str) -> Record:
    expected = awaited_calls.Expected(
        run.check_ownership, functools.partial(current().lost_claims.fetch_call, run, key)
    )
    deferring = deferred_calls.deferring(run.run_id, key)
    with SetWorkflowID(key), awaited_calls.expecting(key, expected), deferring as call:
        record: Record = await tool_on_loop()
    return run.record_codec.open(record, call.place, f"the record of tool call {key!r}")
