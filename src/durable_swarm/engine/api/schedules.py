"""Schedules: runs that begin at given times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from durable_swarm.agents import RemoteAgent
from durable_swarm.codec import Place, decode, encode
from durable_swarm.engine.api.run import Run
from durable_swarm.engine.api.start import RunStart
from durable_swarm.engine.api.starter import RunStarter
from durable_swarm.engine.records.encoding import RecordCodec
from durable_swarm.engine.records.occurrences import CatchUp, Timing
from durable_swarm.engine.storage.run_list import Query, listed
from durable_swarm.engine.storage.schedules import ScheduleRow
from durable_swarm.errors import ConfigurationError
from durable_swarm.limits import Limits, limits_record, read_limits
from durable_swarm.swarm.arguments import RunArguments
from durable_swarm.types import Message
from durable_swarm.validation import check_name

LONGEST_NAME = 200
"""Characters of a schedule's name: the id of a run has the time, too."""


class Schedule:
    """A schedule, as it is stored: `name`, `agent`, `cron`, `every`, `at`, `timezone`, `catch_up`, `next`, `paused`."""

    def __init__(self, swarm: ScheduledSwarm, row: ScheduleRow) -> None:
        self._swarm = swarm
        self._row = row
        self.name = row.name
        self.agent = row.agent
        self.cron = row.timing.cron
        self.every = row.timing.every
        self.at = None if row.timing.at is None else datetime.fromisoformat(row.timing.at)
        self.timezone = row.timing.timezone
        self.catch_up = row.timing.catch_up

    def __repr__(self) -> str:
        return f"Schedule({self.name!r})"

    @property
    def next(self) -> datetime | None:
        """The time of the next run, in UTC, as the database has it now; None if there is none, or while paused."""
        row = self._found()
        return None if row.paused else row.next_at

    @property
    def paused(self) -> bool:
        """True if it begins nothing until `resume`."""
        return self._found().paused

    def pause(self) -> None:
        """Begin nothing more until `resume`."""
        self._found()
        self._swarm._store().schedules.pause(self.name)

    def resume(self) -> None:
        """Continue with the next time from now on; what was due meanwhile is left out."""
        self._swarm._store().schedules.resume(self._found())

    def trigger(self) -> Run:
        """Begin a run now, beside those at its times, and return it."""
        return self._swarm._occur(self._found(), datetime.now(UTC))

    def delete(self) -> None:
        """Delete the schedule. The runs that it has begun stay."""
        self._swarm._store().schedules.delete(self.name)

    def runs(self, limit: int = 100) -> list[Run]:
        """Return the runs that it has begun, newest first."""
        rows = listed(self._swarm._store(), Query(search=f"{self.name}@", limit=limit))
        return [self._swarm._handle(row.workflow_id) for row in rows if row.workflow_id.startswith(f"{self.name}@")]

    def _found(self) -> ScheduleRow:
        row = self._swarm._store().schedules.found(self.name)
        if row is None:
            raise ConfigurationError(f"schedule {self.name!r} was deleted; make it anew with schedule()")
        return row


class ScheduledSwarm(RunStarter):
    """The part of `DurableSwarm` that has schedules."""

    def schedule(
        self,
        name: str,
        agent: Any,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        *,
        cron: str | None = None,
        every: float | timedelta | None = None,
        at: datetime | None = None,
        timezone: str = "UTC",
        catch_up: CatchUp = "one",
        limits: Limits | None = None,
    ) -> Schedule:
        """Run an agent at given times: `cron` (five fields), `every` number of seconds, or once `at` a time.

        However many processes make the schedule of a name, each occurrence is one run, with the id
        `NAME@TIME`. It begins in any process with a swarm of this name, and is executed where the agent is defined.
        Call it at each start of the program: the same times are kept; others replace them, and so do other
        messages and agents.

        `timezone` is that of `cron`, and of an `at` without one. `catch_up` says what to do about times at which no
        process was running: begin the last one ("one"), "all" of them, or none ("skip"). Raises `ConfigurationError`,
        `NotSerializable`.
        """
        check_name("schedule: name", name, LONGEST_NAME)
        timing = Timing.of(cron, every, at, timezone, catch_up, datetime.now(UTC))
        asked = RunArguments(agent, messages, context_variables, stream=True, limits=limits)
        RunStart(self, asked, f"{name}@")  # Raises for what could not be run.
        start = asked.start(lambda value: value)
        record = {"v": 1, "messages": encode(start.messages), "context": encode(start.context)}
        stored = RecordCodec(self.codec).close({**record, "limits": limits_record(limits)}, _place(name))
        opened = self._open()
        opened.store.schedules.put(name, self.name, str(agent.name), timing, stored)
        opened.schedules.hurry()
        return self._schedule(name)

    def schedules(self) -> list[Schedule]:
        """Return the schedules of all swarms of the database, by name."""
        return [Schedule(self, row) for row in self._store().schedules.listed()]

    def _schedule(self, name: str) -> Schedule:
        row = self._store().schedules.found(name)
        if row is None:
            raise ConfigurationError(f"there is no schedule {name!r}")
        return Schedule(self, row)

    def begin_occurrence(self, row: ScheduleRow, at: datetime) -> None:
        """Record the run of a time of a schedule, unless it is recorded."""
        self._occur(row, at)

    def _occur(self, row: ScheduleRow, at: datetime) -> Run:
        record = RecordCodec(self.codec).open(row.stored, _place(row.name), f"schedule {row.name!r}")
        messages, context = decode(record["messages"]), decode(record["context"])
        asked = RunArguments(
            RemoteAgent(row.agent), messages, context, stream=True, limits=read_limits(record.get("limits"))
        )
        run_id = f"{row.name}@{at.isoformat().removesuffix('+00:00')}Z"
        prepared, opened = RunStart(self, asked, run_id), self._open()
        queue = opened.queue_for(row.agent, self.name)
        about = {**prepared.about, "schedule": row.name}
        opened.store.enqueue(run_id, prepared.stored, about, queue, opened.version, 0)
        return self._handle(run_id)


def _place(name: str) -> Place:
    return Place(name, "schedule")
