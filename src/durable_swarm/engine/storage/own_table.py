"""A table of this package beside those of DBOS: created where it is written first, and missed where it is not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy

from durable_swarm.engine.database.connection import create_tables, has_table, writing
from durable_swarm.engine.database.diagnosis import reporting_errors
from durable_swarm.engine.database.reconnecting import persistently, read


class OwnTable:
    """A table in `rows`, which databases of earlier versions lack. Raises `ConfigurationError` if that cannot be told.

    Tables that refer to the same metadata are created with it.
    """

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine, rows: sqlalchemy.Table) -> None:
        self._url = url
        self._engine = engine
        self._rows = rows
        self._there = False

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlalchemy.Connection]:
        """Open a transaction that writes."""
        with reporting_errors(self._url), writing(self._engine) as connection:
            yield connection

    def _read(self, wanted: sqlalchemy.Executable) -> Sequence[Any]:
        """Return the rows of a statement that changes nothing, none if the table does not exist."""
        if not self.exists():
            return []
        with reporting_errors(self._url):
            return read(self._engine, wanted)

    def create(self) -> None:
        """Create the table if it does not exist."""
        if not self._there:
            create_all([self])

    def exists(self) -> bool:
        """Return True if this database has the table."""
        if not self._there:
            with reporting_errors(self._url):
                self._there = persistently(lambda: has_table(self._engine, self._rows))
        return self._there


def create_all(own: Sequence[OwnTable], *others: sqlalchemy.Table) -> None:
    """Create tables of one database that do not exist."""
    with reporting_errors(own[0]._url):
        create_tables(own[0]._engine, *(one._rows for one in own), *others)
    for one in own:
        one._there = True
