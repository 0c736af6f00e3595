"""Makes pages of a run for a screen: bounded, however long the run and its values are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from durable_swarm import codec
from durable_swarm.engine.api.inspector import Inspector
from durable_swarm.engine.history.snapshot import Snapshot
from durable_swarm.engine.history.story import step_infos
from durable_swarm.engine.records import runs
from durable_swarm.engine.records.encoding import Unreadable
from durable_swarm.engine.records.rows import RunRow
from durable_swarm.errors import ConfigurationError
from durable_swarm.loop import Start
from durable_swarm.requests import Action, Request
from durable_swarm.runs import StepInfo
from durable_swarm.service.executions import ExecutionView, executions
from durable_swarm.service.run_views import failure_of, requests_of, run_views, worker_of
from durable_swarm.service.unreadable import why_closed
from durable_swarm.service.views import Failure, RunView
from durable_swarm.types import Message

LONGEST = 2_000
"""The number of characters to which a page cuts a text."""

MOST = 100
"""The number of messages, and of entries of a list or an object, that a page shows."""

WHOLE = 10 * LONGEST
"""The size in characters of the JSON text above which a page shows a value as the beginning of that text."""


class NoStep(ConfigurationError):
    """The run has no step of that number."""


@dataclass(frozen=True)
class RunPage:
    """One page of a run: some of its steps, and what a screen says beside them.

    `steps` are those after number `after`; `total` is the number of all steps. `asked` are the messages that the run
    was given, of very many the last ones, `added` those that a fork added, by the turn that they precede. Texts are cut
    to 2,000 characters: `cut` are the numbers of the steps whose output or error is not whole here, which `Runs.step`
    returns. `requests` are all requests of the run and of the runs below it, `actions` what people did to the run, and
    `executions` the processes that worked on it, all oldest first. `worker` is the name of the process that owns the
    unfinished run, or ''. `closed` is a sentence with the reason why no message can be read here, or None.
    """

    run: RunView
    after: int
    total: int
    steps: list[StepInfo]
    cut: list[int]
    asked: list[Message]
    added: dict[int, list[Message]]
    requests: list[Request]
    actions: list[Action]
    executions: list[ExecutionView]
    error: Failure | None
    worker: str
    closed: str | None


def run_page(visitor: Inspector, row: RunRow, after: int, limit: int) -> RunPage:
    """Return the page of a run that begins behind step number `after`."""
    store, records = visitor.store, Snapshot(visitor.store, row)
    start, closed = _start(records, row)
    steps = step_infos(records, row)
    found = steps[after : after + limit]
    shown = [_cut_step(step) for step in found]
    view = run_views(visitor, [row])[0]
    return RunPage(
        run=view,
        after=after,
        total=len(steps),
        steps=shown,
        cut=[whole.number for whole, step in zip(found, shown, strict=True) if whole != step],
        asked=cut_messages(start.messages),
        added={turn: cut_messages(detour.messages) for turn, detour in start.detours.items() if detour.messages},
        requests=requests_of(store, row),
        actions=store.actions.of([row.workflow_id]),
        executions=executions(store, row, steps, view.idle),
        error=failure_of(store, row) if view.status == "failed" else None,
        worker=worker_of(row),
        closed=closed,
    )


def whole_step(visitor: Inspector, row: RunRow, number: int) -> StepInfo:
    """Return one step of a run with its whole values. Raises `NoStep`."""
    steps = step_infos(Snapshot(visitor.store, row), row)
    if not 1 <= number <= len(steps):
        raise NoStep(f"run {row.workflow_id!r} has no step {number}; it has {len(steps)}")
    return steps[number - 1]


def cut_messages(messages: Sequence[Message]) -> list[Message]:
    """Return messages with their texts cut, of very many the last ones."""
    return [cut_value(message) for message in messages[-MOST:]]


def cut_value(value: object) -> Any:
    """Return a value with its texts, lists and objects cut; a still too large one as the beginning of its JSON text."""
    found = _cut(value)
    if isinstance(found, str):
        return found
    text = json.dumps(codec.encode(found), ensure_ascii=False)
    return found if len(text) <= WHOLE else _cut(text)


def _cut(value: object) -> object:
    if isinstance(value, str):
        return value if len(value) <= LONGEST else f"{value[:LONGEST]}…"
    if isinstance(value, list | tuple):
        return [_cut(item) for item in value[:MOST]] if len(value) > MOST else type(value)(map(_cut, value))
    if isinstance(value, dict):
        return {key: _cut(value[key]) for key in list(value)[:MOST]}
    return value


def _cut_step(step: StepInfo) -> StepInfo:
    return replace(step, output=cut_value(step.output), error=cut_value(step.error), misfit=cut_value(step.misfit))


def _start(records: Snapshot, row: RunRow) -> tuple[Start, str | None]:
    try:
        return runs.read_start(records.start_record(row)), None
    except Unreadable as error:
        return Start("", [], {}), why_closed(error)
