"""Ids in paths: each byte but letters, digits, `-` and `_` is written `~XX`.

An id may hold any character. Percent encoding does not carry all of them: proxies decode `%2F`, and browsers fold
`%2e%2e`.
"""

from __future__ import annotations

import re

_OTHERS = re.compile(rb"[^A-Za-z0-9_-]")
_PART = re.compile(r"~[0-9A-F]{2}|(.)", re.DOTALL)
_CODED = re.compile(r"(?:[A-Za-z0-9_-]|~[0-9A-F]{2})+")


def encode_id(text: str) -> str:
    """Return an id as one segment of a path."""
    return _OTHERS.sub(lambda found: b"~%02X" % found[0][0], text.encode("utf-8", "surrogatepass")).decode("ascii")


def encode_rest(segment: str) -> str:
    """Return a segment in which something was left to encode, such as a dot, as it must be written."""
    return _PART.sub(lambda found: found[0] if found[1] is None else encode_id(found[1]), segment)


def decode_id(segment: str) -> str | None:
    """Return the id of a segment, or None if the segment is not an encoded id."""
    if not _CODED.fullmatch(segment):
        return None
    raw = re.sub(r"~(..)", lambda found: chr(int(found[1], 16)), segment).encode("latin-1")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None
