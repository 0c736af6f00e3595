"""The durable boundaries of a process: every commit that changes a row, and every effect on the outside world.

`watch` makes each of them a place where this process can kill itself with SIGKILL, before it or after it. A killed
process executes nothing more: no `finally`, no `atexit`, no flush of a buffer.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.engine.default import DefaultDialect

from durable_swarm.engine.database.together import Together
from durable_swarm.engine.records import names

Side = Literal["before", "after"]

_WRITES = re.compile(
    r"\b(?:(?:DO|FOR|FOR\s+NO\s+KEY)\s+UPDATE\b"
    r"|(?:INSERT\s+INTO|UPDATE|DELETE\s+FROM)\s+(?:\"?\w+\"?\.)?\"?(\w+))",
    re.IGNORECASE,
)
"""Writing statements, with their table; without one if UPDATE is not the statement. DBOS looks for runs beyond their
deadline with FOR UPDATE SKIP LOCKED, in a thread of its own: read as a write to a table SKIP, it would be a boundary at
an arbitrary number.
"""
_READS = re.compile(r"\s*(?:SELECT|PRAGMA|BEGIN|SET|CREATE|ALTER|DROP)\b", re.IGNORECASE)
_ENGINE = re.compile(
    r"workflow_\w+|operation_outputs|notifications|streams|queues|application_versions|dbos_\w+|durable_swarm_processes"
)
"""The engine's tables, which its polling and its heartbeats write to as well, without naming a workflow."""

_OURS = {
    "durable_swarm_requests": "write of a request",
    "durable_swarm_messages": "write to the mailbox of a run",
    "durable_swarm_children": "write of the parent of a run",
    "durable_swarm_sessions": "write of a session",
    "durable_swarm_session_runs": "write of the runs of a session",
    "durable_swarm_ledger": "write of what runs have spent",
    "durable_swarm_rates": "write of the moment of a model call",
}
"""Tables of this package's own, in words."""


@dataclass(frozen=True)
class KillPoint:
    """A place to kill a process: at its `number`-th boundary, counted from 1, before or after it."""

    number: int
    side: Side


@dataclass(frozen=True)
class Instant:
    """A time to kill a process: `seconds` after it has left its `number`-th boundary."""

    number: int
    seconds: float


Death = KillPoint | Instant
"""The place or time at which a process is killed."""


class Probe:
    """Numbers the boundaries of this process as they are reached, and kills it at the chosen one."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.times: list[float] = []
        """The time when each boundary was reached."""
        self._at: Death | None = None
        self._lock = threading.Lock()

    def arm(self, at: Death | None) -> None:
        """Kill this process at `at`; with None count only."""
        self._at = at

    def before(self, label: str) -> int:
        """Reach a boundary and return its number."""
        with self._lock:
            self.passed.append(label)
            self.times.append(time.monotonic())
            number = len(self.passed)
        self._die_if(number, "before")
        return number

    def after(self, number: int) -> None:
        """Leave the boundary of that number."""
        self._die_if(number, "after")
        if isinstance(self._at, Instant) and self._at.number == number:
            threading.Timer(self._at.seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

    def _die_if(self, number: int, side: Side) -> None:
        if self._at == KillPoint(number, side):
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)


PROBE = Probe()


def watch() -> None:
    """Make every commit of this process that changes a row a boundary. Call it once, before a database opens."""
    commit: Callable[[DefaultDialect, Any], None] = DefaultDialect.do_commit

    def watched(dialect: DefaultDialect, connection: Any) -> None:
        labels = connection.info.pop("durable_swarm_changed", None)
        if labels is None:
            commit(dialect, connection)
            return
        number = PROBE.before(" and ".join(dict.fromkeys(labels)))
        commit(dialect, connection)
        PROBE.after(number)

    patched: Any = DefaultDialect
    patched.do_commit = watched
    # Else the number of a boundary would depend on which writes happened to meet. What a kill can leave behind is the
    # same: writes that are committed together are there together, as after the last of several commits.
    Together.alone = True
    event.listen(Engine, "before_cursor_execute", _begin)
    event.listen(Engine, "after_cursor_execute", _note)
    event.listen(Engine, "rollback", _forget)


def _begin(connection: Any, _cursor: object, statement: str, parameters: object, context: object, _many: bool) -> None:
    """Handle a statement outside a transaction, which is its own commit: the engine ends runs so on PostgreSQL."""
    labels = _labels(statement, _named(parameters, context)) if _commits_itself(connection) else []
    if labels:
        connection.info["durable_swarm_number"] = PROBE.before(labels[0])


def _note(connection: Any, cursor: Any, statement: str, parameters: object, context: object, _many: bool) -> None:
    if _commits_itself(connection):
        number = connection.info.pop("durable_swarm_number", None)
        if number is not None:
            PROBE.after(number)
        return
    # A statement with RETURNING reports its row count only after they are fetched; for some inserts SQLite reports
    # none.
    if cursor.rowcount != 0 or "RETURNING" in statement:
        labels = _labels(statement, _named(parameters, context))
        if labels:
            connection.info.setdefault("durable_swarm_changed", []).extend(labels)


def _forget(connection: Any) -> None:
    if not connection.invalidated:  # Else asking for its info raises an error that hides the loss of the connection.
        connection.info.pop("durable_swarm_changed", None)


def _commits_itself(connection: Any) -> bool:
    return bool(connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT")


def _named(parameters: object, context: object) -> Mapping[str, object]:
    compiled = getattr(context, "compiled_parameters", None) if getattr(context, "compiled", None) else None
    if compiled and compiled[0]:
        found: Mapping[str, object] = compiled[0]
        return found
    return parameters if isinstance(parameters, Mapping) else {}


def _labels(statement: str, parameters: Mapping[str, object]) -> list[str]:
    """Describe a statement's write for a reader who knows agents but no tables."""
    tables = [] if _READS.match(statement) else [table for table in _WRITES.findall(statement) if table]
    if not tables:
        return []
    if said := [_OURS[table] for table in tables if table in _OURS]:
        return said
    foreign = [table for table in tables if not _ENGINE.fullmatch(table)]
    if foreign:
        return [f"commit to table {table}" for table in foreign]
    workflow = next((str(value) for name, value in parameters.items() if _names_a_workflow(name, value)), None)
    step = "" if parameters.get("child_workflow_id") else str(parameters.get("function_name", ""))
    return [] if workflow is None else _engine_label(tables, workflow, step)


def _names_a_workflow(name: str, value: object) -> bool:
    return isinstance(value, str) and (name.startswith("workflow_uuid") or name == "wf_id")


def _engine_label(tables: list[str], workflow: str, step: str) -> list[str]:
    called = names.is_call(workflow)
    what = f"tool call {workflow}" if called else f"run {workflow}"
    if "workflow_input" in tables:
        return [f"start of {what}"]
    if "operation_outputs" in tables:
        kind, colon, name = step.partition(":")
        if step == names.BEGUN:
            return [f"mark of {what}"]
        if step == names.TOOL:
            return [f"checkpoint of a tool call of {what}"]
        if step.startswith("durable_swarm."):
            return []
        return [f"checkpoint of the model call of agent {name}" if kind == "model" and colon else _of_step(kind, name)]
    if "workflow_output" in tables:
        return [f"checkpoint of {what}" if called else f"end of {what}"]
    return []


def _of_step(kind: str, name: str) -> str:
    return f"checkpoint of tool {name}" if kind == "tool" and name else f"checkpoint of step {name or kind}"
