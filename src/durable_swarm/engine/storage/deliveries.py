"""What webhooks are told, and what of that is delivered.

Nothing is written where an event happens: what is to be told follows from what is recorded anyway, the ends of runs and
the requests. Who looks for it notes each message before it is sent, so that no crash loses one, and none is told twice
by two processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy
from sqlalchemy import BigInteger, Column, ColumnElement, Integer, Text, column, literal, select, table, update

from durable_swarm.engine.database.diagnosis import reporting_errors
from durable_swarm.engine.database.dialects import insert_into, notes_column
from durable_swarm.engine.database.reconnecting import read
from durable_swarm.engine.database.urls import is_sqlite, schema_of
from durable_swarm.engine.records import names
from durable_swarm.engine.storage.own_table import OwnTable
from durable_swarm.engine.storage.ownership import now

if TYPE_CHECKING:
    from durable_swarm.engine.database.dialects import Insert

ENDS = {
    "run.finished": ("SUCCESS",),
    "run.failed": ("ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"),
    "run.cancelled": ("CANCELLED",),
}
"""The states in which DBOS has a run that has ended, by event."""
OPENED = "request.opened"
LATE = 600_000
"""Milliseconds for which a fact may be younger than its time says: clocks differ, and transactions take time."""
WAITS = (5, 30, 120, 600, 1800, 3600, 7200, 14_400, 28_800, 57_600)
"""Seconds between the tries of a delivery; the last one is repeated."""
LONGEST = 3 * 24 * 3_600_000
"""Milliseconds after which a message is given up."""
KEPT = 30 * 24 * 3_600_000
"""Milliseconds for which a message that was given up is listed."""
TAKEN = 60_000
"""Milliseconds for which a message belongs to the process that sends it."""
BATCH = 100


@dataclass(frozen=True)
class Delivery:
    """A message: what is told to which address. `subject` is the id of the run or of the request. Times are in ms."""

    id: str
    url: str
    event: str
    subject: str
    run_id: str
    at: int
    state: str
    attempts: int
    next_at: int
    error: str | None


class Deliveries(OwnTable):
    """The messages of one database. Every method raises `ConfigurationError` if the database cannot be used."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine) -> None:
        schema, self._lite = schema_of(url), is_sqlite(url)
        texts = [Column(name, Text) for name in ("event", "subject", "run_id", "state", "error")]
        numbers = [Column(name, BigInteger) for name in ("at", "next_at", "created_at")]
        key = [Column(name, Text, primary_key=True) for name in ("id", "url")]
        made = sqlalchemy.MetaData(schema=schema)
        rows = sqlalchemy.Table("durable_swarm_deliveries", made, *key, *texts, *numbers, Column("attempts", Integer))
        super().__init__(url, engine, rows)
        noted = notes_column(url)
        facts = ("workflow_uuid", "name", "status", "completed_at")
        self._runs = table("workflow_status", *map(column, facts), noted, schema=schema)
        asked = ("id", "run_id", "swarm", "created_at")
        self._requests = table("durable_swarm_requests", *map(column, asked), schema=schema)
        self._children = table("durable_swarm_children", column("run_id"), schema=schema)

    def collect(self, url: str, swarm: str, events: list[str]) -> None:
        """Note what is to be told to an address since it was first named, and is not noted yet."""
        begin = self.begin(url, swarm)
        found = [*self._ended(url, swarm, events, begin), *self._opened(url, swarm, events, begin)]
        values = [
            {"id": message_id(event, subject, at), "url": url, "event": event, "subject": subject, "run_id": run_id,
             "at": at, "state": "pending", "attempts": 0, "next_at": at, "created_at": now()}
            for event, subject, run_id, at in found
        ]  # fmt: skip
        with reporting_errors(self._url), self._engine.begin() as connection:
            for one in values:
                connection.execute(self._insert().values(**one).on_conflict_do_nothing())
            if len(found) < BATCH and begin < now() - 2 * LATE:
                seen = update(self._rows).where(self._rows.c.id == _mark(swarm), self._rows.c.url == url)
                connection.execute(seen.values(at=now() - LATE))

    def begin(self, url: str, swarm: str) -> int:
        """Return the time from which on an address is told of a swarm: at first now."""
        if not self.exists():
            self.create()
        this = (self._rows.c.id == _mark(swarm)) & (self._rows.c.url == url)
        with reporting_errors(self._url):
            known = read(self._engine, select(self._rows.c.at).where(this))
            if known:
                return int(known[0][0])
            at = now()
            with self._engine.begin() as connection:
                first = self._insert().values(id=_mark(swarm), url=url, state="mark", at=at, created_at=at, attempts=0)
                connection.execute(first.on_conflict_do_nothing())
            return at

    def _insert(self) -> Insert:
        return insert_into(self._engine, self._rows)

    def _ended(self, url: str, swarm: str, events: list[str], since: int) -> Iterator[tuple[str, str, str, int]]:
        runs, told = self._runs.c, self._rows.alias()
        event_of = {status: event for event, statuses in ENDS.items() if event in events for status in statuses}
        known = (told.c.url == url) & (told.c.subject == runs.workflow_uuid) & (told.c.at == runs.completed_at)
        wanted = select(runs.workflow_uuid, runs.status, runs.completed_at, runs.attributes).where(
            runs.name == literal(names.RUN, literal_execute=True), runs.completed_at >= since,
            runs.status.in_(list(event_of)), ~select(told.c.id).where(known).exists(),
            ~select(self._children.c.run_id).where(self._children.c.run_id == runs.workflow_uuid).exists(),
        )  # fmt: skip
        with reporting_errors(self._url):
            found = read(self._engine, wanted.order_by(runs.completed_at).limit(BATCH)) if event_of else []
            for run_id, status, ended, noted in found:
                if isinstance(noted, dict) and noted.get("swarm", "") == swarm:
                    yield event_of[status], run_id, run_id, int(ended)

    def _opened(self, url: str, swarm: str, events: list[str], since: int) -> Iterator[tuple[str, str, str, int]]:
        asked, told = self._requests.c, self._rows.alias()
        known = (told.c.url == url) & (told.c.subject == asked.id)
        wanted = select(asked.id, asked.run_id, asked.created_at).where(
            asked.swarm == swarm, asked.run_id != "", asked.created_at >= since,
            ~select(told.c.id).where(known).exists(),
        )  # fmt: skip
        with reporting_errors(self._url):
            found = read(self._engine, wanted.order_by(asked.created_at).limit(BATCH)) if OPENED in events else []
            for request_id, run_id, opened in found:
                yield OPENED, request_id, run_id, int(opened)

    def take(self, urls: list[str], limit: int) -> list[Delivery]:
        """Take messages that are due, for the time that sending takes; no other process sends them meanwhile."""
        rows, at = self._rows, now()
        due = (rows.c.state == "pending") & (rows.c.next_at <= at) & rows.c.url.in_(urls)
        taken = []
        for one in self._listed(due, limit=limit):
            same = (rows.c.id == one.id) & (rows.c.url == one.url) & (rows.c.next_at == one.next_at)
            mine = update(rows).where(same, rows.c.state == "pending").values(next_at=at + TAKEN)
            with reporting_errors(self._url), self._engine.begin() as connection:
                if connection.execute(mine).rowcount == 1:
                    taken.append(one)
        return taken

    def delivered(self, one: Delivery) -> None:
        """Note that a message was delivered."""
        self._set(one, state="delivered", attempts=one.attempts + 1, error=None)

    def failed(self, one: Delivery, why: str, *, final: bool) -> None:
        """Note a try that failed, and when the next one is."""
        wait = WAITS[min(one.attempts, len(WAITS) - 1)] * 1000
        over = final or now() + wait > one.at + LONGEST
        state = "given up" if over else "pending"
        self._set(one, state=state, attempts=one.attempts + 1, next_at=now() + wait, error=why[:300])

    def undelivered(self, limit: int | None = None) -> list[Delivery]:
        """Return the messages that were tried in vain, oldest first."""
        rows = self._rows.c
        return self._listed(rows.state.in_(["pending", "given up"]) & (rows.attempts > 0), limit=limit)

    def sweep(self) -> None:
        """Delete what is told, and what was given up long ago."""
        rows = self._rows.c
        old = (rows.state == "delivered") & (rows.at < now() - LONGEST)
        older = (rows.state == "given up") & (rows.at < now() - KEPT)
        with reporting_errors(self._url), self._engine.begin() as connection:
            connection.execute(self._rows.delete().where(old | older))

    def _set(self, one: Delivery, **values: object) -> None:
        this = (self._rows.c.id == one.id) & (self._rows.c.url == one.url)
        with reporting_errors(self._url), self._engine.begin() as connection:
            connection.execute(update(self._rows).where(this).values(**values))

    def _listed(self, where: ColumnElement[bool], limit: int | None = None) -> list[Delivery]:
        rows = self._rows.c
        wanted = select(*(rows[name] for name in Delivery.__dataclass_fields__)).where(where)
        return [Delivery(*row) for row in self._read(wanted.order_by(rows.at, rows.id).limit(limit))]


def _mark(swarm: str) -> str:
    """Return the id of the row that says since when an address is told of a swarm."""
    return f"since:{swarm}"


def message_id(event: str, subject: str, at: int) -> str:
    """Return the id of a message: the same in every process, another one for a run that ends again."""
    return f"msg_{hashlib.sha256(json.dumps([event, subject, at]).encode()).hexdigest()[:32]}"
