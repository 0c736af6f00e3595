"""Connections that break under the statements of one caller: under the n-th one and some that follow it.

PostgreSQL's are broken for good, by closing the socket, and no new ones are made meanwhile. SQLite has none: it reports
an I/O error instead.
"""

from __future__ import annotations

import contextlib
import socket
import sqlite3
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import psycopg
import sqlalchemy
from sqlalchemy import event


@dataclass
class Cuts:
    """Which of the caller's statements, commits and new connections fail: those from `first` to `last`."""

    first: int
    last: int
    seen: int = 0

    def falls(self) -> bool:
        """Count one more; return True if it is to fail."""
        self.seen += 1
        return self.first <= self.seen <= self.last

    def strike(self, number: int, count: int) -> None:
        """Let statements fail from the `number`-th next one on."""
        self.last = self.seen + number + count - 1
        self.first = self.seen + number

    @property
    def fell(self) -> bool:
        """True if at least one has failed."""
        return self.seen >= self.first


_cuts: ContextVar[Cuts | None] = ContextVar("cuts", default=None)


def _break(connection: sqlalchemy.Connection) -> None:
    held: Any = connection.connection.dbapi_connection
    if isinstance(held, psycopg.Connection) and not held.closed:
        with socket.socket(fileno=socket.dup(held.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)


def _executing(connection: sqlalchemy.Connection, *_: Any) -> None:
    cuts = _cuts.get()
    if cuts is not None and connection.dialect.name == "postgresql" and cuts.falls():
        _break(connection)


def _on_sqlite(cursor: Any, *_: Any) -> None:
    cuts = _cuts.get()
    if cuts is not None and isinstance(cursor, sqlite3.Cursor) and cuts.falls():
        raise sqlite3.OperationalError("disk I/O error")


def _connecting(dialect: Any, *_: Any) -> None:
    cuts = _cuts.get()
    if cuts is not None and dialect.name == "postgresql" and cuts.falls():
        raise psycopg.OperationalError("connection failed: Connection refused")


for _name, _hook in {
    "before_cursor_execute": _executing,
    "commit": _executing,
    "do_execute": _on_sqlite,
    "do_executemany": _on_sqlite,
    "do_connect": _connecting,
}.items():
    event.listen(sqlalchemy.Engine, _name, _hook)


@contextlib.contextmanager
def cutting(first: int, count: int = 1) -> Iterator[Cuts]:
    """Let the statements of this block fail, also those of threads and tasks that it starts, from the `first` on."""
    cuts = Cuts(first, first + count - 1)
    token = _cuts.set(cuts)
    try:
        yield cuts
    finally:
        _cuts.reset(token)
