"""Exactly what the package uses of DBOS, public and private: nothing more, nothing less, and all of it exists.

`make backend DBOS=3.5.0` runs this file, `test_internals.py` and the golden databases against another version.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dbos
import pytest

import durable_swarm
from durable_swarm import Agent
from durable_swarm.testing import ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import user

PACKAGE = Path(durable_swarm.__file__).parent

PUBLIC = {
    "dbos.DBOS",
    "dbos.DBOS.application_version",
    "dbos.DBOS.destroy",
    "dbos.DBOS.executor_id",
    "dbos.DBOS.launch",
    "dbos.DBOS.workflow_id",
    "dbos.DBOSClient",
    "dbos.DBOSClient.cancel_workflow",
    "dbos.DBOSClient.destroy",
    "dbos.DBOSClient.enqueue",
    "dbos.DBOSClient.update_workflow_attributes",
    "dbos.DBOSConfig",
    "dbos.DBOSPortableJSONSerializer",
    "dbos.EnqueueOptions",
    "dbos.Queue",
    "dbos.SetWorkflowAttributes",
    "dbos.SetWorkflowID",
    "dbos.WorkflowSerializationFormat",
    "dbos.WorkflowSerializationFormat.PORTABLE",
    "dbos.error.DBOSAwaitedWorkflowCancelledError",
    "dbos.error.DBOSBaseException",
    "dbos.error.DBOSNonExistentWorkflowError",
    "dbos.error.DBOSUnexpectedStepError",
    "dbos.error.DBOSWorkflowCancelledError",
    "dbos.error.DBOSWorkflowConflictIDError",
    "dbos.error.DBOSWorkflowIDInUseError",
}
"""What is imported from DBOS's public modules, and the attributes that are used of it."""

PRIVATE = {
    "dbos.DBOS._configure_asyncio_thread_pool",
    "dbos._context.DBOSContext",
    "dbos._context.DBOSContext.create_start_workflow_child",
    "dbos._context._dbos_context_var",
    "dbos._context._dbos_context_var.set",
    "dbos._context.current_owner_xid",
    "dbos._context.get_local_dbos_context",
    "dbos._context.snapshot_step_context",
    "dbos._core.WorkflowHandleAsyncTask",
    "dbos._core.decorate_workflow",
    "dbos._core.execute_dequeued_workflow",
    "dbos._core.record_sleep",
    "dbos._core.run_step",
    "dbos._core.run_step_async",
    "dbos._core.start_workflow_async",
    "dbos._dbos._dbos_global_instance",
    "dbos._dbos._get_or_create_dbos_registry",
    "dbos._dbos.startup_recovery_thread",
    "dbos._outcome.NoResult",
    "dbos._queue.execute_dequeued_workflow",
    "dbos._queue.queue_thread",
    "dbos._schemas.SCHEMA_PLACEHOLDER",
    "dbos._schemas.system_database",
    "dbos._schemas.system_database.SystemSchema",
    "dbos._serialization.DBOSDefaultSerializer",
    "dbos._serialization.DBOSDefaultSerializer.deserialize",
    "dbos._serialization.WorkflowSerializationFormat",
    "dbos._serialization.WorkflowSerializationFormat.PORTABLE",
    "dbos._sys_db.SystemDatabase",
    "dbos._sys_db.db_retry",
}
"""What is used of DBOS's private modules."""

ATTRIBUTES = {
    "_active_workflows_set": "DBOS",
    "_background_event_loop": "DBOS",
    "_background_threads": "DBOS",
    "_config": "DBOS",
    "_executor": "DBOS",
    "_executor_field": "DBOS",
    "_launched": "DBOS",
    "_registry": "DBOS",
    "_serializer": "DBOS",
    "_sys_db": "DBOS",
    "_sys_db_field": "DBOS",
    "background_thread_stop_events": "DBOS",
    "workflow_info_map": "registry",
    "_loop": "loop",
    "internal_queue_map": "registry",
    "_register_internal_queue": "registry",
    "_concurrency": "queue",
    "_limiter": "queue",
    "_polling_interval_sec": "queue",
    "_worker_concurrency": "queue",
}
"""What is read, set or stood in for on objects of DBOS, and of which: the launched one, its
registry, its event loop, a queue."""

OVERRIDDEN = {
    "await_workflow_result",
    "await_workflow_result_async",
    "check_operation_execution",
    "check_workflow_result",
    "init_child_workflow",
    "init_workflow",
    "init_workflow_with_connection",
    "record_get_result",
    "record_operation_result",
    "update_workflow_outcome",
}
"""The methods of DBOS's database that our view of it has itself, and those that they call."""

OURS = {
    *("_checkpoints", "_database", "_enters", "_lock", "_seen"),
    *("_begin_call", "_check", "_check_call", "_record_call", "_result_of", "_write_step"),
}
"""Attributes of our own in the file that knows DBOS's inside."""


def _trees() -> Iterator[tuple[Path, ast.Module, dict[str, str]]]:
    """Yield each file that imports DBOS, with the dotted names of what it imports."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "dbos"
            for alias in node.names
        }
        imported |= {
            alias.asname or alias.name: f"dbos.{alias.name}"
            if hasattr(dbos, alias.name)
            else f"dbos.error.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("backend.public")
            for alias in node.names
        }
        if imported:
            yield path, tree, imported


def _client_methods(tree: ast.Module) -> Iterator[str]:
    """Yield what is called on the client, which one attribute holds."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self._client":
            yield f"dbos.DBOSClient.{node.attr}"


def _in_file(tree: ast.Module, imported: dict[str, str]) -> Iterator[str]:
    """Yield what one file uses of the names that it imports.

    That is `name.attribute`, `vars(name)["attribute"]` and `change(name, "attribute", ...)`.
    """
    for node in ast.walk(tree):
        text, attribute = "", ""
        if isinstance(node, ast.Attribute):
            text, attribute = ast.unparse(node.value), node.attr
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            text, attribute = ast.unparse(node.value).removeprefix("vars(").removesuffix(")"), str(node.slice.value)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("change") and len(node.args) == 3:
            text, attribute = ast.unparse(node.args[0]), str(ast.literal_eval(node.args[1]))
        first, _, rest = text.partition(".")
        if first in imported and not attribute.startswith("__") and "(" not in rest:
            yield ".".join(part for part in (imported[first], rest, attribute) if part)


def _uses() -> set[str]:
    """Return everything that the package imports from DBOS, and the attributes that it uses of that."""
    found: set[str] = set()
    for _, tree, imported in _trees():
        found |= {*imported.values(), *_in_file(tree, imported), *_client_methods(tree)}
    modules = {name for name in found if name.count(".") == 1 and (name == "dbos.error" or "._" in name)}
    return found - modules


def test_what_is_used_is_exactly_what_is_listed() -> None:
    """Nothing of DBOS is used that is not listed here, and nothing is listed that is not used."""
    assert _uses() - PUBLIC - PRIVATE == set()
    assert (PUBLIC | PRIVATE) - _uses() == set()


def test_the_private_names_grow_no_more() -> None:
    """Fewer private names of DBOS are used than ever before: a new one needs an old one that goes."""
    assert len(PRIVATE) <= 30
    assert len(ATTRIBUTES) <= 20


@pytest.mark.parametrize("name", sorted(PUBLIC | PRIVATE))
def test_each_name_exists(name: str) -> None:
    """Each name that is used exists in the DBOS that is installed."""
    _resolve(name)


def _resolve(name: str) -> None:
    """Follow a dotted name; the last part may have no value yet."""
    *parts, last = name.split(".")[1:]
    found: Any = dbos
    for number, part in enumerate(parts, 2):
        inner = getattr(found, part, None)
        found = importlib.import_module(".".join(name.split(".")[:number])) if inner is None else inner
    inspect.getattr_static(found, last)


def test_private_attributes_are_exactly_those_listed() -> None:
    """The files that know DBOS's inside touch no attribute of its objects that is not listed here."""
    found: set[str] = set()
    for _, tree, imported in _trees():
        if not any("._" in name for name in imported.values()):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and not ast.unparse(node.value).startswith(tuple(imported)):
                found.add(node.attr)
            if isinstance(node, ast.ClassDef):
                found |= {part.name for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)}
    private = {name for name in found if name.startswith("_") and not name.startswith("__")}
    assert private == {name for name in ATTRIBUTES if name.startswith("_")} - {"_serializer"} | OURS
    assert set(ATTRIBUTES) - found <= {"_serializer"}
    assert found >= OVERRIDDEN


def test_each_attribute_exists(make: Make) -> None:
    """Each attribute that is touched is there on the objects of a launched DBOS."""
    swarm = make(ScriptedModel(["Hello"]))
    swarm.run(Agent(name="Uses"), user())
    launched = importlib.import_module("dbos._dbos")._dbos_global_instance
    registry = launched._registry
    queue = next(iter(registry.internal_queue_map.values()))
    objects = {"DBOS": launched, "registry": registry, "queue": queue, "loop": launched._background_event_loop}
    assert [name for name, of in ATTRIBUTES.items() if not hasattr(objects[of], name)] == []
    assert [name for name in OVERRIDDEN if not callable(getattr(launched._sys_db, name, None))] == []
