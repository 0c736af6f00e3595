"""Storing an exported run in a database: its original rows, ended, in one transaction. Nothing is executed."""

from __future__ import annotations

import json
import time

from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from durable_swarm import codec, errors
from durable_swarm.codec import Place
from durable_swarm.engine.database.diagnosis import unusable
from durable_swarm.engine.database.urls import schema_of
from durable_swarm.engine.history.export import Exported, export, is_record
from durable_swarm.engine.records import base, names, runs
from durable_swarm.engine.records.encoding import RecordCodec, arguments_text, failure_of, input_of, output_of
from durable_swarm.engine.records.rows import RunRow, StepRow
from durable_swarm.engine.signals import Broken
from durable_swarm.engine.storage.family import ChildLink
from durable_swarm.engine.storage.runs import Store

_OUTSIDE = frozenset({"package", "status", "finished"})
"""Fields that may differ between two exports of one run: the exporting package, and the run's state at that time."""


def import_run(store: Store, data: object) -> str:
    """Store an exported run and return its id; importing the same run again changes nothing.

    A child run is again the child of its parent, whichever of the two is imported first.

    A run that had not ended is cancelled, so that it does not continue unasked. Raises `ConfigurationError` for a
    document that is not an exported run, and `RunConflict` for an id that belongs to another run.
    """
    run = Exported(data)
    if not _is_there(store, run):
        from durable_swarm.engine.backend import launch  # With DBOS, which reading does without.

        rows = _Rows(run, _record_codec(store, run), int(time.time() * 1000))
        try:
            launch.insert(store.engine, schema_of(store.url), rows.tables())
        except IntegrityError:
            if not _is_there(store, run):
                raise _taken(run.data.id) from None
        except SQLAlchemyError as error:
            raise unusable(store.url, error) from error
        link = ChildLink.read(run.data.id, run.data.start)
        if link is not None:
            store.family.add(link)
    return run.data.id


def _record_codec(store: Store, run: Exported) -> RecordCodec:
    """Return the codec of the imported run. Raises `ConfigurationError` if it would be readable beside encoded runs."""
    record_codec = store.record_codec(run.row)
    if record_codec.codec is None and store.holds_sealed(run.data.swarm):
        raise errors.ConfigurationError(
            f"the runs of swarm {run.data.swarm!r} in this database are stored through a codec, such as encryption, "
            "and this one would be stored in the clear; import it with DurableSwarm(codec=...).import_run, or on the "
            "command line with the keys in DURABLE_SWARM_ENCRYPTION_KEYS"
        )
    return record_codec


def _is_there(store: Store, run: Exported) -> bool:
    row = store.row(run.data.id)
    if row is None:
        return False
    if _same_part(Exported(export(store, row))) != _same_part(run):
        raise _taken(run.data.id)
    return True


def _same_part(run: Exported) -> str:
    return codec.dumps(run.data.model_dump(mode="json", exclude_none=True, exclude=set(_OUTSIDE)))


def _taken(run_id: str) -> errors.RunConflict:
    return errors.RunConflict(
        f"this database has another run {run_id!r}; import into another database, or under another id "
        "(`durable-swarm import --id ID`, or the document's `id`)",
        run_id=run_id,
    )


class _Rows:
    """The rows of an exported run, in the columns of DBOS, encoded for the target database."""

    def __init__(self, run: Exported, record_codec: RecordCodec, now: int) -> None:
        self._run = run
        self._record_codec = record_codec
        self._now = now

    def tables(self) -> dict[str, list[dict[str, object]]]:
        """Return the rows by table."""
        run = self._run.data.id
        calls = self._run.children(run, load_output=True)
        ended = [call for call in calls if call.output is not None]
        steps = [step for key in (run, *(call.workflow_id for call in calls)) for step in self._run.steps(key)]
        return {
            "workflow_status": [self._status(self._run.row), *map(self._call_status, calls)],
            "workflow_input": [
                self._input(run, [self._start()]),
                *(self._input(call.workflow_id, []) for call in calls),
            ],
            "workflow_output": [self._outcome(), *map(self._output, ended)],
            "operation_outputs": [self._step(step) for step in steps],
        }

    def _status(self, row: RunRow, **more: object) -> dict[str, object]:
        return {
            "workflow_uuid": row.workflow_id,
            "status": row.status,
            "name": names.RUN,
            "created_at": row.created_at,
            "updated_at": row.updated_at,
            "completed_at": row.updated_at,
            "application_version": names.WIRE,
            "application_id": "",
            "recovery_attempts": 1,
            "priority": 0,
            "serialization": names.PORTABLE,
            "attributes": row.attributes,
            "parent_workflow_id": None,
            **more,
        }

    def _call_status(self, call: RunRow) -> dict[str, object]:
        return self._status(call, name=names.TOOL, parent_workflow_id=self._run.data.id)

    def _start(self) -> base.Record:
        return self._record_codec.close(self._run.start_record(self._run.row), input_of(self._run.data.id))

    def _input(self, key: str, arguments: list[base.Record]) -> dict[str, object]:
        return self._payload(key, inputs=arguments_text(arguments))

    def _outcome(self) -> dict[str, object]:
        run, output, error = self._run.data, None, None
        if run.status == "done":
            ending = self._run.story().ending
            output = _text({"v": names.VERSION, "agent": run.agent} if ending is None else runs.end_record(ending))
        elif run.status == "failed" and run.failure is not None:
            broken = Broken(self._record_codec.close({"v": names.VERSION, **run.failure}, failure_of(run.id)))
            error = _text({"name": "Broken", "message": str(broken), "code": None, "data": broken.data})
        return self._payload(run.id, output=output, error=error)

    def _output(self, call: RunRow) -> dict[str, object]:
        key, output = call.workflow_id, self._run.output_record(call, self._run.row)
        return self._payload(key, output=_text(self._record_codec.close(output, output_of(key))), error=None)

    def _payload(self, key: str, **columns: object) -> dict[str, object]:
        return {"workflow_uuid": key, "retention_timestamp": self._now, **columns}

    def _step(self, step: StepRow) -> dict[str, object]:
        output = step.output
        if is_record(output):
            output = self._record_codec.close(output, Place(step.workflow_id, step.function_name, step.function_id))
        return {
            "workflow_uuid": step.workflow_id,
            "function_id": step.function_id,
            "function_name": step.function_name,
            "output": None if output is None else _text(output),
            "error": None if step.error is None else _text({"name": "Exception", "message": str(step.error)}),
            "child_workflow_id": step.child_workflow_id,
            "started_at_epoch_ms": step.started_at_epoch_ms,
            "completed_at_epoch_ms": step.completed_at_epoch_ms,
            "serialization": names.PORTABLE,
            "retention_timestamp": self._now,
        }


def _text(value: object) -> str:
    """Return JSON as pure ASCII, which every database accepts."""
    return json.dumps(value, separators=(",", ":"))
