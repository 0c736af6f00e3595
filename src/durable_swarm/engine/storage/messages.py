"""Messages to runs in progress, in order of arrival; each is delivered once, before a model call.

A message is a row with a number. The model step that delivers it has it in its record, so it is delivered once over all
executions. A run that is about to end closes its mailbox with a last row. The database accepts only one of two rows of
a number, so either a message is delivered, or its sender gets the error that the run has ended.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator

import sqlalchemy
from sqlalchemy import BigInteger, Column, Integer, Text, bindparam, column, func, select, table
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from durable_swarm import codec, errors
from durable_swarm.codec import Place, dumps, mended
from durable_swarm.engine.database.connection import create_tables, for_one_statement, writing
from durable_swarm.engine.database.diagnosis import unusable
from durable_swarm.engine.database.prepared import Prepared
from durable_swarm.engine.database.urls import is_sqlite, schema_of
from durable_swarm.engine.records.encoding import RecordCodec
from durable_swarm.engine.storage.ownership import UNFINISHED, now
from durable_swarm.types import Message

TRIES = 20
"""Attempts of a sender whose number was taken by another, each with the next number."""


class HasEnded(errors.ConfigurationError):
    """The run has ended, so nobody reads what is said to it."""


def place_of(run_id: str, number: int) -> Place:
    """Return the place of a message."""
    return Place(run_id, "message", number)


class Messages:
    """The messages of the runs of one database. Raises `ConfigurationError` if it cannot be used."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine, codec_for: Callable[[str], RecordCodec]) -> None:
        self._url = url
        self._engine = engine
        self._codec_for = codec_for
        schema = schema_of(url)
        self._lite = is_sqlite(url)
        self._rows = sqlalchemy.Table(
            "durable_swarm_messages",
            sqlalchemy.MetaData(schema=schema),
            Column("run_id", Text, primary_key=True),
            Column("number", Integer, primary_key=True, autoincrement=False),
            Column("message", Text),
            Column("created_at", BigInteger),
        )
        names = ("workflow_uuid", "status", "owner_xid")
        self._runs = table("workflow_status", *map(column, names), schema=schema)
        runs, rows = self._runs.c, self._rows.c
        run_id = bindparam("run_id", type_=Text)
        last = select(func.coalesce(func.max(rows.number), 0)).where(rows.run_id == run_id).scalar_subquery()
        standing = select(runs.status, runs.owner_xid, last).where(runs.workflow_uuid == run_id)
        self._standing = Prepared(engine, standing)

    @property
    def table(self) -> sqlalchemy.Table:
        """The table, which is created with those of the other modules."""
        return self._rows

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:  # Another sender took this number.
            raise
        except SQLAlchemyError as error:
            raise unusable(self._url, error) from error

    def say(self, run_id: str, messages: list[Message], swarm: str) -> None:
        """Store messages for a run, all or none. Raises `HasEnded`."""
        with self._trying():
            create_tables(self._engine, self._rows)
        for _ in range(TRIES):
            with contextlib.suppress(IntegrityError), self._trying():
                self._write(run_id, mended(messages), swarm)
                return
        raise errors.ConfigurationError(f"too much is said to run {run_id!r} at once; say it again")

    def _write(self, run_id: str, messages: list[Message], swarm: str) -> None:
        rows, runs = self._rows, self._runs
        with writing(self._engine) as connection:
            status = connection.execute(select(runs.c.status).where(runs.c.workflow_uuid == run_id)).scalar()
            last, closed = self._last(connection, run_id)
            if status not in UNFINISHED or closed:
                raise HasEnded(f"run {run_id!r} has ended, so it takes no message; fork it, or start one")
            for number, message in enumerate(messages, last + 1):
                record = {"v": 1, "said": codec.encode(message)}
                stored = dumps(self._codec_for(swarm).close(record, place_of(run_id, number)))
                values = {"run_id": run_id, "number": number, "message": stored, "created_at": now()}
                connection.execute(sqlalchemy.insert(rows).values(**values))

    def _last(self, connection: sqlalchemy.Connection, run_id: str) -> tuple[int, bool]:
        """Return the number of the last message to a run, or 0, and True if the run hears nothing more."""
        rows = self._rows.c
        wanted = select(rows.number, rows.message).where(rows.run_id == run_id).order_by(rows.number.desc()).limit(1)
        found = connection.execute(wanted).first()
        return (0, False) if found is None else (found[0], found[1] is None)

    def stand(self, run_id: str) -> tuple[str | None, str | None, int]:
        """Return a run's status, its owner's token, and the number of its last message, or 0.

        Raises SQLAlchemy's errors: DBOS, which calls this before each step, waits for a lost database.
        """
        with for_one_statement(self._engine) as connection:
            found = self._standing.execute(connection, {"run_id": run_id}).first()
        return (None, None, 0) if found is None else (found[0], found[1], found[2])

    def heard(self, run_id: str, after: int, record_codec: RecordCodec) -> list[Message]:
        """Return the messages after number `after`, in order."""
        rows = self._rows
        wanted = select(rows.c.number, rows.c.message).where(rows.c.run_id == run_id, rows.c.number > after)
        with self._trying(), for_one_statement(self._engine) as connection:
            found = connection.execute(wanted.order_by(rows.c.number)).all()
        return [
            codec.decode(
                record_codec.open(json.loads(text), place_of(run_id, number), f"what was said to run {run_id!r}")[
                    "said"
                ]
            )
            for number, text in found
            if text is not None
        ]

    def close(self, run_id: str, after: int) -> bool:
        """Close the mailbox of a run that has read `after` messages; return False if there are newer ones."""
        values = {"run_id": run_id, "number": after + 1, "created_at": now()}
        try:
            with self._trying(), for_one_statement(self._engine) as connection:
                connection.execute(sqlalchemy.insert(self._rows).values(**values))
        except IntegrityError:
            return self._is_closed(run_id, after + 1)
        return True

    def close_for_good(self, run_id: str, after: int) -> bool:
        """Close the mailbox of a run that ends in any case, even with unread messages."""
        while not self.close(run_id, after):
            after = self.stand(run_id)[2]
        return True

    def _is_closed(self, run_id: str, number: int) -> bool:
        rows = self._rows
        with self._trying(), self._engine.connect() as connection:
            wanted = select(func.count()).where(
                rows.c.run_id == run_id, rows.c.number == number, rows.c.message.is_(None)
            )
            return bool(connection.execute(wanted).scalar())
