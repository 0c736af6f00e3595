"""The conversation of a session, read from the records of its runs; and what each run leaves to the next."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import replace

from durable_swarm import codec
from durable_swarm.engine.history.story import story, summary_of
from durable_swarm.engine.records import runs
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.records.rows import RunRow, StepRow
from durable_swarm.engine.records.sessions import SessionPlace, place_in, without_place
from durable_swarm.engine.records.turns import Rows, recorded_turns
from durable_swarm.engine.storage.run_state import state_of
from durable_swarm.engine.storage.runs import Store
from durable_swarm.engine.storage.session_state import Left
from durable_swarm.models.provider_errors import is_too_long
from durable_swarm.runs import RunHistory
from durable_swarm.swarm.compaction import SessionHistory
from durable_swarm.swarm.session import answered
from durable_swarm.types import Message

PAGE = 50
"""The number of runs that are read at once."""


Idle = Callable[[Sequence[RunRow]], Container[str]]
"""Returns the ids of the running runs among some that no living process executes."""


def messages_of(store: Rows, row: RunRow, *, idle: bool = False) -> list[Message]:
    """Return the messages of one run in its session: those it was sent, and its own so far."""
    return answered([*runs.read_start(store.start_record(row)).messages, *story(store, row, idle=idle).messages])


def newest_first(
    store: Store, session: str, before: int | None = None, idle: Idle = lambda _: ()
) -> Iterator[tuple[RunRow, list[Message]]]:
    """Yield row and messages of the runs of a session whose messages count, the newest first, read by pages."""
    while page := store.sessions.runs.ids(session, before=before, limit=PAGE):
        these = _Page(store, [run_id for _, run_id in page])
        left = idle(these.rows)
        for row in these.rows:
            yield row, messages_of(these, row, idle=row.workflow_id in left)
        before = page[-1][0]


class _Page:
    """Some runs, read with a few statements instead of a few for each."""

    def __init__(self, store: Store, run_ids: list[str]) -> None:
        found = {row.workflow_id: row for row in store.some(run_ids)}
        self.rows = [found[run_id] for run_id in run_ids if run_id in found]
        self._steps, self._calls = defaultdict[str, list[StepRow]](list), defaultdict[str, list[RunRow]](list)
        steps, calls = store.parts_of(run_ids)
        for step in steps:
            self._steps[step.workflow_id].append(step)
        for call in calls:
            self._calls[str(call.parent_workflow_id)].append(call)
        self.start_record, self.step_record, self.reply = store.start_record, store.step_record, store.reply
        self.output_record, self.failure_record = store.output_record, store.failure_record

    def steps(self, workflow_id: str) -> list[StepRow]:
        """Return the recorded steps of a run."""
        return self._steps[workflow_id]

    def children(self, run_id: str, *, load_output: bool = False) -> list[RunRow]:
        """Return the rows of a run's undecorated tool calls."""
        return self._calls[run_id]


def history_before(store: Store, place: SessionPlace, last: str | None, known: SessionHistory) -> SessionHistory:
    """Return what the runs of a session before one have left; `known` is what they have through run `last`.

    A run that has written a summary builds on it, so that no older run is read than those whose messages were kept.
    """
    if place.base is None:
        return SessionHistory()
    found, tokens, summary, missing = list[list[Message]](), 0, None, 0
    for row, messages in newest_first(store, place.session, place.number):
        tokens = tokens_of(store, row) if not found else tokens
        if summary is not None:
            found.append(messages[-missing:])
            missing -= len(found[-1])
        elif row.workflow_id == last:
            return SessionHistory(_in_order([*found, known.messages]), known.summary, known.upto, tokens)
        else:
            found.append(messages)
            summary = summary_of(store, row)
            missing = 0 if summary is None else summary.kept
        if summary is not None and not missing:
            break
    text, upto = ("", 0) if summary is None else (summary.text, summary.upto)
    return SessionHistory(_in_order(found), text, upto, tokens)


def _in_order(found: list[list[Message]]) -> list[Message]:
    return [message for messages in reversed(found) for message in messages]


def tokens_of(store: Store, row: RunRow) -> int:
    """Return what the provider counted for the last model call of a run, or 0."""
    told = recorded_turns(store, row, store.start_record(row))
    usage = told[-1].read().usage if told else None
    return 0 if usage is None else usage.total_tokens


def standalone(store: Rows, row: RunRow) -> Record:
    """Return the start record of a run with all messages that its first request had, as if it were in no session."""
    record = store.start_record(row)
    place = place_in(record)
    if place is None or not isinstance(store, Store):
        return record
    # A fork of its session keeps the run when the session is deleted.
    there = store.sessions.runs.session_of(row.workflow_id) or place.session
    history = history_before(store, replace(place, session=there), None, SessionHistory())
    summary = summary_of(store, row)
    if summary is not None:
        history = history.summarized(len(history.messages) - summary.kept, summary.text)
    return {**without_place(record), "messages": [*codec.encode(history.sent), *record["messages"]]}


def left_by(store: Store, row: RunRow) -> Left:
    """Return what an ended run leaves to its session. A run that was too long for its model is left out."""
    record = store.start_record(row)
    failure = store.failure_record(row) if state_of(row) == "failed" else None
    told = story(store, row)
    if failure is not None and is_too_long(codec.decode(failure.get("message", ""))):
        start = runs.read_start(record)
        return _left(start.agent, start.context, record.get("base"), told, counts=False)
    return _left(told.agent, told.context, row.workflow_id, told)


def _left(agent: str, context: dict[str, object], base: str | None, told: RunHistory, *, counts: bool = True) -> Left:
    usage = None if told.usage is None else told.usage.model_dump()
    return Left(agent, runs.context_record(context), base, counts, usage)
