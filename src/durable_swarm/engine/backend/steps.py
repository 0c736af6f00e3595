"""Workflows and their steps, which DBOS executes with our view of it and of its database.

Beyond DBOS's public interface:

- `decorate_workflow`, `run_step`, `run_step_async` with a `DBOS` of our own view: the public decorators write step
  results with the serializer of the program that launched DBOS, which is pickle by default. They also record the result
  of a child workflow twice, in its own row and in its parent's; our view of the database does not. A tool call, a child
  workflow to DBOS, has no row in our view as long as it needs none (`deferred_calls.py`).
- `decorate_workflow` again: a workflow that exists in two forms (in the calling thread, on an event loop) has one name;
  the public decorator registers both, and warns.
- `update_workflow_outcome`: when the success of an async workflow cannot be recorded (a full disk), DBOS records this
  error as the workflow's own, for good. In our view, only a failure of ours ends a run.
- `await_workflow_result_async`: DBOS polls once a second for the result of another task's workflow. We wake the waiter
  when a tool call ends in this process: an answer is not a second late, and a hundred waiting runs cost nothing.
- `await_workflow_result`, and the async one: an execution that has lost a run, or finds it started by another, waits in
  DBOS for its end, though the other may die. Our execution leaves, and `Run.result` follows the run to any process.
- `start_workflow_async`: the public one records the end of the workflow past our view.
- `check_operation_execution`: before each step DBOS reads the run's status and a record of the step, but not the run's
  owner, so an execution that has lost the run would start a call that the owner is making. Our view reads the owner
  too, in one statement. A run that began in this execution has no records of other executions, so that statement is all
  it needs.
- `record_operation_result`, `init_child_workflow`, `update_workflow_outcome`: DBOS builds their statements anew at each
  call, which is a third of the processor time of a turn. Ours are compiled once (`checkpoints.py`). When the record of
  a step of an async workflow fails, DBOS also records that error as the step's own; our steps have no errors.
- `execute_dequeued_workflow`: reports whether DBOS claims a run from the queue of workers for the first time. If so, it
  is executed in a thread where possible: on an event loop DBOS changes the thread twice for each access to the
  database.
- `record_sleep`: the public `DBOS.sleep` cannot be interrupted.
- `WorkflowHandleAsyncTask`: the handle that distinguishes a workflow started here from one that existed already.
- `snapshot_step_context`: draws a step's number before anything is awaited, also where `DBOS.reserve_step` refuses
  (plain functions on a thread that has an event loop). Its `workflow_id` and `function_id` are the place of the record,
  to which an encryption binds it.
- `db_retry`: the check of the owner is repeated after a lost connection, as DBOS's own statements are.
- `_dbos_context_var`: a run started by a tool is an independent run; DBOS refuses a workflow inside a step.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from dbos import _context, _core, _dbos, _outcome, _queue, _serialization, _sys_db

from durable_swarm.codec import Place
from durable_swarm.engine.backend import awaited_calls, patches
from durable_swarm.engine.backend.checkpoints import Checkpoints
from durable_swarm.engine.backend.deferred_calls import (
    CallContext,
    DeferredCall,
    begin_workflow,
    deferred,
    deferred_of,
    reserving,
)
from durable_swarm.engine.backend.launch import JSON, instance, layout_of
from durable_swarm.engine.backend.ownership import OwnershipCheck, OwnershipLost, check_of, owner_of
from durable_swarm.engine.backend.pools import run_threads, to_thread
from durable_swarm.engine.backend.queues import _queues, _shared, executing, note_claim
from durable_swarm.engine.database.diagnosis import error_text, is_transient
from durable_swarm.engine.records import names
from durable_swarm.engine.signals import Broken, RunHeld, engine_closed
from durable_swarm.errors import ConfigurationError

T = TypeVar("T")
Status = Literal["PENDING", "SUCCESS", "ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED", "CANCELLED", "ENQUEUED", "DELAYED"]
"""DBOS's states of a workflow."""


class _Database:
    """The launched DBOS's database, where a tool call is a workflow only if it needs records of its own."""

    def __init__(self, database: _sys_db.SystemDatabase) -> None:
        self._database = database

    @functools.cached_property
    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(layout_of(self._database))

    def check_operation_execution(
        self, workflow_id: str, function_id: int, name: str, **named: Any
    ) -> Mapping[str, object] | None:
        """Read the record of a step. If there is none, the step is made only if this execution owns the run."""
        if (call := deferred_of(workflow_id)) is not None:
            return self._check_call(call, function_id, name)
        if (call := deferred(workflow_id)) is not None:
            call.begin_workflow()
        return self._check(check_of(workflow_id), workflow_id, function_id, name, **named)

    def _check(
        self, check: OwnershipCheck | None, workflow_id: str, number: int, name: str, **named: Any
    ) -> Mapping[str, object] | None:
        if check is not None and check.is_first and _patiently(check.check_ownership):
            return None
        found = self._database.check_operation_execution(workflow_id, number, name, **named)
        if found is None and check is not None and not check.is_first:
            _patiently(check.check_ownership)
        return found

    def _check_call(self, call: DeferredCall, number: int, name: str) -> Mapping[str, object] | None:
        """Read the record of a tool call: of its start as a workflow, or of its end as a step of its run."""
        call.number = number
        found = self._check(call.check, call.run_id, number, name)
        if found is None or found["child_workflow_id"] is not None:
            call.is_workflow = found is not None
            return found
        call.recorded = str(found["output"])
        return {**found, "child_workflow_id": call.key}

    def record_operation_result(self, result: Any, **more: Any) -> None:
        """Record the outcome of a step, which is never an error: our steps return those of the user's code.

        DBOS takes the failure to record a step of an async workflow for the step's own, and records that.
        """
        if result["error"] is not None:
            raise _unrecorded(f"step {result['function_name']!r} of {result['workflow_uuid']!r}", sys.exception())
        self._write_step(result, owner_of(result["workflow_uuid"]), **more)

    def _write_step(self, result: Any, owner: str | None, **more: Any) -> None:
        at = int(time.time() * 1000)
        if more or owner is None or not self._checkpoints.record_step(result, at, owner):
            given = {"completed_at_epoch_ms": at, "owner_xid": owner, **more}
            self._database.record_operation_result(result, **given)

    def init_child_workflow(self, status: Any, **more: Any) -> tuple[str, bool]:
        """Begin a tool call, whose row is written when the call needs it."""
        call, context = deferred(status["workflow_uuid"]), _context.get_local_dbos_context()
        # Only tool calls are workflows inside a workflow.
        assert call is not None
        assert context is not None
        call.started_at = more["started_at_epoch_ms"]
        call.write = functools.partial(self._begin_call, call, status, **more)
        CallContext.of(context, call)
        return "PENDING", True

    def _begin_call(self, call: DeferredCall, status: Any, *, parent_owner_xid: str | None, **more: Any) -> None:
        """Record that a tool call begins; the call of an execution that lost its run is not made."""
        parent, number, now = more["parent_workflow_id"], more["parent_function_id"], int(time.time() * 1000)
        step = {
            "workflow_uuid": parent,
            "function_id": number,
            "function_name": more["function_name"],
            "child_workflow_id": status["workflow_uuid"],
            "started_at_epoch_ms": more["started_at_epoch_ms"],
            "completed_at_epoch_ms": now,
            "retention_timestamp": now,
            "application_name": status["application_name"],
        }
        owner = parent_owner_xid or call.owner
        if owner is not None and self._checkpoints.begin_call(status, more["creator_xid"], step, parent, owner):
            return
        self._database.check_operation_execution(parent, number, names.TOOL)  # Raises that it is cancelled.
        if not self._database.init_child_workflow(status, parent_owner_xid=parent_owner_xid, **more)[1]:
            raise OwnershipLost(call.key)

    def record_get_result(self, *_: Any, **__: Any) -> None:
        """Record nothing: on replay DBOS reads a child's result from the child."""

    def update_workflow_outcome(self, workflow_id: str, status: Status, **outcome: Any) -> bool:
        """Record a workflow's end, unless DBOS takes a failure to record its success for its own failure."""
        if "owner_xid" in outcome:  # A workflow that cannot even be begun: its input cannot be read.
            return bool(self._database.update_workflow_outcome(workflow_id, status, **outcome))
        reason = sys.exception()
        if status == "ERROR" and not isinstance(reason, Broken):
            raise _unrecorded(repr(workflow_id), reason)
        if (call := deferred(workflow_id)) is not None:
            self._record_call(call, outcome["output"])
            return True
        owner = owner_of(workflow_id)
        ended = outcome.get("output"), outcome.get("error")
        if owner is not None and self._checkpoints.end(workflow_id, status, *ended, owner):
            return True
        return bool(self._database.update_workflow_outcome(workflow_id, status, **outcome))

    def _record_call(self, call: DeferredCall, output: str) -> None:
        """Record the outcome of a tool call as a step of its run."""
        result = {
            "workflow_uuid": call.run_id,
            "function_id": call.number,
            "function_name": names.TOOL,
            "started_at_epoch_ms": call.started_at,
            "output": output,
            "error": None,
            "child_workflow_id": None,
            "serialization": JSON.name(),
        }
        self._write_step(result, call.owner)

    def await_workflow_result(
        self, workflow_id: str, polling_interval: float = 0.0, *, fail_if_missing: bool = False
    ) -> Any:
        """Return the result of an ended workflow; an execution that lost it, or did not start it first, leaves."""
        if (call := deferred(workflow_id)) is not None:
            return self._result_of(call)
        result = self._database.check_workflow_result(workflow_id, fail_if_missing=fail_if_missing)
        if isinstance(result, _outcome.NoResult):
            raise OwnershipLost(workflow_id)
        return result

    def _result_of(self, call: DeferredCall) -> object:
        """Return the outcome that is recorded for a tool call; if there is none, its execution lost the run."""
        if call.recorded is None:
            # This raises that the run is cancelled, if it is.
            self._database.check_operation_execution(call.run_id, call.number, names.TOOL)
            raise OwnershipLost(call.run_id)
        return JSON.deserialize(call.recorded)

    async def await_workflow_result_async(
        self, workflow_id: str, polling_interval: float, *, fail_if_missing: bool = False
    ) -> Any:
        """Wait for a tool call that another task makes, as `expecting` says; one without its run does not wait."""
        expected = awaited_calls.expected(workflow_id)
        if expected is None or fail_if_missing or deferred(workflow_id) is not None:
            return await to_thread(self.await_workflow_result, workflow_id, fail_if_missing=fail_if_missing)
        pause, idle = awaited_calls.SOON, 0
        while True:
            result = await to_thread(self._database.check_workflow_result, workflow_id)
            if not isinstance(result, _outcome.NoResult):
                return result
            if expected.ends.done() and pause < polling_interval:  # Its end is being recorded.
                await asyncio.sleep(pause)
                pause *= 2
                continue
            await to_thread(_patiently, expected.check_ownership)
            idle = 0 if workflow_id in executing() else idle + 1
            if idle >= awaited_calls.LOOKS:
                await to_thread(_patiently, expected.strayed)
                idle = 0
            if expected.ends.done():
                await asyncio.sleep(polling_interval)
            else:
                seconds = polling_interval if idle else awaited_calls.RARELY
                await asyncio.wait([asyncio.wrap_future(expected.ends)], timeout=seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


def _unrecorded(what: str, reason: BaseException | None) -> RunHeld:
    text = error_text(reason) if reason else "its end is an error"
    return RunHeld(ConfigurationError(f"{what} could not be recorded: {text}"), passes=is_transient(reason))


class _View:
    """The launched DBOS, seen with our serializer and our view of its database."""

    _serializer = JSON
    _seen: _Database | None = None

    @property
    def _sys_db(self) -> _Database:
        dbos = instance()
        database = None if dbos is None else dbos._sys_db_field
        if database is None:
            raise engine_closed()
        if self._seen is None or self._seen._database is not database:
            self._seen = _Database(database)
        return self._seen

    def __getattr__(self, name: str) -> Any:
        return getattr(instance(), name)


class _Registry:
    """DBOS's registry, seen with our view of DBOS; workflows are registered only if `enters` is True."""

    def __init__(self, enters: bool) -> None:
        self._enters = enters

    @property
    def dbos(self) -> Any:
        return None if instance() is None else _VIEW

    def register_wf_function(self, name: str, function: Any) -> None:
        if self._enters:
            _dbos._get_or_create_dbos_registry().register_wf_function(name, function)

    def __getattr__(self, name: str) -> Any:
        return getattr(_dbos._get_or_create_dbos_registry(), name)


class _ByThread(_View):
    """The launched DBOS, for a run that it claims and that a thread of its pool is to execute."""

    workflow_info_map: ClassVar[dict[str, Any]] = {}

    @property
    def _registry(self) -> Any:
        return self

    @property
    def _executor(self) -> Any:
        return self

    def submit(self, function: Callable[..., T], /, *args: object) -> Future[T]:
        """Call the function in a thread, in this context."""
        return run_threads.submit(function, *args, context=contextvars.copy_context())


_VIEW: Any = _View()
_BY_THREAD: Any = _ByThread()


def workflow(name: str, *, recovers: bool) -> Callable[[Any], Any]:
    """Make a function a workflow. Of two forms with one name, recovery executes the one with `recovers`."""
    registry: Any = _Registry(recovers)
    portable = _serialization.WorkflowSerializationFormat.PORTABLE
    decorate = _core.decorate_workflow(registry, name, 100, serialization_type=portable)

    def decorated(function: Any) -> Any:
        made = decorate(function)
        if not recovers:
            _ByThread.workflow_info_map[name] = made
        return made

    return decorated


class StartedWorkflow(Protocol):
    """DBOS's handle of a workflow, as far as it is used."""

    async def get_result(self) -> object:
        """Wait for its end, and return its result or raise its error."""


Reserved = _context.DBOSContext
"""The number that was drawn for a step, with its workflow."""


async def start(function: Callable[..., Coroutine[Any, Any, object]], *args: object) -> StartedWorkflow:
    """Start a workflow on the running event loop, and return DBOS's handle once it is recorded."""
    context = _context.DBOSContext.create_start_workflow_child(_context.get_local_dbos_context())
    return await _core.start_workflow_async(_VIEW, context, function, args, {})


def executes(handle: object) -> bool:
    """Return True if the handle is of a workflow that this process started just now, not of an existing one."""
    return isinstance(handle, _core.WorkflowHandleAsyncTask)


def reserve() -> Reserved | None:
    """Draw the number of the next step of the current workflow."""
    with reserving():
        return _context.snapshot_step_context()


def drawn() -> int:
    """Return how many numbers of steps the current workflow has drawn."""
    context = _context.get_local_dbos_context()
    assert context is not None  # As in every workflow.
    with reserving():
        return int(context.function_id)


def place_of(reserved: Reserved | None, name: str) -> Place:
    """Return the place of a step whose number was drawn; outside of workflows nothing is recorded."""
    return Place("", name) if reserved is None else Place(str(reserved.workflow_id), name, int(reserved.function_id))


_new: contextvars.ContextVar[str | None] = contextvars.ContextVar("durable_swarm_new", default=None)


@_sys_db.db_retry()
def _patiently(ask: Callable[[], T]) -> T:
    return ask()


def is_new(run_id: str) -> bool:
    """Return True if the current execution was claimed from a shared queue and is the first of its run."""
    return _new.get() == run_id


def _execute_and_tell(dbos: Any, status: Any, owner: str) -> Any:
    new = note_claim(status["workflow_uuid"], status["queue_name"]) and status["recovery_attempts"] == 1
    token = _new.set(status["workflow_uuid"] if new else None)
    try:
        by_thread = new and _shared[status["queue_name"]]()
        seen = _BY_THREAD if by_thread else _VIEW if status["queue_name"] in _queues else dbos
        return _core.execute_dequeued_workflow(seen, status, owner)
    finally:
        _new.reset(token)


def note_claims() -> None:
    """Make executions that DBOS's queues begin know whether they are their run's first (`is_new`)."""
    patches.change(_queue, "execute_dequeued_workflow", _execute_and_tell)


def run_step(name: str, body: Callable[[], T], reserved: Reserved | None = None) -> T:
    """Run a step in this thread."""
    return _core.run_step(_VIEW, reserved or reserve(), body, {"name": name}, (), {})


def run_step_async(
    name: str, body: Callable[[], Coroutine[Any, Any, T]], reserved: Reserved | None = None
) -> Awaitable[T]:
    """Run a step on the event loop; its number is drawn at once."""
    return _core.run_step_async(_VIEW, reserved or reserve(), body, {"name": name}, (), {})


def record_sleep(seconds: float) -> float:
    """Record the end of a sleep of the current workflow, or read the recorded one; return the seconds left."""
    if seconds <= 0:
        return 0.0
    begin_workflow()
    return _core.record_sleep(_VIEW, reserve(), seconds)


def in_workflow() -> bool:
    """Return True if the running code is inside a DBOS workflow or step."""
    context = _context.get_local_dbos_context()
    return context is not None and context.is_within_workflow()


def outside() -> contextvars.Context:
    """Return a copy of the current context outside of every workflow."""
    copy = contextvars.copy_context()
    copy.run(_context._dbos_context_var.set, None)
    return copy
