"""Values, times and durations as the command line writes them."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from durable_swarm import codec


def value(data: Any) -> str:
    """Return a stored value as text: text as it is, '' for None, all other values as JSON."""
    if data is None:
        return ""
    return data if isinstance(data, str) else json.dumps(codec.encode(data), ensure_ascii=False)


def clock(moment: datetime) -> str:
    """Return a time in the user's time zone."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def duration(seconds: float) -> str:
    """Return a duration as readable text."""
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
