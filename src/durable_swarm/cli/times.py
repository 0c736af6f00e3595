"""Types of options that are times: an age such as 30d, and a moment in the past."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import click

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class Age(click.ParamType[timedelta]):
    """A time span such as 30d, 12h or 2w."""

    name = "age"

    def convert(self, value: object, parameter: click.Parameter | None, context: click.Context | None) -> timedelta:
        """Parse the span."""
        found = re.fullmatch(r"(\d{1,9})([smhdw])", str(value))
        if found is None:
            self.fail(f"{value!r} is not an age; give one such as 30d, 12h or 2w.", parameter, context)
        try:
            return timedelta(seconds=int(found[1]) * UNITS[found[2]])
        except OverflowError:
            self.fail(f"{value!r} is longer than time itself.", parameter, context)


class Since(click.ParamType[datetime]):
    """A moment in the past: ISO 8601 (local time unless it says otherwise), or how long ago it was, such as 2h."""

    name = "time"

    def convert(self, value: object, parameter: click.Parameter | None, context: click.Context | None) -> datetime:
        """Parse the moment."""
        text = str(value)
        if re.fullmatch(r"\d+[a-z]", text):
            try:
                return datetime.now(UTC) - Age().convert(text, parameter, context)
            except OverflowError:
                return datetime(1970, 1, 1, tzinfo=UTC)
        try:
            return datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError):
            problem = f"{text!r} is not a time; give one such as 2026-11-29T22:40, or 2h for two hours ago."
            self.fail(problem, parameter, context)
