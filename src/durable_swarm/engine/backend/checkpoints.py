"""The writes of every step and every tool call, as statements that are compiled once.

Each writes what a method of DBOS's database writes in the ordinary case: the execution owns the run, and nothing is
recorded yet. Otherwise it writes nothing and returns False. Then DBOS's own method is called, which finds the reason,
and raises its error or waits for the database. So these writes have no errors of their own.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from typing import Any

import sqlalchemy
from sqlalchemy import ColumnElement, bindparam, exists, select, update
from sqlalchemy.exc import SQLAlchemyError

from durable_swarm.engine.backend.launch import Layout
from durable_swarm.engine.database.connection import for_one_statement
from durable_swarm.engine.database.dialects import insert_into
from durable_swarm.engine.database.prepared import Prepared
from durable_swarm.engine.database.together import Together, Write

Values = Mapping[str, object]

_STEP = (
    "workflow_uuid", "function_id", "function_name", "started_at_epoch_ms", "completed_at_epoch_ms", "output", "error",
    "child_workflow_id", "serialization", "application_name", "retention_timestamp",
)  # fmt: skip
_CALL = (
    "workflow_uuid", "status", "name", "class_name", "config_name", "executor_id", "application_version",
    "application_id", "authenticated_user", "authenticated_roles", "assumed_role", "queue_name", "recovery_attempts",
    "workflow_timeout_ms", "workflow_deadline_epoch_ms", "deduplication_id", "priority", "serialization",
    "queue_partition_key", "parent_workflow_id", "creator_xid", "owner_xid", "delay_until_epoch_ms", "attributes",
    "schedule_name", "debounce_deadline_epoch_ms", "is_debounced", "application_name",
)  # fmt: skip
_ASKED = (
    "workflow_uuid", "function_id", "function_name", "child_workflow_id", "started_at_epoch_ms",
    "completed_at_epoch_ms", "application_name", "retention_timestamp",
)  # fmt: skip
"""The columns that DBOS writes for a step, for a workflow that begins at once, and for it as a step of its parent."""


class Checkpoints:
    """The writes to the database of one launched DBOS."""

    def __init__(self, layout: Layout) -> None:
        self._engine, self._application = layout.engine, layout.application
        self._together = Together(self._engine) if self._engine.dialect.name == "sqlite" else None
        statements = _Statements(layout)
        self._step = statements.step()
        self._call = statements.call()
        self._end = statements.end()

    def record_step(self, result: Values, completed_at: int, owner: str) -> bool:
        """Record the outcome of a step of a workflow that the execution `owner` owns; times are in milliseconds."""
        values = {name: result.get(name) for name in _STEP}
        own = {"completed_at_epoch_ms": completed_at, "retention_timestamp": completed_at, "owner": owner}
        own["application_name"] = self._application
        return self._made(lambda connection: _wrote(self._step, connection, {**values, **own}))

    def begin_call(self, status: Values, creator: str, step: Values, parent: str, owner: str) -> bool:
        """Record that a tool call begins, and that it is a step of its run, which the execution `owner` owns."""
        ours = {"creator_xid": creator, "owner_xid": creator, "recovery_attempts": 1}
        named = {"application_version": status["app_version"], "application_id": status["app_id"]}
        began = {**{name: status.get(name) for name in _CALL}, **named, **ours}
        asked = {f"step_{name}": value for name, value in step.items()}
        values = {**began, **asked, "inputs": status["inputs"], "parent": parent, "owner": owner}
        return self._made(lambda connection: all(_wrote(one, connection, values) for one in self._call))

    def end(self, workflow_id: str, status: str, output: str | None, error: str | None, owner: str) -> bool:
        """Record the end of a workflow that the execution `owner` owns. PostgreSQL's is prepared by DBOS."""
        ended = {"new_status": status, "output": output, "error": error, "now": int(time.time() * 1000)}
        values = {"workflow_uuid": workflow_id, "owner": owner, **ended}
        return bool(self._end) and self._made(
            lambda connection: all(_wrote(one, connection, values) for one in self._end)
        )

    def _made(self, write: Write) -> bool:
        if self._together is not None:
            return self._together.made(write)
        try:
            with for_one_statement(self._engine) as connection:
                return write(connection)
        except SQLAlchemyError:
            return False


def _wrote(statement: Prepared, connection: sqlalchemy.Connection, values: Values) -> bool:
    return statement.execute(connection, values).first() is not None


class _Statements:
    """Builds the statements, each of which returns a row if it wrote one."""

    def __init__(self, layout: Layout) -> None:
        tables = layout.tables
        self._runs, self._inputs = tables.workflow_status, tables.workflow_input
        self._steps, self._outputs = tables.operation_outputs, tables.workflow_output
        self._engine, self._schemas = layout.engine, layout.schemas
        self._lite = self._engine.dialect.name == "sqlite"
        self._insert = functools.partial(insert_into, self._engine)

    def step(self) -> Prepared:
        """Return the insert of a step, if its workflow's owner is `owner`."""
        record = self._insert(self._steps).from_select(
            _STEP, select(*self._given(self._steps, _STEP)).where(self._owned("workflow_uuid"))
        )
        return self._prepared(record.on_conflict_do_nothing().returning(self._steps.c.function_id))

    def call(self) -> list[Prepared]:
        """Return the inserts of a workflow, of its input, and of it as a step of its parent, if that is owned.

        On PostgreSQL they are one statement. SQLite has none that writes to several tables.
        """
        record = self._insert(self._runs).from_select(
            _CALL, select(*self._given(self._runs, _CALL)).where(self._owned("parent"))
        )
        began = record.on_conflict_do_nothing().returning(self._runs.c.workflow_uuid)
        given = select(*self._given(self._inputs, ("workflow_uuid", "inputs")))
        asked = select(*(bindparam(f"step_{name}", type_=self._steps.c[name].type) for name in _ASKED))
        new = began.cte("new")
        if not self._lite:
            given, asked = given.select_from(new), asked.select_from(new)
        stored = self._insert(self._inputs).from_select(["workflow_uuid", "inputs"], given)
        kept = stored.returning(self._inputs.c.workflow_uuid)
        step = self._insert(self._steps).from_select(_ASKED, asked).returning(self._steps.c.function_id)
        made = (began, kept, step) if self._lite else (step.add_cte(kept.cte("kept")),)
        return [self._prepared(one) for one in made]

    def end(self) -> list[Prepared]:
        """Return the statements that end a workflow on SQLite, if its owner is `owner`."""
        runs, key = self._runs, bindparam("workflow_uuid", type_=self._runs.c.workflow_uuid.type)
        owned = (runs.c.workflow_uuid == key) & (runs.c.status == "PENDING") & (runs.c.owner_xid == bindparam("owner"))
        times = dict.fromkeys(("updated_at", "completed_at"), bindparam("now", type_=runs.c.completed_at.type))
        none = {"deduplication_id": None, "owner_xid": None}
        ended = update(runs).where(owned).values(status=bindparam("new_status"), **none, **times)
        columns = ("workflow_uuid", "output", "error")
        outcome = self._insert(self._outputs).values(
            dict(zip(columns, self._given(self._outputs, columns), strict=True))
        )
        new = {name: outcome.excluded[name] for name in columns[1:]}
        outcome = outcome.on_conflict_do_update(index_elements=["workflow_uuid"], set_=new)
        made = ended.returning(runs.c.workflow_uuid), outcome.returning(self._outputs.c.workflow_uuid)
        return [self._prepared(one) for one in made] if self._lite else []

    def _given(self, table: sqlalchemy.Table, names: tuple[str, ...]) -> list[ColumnElement[Any]]:
        return [bindparam(name, type_=table.c[name].type) for name in names]

    def _owned(self, of: str) -> ColumnElement[bool]:
        """Return the condition that `owner` owns the workflow; PostgreSQL locks its row, so that this stays true."""
        runs, owner = self._runs, bindparam("owner", type_=self._runs.c.owner_xid.type)
        this = runs.c.workflow_uuid == bindparam(of, type_=runs.c.workflow_uuid.type)
        if self._lite:
            return exists(select(1).where(this, runs.c.owner_xid == owner).select_from(runs))
        locked = select(runs.c.owner_xid).where(this).with_for_update(key_share=True).cte("locked")
        return exists(select(1).select_from(locked).where(locked.c.owner_xid == owner))

    def _prepared(self, statement: sqlalchemy.ClauseElement) -> Prepared:
        return Prepared(self._engine, statement, self._schemas)
