"""The schedules of a database: what is to be run, when, and the next time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy
from sqlalchemy import BigInteger, Boolean, Column, ColumnElement, Text, select

from durable_swarm.engine.database.diagnosis import reporting_errors
from durable_swarm.engine.database.notices import notify_now
from durable_swarm.engine.database.urls import schema_of
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.records.occurrences import Timing
from durable_swarm.engine.records.requests import moment
from durable_swarm.engine.storage.own_table import OwnTable
from durable_swarm.engine.storage.ownership import now
from durable_swarm.errors import ConfigurationError


class NoSchedule(ConfigurationError):
    """There is no schedule of a name."""


@dataclass(frozen=True)
class ScheduleRow:
    """A schedule as it is stored. `stored` is the record of what is to be run, as the swarm's codec left it."""

    name: str
    swarm: str
    agent: str
    timing: Timing
    stored: Record
    next_at: datetime | None
    paused: bool
    created_at: datetime


class Schedules(OwnTable):
    """The schedules of one database. Every method raises `ConfigurationError` if the database cannot be used."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine) -> None:
        rows = sqlalchemy.Table(
            "durable_swarm_schedules",
            sqlalchemy.MetaData(schema=schema_of(url)),
            Column("name", Text, primary_key=True),
            *(Column(name, Text, nullable=False) for name in ("swarm", "agent", "timing", "stored")),
            Column("next_at", BigInteger),
            Column("paused", Boolean, nullable=False),
            Column("created_at", BigInteger, nullable=False),
        )
        super().__init__(url, engine, rows)

    def put(self, name: str, swarm: str, agent: str, timing: Timing, stored: Record) -> None:
        """Record a schedule. One that asks for the same times keeps them; other times begin now."""
        self.create()
        self._put(name, swarm, agent, timing, stored)
        notify_now(self._engine)

    def _put(self, name: str, swarm: str, agent: str, timing: Timing, stored: Record) -> None:
        rows, found = self._rows, self.found(name)
        values: dict[str, object] = {"swarm": swarm, "agent": agent, "stored": json.dumps(stored)}
        if found is None or not found.timing.same_as(timing):
            values |= {"timing": json.dumps(timing.record()), "next_at": _stored(timing.first(moment(now())))}
        with reporting_errors(self._url), self._engine.begin() as connection:
            if found is None:
                fresh = rows.insert().values(name=name, paused=False, created_at=now(), **values)
                try:
                    with connection.begin_nested():
                        connection.execute(fresh)
                    return
                except sqlalchemy.exc.IntegrityError:  # Another process has recorded it meanwhile.
                    values = {key: values[key] for key in ("swarm", "agent", "stored")}
            connection.execute(rows.update().where(rows.c.name == name).values(**values))

    def found(self, name: str) -> ScheduleRow | None:
        """Return the schedule of a name, or None."""
        return next(iter(self._listed(self._rows.c.name == name)), None)

    def listed(self) -> list[ScheduleRow]:
        """Return all schedules, by name."""
        return self._listed()

    def ahead(self, swarms: Iterable[str]) -> list[ScheduleRow]:
        """Return the schedules of these swarms that will begin something, the next one first."""
        rows = self._rows.c
        found = self._listed(rows.swarm.in_(list(swarms)), rows.next_at.is_not(None), ~rows.paused)
        return sorted(found, key=lambda row: row.next_at or row.created_at)

    def advance(self, row: ScheduleRow, next_at: datetime | None) -> None:
        """Set the next time of a schedule, unless another process has done so."""
        same = self._rows.c.next_at == _stored(row.next_at)
        self._change(row.name, same, next_at=_stored(next_at))

    def pause(self, name: str) -> None:
        """Let a schedule begin nothing more."""
        self._change(name, paused=True)

    def resume(self, row: ScheduleRow) -> None:
        """Let a paused schedule continue with its next time from now on."""
        later = _stored(row.timing.next_after(moment(now())))
        self._change(row.name, self._rows.c.paused, paused=False, next_at=later)
        notify_now(self._engine)

    def delete(self, name: str) -> None:
        """Delete a schedule; the runs that it has begun stay."""
        if self.exists():
            with reporting_errors(self._url), self._engine.begin() as connection:
                connection.execute(self._rows.delete().where(self._rows.c.name == name))

    def _change(self, name: str, *conditions: ColumnElement[bool], **values: object) -> None:
        with reporting_errors(self._url), self._engine.begin() as connection:
            connection.execute(self._rows.update().where(self._rows.c.name == name, *conditions).values(**values))

    def _listed(self, *conditions: ColumnElement[bool]) -> list[ScheduleRow]:
        found = self._read(select(self._rows).where(*conditions).order_by(self._rows.c.name))
        return [
            ScheduleRow(
                name, swarm, agent, Timing.read(json.loads(timing)), json.loads(stored),
                None if next_at is None else moment(next_at), paused, moment(created_at),
            )
            for name, swarm, agent, timing, stored, next_at, paused, created_at in found
        ]  # fmt: skip


def _stored(time: datetime | None) -> int | None:
    return None if time is None else round(time.timestamp() * 1000)
