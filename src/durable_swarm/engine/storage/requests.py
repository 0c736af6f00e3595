"""The requests of all runs in the database: opened once, decided once, and the runs that a decision wakes.

A table of our own, because a decision must be taken once among processes, together with its consequence: the waiting
run is woken in the same transaction. Both sides lock the run's row first, so no answer comes between a run's last check
and its suspension.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import sqlalchemy
from sqlalchemy import BigInteger, Column, ColumnElement, Index, Text, column, func, or_, select, table, update

from durable_swarm import codec, errors
from durable_swarm.codec import dumps, storable
from durable_swarm.engine.database.dialects import insert_into, notes_column
from durable_swarm.engine.database.notices import notify
from durable_swarm.engine.database.urls import is_sqlite, schema_of
from durable_swarm.engine.records import names as records_names
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.records.encoding import ENCRYPTED, RecordCodec
from durable_swarm.engine.records.requests import (
    RequestRow,
    asked_record,
    decision_of,
    differ,
    misread,
    place_of,
    question_of,
    read_request,
)
from durable_swarm.engine.storage.family import Family
from durable_swarm.engine.storage.own_table import OwnTable
from durable_swarm.engine.storage.ownership import UNFINISHED, moved, now
from durable_swarm.engine.storage.visible import seen_by
from durable_swarm.requests import TOKEN, Decision, Request, RequestSpec, check_decision, closed_error, decision_record
from durable_swarm.validation import check_text

COLUMNS = ("id", "run_id", "call", "kind", "state", "swarm", "request", "decision", "answered_by")
TIMES = ("created_at", "expires_at", "answered_at")
_UNDECIDED: dict[str, str | None] = {"state": "open", "decision": None, "answered_by": None, "answered_at": None}

LONGEST = 1_000_000_000
"""Seconds; a longer wait never ends."""


class NoRequest(errors.ConfigurationError):
    """The database has no such request."""


class TokenTaken(errors.ConfigurationError):
    """A tool passed a token to `later` that belongs to another call: the tool's mistake, which ends its run."""


class Inbox(OwnTable):
    """The requests of one database. Every method raises `ConfigurationError` if the database cannot be used."""

    def __init__(
        self, url: sqlalchemy.URL, engine: sqlalchemy.Engine, codec_for: Callable[[str], RecordCodec], family: Family
    ) -> None:
        self._codec_for = codec_for
        self._family = family
        self._lite = is_sqlite(url)
        texts = [Column(name, Text, primary_key=name == "id") for name in COLUMNS]
        times = [Column(name, BigInteger) for name in TIMES]
        schema = schema_of(url)
        rows = sqlalchemy.Table("durable_swarm_requests", sqlalchemy.MetaData(schema=schema), *texts, *times)
        Index("durable_swarm_requests_run", rows.c.run_id)
        Index("durable_swarm_requests_call", rows.c.call)
        Index("durable_swarm_requests_open", rows.c.state, rows.c.created_at)
        Index("durable_swarm_requests_closed", rows.c.answered_at, rows.c.id)
        super().__init__(url, engine, rows)
        self._seen: ColumnElement[bool] = sqlalchemy.true()
        names = ("workflow_uuid", "status", "queue_name", "owner_xid", "parent_workflow_id", "name", "updated_at")
        more = ("delay_until_epoch_ms", "recovery_attempts", "started_at_epoch_ms")
        noted = notes_column(url)
        self._runs = table("workflow_status", *map(column, (*names, *more)), noted, schema=schema)

    def seen_by(self, person: str) -> Inbox:
        """Return this inbox without the requests of runs that belong to others."""
        seen, runs = copy.copy(self), self._runs.alias()
        theirs = (runs.c.workflow_uuid == self._rows.c.run_id) & ~seen_by(person, runs.c.attributes, lite=self._lite)
        seen._seen = ~select(runs.c.workflow_uuid).where(theirs).exists()
        return seen

    # The table

    @contextlib.contextmanager
    def _writing(self, run_id: str = "", owner: str | None = None) -> Iterator[sqlalchemy.Connection]:
        """Open a transaction that has locked the run's row; SQLite locks the whole file.

        Raises `OwnershipLost` if `owner` is given and the run is not in progress or another execution owns it.
        """
        with super()._writing() as connection:
            if run_id and not self._lite:
                locked = select(self._runs.c.workflow_uuid).where(self._runs.c.workflow_uuid == run_id)
                connection.execute(locked.with_for_update())
            runs = self._runs.c
            mine = (runs.workflow_uuid == run_id) & (runs.owner_xid == owner) & runs.status.in_(UNFINISHED)
            if owner is not None and connection.execute(select(runs.status).where(mine)).first() is None:
                # Not above, because it imports DBOS, which reading does without.
                from durable_swarm.engine.backend.ownership import OwnershipLost

                raise OwnershipLost(run_id)
            yield connection

    # What a run asks

    def open(self, asked: RequestSpec, swarm: str, kept: Record | None = None, owner: str | None = None) -> Request:
        """Open a request, unless it was opened before, and return it.

        `kept` is data that the run stores with it. A request that is still open is updated to the current question.
        `owner` is the token of the execution that asks. Raises `OwnershipLost` if that no longer owns the run.
        """
        record, at = asked_record(asked, kept), now()
        stored = dumps(self._codec_for(swarm).close(record, place_of(asked.id)))
        lasting = asked.timeout is None or asked.timeout > LONGEST
        expires = None if lasting else at + round((asked.timeout or 0) * 1000)
        rows = self._rows
        insert = insert_into(self._engine, rows).values(
            id=asked.id, run_id=asked.run_id, call=asked.call, kind=asked.kind, state="open", swarm=swarm,
            request=stored, created_at=at, expires_at=expires,
        )  # fmt: skip
        with self._writing(asked.run_id, owner) as connection:
            if connection.execute(insert.on_conflict_do_nothing()).rowcount != 1:
                self._ask_again(connection, asked, swarm, record)
            row = RequestRow(*connection.execute(select(rows).where(rows.c.id == asked.id)).one())
        if row.call != asked.call:
            raise TokenTaken(
                f"the token {asked.id.removeprefix(TOKEN)!r} belongs to the tool call {row.call!r}; each call of "
                "later() needs a token of its own"
            )
        return self._request(row)

    def _ask_again(self, connection: sqlalchemy.Connection, asked: RequestSpec, swarm: str, record: Record) -> None:
        """Update an existing request to the current question. An answer to a different question does not count."""
        rows, record_codec, place = self._rows, self._codec_for(swarm), place_of(asked.id)
        row = RequestRow(*connection.execute(select(rows).where(rows.c.id == asked.id)).one())
        early = row.run_id == ""  # Completed before it was opened.
        if not early and row.call != asked.call:
            return
        known = misread(row, record_codec) if early else question_of(row, self._codec_for(row.swarm))
        changed = (
            row.state == "answered" and row.kind == "question" and differ(known, record_codec.settle(record, place))
        )
        changed = changed or (early and "why" in known)
        if early or changed or row.state == "open":
            why = {"why": known["why"]} if "why" in known else {}
            stored = dumps(record_codec.close({**record, **why}, place))
            values: dict[str, object] = {"request": stored, "run_id": asked.run_id, "call": asked.call, "swarm": swarm}
            undecided = _UNDECIDED if changed else {}
            connection.execute(update(rows).where(rows.c.id == asked.id).values(**values, **undecided))

    def expire(self, request_id: str) -> Request:
        """Close an expired request, unless it was decided in time; return its current state."""
        rows = self._rows
        with self._writing() as connection:
            over = update(rows).where(rows.c.id == request_id, rows.c.state == "open")
            connection.execute(over.values(state="expired", answered_at=now()))
            row = RequestRow(*connection.execute(select(rows).where(rows.c.id == request_id)).one())
        return self._request(row)

    def withdraw(self, call: str) -> None:
        """Close the request for the approval of a tool call that is not made."""
        rows = self._rows
        with self._writing() as connection:
            asked = (rows.c.call == call) & (rows.c.kind == "approval") & (rows.c.state == "open")
            connection.execute(update(rows).where(asked).values(state="expired", answered_at=now()))

    def reopen(self, asked: RequestSpec, swarm: str, why: str, owner: str | None = None) -> None:
        """Reopen a request whose decision does not fit: it shows the reason, and the current question."""
        rows, record = self._rows, {**asked_record(asked, None), "why": codec.encode(why)}
        stored = dumps(self._codec_for(swarm).close(record, place_of(asked.id)))
        with self._writing(asked.run_id, owner) as connection:
            connection.execute(update(rows).where(rows.c.id == asked.id).values(request=stored, **_UNDECIDED))

    def kept(self, call: str) -> tuple[Request, Record] | None:
        """Return the request for a result that this tool call has opened, and the data stored with it; or None."""
        rows = self._rows
        found = self._read(select(rows).where(rows.c.call == call, rows.c.kind == "result"))
        if not found:
            return None
        row = RequestRow(*found[0])
        return self._request(row), question_of(row, self._codec_for(row.swarm)).get("kept", {})

    def asks(self, call: str) -> bool:
        """Return True if a tool call has an open request."""
        rows = self._rows
        return bool(self._read(select(rows.c.id).where(rows.c.call == call, rows.c.state == "open")))

    def decided(self, request_ids: Iterable[str]) -> list[str]:
        """Return the requests among these that are no longer open."""
        ids, rows = list(request_ids), self._rows
        wanted = select(rows.c.id).where(rows.c.id.in_(ids), rows.c.state != "open")
        return [row[0] for row in self._read(wanted)] if ids else []

    # Who answers

    def decide(
        self, request_id: str, decision: Decision, by: str | None, check: Callable[[Request], None] | None = None
    ) -> Request:
        """Record a decision and wake the run; return the request as it is then.

        `check` may refuse it, too. Raises `AlreadyAnswered`, `RequestExpired`, `InvalidAnswer`, and
        `ConfigurationError` if there is no such request or its run has ended.
        """
        run_id = self.found(request_id).run_id
        with self._writing(run_id) as connection:
            request = self._undecided(connection, request_id)
            check_decision(request, decision)
            if check is not None:
                check(request)
            row = self._write(connection, request_id, decision, by)
            self._wake(connection, run_id)
        return self._request(row)

    def complete(self, token: str, decision: Decision, by: str | None, swarm: str) -> bool:
        """Store the result of a call that returned or will return `later(token)`; return True if a run waits for it.

        Raises `AlreadyAnswered`, `ConfigurationError`.
        """
        request_id, rows = TOKEN + token, self._rows
        early = insert_into(self._engine, rows).values(
            id=request_id, run_id="", call="", kind="result", state="open", swarm=swarm, created_at=now()
        )  # fmt: skip
        self.create()
        with self._writing() as connection:
            # psycopg drops the row count of an INSERT unless it is asked to keep it.
            kept = early.on_conflict_do_nothing().execution_options(preserve_rowcount=True)
            new = connection.execute(kept).rowcount == 1
            if new:
                self._write(connection, request_id, decision, by)
        if not new:
            self.decide(request_id, decision, by)
        return not new

    def _undecided(self, connection: sqlalchemy.Connection, request_id: str) -> Request:
        rows, runs = self._rows, self._runs
        row = RequestRow(*connection.execute(select(rows).where(rows.c.id == request_id)).one())
        request = self._request(row)
        if (closed := closed_error(request)) is not None:
            raise closed
        status = connection.execute(select(runs.c.status).where(runs.c.workflow_uuid == row.run_id)).scalar()
        if status not in UNFINISHED:
            raise errors.ConfigurationError(f"run {row.run_id!r} has ended; its request {request_id!r} is closed")
        call = connection.execute(select(runs.c.status).where(runs.c.workflow_uuid == row.call)).scalar()
        if call is not None and call not in UNFINISHED:
            raise errors.ConfigurationError(f"the tool call that asked {request_id!r} has ended, and asks no more")
        return request

    def _write(
        self, connection: sqlalchemy.Connection, request_id: str, decision: Decision, by: str | None
    ) -> RequestRow:
        rows = self._rows
        if by is not None:
            check_text("by", by)
        found = connection.execute(select(rows.c.swarm).where(rows.c.id == request_id)).scalar_one()
        stored = dumps(self._codec_for(found).close(decision_record(decision), decision_of(request_id)))
        taken = update(rows).where(rows.c.id == request_id, rows.c.state == "open")
        values = {"state": "answered", "decision": stored, "answered_by": by, "answered_at": now()}
        if connection.execute(taken.values(**values)).rowcount != 1:
            raise errors.AlreadyAnswered(f"request {request_id!r} was answered already", request_id=request_id)
        notify(connection)
        return RequestRow(*connection.execute(select(rows).where(rows.c.id == request_id)).one())

    # Rest and waking

    def rest(
        self,
        run_id: str,
        owner: str | None,
        request_ids: list[str],
        until: int | None,
        lasts: Callable[[sqlalchemy.Connection], bool] = lambda _: True,
    ) -> None:
        """Suspend a waiting run and its calls: no process executes it until it is woken or the time `until` has come.

        Does nothing if `owner` no longer executes it. If a request was decided meanwhile, or what else the run waits
        for no longer `lasts`, the run is woken at once.
        """
        runs, rows = self._runs, self._rows
        with self._writing(run_id) as connection:
            found = connection.execute(
                select(runs.c.status, runs.c.owner_xid).where(runs.c.workflow_uuid == run_id)
            ).first()
            if found is None or found.status != "PENDING" or found.owner_xid != owner:
                return
            late = select(rows.c.id).where(rows.c.id.in_(request_ids), rows.c.state != "open").limit(1)
            awake = (bool(request_ids) and connection.execute(late).first() is not None) or not lasts(connection)
            self._hand_over(connection, run_id, "PENDING", "ENQUEUED" if awake else "DELAYED", until)

    def wake(self, run_id: str) -> None:
        """Wake a suspended run."""
        with self._writing(run_id) as connection:
            self._wake(connection, run_id)

    def _wake(self, connection: sqlalchemy.Connection, run_id: str) -> None:
        self._hand_over(connection, run_id, "DELAYED", "ENQUEUED", None)

    def _hand_over(
        self, connection: sqlalchemy.Connection, run_id: str, before: str, after: str, until: int | None
    ) -> None:
        runs = self._runs
        calls = (runs.c.parent_workflow_id == run_id) & (runs.c.name == records_names.TOOL)
        ours = or_(runs.c.workflow_uuid == run_id, calls)
        values = moved(after, records_names.UNCLAIMED) | {"delay_until_epoch_ms": until}
        connection.execute(update(runs).where(ours, runs.c.status == before).values(**values))
        notify(connection)

    # Looking

    def found(self, request_id: str) -> Request:
        """Return a request. Raises `NoRequest` if the id does not exist."""
        wanted = select(self._rows).where(self._rows.c.id == request_id, self._seen)
        row = next(iter(self._read(wanted)), None) if storable(request_id) else None
        if row is None:
            raise NoRequest(
                f"there is no request {request_id!r} in this database; `durable-swarm inbox` lists the open ones"
            )
        return self._request(RequestRow(*row))

    def of_runs(self, run_ids: Iterable[str]) -> list[Request]:
        """Return all requests of these runs, oldest first."""
        rows = self._rows
        return self._listed(select(rows).where(rows.c.run_id.in_(list(run_ids))))

    def none_open(self, run_id: str) -> errors.DurableSwarmError:
        """Return the error for a decision about a run's one open request if there is none."""
        known = self.of_runs([run_id])
        if known and (closed := closed_error(known[-1])) is not None:
            return closed
        return NoRequest(f"run {run_id!r} has no open request; `durable-swarm inbox` lists those of all runs")

    def open_requests(self, run_ids: Iterable[str] | None = None, limit: int | None = None) -> list[Request]:
        """Return the open requests of unfinished runs, oldest first: of all runs, or of these."""
        rows, runs = self._rows, self._runs
        wanted = select(rows).join(runs, runs.c.workflow_uuid == rows.c.run_id)
        wanted = wanted.where(self._asked_still(), runs.c.status.in_(UNFINISHED))
        if run_ids is not None:
            wanted = wanted.where(rows.c.run_id.in_(list(run_ids)))
        return self._listed(wanted.limit(limit))

    def closed_requests(self, limit: int, before: str | None = None) -> list[Request]:
        """Return the requests that were decided or have expired, the last one first.

        With `before`, only those behind the request of this id. Raises `NoRequest` if there is none.
        """
        rows = self._rows.c
        wanted = select(self._rows).where(rows.answered_at.is_not(None), rows.run_id != "", self._seen)
        if before is not None:
            self.found(before)
            place = select(rows.answered_at).where(rows.id == before).scalar_subquery()
            earlier = (rows.answered_at < place) | (rows.id < before)
            wanted = wanted.where(rows.answered_at <= place, earlier)
        return self._listed(wanted.limit(limit), rows.answered_at.desc(), rows.id.desc())

    def count_open(self, run_ids: Iterable[str]) -> dict[str, int]:
        """Return the number of open requests of each of these runs that has any."""
        rows, runs, ids = self._rows, self._runs, list(run_ids)
        if not ids:
            return {}
        wanted = select(rows.c.run_id, func.count()).join(runs, runs.c.workflow_uuid == rows.c.run_id)
        wanted = wanted.where(self._asked_still(), runs.c.status.in_(UNFINISHED), rows.c.run_id.in_(ids))
        return {str(run_id): int(count) for run_id, count in self._read(wanted.group_by(rows.c.run_id))}

    def marks(self, run_id: str | None = None) -> list[sqlalchemy.Select[Any]]:
        """Return queries of one value that differs if a request was opened or decided: of all runs, or of one."""
        rows = self._rows.c
        wanted = rows.state == "open"
        if run_id is not None:
            wanted &= rows.run_id == run_id
        return [select(part).where(wanted) for part in (func.count(), func.max(rows.created_at)) if self.exists()]

    def asking(self, run_ids: list[str]) -> set[str]:
        """Return the runs among these that have an open request."""
        rows = self._rows
        wanted = select(rows.c.run_id).where(rows.c.run_id.in_(run_ids), self._asked_still()).distinct()
        return {row[0] for row in self._read(wanted)} if run_ids else set()

    def _asked_still(self) -> ColumnElement[bool]:
        """True for an open, unexpired request whose tool call has not ended without it by a timeout."""
        rows, calls = self._rows, self._runs.alias()
        ended = calls.c.status.not_in(UNFINISHED) & (calls.c.workflow_uuid == rows.c.call)
        lasts = rows.c.expires_at.is_(None) | (rows.c.expires_at > now())
        return (rows.c.state == "open") & self._seen & lasts & ~select(calls.c.workflow_uuid).where(ended).exists()

    def _listed(self, wanted: sqlalchemy.Select[Any], *order: ColumnElement[Any]) -> list[Request]:
        """Return the requests of a query, oldest first if no order is given."""
        rows = self._rows
        found = [RequestRow(*row) for row in self._read(wanted.order_by(*(order or (rows.c.created_at, rows.c.id))))]
        above = self._family.above({row.run_id for row in found})
        return [replace(self._request(row, closed=ENCRYPTED), parents=above[row.run_id]) for row in found]

    def _request(self, row: RequestRow, closed: str | None = None) -> Request:
        return read_request(row, self._codec_for(row.swarm), closed)
