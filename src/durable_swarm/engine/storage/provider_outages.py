"""Providers that are away, in the database: one row for each model that cannot be asked at present.

All runs that need the model wait while its row exists, in all processes. When the time of the next try has come, one
statement elects a single run for it. The row then also is a lease: if the elected run dies, the next one is elected
when the lease ends. A success deletes the row and wakes the suspended runs, in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Integer,
    Text,
    case,
    column,
    delete,
    func,
    select,
    table,
    update,
)

from durable_swarm.engine.database.connection import for_one_statement
from durable_swarm.engine.database.diagnosis import reporting_errors
from durable_swarm.engine.database.dialects import insert_into, notes_column
from durable_swarm.engine.database.notices import notify
from durable_swarm.engine.database.urls import is_sqlite, schema_of
from durable_swarm.engine.records import names as records_names
from durable_swarm.engine.storage.own_table import OwnTable
from durable_swarm.engine.storage.ownership import UNFINISHED, moved, now
from durable_swarm.models.provider_errors import long_pause

AWAY = "away"
"""Note on a run that waits for a provider: `of`, the key of the outage, and `since`, in milliseconds since 1970."""

SPACING = 2.0
"""Minimum seconds between tries when many runs wait: they take turns, so the end of the outage is noticed sooner."""

SET_BACK = 60_000
"""Milliseconds by which a plan must lie in the future for the clock to count as set back: machines' clocks differ."""

TURN, LEASE = 10.0, 60.0
"""Seconds after which another run is elected: if the elected one has not begun its try, and if it has not ended it."""


@dataclass(frozen=True)
class Provider:
    """A model at a provider; `name` identifies the provider's address and key."""

    name: str
    model: str

    @property
    def key(self) -> str:
        """The key of its outage."""
        return f"{self.name} {self.model}"


@dataclass(frozen=True)
class Failure:
    """A failed try: the reason in words, the HTTP status if there was one, the seconds the provider asks to wait."""

    reason: str
    status: int | None = None
    retry_after: float | None = None


@dataclass(frozen=True)
class ProviderOutage:
    """An outage. Times are milliseconds since 1970; `elected` is the run that makes the present try, or ''."""

    key: str
    model: str
    since: int
    next_at: int
    planned_at: int
    """When the next try was planned."""
    failures: int
    elected: str
    reason: str
    status: int | None

    @property
    def is_due(self) -> bool:
        """True if the time of the next try has come, or if the clock was set back after it was planned."""
        return self.next_at <= now() or self.planned_at > now() + SET_BACK

    def sentence(self, since: int) -> str:
        """Return in words since when a run has been waiting, why, and when the model is asked again."""
        due = "one run is asking it now" if self.elected else f"the next try is at {_clock(self.next_at)}"
        if not self.elected and self.is_due:
            due = "the next try is due now"
        return f"the provider of model {self.model!r} has been away since {_clock(since)} ({self.reason}); {due}"


def wait_noted(note: object) -> tuple[str, int] | None:
    """Return what a run's note says: the key of the outage, and the time since when the run waits; None if nothing."""
    if not isinstance(note, dict):
        return None
    of, since = note.get("of"), note.get("since")
    return (of, since) if isinstance(of, str) and type(since) is int else None


def _clock(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


class ProviderOutages(OwnTable):
    """The outages of one database. Every method raises `ConfigurationError` if the database cannot be used."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine) -> None:
        self._lite = is_sqlite(url)
        schema = schema_of(url)
        rows = sqlalchemy.Table(
            "durable_swarm_outages",
            sqlalchemy.MetaData(schema=schema),
            Column("key", Text, primary_key=True),
            Column("model", Text, nullable=False),
            Column("since", BigInteger, nullable=False),
            Column("next_at", BigInteger, nullable=False),
            Column("planned_at", BigInteger, nullable=False),
            Column("failures", Integer, nullable=False),
            Column("elected", Text, nullable=False),
            Column("reason", Text, nullable=False),
            Column("status", Integer),
        )
        super().__init__(url, engine, rows)
        names = ("workflow_uuid", "name", "status", "queue_name", "owner_xid", "recovery_attempts", "created_at")
        more = ("started_at_epoch_ms", "updated_at", "delay_until_epoch_ms")
        noted = notes_column(url)
        self._runs = table("workflow_status", *map(column, (*names, *more)), noted, schema=schema)

    def known(self, keys: Iterable[str] | None = None) -> dict[str, ProviderOutage]:
        """Return the outages by key: all, or those of these keys."""
        rows = self._rows
        wanted = select(rows) if keys is None else select(rows).where(rows.c.key.in_(list(keys)))
        return {outage.key: outage for outage in (ProviderOutage(*row) for row in self._read(wanted))}

    def sentences(self, notes: Mapping[str, object]) -> dict[str, str]:
        """Return for each of these runs that waits for a provider, by the notes on them, why it waits."""
        waits = {run_id: wait for run_id, note in notes.items() if (wait := wait_noted(note)) is not None}
        known = self.known({of for of, _ in waits.values()}) if waits else {}
        over = "the provider answers again; the run is about to continue"
        return {run_id: known[of].sentence(since) if of in known else over for run_id, (of, since) in waits.items()}

    def begin(self, provider: Provider, failure: Failure) -> None:
        """Note that a provider is away, unless that is known. A provider may ask for more time than is planned."""
        rows, at = self._rows, now()
        first = round(1000 * (_pause(1, 1) if failure.retry_after is None else failure.retry_after))
        plan = {"next_at": at + first, "planned_at": at}
        values = {"model": provider.model, "since": at, **plan, "failures": 1, "elected": ""}
        insert = insert_into(self._engine, rows)
        new = insert.values(key=provider.key, **values, reason=failure.reason, status=failure.status)
        later = {**plan, "reason": failure.reason, "status": failure.status}
        wished = new.on_conflict_do_update(
            index_elements=["key"], set_=later, where=(rows.c.next_at < at + first) & (rows.c.elected == "")
        )
        with reporting_errors(self._url), for_one_statement(self._engine) as connection:
            connection.execute(new.on_conflict_do_nothing() if failure.retry_after is None else wished)
            notify(connection)

    def elect(self, key: str, run_id: str) -> bool:
        """Elect a run for the next try, if its time has come and no other run has been elected."""
        rows, at = self._rows, now()
        taken = update(rows).where(rows.c.key == key, self._is_due(at))
        with reporting_errors(self._url), for_one_statement(self._engine) as connection:
            values = {"elected": run_id, "next_at": at + round(TURN * 1000), "planned_at": at}
            return bool(connection.execute(taken.values(**values)).rowcount)

    def confirm(self, key: str, run_id: str) -> bool:
        """Note that a run begins its try; return False if it is not the elected one any more."""
        rows = self._rows
        mine = update(rows).where(rows.c.key == key, rows.c.elected == run_id)
        with reporting_errors(self._url), for_one_statement(self._engine) as connection:
            at = now()
            return bool(connection.execute(mine.values(next_at=at + round(LEASE * 1000), planned_at=at)).rowcount)

    def failed(self, key: str, run_id: str, failure: Failure) -> None:
        """Plan the next try, if the run was elected for the one that failed."""
        rows, at = self._rows, now()
        mine = (rows.c.key == key) & (rows.c.elected == run_id)
        with self._writing() as connection:
            failures = connection.execute(select(rows.c.failures).where(mine)).scalar()
            if failures is None:
                return
            pause = failure.retry_after
            if pause is None:
                pause = _pause(failures + 1, self._count(connection, key))
            plan = {"next_at": at + round(1000 * pause), "planned_at": at}
            values = {"failures": failures + 1, "elected": "", **plan}
            connection.execute(update(rows).where(mine).values(**values, reason=failure.reason, status=failure.status))

    def withdraw(self, run_id: str) -> None:
        """Withdraw the election of a run that leaves before it has tried, or without a result: another may try now."""
        mine = update(self._rows).where(self._rows.c.elected == run_id)
        with reporting_errors(self._url), for_one_statement(self._engine) as connection:
            connection.execute(mine.values(elected="", next_at=now(), planned_at=now()))

    def hasten(self, key: str) -> None:
        """Make the next try due, unless one is being made."""
        due = update(self._rows).where(self._rows.c.key == key, self._rows.c.elected == "")
        with reporting_errors(self._url), for_one_statement(self._engine) as connection:
            connection.execute(due.values(next_at=now(), planned_at=now()))

    def forget(self, key: str) -> None:
        """Delete an outage whose next try is due, but for which no run waits any more."""
        rows, waiting = self._rows, self._runs.c.status.in_(UNFINISHED) & self._waits_for(key)
        due = (rows.c.key == key) & self._is_due(now()) & ~select(self._runs.c.name).where(waiting).exists()
        with reporting_errors(self._url), for_one_statement(self._engine) as connection:
            connection.execute(delete(rows).where(due))

    def end(self, keys: Iterable[str]) -> None:
        """Note that these providers answer again, and wake the suspended runs that wait for them."""
        rows, runs, ended = self._rows, self._runs, sorted(keys)
        awake = moved("ENQUEUED", records_names.UNCLAIMED) | {"delay_until_epoch_ms": None}
        with self._writing() as connection:
            # The row first: a run that is about to be suspended locks it, and is found here or finds it gone.
            connection.execute(delete(rows).where(rows.c.key.in_(ended)))
            for key in ended:
                connection.execute(update(runs).where(self._suspended(key)).values(**awake))
            notify(connection)

    def suspended(self, key: str) -> str | None:
        """Return the suspended run that was started first among those that wait for a provider, or None."""
        oldest = select(self._runs.c.workflow_uuid).where(self._suspended(key)).order_by(self._runs.c.created_at)
        return next((str(row[0]) for row in self._read(oldest.limit(1))), None)

    def may_rest(self, connection: Connection, key: str, run_id: str) -> bool:
        """Return True if an outage lasts and the run is not elected; it does not end before this transaction does."""
        row = select(self._rows.c.key).where(self._rows.c.key == key, self._rows.c.elected != run_id)
        locked = row if self._lite else row.with_for_update(read=True, key_share=True)
        return connection.execute(locked).first() is not None

    def _is_due(self, at: int) -> ColumnElement[bool]:
        return (self._rows.c.next_at <= at) | (self._rows.c.planned_at > at + SET_BACK)

    def _waits_for(self, key: str) -> ColumnElement[bool]:
        runs = self._runs
        of = runs.c.attributes[(AWAY, "of")].as_string()
        if self._lite:  # Where a damaged row would make the statement fail.
            of = case((func.json_valid(runs.c.attributes) == 1, of))
        waits: ColumnElement[bool] = of == key
        return (runs.c.name == records_names.RUN) & waits

    def _suspended(self, key: str) -> ColumnElement[bool]:
        runs = self._runs
        resting = (runs.c.status == "DELAYED") & (runs.c.queue_name == records_names.UNCLAIMED)
        return resting & self._waits_for(key)

    def _count(self, connection: Connection, key: str) -> int:
        waiting = self._runs.c.status.in_(UNFINISHED) & self._waits_for(key)
        return int(connection.execute(select(func.count()).select_from(self._runs).where(waiting)).scalar_one())


def _pause(failures: int, waiting: int) -> float:
    """Return the seconds until the next try after `failures` in a row of a model for which `waiting` runs wait."""
    alone = long_pause(failures)
    return max(min(alone, SPACING), alone / max(1, waiting))
