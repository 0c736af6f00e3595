"""What the package uses of DBOS beyond its public interface is still there, and still does the same."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dbos import DBOSClient, _context, _core, _dbos, _queue, _serialization, _sys_db

import durable_swarm
from durable_swarm import Agent
from durable_swarm.engine.backend import launch, ownership, patches, queues, steps
from durable_swarm.engine.signals import Broken, RunHeld
from durable_swarm.engine.storage.run_state import STATES_OF
from durable_swarm.testing import ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, Program, rows, user

PACKAGE = Path(durable_swarm.__file__).parent

SIGNATURES: dict[Any, list[str]] = {
    _core.decorate_workflow: ["reg", "name", "max_recovery_attempts", "serialization_type"],
    _core.run_step: ["dbos", "step_ctx", "func", "options", "args", "kwargs"],
    _core.run_step_async: ["dbos", "step_ctx", "func", "options", "args", "kwargs"],
    _core.start_workflow_async: ["dbos", "new_wf_ctx", "func", "args", "kwargs"],
    _context.snapshot_step_context: ["reserve_sleep_id"],
    _context.get_local_dbos_context: [],
    _dbos._get_or_create_dbos_registry: [],
    _dbos.DBOSRegistry._register_internal_queue: ["self", "name"],
    _dbos.DBOSRegistry.register_wf_function: ["self", "name", "wrapped_func"],
    _sys_db.SystemDatabase.record_get_result: ["self", "result_workflow_id", "output", "error", "serialization"],
    _sys_db.SystemDatabase.check_workflow_result: ["self", "workflow_id", "fail_if_missing"],
    _sys_db.SystemDatabase.await_workflow_result_async: ["self", "workflow_id", "polling_interval", "fail_if_missing"],
    _sys_db.db_retry: ["initial_backoff", "max_backoff", "sys_db"],
    _serialization.DefaultSerializer.deserialize: ["cls", "serialized_data"],
    DBOSClient.cancel_workflow: ["self", "workflow_id", "cancel_children"],
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_signatures(function: Any) -> None:
    """Each function that is used takes the arguments it is given, in their order."""
    parameters = list(inspect.signature(function).parameters)
    found = [name for name in parameters if name in SIGNATURES[function]]
    assert found == SIGNATURES[function]


def _private_names(path: Path) -> list[tuple[str, str]]:
    """Give the names that a file takes from DBOS's private modules, as (module, name)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "dbos"
        for alias in node.names
        if alias.name.startswith("_")
    }
    return [
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
    ]


INSIDE = {path.name for path in (PACKAGE / "engine" / "backend").glob("*.py")} - {
    "__init__.py",
    "client.py",
    "public.py",
}
"""The files that use what DBOS does not promise."""


def test_every_name_that_is_used_exists() -> None:
    """Each name that the package takes from a private module of DBOS is there."""
    used = [name for file in INSIDE for name in _private_names(PACKAGE / "engine" / "backend" / file)]
    assert len(used) > 5
    assert [name for module, name in used if not hasattr(importlib.import_module(f"dbos.{module}"), name)] == []


def test_few_files_know_the_inside_of_dbos() -> None:
    """No other file of the package imports a private module of DBOS."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dbos":
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                found += [path.name for name in names if name.startswith("_")]
    assert set(found) <= INSIDE


def test_attributes_of_the_launched_dbos(make: Make) -> None:
    """The attributes that are read or set on DBOS's objects are there while it runs."""
    swarm = make(ScriptedModel(["Hello"]))
    assert launch.launched() is False
    swarm.run(Agent(), user())
    assert launch.launched() is True
    launched = launch.instance()
    assert launched._launched is True
    assert launched._serializer.name() == "portable_json"
    assert launched._config["system_database_url"].endswith("runs.sqlite")
    assert launched._sys_db.engine.dialect.name == "sqlite"
    registry = _dbos._get_or_create_dbos_registry()
    assert [name for name in registry.internal_queue_map if name.startswith("durable_swarm:")]
    swarm.close()
    assert launch.launched() is False


def test_no_run_is_claimed_any_more(make: Make) -> None:
    """After `stop_queues` none of the threads that claim runs lives, and DBOS's event loop still does."""
    swarm = make(ScriptedModel(["Hello"]))
    swarm.run(Agent(), user())
    launched = launch.instance()
    claiming = [
        thread for thread in launched._background_threads if getattr(thread, "_target", None) is _queue.queue_thread
    ]
    assert len(claiming) == 1
    queues.stop_queues(PATIENCE)
    assert not claiming[0].is_alive()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("queue-worker-")]
    assert launched._background_event_loop.target_loop().is_running()
    swarm.close()


def test_names_of_the_serializers() -> None:
    """The marks by which a row says what it is are the known ones."""
    assert _serialization.DBOSPortableJSON.name() == launch.JSON.name() == "portable_json"
    assert _serialization.DBOSDefaultSerializer.name() == "py_pickle"
    assert _serialization.WorkflowSerializationFormat.PORTABLE.value == "portable"


def test_a_private_queue_is_forgotten() -> None:
    """A queue of this process is in the registry until it is forgotten, and polls as often as it was told."""
    queue = queues.serve_queue("durable_swarm:test", 0.25)
    registry = _dbos._get_or_create_dbos_registry()
    assert registry.internal_queue_map["durable_swarm:test"] is queue
    assert queue.polling_interval_sec == 0.25
    queues.forget_queue(queue)
    assert queue._worker_concurrency == 0
    assert "durable_swarm:test" not in registry.internal_queue_map


def test_outside_a_workflow() -> None:
    """Code outside any workflow is seen as such, and so is code taken out of one."""
    assert steps.in_workflow() is False
    assert steps.outside().run(steps.in_workflow) is False


def test_every_row_is_marked_as_json(make_anywhere: Make, database_url: str) -> None:
    """Runs, tool calls and steps are written as portable JSON, whatever DBOS's own default is."""

    def double(number: int) -> str:
        return str(2 * number)

    make_anywhere(ScriptedModel([[("double", {"number": 2})], "4"])).run(Agent(functions=[double]), user())
    for table in ("workflow_status", "operation_outputs"):
        found = rows(database_url, "serialization, output", table)
        assert {mark for mark, _ in found} <= {"portable_json", None}
        assert [output for _, output in found if output and not output.startswith("{")] == []


@pytest.mark.parametrize(("reason", "refused"), [(OSError("disk full"), True), (Broken({"type": "E"}), False)])
def test_an_outcome_that_cannot_be_recorded_is_no_outcome(reason: Exception, refused: bool) -> None:
    """Only a failure of ours ends a run; a failure to record its success leaves the run as it is."""
    written = []
    database = steps._Database(SimpleNamespace(update_workflow_outcome=lambda *a, **k: written.append(a)))
    with pytest.raises(RunHeld, match="disk full") if refused else contextlib.nullcontext():
        try:
            raise reason
        except Exception:
            database.update_workflow_outcome("r", "ERROR", error="{}")
    assert written == ([] if refused else [("r", "ERROR")])


def test_the_states_are_all_known() -> None:
    """Every status that DBOS can give a workflow has a state of ours."""
    assert {status.value for status in _sys_db.WorkflowStatusString} <= set(STATES_OF)


def test_a_lost_database_is_tried_again_soon() -> None:
    """Whatever DBOS tries again after the database was lost, it tries within seconds, not after a minute."""
    patches.shorten_pauses()
    pauses = [
        inspect.getclosurevars(method).nonlocals["max_backoff"]
        for method in vars(_sys_db.SystemDatabase).values()
        if "max_backoff" in getattr(getattr(method, "__code__", None), "co_freevars", ())
    ]
    defaults = _sys_db.db_retry.__defaults__
    assert len(pauses) > 20
    assert defaults is not None
    assert {*pauses, defaults[1]} == {patches.LONGEST_PAUSE / 1.5}
    assert defaults[0] == 1.0


def test_only_a_first_claim_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is new in the execution that its first claim from a shared queue begins, and nowhere else."""
    asked: list[tuple[str, bool]] = []

    def execute(_: Any, status: dict[str, Any], owner: str) -> None:
        asked.append((owner, steps.is_new("r")))

    monkeypatch.setattr(_core, "execute_dequeued_workflow", execute)
    queue = queues.serve_queue("durable_swarm_work:shared", 0.25, worker_concurrency=1)
    queues.forget_queue(queue)
    claims = [("r", queue.name, 1), ("r", queue.name, 2), ("other", queue.name, 1), ("r", "durable_swarm:mine", 1)]
    for number, (run_id, name, attempts) in enumerate(claims):
        status = {"workflow_uuid": run_id, "queue_name": name, "recovery_attempts": attempts}
        steps._execute_and_tell(None, status, str(number))
    assert asked == [("0", True), ("1", False), ("2", False), ("3", False)]
    assert steps.is_new("r") is False


@pytest.mark.parametrize("first", [True, False])
def test_who_has_lost_a_run_begins_no_step(first: bool) -> None:
    """A step without a record is made only where the run is this execution's; one with a record is given."""
    found: list[str | None] = [None, "record"]
    looks: list[str] = []

    def goes_on() -> bool:
        looks.append("looked")
        raise ownership.OwnershipLost("r")

    def check(*_: Any) -> str | None:
        return found[-1]

    database = steps._Database(SimpleNamespace(check_operation_execution=check))
    with ownership.checked_by("r", ownership.OwnershipCheck(goes_on, first)):
        if not first:
            assert (database.check_operation_execution("r", 1, "step"), looks) == ("record", [])
        found.pop()
        with pytest.raises(ownership.OwnershipLost):
            database.check_operation_execution("r", 1, "step")
    assert database.check_operation_execution("r", 1, "step") is None


def test_an_import_changes_nothing_and_a_close_restores() -> None:
    """DBOS is as its maker left it until a database is opened, and again once it is closed."""
    program = Program(
        """
        from dbos import DBOS, _queue, _serialization, _sys_db

        def pause():
            return _sys_db.db_retry.__defaults__

        def changeable():
            return _queue.execute_dequeued_workflow, _serialization.DBOSDefaultSerializer.deserialize, pause()

        before = changeable()
        from durable_swarm import DurableSwarm
        from durable_swarm.testing import ScriptedModel
        import durable_swarm.engine.processes.workflows
        assert changeable() == before
        with DurableSwarm(ScriptedModel([])) as swarm:
            swarm.runs()
            assert not any(now == then for now, then in zip(changeable(), before))
        assert changeable() == before
        print("{}")
        """,
        anew=True,
    )
    program.run()
