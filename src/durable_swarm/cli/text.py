"""Text for terminals: nothing that a model or a tool wrote may control them."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

from durable_swarm import codec

# Everything that moves a cursor, colours, or turns the direction of writing.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# A carriage return goes: at the end of a piece, nobody knows whether a line's end follows.
_KEPT = {"\n": "\n", "\t": "\t", "\r": ""}


def one_line(text: str) -> str:
    """Give the text in one line, without control characters."""
    return _CONTROL.sub("�", " ".join(text.split()))


def harmless(text: str) -> str:
    """Give the text, which may be a piece of one, with its lines and tabs, without other control characters."""
    return _CONTROL.sub(lambda found: _KEPT.get(found[0], "�"), text)


def shorten(text: str, width: int) -> str:
    """Give the text in one line of at most `width` characters."""
    line = one_line(text[: 4 * width + 100])
    return line if len(line) <= width else f"{line[: max(width - 1, 0)]}…"


def value(data: Any) -> str:
    """Give a value that was stored: text as it is, nothing for None, everything else as JSON."""
    if data is None:
        return ""
    return data if isinstance(data, str) else json.dumps(codec.encode(data), ensure_ascii=False)


def clock(moment: datetime) -> str:
    """Give a time as the user's clock shows it."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}"


def duration(seconds: float) -> str:
    """Give a duration for people."""
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
