"""Masking secrets in texts that are recorded, logged or shown, above all in errors, which repeat their input.

It masks the keys that this process uses, the environment's keys, and by their form: values after a telling name
(`x-secret: …`, `api_key=…`, `"token": "…"`), credentials of HTTP (`Bearer …`, `Basic …`), the passwords in URLs, and
keys whose form is known (`sk-…`).
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

MASK = "***"

VARIABLES = ("OPENAI_API_KEY", "DURABLE_SWARM_ENCRYPTION_KEYS", "DURABLE_SWARM_SERVER_TOKEN")

_SHORTEST = 6
"""Minimum length of a key: a shorter text is not a key, and would be masked inside words."""

_FORMS = re.compile(
    r"\bsk-[\w-]{6,}|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bxox[a-z]-[\w-]{10,}|\bAKIA[0-9A-Z]{16}\b"
    r"|\bAIza[\w-]{30,}|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
)
_WORDS = r"(?!(?:of|tokens?|auth\w*|is|was|or|and|in|credentials?|scheme|realm|errors?|the|a|not|headers?)\b)"
_BEARER = re.compile(rf"\b(Bearer\s+){_WORDS}[^\s'\",;)\]}}]+", re.IGNORECASE)
_BASIC = re.compile(r"\b(Basic\s+)([A-Za-z0-9+/_-]{4,}={0,2})", re.IGNORECASE)
_PASSWORD = re.compile(r"(://[^/\s:@'\"]*:)[^\s'\"/]+(?=@)")
_USER = re.compile(r"(https?://)[^/\s:@'\"]+(?=@)", re.IGNORECASE)

_NAME = (
    r"(?:[\w.-]{0,60}[-_.])?(?:api_?key|key|token|passw(?:or)?d|passphrase|pwd|cookie|credentials?|signature|sig|auth)"
    r"|[\w.-]{0,40}(?-i:[a-z](?:Key|Token|Password))"
    r"|[\w.-]{0,40}(?:secret|apikey|accesskey|secretkey|authtoken|password|authorization)[\w.-]{0,20}"
)
_VALUE = r"(?:\"(?:[^\"\\\n]|\\.)+\"|'(?:[^'\\\n]|\\.)+'|[^\s,;&'\"(){}\[\]<>]+)"
_BYTES = r"(?:b(?=['\"]))?"
_NOT_SECRET = r"(?!(?:lambda|None|null|True|true|False|false|self|os|Basic|Bearer|Digest|Token)\b|\*\*\*)"

_ASSIGNED = re.compile(rf"(?<![\w.-])((?:{_NAME})['\"]?\s?=\s?{_BYTES}){_NOT_SECRET}{_VALUE}", re.IGNORECASE)
"""`key=…`, in code, in queries of URLs, in forms."""

_HEADER = re.compile(
    rf"(?<![\w.-])((?=[\w.]*-|[\w.]*_|(?-i:[a-z]+[A-Z])|['\"]?\w*(?:secret|password|passwd|authorization|cookie|apikey))(?:{_NAME})"
    rf"['\"]?\s?:\s?{_BYTES}(?:(?:Basic|Bearer|Digest|Token)\s+)?){_NOT_SECRET}{_VALUE}",
    re.IGNORECASE,
)
"""`x-secret: …`, `authorization: Basic …`: names that only a header or a setting has."""

_PLAIN = re.compile(
    r"(?<![\w.-])((?:--)?(?:key|token|auth|signature)(?:\s?:\s?|(?<=\w)\s+))(?=[^\s,;]*\d)(?=[^\s,;]*[A-Za-z])[\w./+=-]{8,}",
    re.IGNORECASE,
)
"""`token: …`, `--token …`: the name could be an ordinary word, so the value must look like a key."""

_QUOTED = re.compile(rf"(b?(['\"])(?:{_NAME})\2\s?[:,]\s?{_BYTES}){_NOT_SECRET}(?=['\"]){_VALUE}", re.IGNORECASE)
"""`"token": "…"`, `('x-secret', '…')`: a member of a dictionary, a pair."""

_used: set[str] = set()
"""The keys of all clients that were used in this process; its errors must not repeat them."""


def remember(client: object) -> None:
    """Remember the secrets of a model client: its key, the values of its own headers, the password of its URL."""
    key = getattr(client, "api_key", None)
    if isinstance(key, str):
        _remember(key)
    headers = getattr(client, "_custom_headers", None)
    for value in headers.values() if isinstance(headers, Mapping) else ():
        if isinstance(value, str) and len(value) >= 8 and re.search(r"\d", value):
            _remember(value)
    url = urlsplit(str(getattr(client, "base_url", "")))
    if url.password:
        user, password = unquote(url.username or ""), unquote(url.password)
        for secret in (password, url.password, base64.b64encode(f"{user}:{password}".encode()).decode()):
            _remember(secret)


def _remember(secret: str) -> None:
    if len(secret) >= _SHORTEST:
        _used.add(secret)


def without_secrets(text: str) -> str:
    """Return the text with every secret masked."""
    environment = ",".join(os.environ.get(name, "") for name in VARIABLES)
    known = {*_used, *(part.strip() for part in environment.split(","))}
    for secret in sorted(known, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, MASK)
    text = _USER.sub(rf"\1{MASK}", _PASSWORD.sub(rf"\1{MASK}", text))
    text = _BASIC.sub(_basic, _BEARER.sub(rf"\1{MASK}", _FORMS.sub(MASK, text)))
    for pattern in (_QUOTED, _HEADER, _ASSIGNED, _PLAIN):
        text = pattern.sub(rf"\1{MASK}", text)
    return text


def _basic(found: re.Match[str]) -> str:
    """Mask `Basic` credentials, but not a word that follows: "Basic authentication"."""
    encoded = found[2].rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        decoded = base64.b64decode(encoded + "=" * (-len(encoded) % 4))
    except (binascii.Error, ValueError):
        return found[0]
    return f"{found[1]}{MASK}" if b":" in decoded else found[0]


def masked(value: object) -> object:
    """Return plain data with the secrets in its texts masked."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {key: masked(item) for key, item in value.items()}
    return [masked(item) for item in value] if isinstance(value, list) else value
