r"""Text on a screen: the output of a model or a tool can neither control a terminal nor hide in it.

A character without a visible glyph is written as Python writes it (`\u202e`, `\x1b`, `\U000e0041`), so a reader sees
exactly the text that is there. Joiners and variation selectors stay if they belong to a visible character: inside an
emoji, or between letters of a script that is written with them.
"""

from __future__ import annotations

import json
import re
import unicodedata
from datetime import datetime
from typing import Any

from durable_swarm import codec

_HIDDEN = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f\xad"  # Controls, C1 controls, the soft hyphen.
    "\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"  # Joiner, direction, fillers, Mongolian selectors.
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800"  # Zero width, directions, isolates, the blank Braille pattern.
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff"  # Fillers, selectors, marks, half characters.
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff"  # Musical controls; tags and further selectors.
    "]"
)
_LINE = re.compile(r"[ \t\r\n\v\f]+")

# A carriage return is removed: at the end of a piece, a line feed may still follow.
_KEPT = {"\n": "\n", "\t": "\t", "\r": ""}

_FURTHER_PICTOGRAMS = "\xa9\xae\u203c\u2049\u2139\u3030"
"""Characters with a picture that Unicode does not count as symbols above U+2000."""

_JOINED_LETTERS = ((0x0600, 0x08FF), (0x0900, 0x0DFF), (0x1000, 0x109F), (0x1780, 0x17FF))
"""Arabic, the Indic scripts, Burmese and Khmer: joiners between their letters change their shape."""


def one_line(text: str) -> str:
    """Return the text in one line, with all invisible characters escaped."""
    return _visible(_LINE.sub(" ", text).strip(), "", {})


def harmless(text: str, before: str = "") -> str:
    """Return the text with its lines and tabs, with all other invisible characters escaped.

    The text may be a piece of a longer one; `before` is the text before it.
    """
    return _visible(text, before[-1:], _KEPT)


def _visible(text: str, before: str, kept: dict[str, str]) -> str:
    def written(found: re.Match[str]) -> str:
        sign, start, end = found[0], found.start(), found.end()
        if sign in kept:
            return kept[sign]
        if _belongs(sign, text[start - 1] if start else before, text[end : end + 1]):
            return sign
        code = ord(sign)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return _HIDDEN.sub(written, text)


def shorten(text: str, width: int) -> str:
    """Return the text in one line of at most `width` characters."""
    line = one_line(text[: 4 * width + 100])
    return line if len(line) <= width else f"{line[: max(width - 1, 0)]}…"


def as_call(tool: str, arguments: object) -> str:
    """Return a tool call in Python syntax; `arguments` as values by name, or as the model wrote them."""
    return f"{tool}({as_arguments(arguments)})"


def as_arguments(arguments: Any) -> str:
    """Return the arguments of a tool call in Python syntax, or unchanged if they are not an object."""
    try:
        given = json.loads(arguments or "{}") if isinstance(arguments, str) else arguments
        return ", ".join(f"{name}={json.dumps(item, ensure_ascii=False, default=str)}" for name, item in given.items())
    except (ValueError, AttributeError, RecursionError):
        return str(arguments)


def value(data: object) -> str:
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


def _belongs(sign: str, before: str, after: str) -> bool:
    """Return True if a joiner or a selector is part of the visible character before it."""
    if sign in "\ufe0e\ufe0f":
        return _is_pictogram(before) or (before in tuple("#*0123456789") and after == "\u20e3")
    if sign == "\u200d" and (_is_pictogram(before) or before == "\ufe0f"):
        return not after or _is_pictogram(after)
    return sign in "\u200c\u200d" and _is_joined(before) and _is_joined(after)


def _is_pictogram(sign: str) -> bool:
    """Return True for a symbol that emoji are made of, or an emoji's skin tone."""
    if sign in _FURTHER_PICTOGRAMS:
        return bool(sign)
    return sign >= "\u2000" and (unicodedata.category(sign) in ("So", "Sm") or "\U0001f3fb" <= sign <= "\U0001f3ff")


def _is_joined(sign: str) -> bool:
    return bool(sign) and any(first <= ord(sign) <= last for first, last in _JOINED_LETTERS)
