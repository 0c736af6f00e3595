"""What people did to runs through the command line or a server: who, what and when. Decisions are with the requests."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy
from sqlalchemy import BigInteger, Column, Index, Text, select

from durable_swarm.engine.database.diagnosis import reporting_errors
from durable_swarm.engine.database.urls import schema_of
from durable_swarm.engine.records.requests import moment
from durable_swarm.engine.storage.own_table import OwnTable
from durable_swarm.engine.storage.ownership import now
from durable_swarm.requests import Action


class Actions(OwnTable):
    """The actions of one database. Every method raises `ConfigurationError` if the database cannot be used."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine) -> None:
        columns = [Column(name, Text) for name in ("run_id", "action", "by")]
        at = Column("at", BigInteger, nullable=False)
        rows = sqlalchemy.Table("durable_swarm_actions", sqlalchemy.MetaData(schema=schema_of(url)), *columns, at)
        Index("durable_swarm_actions_run", rows.c.run_id, rows.c.at)
        super().__init__(url, engine, rows)

    def add(self, run_id: str, action: str, by: str | None) -> None:
        """Record that somebody has done something to a run."""
        self.create()
        with reporting_errors(self._url), self._engine.begin() as connection:
            connection.execute(self._rows.insert().values(run_id=run_id, action=action, by=by, at=now()))

    def of(self, run_ids: Iterable[str]) -> list[Action]:
        """Return what was done to these runs, oldest first."""
        rows = self._rows.c
        wanted = select(rows.run_id, rows.action, rows.by, rows.at).where(rows.run_id.in_(list(run_ids)))
        found = self._read(wanted.order_by(rows.at))
        return [Action(run_id, action, by, moment(at)) for run_id, action, by, at in found]
