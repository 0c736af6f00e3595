"""Reads the rows of runs, of undecorated tool calls and of their steps.

DBOS wrote them, and has readers of its own. They are read with our statements instead: reading needs no import of DBOS,
loads only the columns that are used, and leaves a pickled row, which could run any code, the text that it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import sqlalchemy
from sqlalchemy import ColumnElement, FromClause, Select, and_, column, func, literal, null, select, table
from sqlalchemy.exc import DBAPIError

from durable_swarm.engine.database.diagnosis import reporting_errors
from durable_swarm.engine.database.dialects import notes_column
from durable_swarm.engine.database.reconnecting import read
from durable_swarm.engine.database.urls import is_sqlite, schema_of
from durable_swarm.engine.records.names import PORTABLE, RUN, TOOL
from durable_swarm.engine.records.rows import RecordedError, RunRow, StepRow
from durable_swarm.engine.storage.ownership import UNFINISHED

INDEX = "durable_swarm_runs"
"""Name of an index of this package on DBOS's table of workflows: the runs, by the time of their start."""
FORKS = "durable_swarm_forks"
"""The same of forks alone, on SQLite, which has no index of the notes on runs."""
FORKED = "instr(attributes, '\"forked_from\"') > 0"
"""True in SQLite for each row of a fork, and hardly for another: written as in that index, which is found only so."""

FACTS = (
    *("workflow_uuid", "name", "status", "executor_id", "queue_name", "application_version", "parent_workflow_id"),
    *("created_at", "updated_at", "completed_at"),
)
"""The columns of a run's row that are read as they are, in the order of `RunRow`."""


class RowReader:
    """Reads rows. Raises `ConfigurationError` if the database cannot be used."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine) -> None:
        self._url = url
        self._engine = engine
        schema = schema_of(url)
        noted = notes_column(url)
        stored = ("inputs", "output", "error", "serialization")
        kept = ("function_id", "function_name", "child_workflow_id", "started_at_epoch_ms", "completed_at_epoch_ms")
        self.runs = table("workflow_status", *map(column, (*FACTS, *stored)), noted, schema=schema)
        self.is_run = self.runs.c.name == literal(RUN, literal_execute=True)
        """True for the row of a run. The name is a literal, because the index of runs is found only by it."""
        # DBOS keeps inputs and outputs in tables of their own; rows of earlier versions have them in place.
        self._inputs = table("workflow_input", column("workflow_uuid"), column("inputs"), schema=schema)
        self._outputs = table(
            "workflow_output", column("workflow_uuid"), column("output"), column("error"), schema=schema
        )
        self._steps = table(
            "operation_outputs",
            *map(column, ("workflow_uuid", *kept, "output", "error", "serialization")),
            schema=schema,
        )

    def read(
        self,
        *wanted: ColumnElement[bool],
        load_input: bool = False,
        load_output: bool = False,
        newest: bool = False,
        limit: int | None = None,
        by_index: bool = False,
    ) -> list[RunRow]:
        """Return the rows that meet all conditions, oldest first unless `newest`.

        With `by_index` only the rows that do are read, if the index of runs alone tells which do.
        """
        runs = self.runs
        columns = (runs.c.created_at, runs.c.workflow_uuid)
        order = [column.desc() if newest else column for column in columns]
        meets = and_(True, *wanted)
        if by_index:
            meets = runs.c.workflow_uuid.in_(select(runs.c.workflow_uuid).where(meets).order_by(*order).limit(limit))
        query = self._loading(load_input, load_output).where(meets)
        if limit is not None:
            query = query.order_by(*order).limit(limit)
        with reporting_errors(self._url):
            rows = [_run_row(row) for row in read(self._engine, query)]
        # Not by the database, which would copy each output to sort it.
        return rows if limit is not None else sorted(rows, key=_place, reverse=newest)

    def create_indexes(self) -> None:
        """Create the indexes that lists of runs are read by, if they do not exist: DBOS's have tool calls, too."""
        indexes = {INDEX: f"name = '{RUN}'"}
        if is_sqlite(self._url):
            indexes[FORKS] = f"name = '{RUN}' AND {FORKED}"
        schema = schema_of(self._url)
        quote = self._engine.dialect.identifier_preparer.quote
        place = "workflow_status" if schema is None else f"{quote(schema)}.workflow_status"
        with reporting_errors(self._url):
            missing = indexes.keys() - self._indexes(schema)
            try:
                for name in missing:
                    text = f"{name} ON {place} (created_at, workflow_uuid) WHERE {indexes[name]}"
                    with self._engine.begin() as connection:
                        connection.exec_driver_sql(f"CREATE INDEX IF NOT EXISTS {text}")
            except DBAPIError:
                # PostgreSQL lets one of two processes fail that create it at once.
                if not indexes.keys() <= self._indexes(schema):
                    raise

    def _indexes(self, schema: str | None) -> set[str]:
        """Return the names of all indexes on the rows of runs."""
        wanted: Select[Any]
        if schema is None:
            here = (column("type") == "index") & (column("tbl_name") == "workflow_status")
            wanted = select(column("name")).select_from(table("sqlite_master")).where(here)
        else:
            here = (column("schemaname") == schema) & (column("tablename") == "workflow_status")
            wanted = select(column("indexname")).select_from(table("pg_indexes")).where(here)
        return {name for (name,) in read(self._engine, wanted)}

    def _loading(self, load_input: bool, load_output: bool) -> Select[Any]:
        runs, inputs, outputs = self.runs, self._inputs, self._outputs
        source: FromClause = runs
        given: ColumnElement[Any] = null()
        ended: tuple[ColumnElement[Any], ...] = (null(), null())
        if load_input:
            given = func.coalesce(inputs.c.inputs, runs.c.inputs)
            source = source.outerjoin(inputs, inputs.c.workflow_uuid == runs.c.workflow_uuid)
        if load_output:
            ended = tuple(func.coalesce(outputs.c[name], runs.c[name]) for name in ("output", "error"))
            source = source.outerjoin(outputs, outputs.c.workflow_uuid == runs.c.workflow_uuid)
        facts = (runs.c[name] for name in (*FACTS, "attributes"))
        return select(*facts, given, *ended, runs.c.serialization).select_from(source)

    def steps_of(self, workflow_ids: Sequence[str]) -> list[StepRow]:
        """Return the recorded steps of several runs or tool calls, those of each in order."""
        steps = self._steps
        query = select(steps).where(steps.c.workflow_uuid.in_(workflow_ids))
        with reporting_errors(self._url):
            return _in_order([_step_row(row) for row in read(self._engine, query)])

    def steps_in_calls(self, run_id: str) -> list[StepRow]:
        """Return the recorded steps of a run's undecorated tool calls, those of each in order."""
        steps, runs = self._steps, self.runs
        query = select(steps).join(runs, runs.c.workflow_uuid == steps.c.workflow_uuid)
        query = query.where(runs.c.parent_workflow_id == run_id, runs.c.name == TOOL)
        with reporting_errors(self._url):
            return _in_order([_step_row(row) for row in read(self._engine, query)])

    def sleeping(self, run_ids: Sequence[str]) -> set[str]:
        """Return the runs among these that have a tool call in progress which sleeps."""
        steps, runs = self._steps, self.runs
        query = select(runs.c.parent_workflow_id, steps.c.output).join(
            steps, (steps.c.workflow_uuid == runs.c.workflow_uuid) & (steps.c.function_name == "DBOS.sleep")
        )
        query = query.where(runs.c.parent_workflow_id.in_(run_ids), runs.c.status.in_(UNFINISHED))
        with reporting_errors(self._url):
            return {run_id for run_id, end in read(self._engine, query) if _is_later(end)} if run_ids else set()

    def steps(self, workflow_id: str, *, after: int = 0) -> list[StepRow]:
        """Return the recorded steps of a run or a tool call, in order, without the first `after` ones."""
        steps = self._steps
        query = select(steps).where(steps.c.workflow_uuid == workflow_id).order_by(steps.c.function_id)
        with reporting_errors(self._url):
            return [_step_row(row) for row in read(self._engine, query.offset(after or None))]


def _place(row: RunRow) -> tuple[int, str]:
    return row.created_at, row.workflow_id


def _in_order(steps: list[StepRow]) -> list[StepRow]:
    return sorted(steps, key=lambda step: step.function_id)


def _run_row(row: Sequence[Any]) -> RunRow:
    run_id, name, status, executor, queue, version, parent, created, updated, ended, notes, *stored, kind = row
    given, output, error = stored  # As `_loading` selects them.
    asked = _decoded(given, kind)
    return RunRow(
        *(run_id, name, status, executor, queue, version, parent, created, updated, ended, notes),
        input=asked.get("positionalArgs") if isinstance(asked, dict) else asked,
        output=_decoded(output, kind),
        error=_error(error, kind),
    )


def _step_row(row: Sequence[Any]) -> StepRow:
    run_id, number, name, child, begun, ended, output, error, kind = row  # In the order of the table's columns.
    return StepRow(run_id, number, name, _decoded(output, kind), _error(error, kind), child, begun, ended)


def _decoded(text: str | None, serialization: str | None) -> object:
    """Return the value of a stored text; the text itself if it is not JSON."""
    if text is None or serialization != PORTABLE:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _error(text: str | None, serialization: str | None) -> RecordedError | str | None:
    found = _decoded(text, serialization)
    if isinstance(found, dict) and isinstance(found.get("name"), str):
        return RecordedError(found["name"], str(found.get("message", "")), found.get("data"))
    return text


def _is_later(moment: Any) -> bool:
    """Return True if this is the recorded end of a sleep, in seconds since 1970, and in the future."""
    try:
        return float(moment) > time.time()
    except (TypeError, ValueError):
        return False
