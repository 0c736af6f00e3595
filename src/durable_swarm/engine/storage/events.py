"""The rows of events in the database, written in batches for all runs of a process.

They are stored in DBOS's table `streams`, so that they move and are deleted together with their run.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from types import UnionType
from typing import TYPE_CHECKING

import sqlalchemy
from sqlalchemy import column, select, table, update
from sqlalchemy.exc import IntegrityError

from durable_swarm import errors
from durable_swarm.codec import Place, dumps
from durable_swarm.engine.database.diagnosis import reporting_errors
from durable_swarm.engine.database.dialects import insert_into
from durable_swarm.engine.database.reconnecting import read
from durable_swarm.engine.database.urls import is_sqlite, schema_of
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.records.encoding import RecordCodec
from durable_swarm.engine.records.names import PORTABLE

if TYPE_CHECKING:
    from durable_swarm.engine.database.dialects import Insert

KEY = "durable_swarm.events"
"""The name of the stream of a run's events."""


def place_of(run_id: str, seq: int) -> Place:
    """Return the place of a row of events."""
    return Place(run_id, "events", seq)


@dataclass(frozen=True)
class NewRow:
    """A row to be written; its record is encoded by the run's codec.

    `owner` is DBOS's token of the execution that writes it, None if no process executes the run.
    """

    run_id: str
    seq: int
    record: Record
    owner: str | None


class EventLog:
    """The rows of one database."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine) -> None:
        self._url = url
        self._engine = engine
        self._lite = is_sqlite(url)
        names = ("workflow_uuid", "key", "value", "offset", "function_id", "serialization")
        self._rows = table("streams", *map(column, names), schema=schema_of(url))
        self._runs = table("workflow_status", column("workflow_uuid"), column("owner_xid"), schema=schema_of(url))

    def read(self, run_id: str, record_codec: RecordCodec, after: int = 0) -> list[tuple[int, Record]]:
        """Return the rows whose number is above `after`, in order. Raises `ReplayMismatch`, `Unreadable`."""
        rows = self._rows
        wanted = select(rows.c.offset, rows.c.value).where(
            rows.c.workflow_uuid == run_id, rows.c.key == KEY, rows.c.offset > after
        )
        with reporting_errors(self._url):
            found = read(self._engine, wanted.order_by(rows.c.offset))
        return [(seq, _opened(run_id, record_codec, seq, text)) for seq, text in found]

    def keep(self, row: NewRow) -> None:
        """Write a row of a run that no process executes. Skip it if its number exists or the run is gone."""
        with (
            reporting_errors(self._url),
            contextlib.suppress(IntegrityError),
            self._engine.begin() as connection,
        ):
            connection.execute(self._insert(replace=False), [self._values(row)])

    def write(self, rows: list[NewRow]) -> set[str]:
        """Write each row once; return the ids of runs that another execution owns now, whose rows are refused.

        Raises SQLAlchemyError.
        """
        owned: dict[str, str | None] = {row.run_id: row.owner for row in rows if row.owner is not None}
        with self._engine.begin() as connection:
            if not self._lite:
                # The transaction locks the rows of runs, whose checkpoints must not wait for long.
                connection.exec_driver_sql("SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '2s'")
            lost = self._lost(connection, owned) if owned else set()
            values = [self._values(row) for row in rows if row.run_id not in lost]
            if values:
                connection.execute(self._insert(), values)
        return lost

    def _lost(self, connection: sqlalchemy.Connection, owned: dict[str, str | None]) -> set[str]:
        # As DBOS checks it: the rows stay locked until the commit, so that no takeover happens in between.
        runs = self._runs.c
        here = runs.workflow_uuid.in_(sorted(owned))
        locking: sqlalchemy.Executable
        if self._lite:
            unchanged = update(self._runs).where(here).values(owner_xid=runs.owner_xid)
            locking = unchanged.returning(runs.workflow_uuid, runs.owner_xid)
        else:
            found = select(runs.workflow_uuid, runs.owner_xid).where(here).order_by(runs.workflow_uuid)
            locking = found.with_for_update(key_share=True)
        now = {row[0]: row[1] for row in connection.execute(locking)}
        return {run_id for run_id, owner in owned.items() if now.get(run_id) != owner}

    def _insert(self, *, replace: bool = True) -> Insert:
        insert = insert_into(self._engine, self._rows)
        if not replace:
            return insert.on_conflict_do_nothing()
        # A write reported as lost may have succeeded: writing the same row again replaces it.
        return insert.on_conflict_do_update(
            index_elements=["workflow_uuid", "key", "offset"], set_={"value": insert.excluded.value}
        )

    def _values(self, row: NewRow) -> dict[str, object]:
        return {
            "workflow_uuid": row.run_id,
            "key": KEY,
            "value": dumps(row.record),
            "offset": row.seq,
            "function_id": 0,
            "serialization": PORTABLE,
        }


def _opened(run_id: str, record_codec: RecordCodec, seq: int, text: str) -> Record:
    what = f"row {seq} of the events of run {run_id!r}"
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise errors.ReplayMismatch(f"{what} is damaged") from error
    record = record_codec.open(stored, place_of(run_id, seq), what)
    if not _is_sound(record):
        raise errors.ReplayMismatch(f"{what} is damaged")
    return record


def _is_sound(row: Record) -> bool:
    """Return True if a row has the form in which rows are written."""
    texts, progress, ended = row.get("events", []), row.get("progress", []), row.get("ended", [0, "run.failed", {}])
    return (
        isinstance(row.get("turn", 0), int)
        and isinstance(row.get("of", 0), int)
        and isinstance(row.get("upto", 0), int)
        and _have(texts, int, str | dict | None)
        and _have([entry[:3] for entry in progress], int, int, dict)
        and all(isinstance(kind, str) for entry in progress for kind in entry[3:])
        and _have([ended], int, str, dict)
        and all(isinstance(entry[2].get("turn"), int) for entry in progress)
        and ("events" in row) == ("upto" in row)
        and ("turn" in row or "events" not in row)
    )


def _have(items: object, *kinds: type | UnionType) -> bool:
    return isinstance(items, list) and all(
        isinstance(item, list) and len(item) == len(kinds) and all(map(isinstance, item, kinds)) for item in items
    )
