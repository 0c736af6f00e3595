"""Makes the views of runs, in lists and in full, from their rows and records."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import TypedDict

from durable_swarm import codec
from durable_swarm.engine.api.inspector import Inspector
from durable_swarm.engine.history.recorded_errors import shown_failure
from durable_swarm.engine.history.snapshot import Snapshot
from durable_swarm.engine.history.spending import limits_now, spending
from durable_swarm.engine.history.story import step_infos, story, usage_with_children
from durable_swarm.engine.records import runs
from durable_swarm.engine.records.encoding import Unreadable
from durable_swarm.engine.records.rows import RunRow
from durable_swarm.engine.records.turns import TurnRecords, recorded_turns
from durable_swarm.engine.storage.run_state import moment, notes_on, owner_of, reason_noted, started_at, state_of
from durable_swarm.engine.storage.runs import Store
from durable_swarm.engine.storage.tallies import Tally
from durable_swarm.loop import Start
from durable_swarm.requests import Request
from durable_swarm.runs import ENDED, RunHistory, State
from durable_swarm.service.executions import executions
from durable_swarm.service.unreadable import why_closed
from durable_swarm.service.views import Failure, RunDetail, RunView
from durable_swarm.types import EndedBy


class _RunFields(TypedDict):
    """The fields of a `RunView` that follow from its row, and from who executes it."""

    id: str
    status: State
    agent: str
    swarm: str
    created_at: datetime
    updated_at: datetime
    idle: bool
    waits_for: str | None
    forked_from: str | None
    turn: int | None
    session: str | None
    number: int | None


class _RunCounts(TypedDict):
    """The fields of a `RunView` that count."""

    turns: int
    tokens: int | None
    cost: Decimal | None
    open_requests: int


def run_views(visitor: Inspector, rows: Sequence[RunRow]) -> list[RunView]:
    """Return runs as lists show them, in the order of their rows."""
    store, ids = visitor.store, [row.workflow_id for row in rows]
    idle, ends, families = visitor.idle(rows), store.ends([*rows]), store.family.relatives(ids)
    totals = _Totals(store, rows)
    return [
        RunView(
            **_facts(store, row, row.workflow_id in idle),
            **totals.of(row),
            ended_by=_noted_end(ends.get(row.workflow_id)),
            failure=_noted_failure(store, ends.get(row.workflow_id)),
            parent=families[row.workflow_id].parent,
            children=families[row.workflow_id].children,
        )
        for row in rows
    ]


class _Totals:
    """The amounts that runs have taken, and their requests, together with the runs below them."""

    def __init__(self, store: Store, rows: Sequence[RunRow]) -> None:
        self._families = {row.workflow_id: [row.workflow_id] for row in rows}
        tops = {run_id: [run_id] for run_id in self._families}
        for link in store.family.below(self._families):  # Each after its parent.
            tops[link.run_id] = [*dict.fromkeys([*tops.get(link.run_id, []), *tops.get(link.parent, [])])]
            for top in tops[link.run_id]:
                if link.run_id != top:
                    self._families[top].append(link.run_id)
        everyone = {run_id for family in self._families.values() for run_id in family}
        self._tallies = store.tallies.of(everyone)
        self._open = store.inbox.count_open(everyone)

    def of(self, row: RunRow) -> _RunCounts:
        """Return the totals of a run, as fields of its view."""
        family = dict.fromkeys(self._families[row.workflow_id])
        own, kept = self._tallies.get(row.workflow_id, Tally()), notes_on(row).get("turn")
        total = Tally.total(self._tallies[run_id] for run_id in family if run_id in self._tallies)
        return {
            "turns": own.turns + (kept if isinstance(kept, int) else 0),
            "tokens": total.tokens,
            "cost": total.cost,
            "open_requests": sum(self._open.get(run_id, 0) for run_id in family),
        }


def _facts(store: Store, row: RunRow, idle: bool) -> _RunFields:
    created, noted = started_at(row), notes_on(row)
    turn = noted.get("turn")
    return {
        "id": row.workflow_id,
        "status": state_of(row),
        "agent": _about(row, "agent"),
        "swarm": _about(row, "swarm"),
        "created_at": created,
        "updated_at": max(created, moment(row.updated_at)),
        "idle": idle,
        "waits_for": _waits_for(store, row, idle),
        "forked_from": _about(row, "forked_from") or None,
        "turn": turn if isinstance(turn, int) else None,
        "session": noted.get("session"),
        "number": noted.get("number"),
    }


def _noted_end(row: RunRow | None) -> EndedBy | None:
    return runs.read_end(row.output) if row is not None and state_of(row) == "done" else None


def _noted_failure(store: Store, row: RunRow | None) -> str | None:
    return failure_of(store, row).line if row is not None and state_of(row) == "failed" else None


def _about(row: RunRow, name: str) -> str:
    """Return a text that was noted on the run, or ''."""
    return str(notes_on(row).get(name) or "")


def run_detail(visitor: Inspector, row: RunRow) -> RunDetail:
    """Return a run in full."""
    store, idle = visitor.store, bool(visitor.idle([row]))
    state = state_of(row)
    records = Snapshot(store, row)
    start, turns, history, closed = _told(records, row, idle)
    error = failure_of(store, row) if state == "failed" else None
    steps = step_infos(records, row)
    moments = [started_at(row), moment(row.updated_at), *(step.finished_at for step in steps if step.finished_at)]
    facts = _facts(store, row, idle)
    facts["agent"], facts["updated_at"] = facts["agent"] or start.agent, max(moments)
    family = store.family.relatives([row.workflow_id])[row.workflow_id]
    limits, spent = (None, None) if closed else (limits_now(store, row), spending(store, row, records, turns))
    return RunDetail(
        **facts,
        **_Totals(store, [row]).of(row),
        worker=worker_of(row),
        asked=start.messages,
        context_variables=start.context if history.ending is None else history.ending.context,
        model_override=start.model_override,
        max_turns=start.max_turns,
        messages=history.messages,
        steps=steps,
        usage=history.usage if closed else usage_with_children(store, row, history),
        limits=limits,
        spent=spent,
        last_agent=None if history.ending is None else history.ending.agent,
        ended_by=_ended_by(row, state, history),
        error=error,
        failure=None if error is None else error.line,
        added={str(turn): detour.messages for turn, detour in sorted(start.detours.items()) if detour.messages},
        closed=closed,
        requests=requests_of(store, row),
        actions=store.actions.of([row.workflow_id]),
        executions=executions(store, row, steps, idle),
        parent=family.parent,
        children=family.children,
    )


def worker_of(row: RunRow) -> str:
    """Return the name of the process that owns an unfinished run, living or not, or ''."""
    return "" if state_of(row) in ENDED else owner_of(row)


def requests_of(store: Store, row: RunRow) -> list[Request]:
    """Return all requests of a run and of the runs below it, oldest first."""
    below = store.family.below([row.workflow_id])
    return store.inbox.of_runs([row.workflow_id, *(link.run_id for link in below)])


def _ended_by(row: RunRow, state: State, history: RunHistory) -> EndedBy | None:
    if state != "done":
        return None
    return runs.read_end(row.output) if history.ending is None else history.ending.ended_by


def _told(records: Snapshot, row: RunRow, idle: bool) -> tuple[Start, list[TurnRecords], RunHistory, str | None]:
    """Return the run's input, turns and history; empty ones and a sentence with the reason if they are not readable."""
    try:
        record = records.start_record(row)
        turns = recorded_turns(records, row, record)
        return runs.read_start(record), turns, story(records, row, turns, idle=idle), None
    except Unreadable as error:
        return Start("", [], {}), [], RunHistory([], None), why_closed(error)


def _waits_for(store: Store, row: RunRow, idle: bool) -> str | None:
    """Return why an unfinished run does not continue, preferably in the words of the process that held it."""
    recorded = reason_noted(row) or store.waits.reason_below(row)
    if recorded or not idle:
        return recorded
    agent, swarm = _about(row, "agent"), _about(row, "swarm")
    named = f" in a swarm named {swarm!r}" if swarm else ""
    return f"no running process owns it; start a program that defines agent {agent!r}{named}, and it continues"


def failure_of(store: Store, row: RunRow) -> Failure:
    """Return the error that ended a failed run."""
    record = shown_failure(store, row)
    if record is None:
        return Failure(type(row.error).__name__, f"run {row.workflow_id!r} failed: {row.error}")
    return Failure(
        record["type"],
        codec.decode(record.get("message", "")),
        record.get("step", ""),
        codec.decode(record.get("traceback", "")),
    )
