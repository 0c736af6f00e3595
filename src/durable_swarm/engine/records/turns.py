"""The records of a run by turn, kept turns of a fork first, from a database or an exported run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol, Required, TypedDict

from durable_swarm import codec
from durable_swarm.engine.records import base, names, runs
from durable_swarm.engine.records.rows import RunRow, StepRow
from durable_swarm.loop import NOT_MADE, Call, GuardKind, Reply
from durable_swarm.runs import StepKind, StepStatus
from durable_swarm.tools.repeats import FAILED
from durable_swarm.types import Block


class StepFields(TypedDict, total=False):
    """The fields of a `StepInfo`, without its number."""

    name: Required[str]
    kind: Required[StepKind]
    status: Required[StepStatus]
    started_at: datetime | None
    finished_at: datetime | None
    output: object
    error: str | None
    version: str | None
    turn: int | None
    kept: bool
    finish: str | None
    index: int | None
    same_as: int | None
    written: str | None
    misfit: str | None


StepWithCall = tuple[StepFields, Call | None]
"""A step, and the tool call that it is, if it is one that a recorded reply makes."""


class Rows(Protocol):
    """A source of rows and decoded records: a database, or the file of an exported run."""

    def steps(self, workflow_id: str) -> list[StepRow]:
        """Return the recorded steps of a run or a tool call, in order."""

    def children(self, run_id: str, *, load_output: bool = False) -> list[RunRow]:
        """Return the rows of a run's undecorated tool calls."""

    def start_record(self, row: RunRow) -> base.Record:
        """Return a run's input."""

    def step_record(self, step: StepRow, row: RunRow) -> base.Record:
        """Return the record of a step of a run or of an undecorated tool call in it."""

    def reply(self, step: StepRow, row: RunRow) -> Reply:
        """Return the reply in the record of a model's step."""

    def output_record(self, child: RunRow, row: RunRow) -> base.Record:
        """Return the output of an undecorated tool call."""

    def failure_record(self, row: RunRow) -> base.Record | None:
        """Return the error that ended a failed run, if it is a record of this package."""


@dataclass(frozen=True)
class TurnRecords:
    """The records of one turn: its agent's name, the reply, and the outcome of each call or None.

    `guards` are the records of its guardrails, by kind, each in the agent's order or None.
    """

    agent: str
    reply: base.Record
    outcomes: list[base.Record | None]
    guards: dict[GuardKind, list[base.Record | None]] = field(default_factory=dict)
    known: Reply | None = field(default=None, compare=False, repr=False)
    """The reply, if its record was read already."""

    def verdict(self, kind: GuardKind) -> Block | Literal[False] | None:
        """Return the block of the first guardrail that stops the run; False if all passed, None if one is open."""
        records = self.guards.get(kind, [])
        if any(record is None for record in records):
            return None
        blocks = (runs.read_guard(record) for record in records if record is not None)
        return next((block for block in blocks if block is not None), False)

    def read(self) -> Reply:
        """Return the reply. Raises `ReplayMismatch` for a damaged record."""
        return self.known or runs.read_reply(self.reply)

    @property
    def whole(self) -> bool:
        """Return True if each call has an outcome."""
        made = zip(self.read().calls, self.outcomes, strict=True)
        return all(record is not None or call.plan in NOT_MADE for call, record in made)


def calls_of(store: Rows, row: RunRow) -> dict[str, RunRow]:
    """Return the rows of the run's undecorated tool calls by id."""
    return {child.workflow_id: child for child in store.children(row.workflow_id, load_output=True)}


def recorded_turns(store: Rows, row: RunRow, start: base.Record) -> list[TurnRecords]:
    """Return the records of a run started with `start`, by turn."""
    with base.reading("a kept turn"):
        kept = [TurnRecords(turn["agent"], turn["reply"], turn["outcomes"]) for turn in start.get("kept", [])]
    return kept + turns_in(store.steps(row.workflow_id), calls_of(store, row), store, row, len(kept))


def turns_in(rows: list[StepRow], calls: dict[str, RunRow], store: Rows, row: RunRow, first: int) -> list[TurnRecords]:
    """Return the records of the turns in these steps of a run, starting at turn `first`; `calls` are by id."""
    tools = {step.function_id: step for step in rows if is_outcome(step)}
    judged = {step.function_id: step for step in rows if step.function_name.startswith(names.GUARDRAIL)}

    def outcome(turn: int, call: Call, number: int) -> base.Record | None:
        step, name = tools.get(number), names.tool_step(call.tool) if call.plan == "step" else names.TOOL
        if step is not None and step.function_name == name:
            return store.step_record(step, row)
        child = calls.get(names.call_key(row.workflow_id, turn, call.index))
        if call.plan in ("step", *NOT_MADE) or child is None or child.status != "SUCCESS":
            return None
        return store.output_record(child, row)

    turns: list[TurnRecords] = []
    for step in rows:
        if step.function_name.startswith("model:"):
            record = store.step_record(step, row)
            reply = store.reply(step, row)
            asked = numbered(reply.calls, step.function_id)
            made = [outcome(first + len(turns), call, number) for call, number in asked]
            guards = _guards(judged, reply, step.function_id, store, row)
            turns.append(TurnRecords(step.function_name.removeprefix("model:"), record, made, guards, reply))
    return turns


def _guards(
    judged: dict[int, StepRow], reply: Reply, number: int, store: Rows, row: RunRow
) -> dict[GuardKind, list[base.Record | None]]:
    """Return the records of a reply's guardrails; the reply is the run's step `number`.

    Input guardrails have the numbers before it, output guardrails those after it: an answer has no calls.
    """
    inputs, outputs = len(reply.input_guardrails), len(reply.output_guardrails)
    places: dict[GuardKind, range] = {
        "input": range(number - inputs, number),
        "output": range(number + 1, number + 1 + outputs),
    }
    return {
        kind: [store.step_record(judged[at], row) if at in judged else None for at in numbers]
        for kind, numbers in places.items()
    }


def is_outcome(step: StepRow) -> bool:
    """Return True if the step of a run is the outcome of a tool call, not the start of one as a workflow."""
    return step.function_name.startswith("tool:") or (
        step.function_name == names.TOOL and step.child_workflow_id is None
    )


def numbered(calls: list[Call], number: int) -> Iterator[tuple[Call, int]]:
    """Yield the calls of a reply with the number of each one's first step; the reply is the run's step `number`.

    Numbers are assigned in the model's order, even if the calls overlap: one for a step, two for an undecorated call
    (its start and its result as a workflow, or its record, if it needs no workflow), none for a call that is not made.
    So two calls of one tool are distinct, whichever ended first.
    """
    following = number + 1
    for call in calls:
        yield call, following
        following += {"step": 1, "tell": 0, "same": 0}.get(call.plan, 2)


def told_step(call: Call, text: str) -> StepFields:
    """Return the fields of a tool's step from the text the model received; `failed` if the call was refused."""
    refused = call.plan == "tell" and text.startswith(FAILED)
    step: StepFields = {"name": names.tool_step(call.tool), "kind": "tool", "status": "done", "output": text}
    return {**step, "status": "failed", "error": text} if refused else step


def kept_steps(start: base.Record) -> Iterator[StepWithCall]:
    """Return the steps of the turns that a fork keeps from another run. Steps inside their tools are not copied."""
    for turn, record in enumerate(start.get("kept", [])):
        reply = record["reply"]
        read = runs.read_reply(reply)
        output = codec.decode(reply["message"])
        step: StepFields = {
            "name": names.model_step(record["agent"]),
            "kind": "model",
            "status": "done",
            "output": output,
            "version": reply.get("version"),
            "finish": codec.decode(reply.get("finish")),
            "turn": turn,
            "kept": True,
        }
        yield step, None
        for call, outcome in zip(read.calls, runs.outcomes_of(read.calls, record["outcomes"]), strict=True):
            yield {**told_step(call, outcome.text), "turn": turn, "kept": True}, call
