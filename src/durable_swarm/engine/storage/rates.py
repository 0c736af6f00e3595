"""How often a model is asked, over all processes of a database: each call waits for a moment of its own.

The moments of a model are evenly spaced, `seconds / calls` apart, because providers enforce a quota a minute over
shorter times too. One row holds the next free one, and one statement takes it, so no crash leaves a lock behind.
"""

from __future__ import annotations

import time

import sqlalchemy
from sqlalchemy import Column, Double, Text, case, func, literal
from sqlalchemy.dialects import postgresql, sqlite

from durable_swarm.engine.database.connection import create_table, for_one_statement
from durable_swarm.engine.database.diagnosis import reporting_errors
from durable_swarm.engine.database.urls import is_sqlite, schema_of


class Rates:
    """The next free moment of each rated model of one database. Raises `ConfigurationError` where it cannot be used."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine) -> None:
        self._url = url
        self._engine = engine
        self._lite = is_sqlite(url)
        self._made = False
        self._rows = sqlalchemy.Table(
            "durable_swarm_rates",
            sqlalchemy.MetaData(schema=schema_of(url)),
            Column("model", Text, primary_key=True),
            # Of the key, so that a rate that was given in error holds nobody up once it is mended.
            Column("spacing", Double, primary_key=True),
            Column("free_at", Double, nullable=False),
        )

    def reserve(self, model: str, spacing: float) -> float:
        """Take the next free moment of the model, whose calls are `spacing` seconds apart; gives the seconds until it.

        A moment that is not used, because its process died, is lost.
        """
        with reporting_errors(self._url):
            if not self._made:
                create_table(self._engine, self._rows)
                self._made = True
            with for_one_statement(self._engine) as connection:
                return max(0.0, float(connection.execute(self._taking(model, spacing)).scalar_one()))

    def _taking(self, model: str, spacing: float) -> sqlalchemy.Insert:
        # The server's clock where there is one: no machine's own matters.
        now = literal(time.time()) if self._lite else func.extract("epoch", func.clock_timestamp())
        free_at = self._rows.c.free_at
        insert = (sqlite.insert if self._lite else postgresql.insert)(self._rows)
        taken = insert.values(model=model, spacing=spacing, free_at=now + spacing).on_conflict_do_update(
            index_elements=["model", "spacing"], set_={"free_at": case((free_at > now, free_at), else_=now) + spacing}
        )
        return taken.returning(free_at - spacing - now)
