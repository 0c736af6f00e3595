"""When a schedule is due: times as pure data, in the schedule's time zone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Literal, Self, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from durable_swarm.engine.records.base import Record
from durable_swarm.errors import ConfigurationError
from durable_swarm.validation import check_text

CatchUp = Literal["one", "all", "skip"]
"""Which occurrences are made up for that were missed while no process looked: the last one, all, or none."""

LATE = 60.0
"""Seconds after which an occurrence counts as missed."""
MOST = 1000
"""How many missed occurrences are made up for at once."""


@dataclass(frozen=True)
class Timing:
    """The times of a schedule: `cron` (five fields), `every` some seconds from `since`, or once `at`.

    `at` and `since` are in ISO 8601, in UTC. `timezone` is that in which a cron expression is read. Raises
    `ConfigurationError`.
    """

    cron: str | None = None
    every: float | None = None
    at: str | None = None
    timezone: str = "UTC"
    catch_up: CatchUp = "one"
    since: str = ""

    @classmethod
    def of(
        cls,
        cron: str | None,
        every: float | timedelta | None,
        at: datetime | None,
        timezone: str,
        catch_up: CatchUp,
        now: datetime,
    ) -> Self:
        """Return the times that a program asks for. Raises `ConfigurationError`."""
        if sum(one is not None for one in (cron, every, at)) != 1:
            raise ConfigurationError("schedule: give one of cron=, every= and at=")
        if catch_up not in get_args(CatchUp):
            raise ConfigurationError(f"schedule: catch_up must be 'one', 'all' or 'skip', not {catch_up!r:.40}")
        zone = _zone(timezone)
        if cron is not None:
            _check_cron(cron)
        if isinstance(every, timedelta):
            every = every.total_seconds()
        if every is not None and (isinstance(every, bool) or not isinstance(every, int | float) or every < 1):
            raise ConfigurationError("schedule: every must be a number of seconds from 1 on, or a timedelta")
        if at is not None and not isinstance(at, datetime):
            raise ConfigurationError(f"schedule: at must be a datetime, not {at!r:.40}")
        once = None if at is None else _whole(at if at.tzinfo else at.replace(tzinfo=zone)).isoformat()
        return cls(cron, every, once, timezone, catch_up, _whole(now).isoformat())

    @classmethod
    def read(cls, record: Record) -> Self:
        """Return the times from their record."""
        return cls(**{one.name: record[one.name] for one in fields(cls) if one.name in record})

    def record(self) -> Record:
        """Return the record of the times."""
        return asdict(self)

    def same_as(self, other: Timing) -> bool:
        """Return True if two programs ask for the same times, whenever they asked."""
        return {**self.record(), "since": ""} == {**other.record(), "since": ""}

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Yield the occurrences after a moment, in UTC."""
        if self.at is not None:
            once = datetime.fromisoformat(self.at)
            yield from [once] if once > moment else []
        elif self.every is not None:
            since = datetime.fromisoformat(self.since)
            passed = max(0, int((moment - since).total_seconds() // self.every) - 1)
            while True:
                passed += 1
                time = _whole(since + timedelta(seconds=passed * self.every))
                if time > moment:
                    yield time
        else:
            from croniter import croniter

            times = croniter(str(self.cron), moment.astimezone(ZoneInfo(self.timezone)))
            while True:
                yield times.get_next(datetime).astimezone(UTC)

    def first(self, made: datetime) -> datetime | None:
        """Return the first occurrence of a schedule made at a moment: `at`, though it may have passed by then."""
        return self.next_after(made) if self.at is None else datetime.fromisoformat(self.at)

    def next_after(self, moment: datetime) -> datetime | None:
        """Return the first occurrence after a moment, or None."""
        return next(self.after(moment), None)

    def due(self, first: datetime, now: datetime) -> list[datetime]:
        """Return the occurrences to begin now, of those from `first` on, which was not begun yet."""
        if first > now:
            return []
        times = [first]
        for time in islice(self.after(first), MOST):
            if time > now:
                break
            times.append(time)
        if self.catch_up == "all":
            return times
        late = [time for time in times if (now - time).total_seconds() > LATE]
        in_time = times[len(late) :]
        return in_time or (late[-1:] if self.catch_up == "one" else [])


def _whole(time: datetime) -> datetime:
    """Return a time in UTC in whole milliseconds, as it is stored: an occurrence has one name."""
    time = time.astimezone(UTC)
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def _zone(name: str) -> ZoneInfo:
    check_text("schedule: timezone", name)
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ConfigurationError(
            f"schedule: there is no time zone {name!r}; give a name such as Europe/Oslo"
        ) from error


def _check_cron(expression: object) -> None:
    from croniter import croniter

    cron = check_text("schedule: cron", expression)
    if len(cron.split()) != 5 or not croniter.is_valid(cron):
        raise ConfigurationError(
            "schedule: cron must have five fields (minute, hour, day, month, weekday), each within its bounds, "
            f"such as '0 9 * * mon-fri' for nine on weekdays, not {cron!r}"
        )
