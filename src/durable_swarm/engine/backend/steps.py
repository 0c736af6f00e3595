"""What this package uses of DBOS beyond its public interface, each with its reason.

`tests/engine/test_internals.py` fails when DBOS changes one of them.

- `decorate_workflow`, `run_step`, `run_step_async` with a `DBOS` of our own view: the public decorators write step
  results with the serializer of the program that launched DBOS, which is pickle unless it says otherwise. And they
  record the result of a child workflow twice, in its own row and in its parent's; our view of the database does not.
- `decorate_workflow` once more: a workflow that exists in two colours (in the calling thread, on an event loop) has one
  name; the public decorator registers, and warns of, both.
- `update_workflow_outcome`: when the success of an async workflow cannot be recorded (a full disk), DBOS records this
  error as the workflow's own, for good. Ours lets only a failure of ours end a run.
- `await_workflow_result_async`: who waits for a workflow of another task looks once a second. Ours is told when a tool
  call ends in this process, and looks then: an answer is not a second late, and a hundred runs that wait cost nothing.
- `await_workflow_result`, and that one: who has lost a run, or finds it begun by another, waits in DBOS for its end,
  though the other may die. Ours leaves, and `Run.result` follows the run wherever it goes.
- `check_operation_execution`: before each step DBOS asks for the run's status and for a record of the step, but not
  whose the run is: who has lost it would begin a call that its owner is making. Ours asks that too, in one statement. A
  run that began in this life has no record that this life did not make, so that statement is all it needs.
- `execute_dequeued_workflow`: tells whether it is the first time that DBOS claims a run from the queue of workers. Then
  it is executed by the colour in a thread where that will do: on an event loop DBOS changes the thread twice for each
  look at the database.
- `startup_recovery_thread`: DBOS hands what a process of this name has left to a queue that every process polls, and
  counts each time as an attempt, of which it allows a hundred. We take over ourselves.
- `record_sleep`: the public `DBOS.sleep` waits to its end whatever happens.
- `WorkflowHandleAsyncTask`: the handle that tells a workflow started here from one that existed already.
- `snapshot_step_context`: draws a step's number before anything is awaited, also where `DBOS.reserve_step` refuses
  (plain functions on a thread that has an event loop). Its `workflow_id` and `function_id` are where the record will
  stand, to which an encryption binds it.
- `_dbos_context_var`: a run started by a tool is a run of its own; DBOS refuses a workflow inside a step.
- `_register_internal_queue`: a queue that only processes serve that say so, in memory. Public queues are rows that
  every process polls, so another program would take over runs whose agents it does not have.
- `_active_workflows_set`, `_worker_concurrency`: DBOS bounds what a process executes of one queue; ours bound all.
- `background_thread_stop_events`, `_background_threads`, `queue_thread`: DBOS stops its event loop before the threads
  that claim runs for it have ended, and what one has just claimed is then never begun, with a warning.
- `_schemas.system_database.SystemSchema`: the tables, to bring in runs that have ended elsewhere. DBOS has no way to.
- `_config`, `_sys_db.engine`: the database of a DBOS that the program launched.
- `db_retry`: DBOS's pauses after a lost connection double up to 90 s; a run should not stand still for so long.
- `DBOSDefaultSerializer`: rows marked as pickle are unpickled whatever the serializer; a database must not run code.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from dbos import (
    DBOS,
    _context,
    _core,
    _dbos,
    _outcome,
    _queue,
    _serialization,
    _sys_db,
)
from dbos import error as dbos_errors
from dbos._sys_db import WorkflowStatusString

from durable_swarm.codec import Place
from durable_swarm.engine.backend import awaited_calls
from durable_swarm.engine.backend.launch import JSON, instance
from durable_swarm.engine.backend.pools import run_threads, to_thread
from durable_swarm.engine.backend.queues import _shared, executing
from durable_swarm.engine.database.diagnosis import error_text, is_transient
from durable_swarm.engine.signals import Broken, RunHeld, engine_closed
from durable_swarm.errors import ConfigurationError


class _Database:
    """The launched DBOS's database, without a second record of what a child workflow's own row tells."""

    def __init__(self, database: Any) -> None:
        self._database = database

    def check_operation_execution(self, workflow_id: str, function_id: int, *rest: Any, **named: Any) -> Any:
        """Look for the record of a step. Where there is none, the step is made only if the run is this execution's."""
        life = _lives.get((workflow_id, owner_of(workflow_id)))
        if life is not None and life.is_first and _patiently(life.check_ownership):
            return None
        found = self._database.check_operation_execution(workflow_id, function_id, *rest, **named)
        if found is None and life is not None and not life.is_first:
            _patiently(life.check_ownership)
        return found

    def record_get_result(self, *_: Any, **__: Any) -> None:
        """Record nothing: on replay DBOS reads a child's result from the child."""

    def update_workflow_outcome(self, workflow_id: str, status: str, **outcome: Any) -> bool:
        """Record how a workflow ended, unless DBOS takes a failure to record its success for its own failure."""
        reason = sys.exception()
        if status == WorkflowStatusString.ERROR.value and not isinstance(reason, Broken):
            text = error_text(reason) if reason else status
            unrecorded = ConfigurationError(f"{workflow_id!r} could not be recorded: {text}")
            raise RunHeld(unrecorded, passes=is_transient(reason))
        return bool(self._database.update_workflow_outcome(workflow_id, status, **outcome))

    def await_workflow_result(
        self, workflow_id: str, polling_interval: float = 0.0, *, fail_if_missing: bool = False
    ) -> Any:
        """Return the result of a workflow that has ended; who has lost it, or was not the first to start it, goes."""
        result = self._database.check_workflow_result(workflow_id, fail_if_missing=fail_if_missing)
        if isinstance(result, _outcome.NoResult):
            raise OwnershipLost(workflow_id)
        return result

    async def await_workflow_result_async(
        self, workflow_id: str, polling_interval: float, *, fail_if_missing: bool = False
    ) -> Any:
        """Wait for a tool call that another task makes, as `expecting` says; who has lost a workflow does not wait."""
        expected = awaited_calls.expected(workflow_id)
        if expected is None or fail_if_missing:
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


class _View:
    """The launched DBOS, seen with our serializer and our view of its database."""

    _serializer = JSON
    _seen: _Database | None = None

    @property
    def _sys_db(self) -> Any:
        database = instance() and instance()._sys_db_field
        if database is None:
            raise engine_closed()
        if self._seen is None or self._seen._database is not database:
            self._seen = _Database(database)
        return self._seen

    def __getattr__(self, name: str) -> Any:
        return getattr(instance(), name)


class _Registry:
    """DBOS's registry, seen with our view of DBOS; workflows enter it only where `enters` says so."""

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

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """Have a thread call the function in this context."""
        return run_threads.submit(function, *args, context=contextvars.copy_context())


_VIEW: Any = _View()
_BY_THREAD: Any = _ByThread()


def workflow(name: str, *, recovers: bool) -> Callable[[Any], Any]:
    """Make a function a workflow. Of two colours of one name, the one that `recovers` runs what is recovered."""
    registry: Any = _Registry(recovers)
    portable = _serialization.WorkflowSerializationFormat.PORTABLE
    decorate = _core.decorate_workflow(registry, name, 100, serialization_type=portable)

    def decorated(function: Any) -> Any:
        made = decorate(function)
        if not recovers:
            _ByThread.workflow_info_map[name] = made
        return made

    return decorated


def executes(handle: Any) -> bool:
    """Whether the handle is of a workflow that this process started just now, not of one that existed."""
    return isinstance(handle, _core.WorkflowHandleAsyncTask)


def reserve() -> Any:
    """Draw the number of the next step of the workflow under way."""
    return _context.snapshot_step_context()


def place_of(reserved: Any, name: str) -> Place:
    """Give the place of a step whose number was drawn; outside every workflow nothing is recorded."""
    return Place("", name) if reserved is None else Place(str(reserved.workflow_id), name, int(reserved.function_id))


@dataclass(frozen=True)
class OwnershipCheck:
    """An execution of a run, or of a tool call, under way in this process.

    `check_ownership` is asked before each step that has no record: it gives whether the run is under way and this
    execution's, and raises `lost` where it is another's. Where it gives False, DBOS's own check tells why.
    """

    check_ownership: Callable[[], bool] = lambda: False
    is_first: bool = False
    """Whether no earlier execution can have left a record."""


_lives: dict[tuple[str, str | None], OwnershipCheck] = {}
_new: contextvars.ContextVar[str | None] = contextvars.ContextVar("durable_swarm_new", default=None)


@contextlib.contextmanager
def checked_by(workflow_id: str, life: OwnershipCheck) -> Iterator[None]:
    """Have the steps of the workflow under way, of that id, be made only as its life says."""
    key = workflow_id, owner_of(workflow_id)
    _lives[key] = life
    try:
        yield
    finally:
        del _lives[key]


@_sys_db.db_retry()
def _patiently(ask: Callable[[], Any]) -> Any:
    return ask()


def is_new(run_id: str) -> bool:
    """Whether the execution under way was claimed from a queue of several processes, the first of its run."""
    return _new.get() == run_id


def _execute_and_tell(dbos: Any, status: Any, owner: str) -> Any:
    new = status["queue_name"] in _shared and status["recovery_attempts"] == 1
    token = _new.set(status["workflow_uuid"] if new else None)
    try:
        by_thread = new and _shared[status["queue_name"]]()
        return _core.execute_dequeued_workflow(_BY_THREAD if by_thread else dbos, status, owner)
    finally:
        _new.reset(token)


vars(_queue)["execute_dequeued_workflow"] = _execute_and_tell


OwnershipLost = dbos_errors.DBOSWorkflowConflictIDError
"""Ends an execution that is no longer the run's own; DBOS then waits for the one that is. Made of the run's id."""
Cancelled = dbos_errors.DBOSWorkflowCancelledError
"""Ends an execution that was cancelled. Made of a text."""


def owner_of(run_id: str) -> str | None:
    """Give DBOS's token of the execution under way, by which it refuses what a former owner of the run writes."""
    return _context.current_owner_xid(run_id)


def run_step(name: str, body: Callable[[], Any], reserved: Any = None) -> Any:
    """Run a step in this thread."""
    options: Any = {"name": name}
    return _core.run_step(_VIEW, reserved or reserve(), body, options, (), {})


def run_step_async(name: str, body: Callable[[], Awaitable[Any]], reserved: Any = None) -> Awaitable[Any]:
    """Run a step on the event loop; its number is drawn at once."""
    options: Any = {"name": name}
    function: Any = body
    return _core.run_step_async(_VIEW, reserved or reserve(), function, options, (), {})


def record_sleep(seconds: float) -> float:
    """Record when a sleep of the workflow under way is to end, or find it recorded; gives the seconds still left."""
    return _core.record_sleep(_VIEW, reserve(), seconds) if seconds > 0 else 0.0


def in_workflow() -> bool:
    """Whether the running code is inside a DBOS workflow or step."""
    context = _context.get_local_dbos_context()
    return context is not None and context.is_within_workflow()


def outside() -> contextvars.Context:
    """Give a copy of the current context that stands outside every workflow."""
    copy = contextvars.copy_context()
    copy.run(_context._dbos_context_var.set, None)
    return copy


__all__ = ["DBOS", "JSON"]
