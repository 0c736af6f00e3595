"""Reads the executions of a run: which processes worked on it, from when to when, and how each execution ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from durable_swarm.engine.records.executions import DIED, HANDED, read_ended
from durable_swarm.engine.records.rows import RunRow
from durable_swarm.engine.storage.process_facts import ProcessFacts
from durable_swarm.engine.storage.run_state import moment, notes_on, owner_of, started_at, state_of
from durable_swarm.engine.storage.runs import Store
from durable_swarm.runs import ENDED, StepInfo


@dataclass(frozen=True)
class ExecutionView:
    """One process that worked on a run.

    `end` is the run's status if the run has ended in it, "died" or "stopped" if the process had died or paused,
    "handed over" if it left the run to others, and None while it continues, also while the run waits. `ended_at` of an
    execution that the run outlived is the last moment of which there is a record; `began_at` of the next one is when
    the run was taken over. `host` and `pid` are None for a process that has not reported itself. Times are aware UTC.
    """

    number: int
    process: str
    host: str | None
    pid: int | None
    began_at: datetime
    ended_at: datetime | None
    end: str | None


def executions(store: Store, row: RunRow, steps: Sequence[StepInfo], idle: bool) -> list[ExecutionView]:
    """Return the executions of a run, oldest first; `idle` says that no living process executes it."""
    known = {facts.name: facts for facts in store.processes.all()}
    views = []
    for number, (process, began, ended, end) in enumerate(_spans(row, steps, idle, known), 1):
        facts = known.get(process)
        host, pid = (None, None) if facts is None else (facts.host, facts.pid)
        views.append(ExecutionView(number, process, host, pid, began, ended, end))
    return views


def _spans(
    row: RunRow, steps: Sequence[StepInfo], idle: bool, known: Mapping[str, ProcessFacts]
) -> Iterator[tuple[str, datetime, datetime | None, str | None]]:
    moments = sorted(at for step in steps for at in (step.started_at, step.finished_at) if at is not None)
    ended, began = read_ended(notes_on(row)), next(iter(moments), started_at(row))
    for one in ended:
        until = moment(one.until)
        seen = max((at for at in moments if began <= at <= until), default=began)
        yield one.process, began, until if one.how in ENDED else seen, one.how
        began = next((at for at in moments if at > until), until) if one.how in ENDED else until
    last = owner_of(row) or row.executor_id
    waits = (
        bool(ended) and ended[-1].process == last and ended[-1].how in ENDED and not any(at > began for at in moments)
    )
    if not last or (waits and not owner_of(row)):
        return  # Nobody has begun it, or nobody since it was resumed.
    state, seen = state_of(row), max((at for at in moments if at >= began), default=began)
    if state in ENDED:
        yield last, began, max(began, moment(row.completed_at or row.updated_at)), state
    elif owner_of(row) and idle:
        yield last, began, seen, HANDED if last in known and known[last].left_at is not None else DIED
    elif not owner_of(row) and state == "running":
        yield last, began, max(began, moment(row.updated_at)), HANDED
    else:
        yield last, began, None, None
