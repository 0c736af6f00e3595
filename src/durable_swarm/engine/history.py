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
    record = store.start_record(row)
    rows = store.steps(row.workflow_id)
    replies = (step for step in rows if step.function_name.startswith("model:"))
    outcomes = (step for step in rows if step.function_name.startswith("tool:") or step.function_name == records.GET_RESULT)
    waiting = list(outcomes)

    def next_reply() -> Reply | None:
        step = next(replies, None)
        return None if step is None else records.read_reply(_record(step, row))

    def next_outcome(call: Call) -> Outcome | None:
        if not waiting or not _fits(waiting[0], call):
            return None
        return records.read_outcome(_record(waiting.pop(0), row))

    state = state_of(row)
    pending = f"Error: this call has no result; the run is {state}." if state in ENDED else "Error: no result yet."
    return follow(records.read_start(record), next_reply, next_outcome, pending=pending)


def _fits(step: Any, call: Call) -> bool:
    if call.plan == "step":
        return bool(step.function_name == records.tool_step(call.tool))
    return step.function_name == records.GET_RESULT and str(step.child_workflow_id).endswith(f".{call.index}")


def _record(step: Any, row: Any) -> records.Record:
    return records.read(step.output, f"step {step.function_id} ({step.function_name}) of run {row.workflow_id!r}")


def step_infos(store: Store, row: Any) -> list[StepInfo]:
    """Give the run's steps in the order in which they were begun, with numbers from 1."""
    return [StepInfo(number, **fields) for number, fields in enumerate(_fields(store, row), 1)]


def _fields(store: Store, row: Any) -> Iterator[dict[str, Any]]:
    rows = store.steps(row.workflow_id)
    results = {step.child_workflow_id: step for step in rows if step.function_name == records.GET_RESULT}
    names = _tool_names(rows)
    for step in rows:
        if step.function_name == records.TOOL:
            yield _tool(step, results.get(step.child_workflow_id), names.get(_call_of(step.child_workflow_id), "?"))
            yield from (_inner(inner) for inner in store.steps(step.child_workflow_id))
        elif step.function_name.startswith(("model:", "tool:")):
            yield _done(step)


def _call_of(key: str) -> str:
    return key.rpartition("/")[2]


def _tool_names(rows: list[Any]) -> dict[str, str]:
    """Give the name of each undecorated call by its `<turn>.<index>`."""
    replies = [step.output for step in rows if step.function_name.startswith("model:") and isinstance(step.output, dict)]
    return {
        f"{turn}.{index}": call["function"]["name"]
        for turn, reply in enumerate(replies)
        for index, call in enumerate(reply.get("message", {}).get("tool_calls") or [])
    }


def _times(step: Any, end: Any = None) -> dict[str, datetime | None]:
    return {"started_at": _time(step.started_at_epoch_ms), "finished_at": _time((end or step).completed_at_epoch_ms)}


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


def _tool(step: Any, result: Any, name: str) -> dict[str, Any]:
    fields = {"name": records.tool_step(name), "kind": "tool", "status": "running", "started_at": _time(step.started_at_epoch_ms)}
    if result is not None:
        record = result.output if isinstance(result.output, dict) else {}
        fields |= {"status": "done", "output": codec.decode(record.get("text", "")), **_times(step, result)}
    return fields


def _inner(step: Any) -> dict[str, Any]:
    record = step.output if isinstance(step.output, dict) else {"value": step.output}
    raised = record.get("raised")
    return {
        "name": step.function_name,
        "kind": "step",
        "status": "failed" if raised or step.error else "done",
        "output": codec.decode(record.get("value")),
        "error": f"{raised['type']}: {raised.get('message', '')}" if raised else str(step.error) if step.error else None,
        **_times(step),
    }
