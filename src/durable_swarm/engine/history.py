"""Reads a run's records: its story and its steps, from the rows of the run and of its tool calls."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from durable_swarm import codec
from durable_swarm.engine import records
from durable_swarm.engine.store import Store, state_of
from durable_swarm.loop import Call, Outcome, Reply
from durable_swarm.runs import ENDED, StepInfo, Story, follow


def story(store: Store, row: Any) -> Story:
    """Tell the run's story as far as it is recorded."""
    rows, calls = store.steps(row.workflow_id), _calls(store, row)
    replies = iter([step for step in rows if step.function_name.startswith("model:")])
    stepped = [step for step in rows if step.function_name.startswith("tool:")]

    def next_reply() -> Reply | None:
        step = next(replies, None)
        return None if step is None else records.read_reply(_record(step, row))

    def next_outcome(turn: int, call: Call) -> Outcome | None:
        if call.plan == "step":
            known = bool(stepped) and stepped[0].function_name == records.tool_step(call.tool)
            return records.read_outcome(_record(stepped.pop(0), row)) if known else None
        child = calls.get(records.call_key(row.workflow_id, turn, call.index))
        return None if child is None or child.status != "SUCCESS" else records.read_outcome(_output(child))

    state = state_of(row)
    pending = f"Error: this call has no result; the run is {state}." if state in ENDED else "Error: no result yet."
    return follow(records.read_start(store.start_record(row)), next_reply, next_outcome, pending=pending)


def _calls(store: Store, row: Any) -> dict[str, Any]:
    """Give the rows of the run's undecorated tool calls by their id."""
    return {child.workflow_id: child for child in store.children(row.workflow_id, load_output=True)}


def _record(step: Any, row: Any) -> records.Record:
    return records.read(step.output, f"step {step.function_id} ({step.function_name}) of run {row.workflow_id!r}")


def _output(child: Any) -> records.Record:
    return records.read(child.output, f"tool call {child.workflow_id!r}")


def step_infos(store: Store, row: Any) -> list[StepInfo]:
    """Give the run's steps in the order in which they were begun, with numbers from 1."""
    fields = _with_failure(list(_fields(store, row)), getattr(row.error, "data", None))
    return [StepInfo(number, **step) for number, step in enumerate(fields, 1)]


def _with_failure(fields: list[dict[str, Any]], failure: Any) -> list[dict[str, Any]]:
    """Tell of the step that ended the run: it has no record of its own, since it is to be repeated."""
    if not isinstance(failure, dict) or not failure.get("step"):
        return fields
    ended = {"status": "failed", "error": f"{failure['type']}: {codec.decode(failure.get('message', ''))}"}
    for step in reversed(fields):
        if step["name"] == failure["step"] and step["status"] == "running":
            step.update(ended)
            return fields
    return [*fields, {"name": failure["step"], "kind": failure["step"].partition(":")[0], **ended}]


def _fields(store: Store, row: Any) -> Iterator[dict[str, Any]]:
    rows, calls = store.steps(row.workflow_id), _calls(store, row)
    names = _tool_names(rows)
    for step in rows:
        if step.function_name == records.TOOL:
            key = step.child_workflow_id
            yield _tool(step, calls.get(key), names.get(_call_of(key), "?"))
            yield from (_inner(inner) for inner in store.steps(key))
        elif step.function_name.startswith(("model:", "tool:")):
            yield _done(step)


def _call_of(key: str) -> str:
    return key.rpartition("/")[2]


def _tool_names(rows: list[Any]) -> dict[str, str]:
    """Give the name of each undecorated call by its `<turn>.<index>`."""
    replies = [
        step.output for step in rows if step.function_name.startswith("model:") and isinstance(step.output, dict)
    ]
    return {
        f"{turn}.{index}": call["function"]["name"]
        for turn, reply in enumerate(replies)
        for index, call in enumerate(reply.get("message", {}).get("tool_calls") or [])
    }


def _times(step: Any) -> dict[str, datetime | None]:
    return {"started_at": _time(step.started_at_epoch_ms), "finished_at": _time(step.completed_at_epoch_ms)}


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _done(step: Any) -> dict[str, Any]:
    kind = step.function_name.partition(":")[0]
    record = step.output if isinstance(step.output, dict) else {}
    output = record.get("message") if kind == "model" else record.get("text", "")
    return {
        "name": step.function_name,
        "kind": kind,
        "status": "done",
        "output": codec.decode(output),
        "version": record.get("version"),
        **_times(step),
    }


def _tool(step: Any, child: Any, name: str) -> dict[str, Any]:
    fields = {
        "name": records.tool_step(name),
        "kind": "tool",
        "status": "running",
        "started_at": _time(step.started_at_epoch_ms),
    }
    if child is not None and child.status == "SUCCESS":
        text = codec.decode(_output(child).get("text", ""))
        fields |= {"status": "done", "output": text, "finished_at": _time(child.completed_at or child.updated_at)}
    return fields


def _inner(step: Any) -> dict[str, Any]:
    record = step.output if isinstance(step.output, dict) else {"value": step.output}
    raised = record.get("raised")
    return {
        "name": step.function_name,
        "kind": "step",
        "status": "failed" if raised or step.error else "done",
        "output": codec.decode(record.get("value")),
        "error": f"{raised['type']}: {raised.get('message', '')}"
        if raised
        else str(step.error)
        if step.error
        else None,
        **_times(step),
    }
