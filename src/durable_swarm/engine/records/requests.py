"""The records in the row of a request: the question, and the decision."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple, get_args

from durable_swarm import codec, errors
from durable_swarm.codec import Place
from durable_swarm.engine.records.base import Record, reading
from durable_swarm.engine.records.encoding import RecordCodec, Unreadable
from durable_swarm.requests import Decision, Kind, Request, RequestSpec, Status, read_decision


class RequestRow(NamedTuple):
    """The row of a request, in the order of its table's columns. Times are in milliseconds since 1970.

    A result that was posted before its call asked for it has no `request` yet, and '' for `run_id` and `call`. In a
    damaged row, `kind` and `state` may be any text.
    """

    id: str
    run_id: str
    call: str
    kind: Kind
    state: Status
    swarm: str
    request: str | None
    decision: str | None
    answered_by: str | None
    created_at: int
    expires_at: int | None
    answered_at: int | None


def place_of(request_id: str) -> Place:
    """Return the place of a question."""
    return Place(request_id, "request")


def decision_of(request_id: str) -> Place:
    """Return the place of a decision."""
    return Place(request_id, "decision")


def asked_record(asked: RequestSpec, kept: Record | None) -> Record:
    """Return the record of a question, with the data that the run stores beside it."""
    fields = {
        "agent": asked.agent,
        "tool": codec.encode(asked.tool),
        "call_id": codec.encode(asked.call_id),
        "question": codec.encode(asked.question),
        "choices": None if asked.choices is None else codec.encode(asked.choices),
        "arguments": None if asked.arguments is None else codec.encode(asked.arguments),
        "schema": asked.schema,
        "same_as": asked.same_as,
        "kept": kept,
    }
    return {"v": 1, **{key: value for key, value in fields.items() if value is not None}}


def misread(row: RequestRow, record_codec: RecordCodec) -> Record:
    """Return the reason why a result posted before its call asked for it is wrong, or an empty record."""
    try:
        record_codec.open(json.loads(row.decision or "null"), decision_of(row.id), "it")
    except (Unreadable, errors.ReplayMismatch):
        why = "a result that was posted early cannot be read here; post it again, with the codec of this swarm"
        return {"why": codec.encode(why)}
    return {}


def differ(known: Record, now: Record) -> bool:
    """Return True if the request now asks something other than the question that was answered."""
    return any(known.get(field) != now.get(field) for field in ("question", "choices"))


def question_of(row: RequestRow, record_codec: RecordCodec) -> Record:
    """Return the record of the question in a row; an empty one for a result that came before it was asked for."""
    if row.request is None:
        return {"v": 1}
    return record_codec.open(json.loads(row.request), place_of(row.id), f"request {row.id!r}")


def read_request(row: RequestRow, record_codec: RecordCodec, closed: str | None = None) -> Request:
    """Return a request from its row; `closed` replaces data that this process cannot decode, or that is damaged.

    Without it `Unreadable` or `ReplayMismatch` is raised.
    """
    try:
        with reading(f"request {row.id!r}"):
            return _request(row, question_of(row, record_codec), _decision(row, record_codec))
    except Unreadable:
        if closed is None:
            raise
        return _request(row, {"question": closed}, None)
    except errors.ReplayMismatch as error:
        if closed is None:
            raise
        # One damaged row must not hide all the others.
        return Request(row.id, row.run_id, row.kind, "", "", f"({error})", moment(0), row.state)


def _decision(row: RequestRow, record_codec: RecordCodec) -> Decision | None:
    if row.decision is None:
        return Decision("expired") if row.state == "expired" else None
    return read_decision(
        record_codec.open(json.loads(row.decision), decision_of(row.id), f"the answer to request {row.id!r}")
    )


def _request(row: RequestRow, record: Record, decision: Decision | None) -> Request:
    """Return a request from its row and its records. Raises ValueError, KeyError or TypeError if they are damaged."""
    why = codec.decode(record.get("why", ""))
    question = codec.decode(record.get("question", ""))
    choices = codec.decode(record.get("choices"))
    if row.kind not in get_args(Kind) or row.state not in get_args(Status) or not isinstance(choices, list | None):
        raise ValueError(f"a {row.kind} that is {row.state}, with choices {choices!r}")
    request = Request(
        id=row.id,
        run_id=row.run_id,
        kind=row.kind,
        agent=record.get("agent", ""),
        tool=codec.decode(record.get("tool", "")),
        question=f"{question} ({why})" if why else question,
        created_at=moment(row.created_at),
        status=row.state,
        call_id=codec.decode(record.get("call_id", "")),
        choices=choices,
        arguments=codec.decode(record.get("arguments")),
        schema=record.get("schema"),
        same_as=same_as if isinstance(same_as := record.get("same_as"), int) else None,
        expires_at=None if row.expires_at is None else moment(row.expires_at),
    )
    if row.state == "open":
        return request
    at = None if row.answered_at is None else moment(row.answered_at)
    return replace(request, decision=decision, answered_by=row.answered_by, answered_at=at)


def moment(milliseconds: int) -> datetime:
    """Return a time from milliseconds since 1970."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
