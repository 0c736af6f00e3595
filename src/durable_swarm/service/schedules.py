"""The schedules of a database, for every interface."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from durable_swarm.engine.storage.runs import Store
from durable_swarm.engine.storage.schedules import NoSchedule, ScheduleRow


@dataclass(frozen=True)
class ScheduleView:
    """A schedule in a list. Times are aware UTC; `next` is None if it begins nothing more, or is paused.

    One of `cron`, `every` (seconds) and `at` is given; `timezone` is that of `cron`.
    """

    name: str
    swarm: str
    agent: str
    cron: str | None
    every: float | None
    at: datetime | None
    timezone: str
    catch_up: str
    next: datetime | None
    paused: bool
    created_at: datetime

    @property
    def times(self) -> str:
        """The times in words."""
        if self.cron is not None:
            return f"{self.cron} ({self.timezone})"
        return f"every {self.every:g} s" if self.every is not None else f"once, {self.at:%Y-%m-%d %H:%M:%S} UTC"

    @property
    def following(self) -> str:
        """The next time in words, or why there is none."""
        return "paused" if self.paused else "none" if self.next is None else f"{self.next:%Y-%m-%d %H:%M:%S} UTC"


class ScheduleList:
    """The schedules of one database. Methods that take a name raise `NoSchedule` for one that is none."""

    def __init__(self, store: Store) -> None:
        self._rows = store.schedules

    def list(self) -> list[ScheduleView]:
        """Return the schedules, by name."""
        return [_view(row) for row in self._rows.listed()]

    def pause(self, name: str) -> None:
        """Let a schedule begin nothing more."""
        self._rows.pause(self._found(name).name)

    def resume(self, name: str) -> None:
        """Let a paused schedule continue with its next time from now on."""
        self._rows.resume(self._found(name))

    def delete(self, name: str) -> None:
        """Delete a schedule; the runs that it has begun stay."""
        self._rows.delete(self._found(name).name)

    def _found(self, name: str) -> ScheduleRow:
        row = self._rows.found(name)
        if row is None:
            raise NoSchedule(f"there is no schedule {name!r}; `durable-swarm schedules` lists them")
        return row


def _view(row: ScheduleRow) -> ScheduleView:
    timing = row.timing
    return ScheduleView(
        row.name,
        row.swarm,
        row.agent,
        timing.cron,
        timing.every,
        None if timing.at is None else datetime.fromisoformat(timing.at),
        timing.timezone,
        timing.catch_up,
        None if row.paused else row.next_at,
        row.paused,
        row.created_at,
    )
