"""The conversation of a session, read from the records of its runs; and what each run leaves to the next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from durable_swarm import codec
from durable_swarm.engine.history.story import story
from durable_swarm.engine.records import runs
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.records.sessions import SessionPlace, place_in, without_place
from durable_swarm.engine.records.turns import Rows
from durable_swarm.engine.storage.runs import Store, state_of
from durable_swarm.engine.storage.session_state import Left
from durable_swarm.models.provider_errors import is_too_long
from durable_swarm.runs import RunHistory
from durable_swarm.swarm.session import answered
from durable_swarm.types import Message

PAGE = 50
"""The number of runs that are read at once."""


def messages_of(store: Rows, row: Any) -> list[Message]:
    """Return the messages of one run in its session: those it was sent, and its own so far."""
    return answered([*runs.read_start(store.start_record(row)).messages, *story(store, row).messages])


def newest_first(store: Store, session: str, before: int | None = None) -> Iterator[tuple[str, list[Message]]]:
    """Yield id and messages of the runs of a session whose messages count, the newest first, read by pages."""
    while page := store.sessions.run_ids(session, before=before, limit=PAGE):
        rows = {row.workflow_id: row for row in store.some([run_id for _, run_id in page])}
        for _, run_id in page:
            if run_id in rows:
                yield run_id, messages_of(store, rows[run_id])
        before = page[-1][0]


def messages_before(store: Store, place: SessionPlace, last: str | None, known: list[Message]) -> list[Message]:
    """Return the messages of a session before a run. `known` are those through run `last`, which are not read again."""
    if place.base is None:
        return []
    found: list[list[Message]] = []
    for run_id, messages in newest_first(store, place.session, place.number):
        if run_id == last:
            found.append(known)
            break
        found.append(messages)
    return [message for messages in reversed(found) for message in messages]


def standalone(store: Rows, row: Any) -> Record:
    """Return the start record of a run with all messages it was begun with, as if it were in no session."""
    record = store.start_record(row)
    place = place_in(record)
    if place is None or not isinstance(store, Store):
        return record
    # A fork of its session keeps the run when the session is deleted.
    there = store.sessions.holding(row.workflow_id) or place.session
    before = messages_before(store, replace(place, session=there), None, [])
    return {**without_place(record), "messages": [*codec.encode(before), *record["messages"]]}


def left_by(store: Store, row: Any) -> Left:
    """Return what an ended run leaves to its session. A run that was too long for its model is left out."""
    record = store.start_record(row)
    failure = store.failure_record(row) if state_of(row) == "failed" else None
    told = story(store, row)
    if failure is not None and is_too_long(codec.decode(failure.get("message", ""))):
        start = runs.read_start(record)
        return _left(start.agent, start.context, record.get("base"), told, counts=False)
    return _left(told.agent, told.context, row.workflow_id, told)


def _left(agent: str, context: dict[str, Any], base: str | None, told: RunHistory, *, counts: bool = True) -> Left:
    usage = None if told.usage is None else told.usage.model_dump()
    return Left(agent, runs.context_record(context), base, counts, usage)
