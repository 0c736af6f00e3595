"""Reads what tracing tells of a run from its records: the same for a run that ends now and for one of last year."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from durable_swarm import codec
from durable_swarm.engine.history.snapshot import Snapshot
from durable_swarm.engine.history.story import step_infos
from durable_swarm.engine.records import runs
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.records.names import call_key, model_step, tool_step
from durable_swarm.engine.records.rows import RunRow
from durable_swarm.engine.records.turns import TurnRecords, recorded_turns
from durable_swarm.engine.storage.family import ChildLink
from durable_swarm.engine.storage.run_state import moment, notes_on, started_at, state_of
from durable_swarm.engine.storage.runs import Store
from durable_swarm.loop import NOT_MADE, Call
from durable_swarm.observing import CallTrace, RunEnd, RunTrace, StepTrace, TurnTrace, WaitTrace
from durable_swarm.runs import ENDED, StepInfo
from durable_swarm.swarm.collected_trace import CollectedTrace


def trace_of(store: Store, run_id: str, end: RunEnd | None = None, failure: Record | None = None) -> RunTrace:
    """Return the trace of a run; `end` is its end, and `failure` its error, if they are not recorded yet.

    Raises `RunNotFound`, and `ReplayMismatch` for damaged records.
    """
    row = store.found(run_id)
    records = Snapshot(store, row)
    start = records.start_record(row)
    link = ChildLink.read(run_id, start)
    noted = notes_on(row)
    read = runs.read_start(start)
    turns = recorded_turns(records, row, start)
    steps = [step for step in step_infos(records, row, failure) if not step.kept]
    end = end or _end(store, row)
    stop = None if end is None else end.at
    return RunTrace(
        run_id=run_id,
        root=run_id if link is None else link.root,
        call="" if link is None else link.call,
        agent=str(noted.get("agent", read.agent)),
        session=str(noted.get("session") or ""),
        started=started_at(row).timestamp(),
        messages=read.messages,
        turns=list(_turns(run_id, steps, turns, started_at(row).timestamp(), stop)),
        waits=_waits(store, run_id),
        end=end,
        resumed=_resumed(store, row),
        forked_from=str(noted.get("forked_from") or ""),
    )


def collecting(run_id: str, start: Record) -> CollectedTrace:
    """Return a trace to be collected while the run is executed, which is to be the one that `trace_of` would return.

    Reading the records of a run again would take up to half the time that it takes to execute it.
    """
    link = ChildLink.read(run_id, start)
    return CollectedTrace(
        run_id,
        root=run_id if link is None else link.root,
        call="" if link is None else link.call,
        agent=str(start["agent"]),
        session=str(start.get("session") or ""),
        started=float(start["at"]),
        messages=lambda: runs.read_start(start).messages,
    )


def _end(store: Store, row: RunRow) -> RunEnd | None:
    status = state_of(row)
    if status not in ENDED:
        return None
    at = moment(row.completed_at or row.updated_at).timestamp()
    if status == "done":
        return RunEnd(status, at, ended_by=runs.read_end(row.output) or "")
    failure = store.failure_record(row) or {}
    return RunEnd(status, at, error=failure.get("type", ""), message=str(codec.decode(failure.get("message", ""))))


def _turns(
    run_id: str, steps: list[StepInfo], turns: list[TurnRecords], begun: float, stop: float | None
) -> Iterator[TurnTrace]:
    last = begun
    for place, step in enumerate(steps):
        if step.kind != "model":
            continue
        after = steps[place + 1 :]
        own = after[: next((at for at, other in enumerate(after) if other.kind == "model"), len(after))]
        started = _seconds(step.started_at) or last
        finished = _seconds(step.finished_at) or (stop if step.status == "failed" else None)
        last = finished or started
        agent = step.name.removeprefix(model_step(""))
        turn = step.turn or 0
        if step.status != "done" or turn >= len(turns):
            yield TurnTrace(turn, agent, "", started, finished, error=step.error or "")
            continue
        reply = turns[turn].read()
        made = {call.index: call for call in reply.calls}
        calls = list(_calls(run_id, turn, made, own, stop))
        model = str(turns[turn].reply.get("model", ""))
        yield TurnTrace(turn, agent, model, started, finished, reply.message, reply.usage, reply.finish, calls=calls)


def _calls(
    run_id: str, turn: int, made: dict[int, Call], own: list[StepInfo], stop: float | None
) -> Iterator[CallTrace]:
    for place, step in enumerate(own):
        call = None if step.index is None else made.get(step.index)
        if step.kind != "tool" or call is None or call.plan in NOT_MADE:
            continue
        inner = own[place + 1 :]
        inner = inner[: next((at for at, other in enumerate(inner) if other.kind != "step"), len(inner))]
        failed = step.status == "failed" and step.error != step.output
        yield CallTrace(
            key=call_key(run_id, turn, call.index),
            tool=step.name.removeprefix(tool_step("")),
            call_id=call.id,
            arguments=call.arguments,
            effect=call.effect,
            started=_seconds(step.started_at),
            finished=_seconds(step.finished_at) or (stop if failed else None),
            result=None if step.output is None else str(step.output),
            error=(step.error or "") if failed else "",
            steps=[
                StepTrace(one.name, _seconds(one.started_at), _seconds(one.finished_at), one.error or "")
                for one in inner
            ],
        )


def _waits(store: Store, run_id: str) -> list[WaitTrace]:
    return [
        WaitTrace(
            request.id,
            request.kind,
            request.id.rpartition("/")[0],
            request.created_at.timestamp(),
            _seconds(request.answered_at or (request.expires_at if request.status == "expired" else None)),
        )
        for request in store.inbox.of_runs([run_id])
    ]


def _resumed(store: Store, row: RunRow) -> list[float]:
    rows = store.events.read(row.workflow_id, store.record_codec(row))
    return sorted(stored["ended"][0] / 1000 for _, stored in rows if "ended" in stored)


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()
