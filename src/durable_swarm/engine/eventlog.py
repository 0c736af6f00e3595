"""The rows of events in the database: reading them, and writing them in batches for all runs of a process.

They stand in DBOS's table `streams`, so that they go with their run where it goes: when it is deleted, too.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy
from sqlalchemy import column, select, table, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from durable_swarm import errors
from durable_swarm.codec import Place, dumps
from durable_swarm.engine import internals
from durable_swarm.engine.database import is_sqlite, schema_of, unfit
from durable_swarm.engine.records import Record
from durable_swarm.engine.sealing import Seal

log = logging.getLogger("durable_swarm")

KEY = "durable_swarm.events"
"""The name of the stream of a run's events."""

INTERVAL, SIZE, PATIENCE = 0.05, 4096, 1.0
"""Seconds between writes, characters that are written before that, seconds until a failed write is tried again."""


def place_of(run_id: str, seq: int) -> Place:
    """Give the place of a row of events."""
    return Place(run_id, "events", seq)


@dataclass(frozen=True)
class NewRow:
    """A row to be written, its record closed by the run's codec.

    `owner` is DBOS's token of the execution that writes it, None where nobody executes the run.
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

    def read(self, run_id: str, seal: Seal, after: int = 0) -> list[tuple[int, Record]]:
        """Give the rows whose number is above `after`, in order. Raises `ReplayMismatch`, `Sealed`."""
        rows = self._rows
        wanted = select(rows.c.offset, rows.c.value).where(
            rows.c.workflow_uuid == run_id, rows.c.key == KEY, rows.c.offset > after
        )
        try:
            with self._engine.connect() as connection:
                found = connection.execute(wanted.order_by(rows.c.offset)).all()
        except SQLAlchemyError as error:
            raise unfit(self._url, error) from error
        return [(seq, _opened(run_id, seal, seq, text)) for seq, text in found]

    def keep(self, row: NewRow) -> None:
        """Write a row of a run that nobody executes, unless there is one of its number, or the run is gone."""
        with contextlib.suppress(IntegrityError), self._engine.begin() as connection:
            connection.execute(self._insert(replace=False), [self._values(row)])

    def write(self, rows: list[NewRow]) -> set[str]:
        """Write rows, none of them twice; gives the ids of runs that another execution owns now: theirs are refused.

        Raises SQLAlchemyError.
        """
        owned: dict[str, str | None] = {row.run_id: row.owner for row in rows if row.owner is not None}
        with self._engine.begin() as connection:
            if not self._lite:
                # It holds the rows of runs, whose checkpoints must not wait for long.
                connection.exec_driver_sql("SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '2s'")
            lost = self._lost(connection, owned) if owned else set()
            values = [self._values(row) for row in rows if row.run_id not in lost]
            if values:
                connection.execute(self._insert(), values)
        return lost

    def _lost(self, connection: sqlalchemy.Connection, owned: dict[str, str | None]) -> set[str]:
        # As DBOS checks it: the rows stay locked until the commit, so that no hand-off comes in between.
        runs = self._runs.c
        here = runs.workflow_uuid.in_(sorted(owned))
        locking: Any
        if self._lite:
            locking = update(self._runs).where(here).values(owner_xid=runs.owner_xid)
            locking = locking.returning(runs.workflow_uuid, runs.owner_xid)
        else:
            locking = select(runs.workflow_uuid, runs.owner_xid).where(here).order_by(runs.workflow_uuid)
            locking = locking.with_for_update(key_share=True)
        now = {row[0]: row[1] for row in connection.execute(locking)}
        return {run_id for run_id, owner in owned.items() if now.get(run_id) != owner}

    def _insert(self, *, replace: bool = True) -> Any:
        insert: Any = (sqlite.insert if self._lite else postgresql.insert)(self._rows)
        if not replace:
            return insert.on_conflict_do_nothing()
        # A write that was reported as lost may have come through: the same row again takes its place.
        return insert.on_conflict_do_update(
            index_elements=["workflow_uuid", "key", "offset"], set_={"value": insert.excluded.value}
        )

    def _values(self, row: NewRow) -> dict[str, Any]:
        return {
            "workflow_uuid": row.run_id,
            "key": KEY,
            "value": dumps(row.record),
            "offset": row.seq,
            "function_id": 0,
            "serialization": internals.JSON.name(),
        }


def _opened(run_id: str, seal: Seal, seq: int, text: str) -> Record:
    what = f"row {seq} of the events of run {run_id!r}"
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise errors.ReplayMismatch(f"{what} is damaged") from error
    record = seal.open(stored, place_of(run_id, seq), what)
    if not _is_sound(record):
        raise errors.ReplayMismatch(f"{what} is damaged")
    return record


def _is_sound(row: Record) -> bool:
    """Whether a row has the form in which rows are written."""
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


def _have(items: Any, *kinds: Any) -> bool:
    return isinstance(items, list) and all(
        isinstance(item, list) and len(item) == len(kinds) and all(map(isinstance, item, kinds)) for item in items
    )


class Source(Protocol):
    """What has rows to write now and then."""

    def rows(self) -> list[NewRow]:
        """Give what is to be written now."""

    def written(self, refused: bool | None) -> None:
        """Hear what became of it: written, refused because another execution owns the run, or (None) not possible."""


class Writer:
    """Writes the rows of all runs of a process: together, at most every `INTERVAL` seconds unless there is much."""

    def __init__(self, write: Callable[[list[NewRow]], set[str]]) -> None:
        self._write = write
        self._waiting: dict[Source, None] = {}
        self._changed = threading.Condition()
        self._due = 0.0
        self._last = 0.0
        self._thread: threading.Thread | None = None
        self._flushing = threading.Lock()
        self._closed = False

    def schedule(self, source: Source, *, soon: bool = False, much: bool = False) -> None:
        """Have the source's rows written: an interval from now, an interval after the last (`soon`), or at once."""
        with self._changed:
            if self._closed:
                return
            now = time.monotonic()
            due = now if much else max(now, self._last + INTERVAL) if soon else now + INTERVAL
            self._due = min(self._due, due) if self._waiting else due
            self._waiting[source] = None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="durable-swarm-events", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """Write nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(INTERVAL + PATIENCE)

    def _run(self) -> None:
        while sources := self._next():
            self.flush(sources)

    def _next(self) -> list[Source]:
        with self._changed:
            while not self._closed and (not self._waiting or self._due > time.monotonic()):
                self._changed.wait(max(self._due - time.monotonic(), 0.001) if self._waiting else None)
            if self._closed:
                return []
            sources = list(self._waiting)
            self._waiting.clear()
            self._last = time.monotonic()
            return sources

    def flush(self, sources: list[Source]) -> None:
        """Write what these sources have, in this thread."""
        with self._flushing:
            self._flush(sources)

    def _flush(self, sources: list[Source]) -> None:
        given = {source: self._rows(source) for source in sources}
        rows = {source: some for source, some in given.items() if some is not None}
        new = [row for some in rows.values() for row in some]
        try:
            lost = self._write(new) if new else set()
        except Exception as error:
            # Whatever it is, events are no reason to stop a run: they are told from its records, if not from here.
            log.debug("events could not be written: %s", type(error).__name__)
            for source, some in rows.items():
                self._tell(source, None)
                if some:
                    self._again(source)
            return
        for source, some in rows.items():
            self._tell(source, any(row.run_id in lost for row in some))

    def _tell(self, source: Source, refused: bool | None) -> None:
        try:
            source.written(refused)
        except Exception as error:
            log.warning("events are not told live any more: %s: %s", type(error).__name__, error)

    def _rows(self, source: Source) -> list[NewRow] | None:
        try:
            return source.rows()
        except Exception as error:  # The program's codec has failed; the next time it may not.
            log.debug("events could not be encoded: %s", type(error).__name__)
            self._tell(source, None)
            self._again(source)
            return None

    def _again(self, source: Source) -> None:
        with self._changed:
            if not self._closed:
                self._waiting[source] = None
                self._due = time.monotonic() + PATIENCE
                self._changed.notify()
