"""Reads a run's history and steps from the rows of the run and of its tool calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal, TypeVar, get_args

from durable_swarm import codec, errors
from durable_swarm.engine.history.recorded_errors import shown_failure
from durable_swarm.engine.records import base, names, runs
from durable_swarm.engine.records.compactions import Summary, read_summary
from durable_swarm.engine.records.encoding import ENCRYPTED, Unreadable
from durable_swarm.engine.records.failures import raised_text
from durable_swarm.engine.records.rows import RunRow, StepRow
from durable_swarm.engine.records.turns import (
    Rows,
    StepFields,
    StepWithCall,
    TurnRecords,
    calls_of,
    is_outcome,
    kept_steps,
    numbered,
    recorded_turns,
    told_step,
)
from durable_swarm.engine.storage.run_state import state_of
from durable_swarm.engine.storage.runs import Store
from durable_swarm.loop import NOT_MADE, Call, Guard, Outcome, Reply, total
from durable_swarm.runs import ENDED, RunHistory, StepInfo, StepKind, follow
from durable_swarm.tools.repeats import FAILED, Place, key_of
from durable_swarm.types import Block, Usage

Stored = TypeVar("Stored")


def story(store: Rows, row: RunRow, turns: list[TurnRecords] | None = None, *, idle: bool = False) -> RunHistory:
    """Return the run's history as far as it is recorded; `turns` are its records by turn, if they were read already.

    `idle` says that no living process executes the run: a call without a result is in progress nowhere.
    """
    record = store.start_record(row)
    start, turns = runs.read_start(record), recorded_turns(store, row, record) if turns is None else turns
    replies = iter(turns[len(start.kept) :])

    def next_reply() -> Reply | None:
        turn = next(replies, None)
        return None if turn is None else turn.read()

    def next_outcome(turn: int, call: Call) -> Outcome | None:
        outcome = turns[turn].outcomes[call.index]
        return None if outcome is None else runs.read_outcome(outcome)

    def next_verdict(guard: Guard) -> Block | Literal[False] | None:
        found = turns[guard.turn].verdict(guard.kind)
        return (
            None if isinstance(found, Block) and found.reply is None else found
        )  # Without a reply the run has failed.

    pending = _without_result(row, idle)
    told_by_run = follow(start, next_reply, next_outcome, next_verdict, pending=pending)
    summary = summary_of(store, row)
    return told_by_run if summary is None else replace(told_by_run, usage=total([summary.usage, told_by_run.usage]))


def _without_result(row: RunRow, idle: bool) -> str:
    """Return the text in the place of a result that is not recorded."""
    state = state_of(row)
    if state in ENDED:
        return f"Error: this call has no result; the run is {state}."
    return "Error: no result yet; no running process owns the run." if idle else "Error: no result yet."


def summary_of(store: Rows, row: RunRow) -> Summary | None:
    """Return the summary of its session that a run has written, or None."""
    if "compaction" not in store.start_record(row):
        return None
    for step in store.steps(row.workflow_id):
        if step.function_name.startswith(names.COMPACT):
            return read_summary(store.step_record(step, row))
    return None


def usage_with_children(store: Store, row: RunRow, own: RunHistory | None = None) -> Usage | None:
    """Return the tokens of a run and of all runs below it, or None if no provider counts any.

    `own` is the history of the run itself, if that was read already.
    """
    below = store.family.below([row.workflow_id])
    rows = [found for link in below if (found := store.row(link.run_id, load_output=False)) is not None]
    first = own or story(store, row)
    return total([first.usage, *(story(store, one).usage for one in rows)])


def step_infos(store: Rows, row: RunRow, failure: base.Record | None = None) -> list[StepInfo]:
    """Return the run's steps in the order in which they were begun, numbered from 1; steps kept by a fork come first.

    `failure` is the error that ends the run, if it is not recorded yet.
    Data stored through a codec that this process lacks is shown as `(encrypted)`.
    """
    with base.reading(f"a step of run {row.workflow_id!r}"):
        start = _opened(lambda of, _: store.start_record(of), row, row)
        first = len(start.get("kept", []))
        own = list(_in_turns(_recorded(store, row, makes_calls=start.get("execute_tools", True)), first))
        steps = _with_failure([*kept_steps(start), *own], failure or shown_failure(store, row))
        _mark_repeated(steps)
        return [StepInfo(number, **step) for number, (step, _) in enumerate(steps, 1)]


def step_number(store: Store, run_id: str, place: Place) -> int | None:
    """Return the number of a tool call among the steps of a run of this database."""
    steps = step_infos(store, store.found(run_id))
    for step in steps:
        if step.kind == "tool" and (step.turn, step.index) == place:
            return step.number
    # A duplicate call that has not begun: it comes after its reply.
    reply = next((step.number for step in steps if step.kind == "model" and step.turn == place[0]), None)
    return None if reply is None else reply + 1 + place[1]


def _mark_repeated(steps: list[StepWithCall]) -> None:
    """Note on each call that succeeded before, or occurs earlier in its reply, the number of that step."""
    succeeded: dict[str, int] = {}
    twins: dict[str, int] = {}
    for number, (step, call) in enumerate(steps, 1):
        if step["kind"] == "model":
            twins = {}
        if call is None:
            continue
        step["index"], key = call.index, key_of(call.tool, call.arguments)
        step["same_as"] = succeeded.get(key, twins.get(key))
        text = step.get("output")
        if step["status"] == "done" and not str(text).startswith(FAILED):
            succeeded.setdefault(key, number)
        if step["status"] != "failed":
            twins.setdefault(key, number)


def _with_failure(steps: list[StepWithCall], failure: base.Record | None) -> list[StepWithCall]:
    """Add the step that ended the run: it has no record of its own, because it is to be repeated."""
    if failure is None or not failure.get("step"):
        return steps
    name, error = failure["step"], raised_text(failure)
    for step, _ in reversed(steps):
        if step["name"] == name and (step["status"] == "running" or step["kind"] == "guardrail"):
            step["status"], step["error"] = "failed", error
            return steps
    kind: StepKind = next((kind for kind in get_args(StepKind) if kind == name.partition(":")[0]), "step")
    return [*steps, ({"name": name, "kind": kind, "status": "failed", "error": error}, None)]


def _in_turns(steps: Iterator[StepWithCall], first: int) -> Iterator[StepWithCall]:
    turn = first - 1
    for step, call in steps:
        turn += step["kind"] == "model"
        # Input guardrails are begun before their model call.
        step["turn"] = max(turn, first)
        yield step, call


def _recorded(store: Rows, row: RunRow, *, makes_calls: bool) -> Iterator[StepWithCall]:
    """Yield the steps that the run has begun itself, those inside a tool after it."""
    rows, children = store.steps(row.workflow_id), calls_of(store, row)
    reply, blocked = _LastReply(), False
    for step in rows:
        yield from reply.passed(step.function_id)
        call = reply.calls.pop(step.function_id, None)
        if step.function_name.startswith("model:"):
            record = _opened(store.step_record, step, row)
            readable = makes_calls and "message" in record
            reply = _LastReply.of(store.reply(step, row), step) if readable else _LastReply()
            yield _reply(step, record), None
        elif step.function_name.startswith(names.GUARDRAIL):
            record = _opened(store.step_record, step, row)
            blocked = blocked or "blocked" in record
            yield _guardrail(step, record), None
        elif is_outcome(step):
            fields = _done(step, _opened(store.step_record, step, row), "tool")
            if step.function_name == names.TOOL:
                fields["name"] = names.tool_step(ENCRYPTED if call is None else call.tool)
            yield reply.noted(fields, call)
        elif step.function_name == names.TOOL:
            key = step.child_workflow_id or ""
            fields = _tool(store, row, step, children.get(key), ENCRYPTED if call is None else call.tool)
            yield reply.noted(fields, call)
            inside = (inner for inner in store.steps(key) if inner.function_name != names.BEGUN)
            yield from ((_inner(inner, _opened(store.step_record, inner, row)), None) for inner in inside)
        elif step.function_name.startswith(names.COMPACT):
            yield _done(step, _opened(store.step_record, step, row), "step"), None
    yield from reply.rest(in_progress=not blocked and state_of(row) != "done")


@dataclass
class _LastReply:
    """The calls of a run's last reply, as its steps are read one by one."""

    together: bool = False
    calls: dict[int, Call] = field(default_factory=dict)
    """Those that are made and not read yet, by the number of their step."""
    unmade: list[tuple[int, Call]] = field(default_factory=list)
    """Those that are not made, with the number of the next step."""
    texts: dict[int, object] = field(default_factory=dict)
    """What the others have returned, by index."""
    at: datetime | None = None
    """The time at which the next call has begun."""
    open: bool = False
    """True if a call that is a workflow has no result yet: none after it has begun, unless they are made together."""

    @classmethod
    def of(cls, reply: Reply, step: StepRow) -> _LastReply:
        """Return the calls of the reply that this step of the run has recorded."""
        placed = list(numbered(reply.calls, step.function_id))
        made = {at: call for call, at in placed if call.plan not in NOT_MADE}
        unmade = [(at, call) for call, at in placed if call.plan in NOT_MADE]
        return cls(reply.together, made, unmade, at=_time(step.completed_at_epoch_ms))

    def passed(self, number: int) -> Iterator[StepWithCall]:
        """Yield the calls before the run's step `number` that have no record: those not made, and those in progress."""
        while self.unmade and self.unmade[0][0] <= number:
            yield _unmade(self.unmade.pop(0)[1], self.texts)
        yield from self._in_progress([self.calls.pop(at) for at in list(self.calls) if at < number])

    def noted(self, fields: StepFields, call: Call | None) -> StepWithCall:
        """Return the step of a call, and remember its result."""
        if call is not None:
            self.texts[call.index] = fields.get("output")
        if not self.together:
            self.open = self.open or fields["status"] == "running"
            self.at = fields.get("finished_at") or self.at
        return fields, call

    def rest(self, *, in_progress: bool) -> Iterator[StepWithCall]:
        """Yield the calls behind the last record: one after the other if the reply's calls are not made together."""
        if in_progress:
            begun = None if self.together else 0 if self.open else 1
            yield from self._in_progress(list(self.calls.values())[:begun])
        yield from (_unmade(call, self.texts) for _, call in self.unmade)

    def _in_progress(self, calls: list[Call]) -> Iterator[StepWithCall]:
        """Yield the undecorated calls among these. A `@step` tool is shown when it has ended."""
        for call in calls:
            if call.plan != "step":
                name = names.tool_step(call.tool)
                yield {"name": name, "kind": "tool", "status": "running", "started_at": self.at}, call


def _unmade(call: Call, texts: dict[int, object]) -> StepWithCall:
    """Return the step of a call that was not made: it was refused, or answered with the result of another."""
    if call.twin is None:
        return told_step(call, call.text), call
    text = texts.get(call.twin)
    turns = told_step(call, str(text))
    return {**turns, "status": "running", "output": None} if text is None else turns, call


def _opened(read: Callable[[Stored, RunRow], base.Record], stored: Stored, row: RunRow) -> base.Record:
    """Return as much of a record as can be read: a non-record has no fields, an encoded one is marked as such."""
    try:
        return read(stored, row)
    except Unreadable:
        return {"closed": True}
    except errors.ReplayMismatch:
        return {}


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _value(record: base.Record, field: str, default: object = None) -> object:
    return ENCRYPTED if record.get("closed") else codec.decode(record.get(field, default))


def _done(step: StepRow, record: base.Record, kind: StepKind) -> StepFields:
    return {
        "name": step.function_name,
        "kind": kind,
        "status": "done",
        "started_at": _time(step.started_at_epoch_ms),
        "finished_at": _time(step.completed_at_epoch_ms),
        "output": _value(record, "text", ""),
        "version": step.output.get("version") if isinstance(step.output, dict) else None,
    }


def _reply(step: StepRow, record: base.Record) -> StepFields:
    return {
        **_done(step, record, "model"),
        "output": _value(record, "message"),
        "finish": codec.decode(record.get("finish")),
        "written": codec.decode(record.get("written")),
        "misfit": codec.decode(record.get("verdict", {}).get("tell")),
    }


def _guardrail(step: StepRow, record: base.Record) -> StepFields:
    verdict = _value(record, "blocked", "") if record.get("closed") or not record.get("passed") else None
    text = "passed" if verdict is None else f"blocked: {verdict}"
    return {
        "name": step.function_name,
        "kind": "guardrail",
        "status": "done",
        "started_at": _time(step.started_at_epoch_ms),
        "finished_at": _time(step.completed_at_epoch_ms),
        "output": text,
    }


def _tool(store: Rows, row: RunRow, step: StepRow, child: RunRow | None, name: str) -> StepFields:
    fields: StepFields = {
        "name": names.tool_step(name),
        "kind": "tool",
        "status": "running",
        "started_at": _time(step.started_at_epoch_ms),
    }
    if child is not None and child.status == "SUCCESS":
        fields["status"], fields["finished_at"] = "done", _time(child.completed_at or child.updated_at)
        fields["output"] = _value(_opened(store.output_record, child, row), "text", "")
    return fields


def _inner(step: StepRow, record: base.Record) -> StepFields:
    stored = step.output if isinstance(step.output, dict) else {}
    failed = bool(step.error) or "failed" in stored or "raised" in stored
    return {
        "name": step.function_name,
        "kind": "step",
        "status": "failed" if failed else "done",
        "started_at": _time(step.started_at_epoch_ms),
        "finished_at": _time(step.completed_at_epoch_ms),
        # A step of DBOS's own, such as a sleep, is not one of our records.
        "output": _value(record, "value") if record else step.output,
        "error": _error(step, record) if failed else None,
    }


def _error(step: StepRow, record: base.Record) -> str:
    raised = record.get("raised")
    if raised:
        return raised_text(raised)
    return ENCRYPTED if record.get("closed") else str(step.error)
