"""Reads a run's records: its story and its steps, from the rows of the run and of its tool calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from durable_swarm import codec, errors
from durable_swarm.engine import records
from durable_swarm.engine.sealing import CLOSED, Sealed
from durable_swarm.engine.store import state_of
from durable_swarm.engine.turns import Rows, calls_of, kept_steps, recorded_turns
from durable_swarm.loop import Call, Outcome, Reply
from durable_swarm.runs import ENDED, StepInfo, Story, follow


def story(store: Rows, row: Any) -> Story:
    """Tell the run's story as far as it is recorded."""
    record = store.start_record(row)
    start, told = records.read_start(record), recorded_turns(store, row, record)
    replies = iter(told[len(start.kept) :])

    def next_reply() -> Reply | None:
        turn = next(replies, None)
        return None if turn is None else turn.read()

    def next_outcome(turn: int, call: Call) -> Outcome | None:
        outcome = told[turn].outcomes[call.index]
        return None if outcome is None else records.read_outcome(outcome)

    state = state_of(row)
    pending = f"Error: this call has no result; the run is {state}." if state in ENDED else "Error: no result yet."
    return follow(start, next_reply, next_outcome, pending=pending)


def step_infos(store: Rows, row: Any) -> list[StepInfo]:
    """Give the run's steps in the order in which they were begun, with numbers from 1; those a fork has kept first.

    What was stored through a codec that this process lacks is shown as `(encrypted)`.
    """
    with records.reading(f"a step of run {row.workflow_id!r}"):
        start = _opened(lambda of, _: store.start_record(of), row, row)
        first = len(start.get("kept", []))
        own = list(_in_turns(_fields(store, row, first), first))
        fields = _with_failure([*kept_steps(start), *own], _failure(store, row))
        return [StepInfo(number, **step) for number, step in enumerate(fields, 1)]


def _failure(store: Rows, row: Any) -> records.Record | None:
    try:
        return store.failure_record(row)
    except Sealed:
        return {**row.error.data, "message": CLOSED}


def _with_failure(fields: list[dict[str, Any]], failure: records.Record | None) -> list[dict[str, Any]]:
    """Tell of the step that ended the run: it has no record of its own, since it is to be repeated."""
    if failure is None or not failure.get("step"):
        return fields
    ended = {"status": "failed", "error": f"{failure['type']}: {codec.decode(failure.get('message', ''))}"}
    for step in reversed(fields):
        if step["name"] == failure["step"] and step["status"] == "running":
            step.update(ended)
            return fields
    return [*fields, {"name": failure["step"], "kind": failure["step"].partition(":")[0], **ended}]


def _in_turns(fields: Iterator[dict[str, Any]], first: int) -> Iterator[dict[str, Any]]:
    turn = first - 1
    for step in fields:
        turn += step["kind"] == "model"
        yield {**step, "turn": turn}


def _fields(store: Rows, row: Any, first: int) -> Iterator[dict[str, Any]]:
    rows, calls = store.steps(row.workflow_id), calls_of(store, row)
    opened = {step.function_id: _opened(store.step_record, step, row) for step in rows}
    names = _tool_names([opened[step.function_id] for step in rows if step.function_name.startswith("model:")], first)
    for step in rows:
        if step.function_name == records.TOOL:
            key = step.child_workflow_id
            yield _tool(store, row, step, calls.get(key), names.get(_call_of(key), CLOSED))
            inside = (inner for inner in store.steps(key) if inner.function_name != records.BEGUN)
            yield from (_inner(inner, _opened(store.step_record, inner, row)) for inner in inside)
        elif step.function_name.startswith(("model:", "tool:")):
            yield _done(step, opened[step.function_id])


def _opened(read: Callable[[Any, Any], records.Record], stored: Any, row: Any) -> records.Record:
    """Give a record as far as it can be read: what is not a record has no fields, and of a closed one it is known."""
    try:
        return read(stored, row)
    except Sealed:
        return {"closed": True}
    except errors.ReplayMismatch:
        return {}


def _call_of(key: str) -> str:
    return key.rpartition("/")[2]


def _tool_names(replies: list[records.Record], first: int) -> dict[str, str]:
    """Give the name of each undecorated call by its `<turn>.<index>`."""
    return {
        f"{turn}.{index}": call["function"]["name"]
        for turn, reply in enumerate(replies, first)
        for index, call in enumerate(reply.get("message", {}).get("tool_calls") or [])
    }


def _times(step: Any) -> dict[str, datetime | None]:
    return {"started_at": _time(step.started_at_epoch_ms), "finished_at": _time(step.completed_at_epoch_ms)}


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _value(record: records.Record, field: str, default: Any = None) -> Any:
    return CLOSED if record.get("closed") else codec.decode(record.get(field, default))


def _done(step: Any, record: records.Record) -> dict[str, Any]:
    kind = step.function_name.partition(":")[0]
    return {
        "name": step.function_name,
        "kind": kind,
        "status": "done",
        "output": _value(record, "message") if kind == "model" else _value(record, "text", ""),
        "version": step.output.get("version") if isinstance(step.output, dict) else None,
        "finish": codec.decode(record.get("finish")) if kind == "model" else None,
        **_times(step),
    }


def _tool(store: Rows, row: Any, step: Any, child: Any, name: str) -> dict[str, Any]:
    fields = {
        "name": records.tool_step(name),
        "kind": "tool",
        "status": "running",
        "started_at": _time(step.started_at_epoch_ms),
    }
    if child is not None and child.status == "SUCCESS":
        text = _value(_opened(store.output_record, child, row), "text", "")
        fields |= {"status": "done", "output": text, "finished_at": _time(child.completed_at or child.updated_at)}
    return fields


def _inner(step: Any, record: records.Record) -> dict[str, Any]:
    stored = step.output if isinstance(step.output, dict) else {}
    failed = bool(step.error) or "failed" in stored or "raised" in stored
    return {
        "name": step.function_name,
        "kind": "step",
        "status": "failed" if failed else "done",
        # A step of DBOS's own, such as a sleep, has no record of ours.
        "output": _value(record, "value") if record else step.output,
        "error": _error(step, record) if failed else None,
        **_times(step),
    }


def _error(step: Any, record: records.Record) -> str:
    raised = record.get("raised")
    if raised:
        return f"{raised['type']}: {codec.decode(raised.get('message', ''))}"
    return CLOSED if record.get("closed") else str(step.error)
