"""Rate limits of models over all processes of a database: each call waits for its own time slot.

The slots of a model are evenly spaced, `seconds / calls` apart, because providers enforce a quota per minute over
shorter times too. One row holds the next free slot, and one statement takes it, so a crash leaves no lock behind.
"""

from __future__ import annotations

import time
from typing import Any

import sqlalchemy
from sqlalchemy import Column, ColumnElement, Double, Text, case, func, literal, select

from durable_swarm.engine.database.connection import create_tables, for_one_statement, has_table
from durable_swarm.engine.database.diagnosis import reporting_errors
from durable_swarm.engine.database.dialects import insert_into
from durable_swarm.engine.database.reconnecting import read
from durable_swarm.engine.database.urls import is_sqlite, schema_of


class Rates:
    """The next free slot of each rate-limited model of one database. Raises `ConfigurationError` if it is unusable."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine) -> None:
        self._url = url
        self._engine = engine
        self._lite = is_sqlite(url)
        self._made = False
        self._rows = sqlalchemy.Table(
            "durable_swarm_rates",
            sqlalchemy.MetaData(schema=schema_of(url)),
            Column("model", Text, primary_key=True),
            # Part of the key, so that a rate set by mistake delays no call once it is corrected.
            Column("spacing", Double, primary_key=True),
            Column("free_at", Double, nullable=False),
        )

    def slots(self) -> list[tuple[str, float, float]]:
        """Return the rate-limited models, each with the seconds between its slots and those until the next free one."""
        if not has_table(self._engine, self._rows):
            return []
        rows, now = self._rows.c, self._now()
        with reporting_errors(self._url):
            found = read(self._engine, select(rows.model, rows.spacing, rows.free_at - now).order_by(rows.model))
        return [(model, float(spacing), max(0.0, float(left))) for model, spacing, left in found]

    def reserve(self, model: str, spacing: float) -> float:
        """Take the model's next free slot and return the seconds until it; slots are `spacing` seconds apart.

        A slot that is not used, because its process died, is lost.
        """
        with reporting_errors(self._url):
            if not self._made:
                create_tables(self._engine, self._rows)
                self._made = True
            with for_one_statement(self._engine) as connection:
                return max(0.0, float(connection.execute(self._taking(model, spacing)).scalar_one()))

    def _taking(self, model: str, spacing: float) -> sqlalchemy.Insert:
        now, free_at = self._now(), self._rows.c.free_at
        insert = insert_into(self._engine, self._rows)
        taken = insert.values(model=model, spacing=spacing, free_at=now + spacing).on_conflict_do_update(
            index_elements=["model", "spacing"], set_={"free_at": case((free_at > now, free_at), else_=now) + spacing}
        )
        return taken.returning(free_at - spacing - now)

    def _now(self) -> ColumnElement[Any]:
        """The server's clock if there is a server, so that the clocks of machines do not matter."""
        if self._lite:
            return literal(time.time())
        return func.extract("epoch", func.clock_timestamp())
