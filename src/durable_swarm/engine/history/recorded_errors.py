"""Errors read from records: each states when it was recorded and the command that continues the run."""

from __future__ import annotations

import shlex

from durable_swarm import codec, errors
from durable_swarm.engine.records import failures
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.records.encoding import ENCRYPTED, Unreadable
from durable_swarm.engine.records.rows import RunRow
from durable_swarm.engine.records.turns import Rows
from durable_swarm.engine.storage.run_state import moment, notes_on, state_of
from durable_swarm.engine.storage.runs import Store
from durable_swarm.sub_agents import failed_child


def error_of(store: Store, row: RunRow) -> Exception:
    """Return the error that ended a failed run, from its row, with the recorded attributes."""
    record = store.failure_record(row)
    if record is not None:
        error = failures.read_failure(record)
    else:
        text = str(row.error)
        error = errors.RunFailed(f"run {row.workflow_id!r} failed: {text}", run_id=row.workflow_id, error_message=text)
    at = moment(row.completed_at or row.updated_at).astimezone()
    note = f"recorded at {at:%Y-%m-%d %H:%M:%S}; nothing was tried now"
    if isinstance(error, errors.Blocked):  # Its verdict is recorded.
        remedy = f"To continue it anyway: durable-swarm fork {shlex.quote(row.workflow_id)} --turn 0"
    else:
        remedy = f"When the cause is fixed: {resume_command(row.workflow_id)}"
    error.args = (f"{str(error).rstrip('.')} ({note}. {remedy})",)
    return error


def shown_failure(store: Rows, row: RunRow) -> Record | None:
    """Return the record of the error that ended a failed run, or None if it is not one of this package.

    If it cannot be decoded here, it says so in place of the message.
    """
    try:
        return store.failure_record(row)
    except Unreadable:
        stored = row.failure or {}
        return {"type": stored.get("type"), "step": stored.get("step", ""), "message": ENCRYPTED}


def child_failure(store: Store, run_id: str) -> Exception | None:
    """Return the error of a tool whose child run has failed; None if that run has not failed.

    It is made from the record, so it is the same in every execution of the tool.
    """
    row = store.found(run_id)
    if state_of(row) != "failed":
        return None
    record, agent = store.failure_record(row), str(notes_on(row).get("agent", ""))
    if record is None:
        return failed_child(run_id, agent, type(row.error).__name__, str(row.error))
    error = failures.read_failure(record)
    if isinstance(error, errors.LimitReached):
        return error
    text, traceback = codec.decode(record.get("message", "")), codec.decode(record.get("traceback", ""))
    return failed_child(run_id, agent, record["type"], text, traceback)


def cancelled(run_id: str) -> errors.RunCancelled:
    """Return the error of a run that was cancelled."""
    text = f"run {run_id!r} was cancelled; Run.resume() continues it, and so does {resume_command(run_id)}"
    return errors.RunCancelled(text, run_id=run_id)


def resume_command(run_id: str) -> str:
    """Return the command that continues a run."""
    return f"durable-swarm resume {shlex.quote(run_id)}"
