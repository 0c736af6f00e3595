"""A provider's errors: which are transient, which are the caller's, and how long to wait before the next try."""

from __future__ import annotations

import contextlib
import json
import math
import random
import re
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from durable_swarm.errors import safe_text
from durable_swarm.models.reply import EmptyReply, ErrorReply
from durable_swarm.models.stream import BrokenStream

FIRST_PAUSE, LONGEST_PAUSE, LONGEST_RETRY_AFTER = 0.5, 8.0, 600.0
"""Seconds between tries: the first, our longest, the longest a provider may ask for."""

FIRST_LONG_PAUSE, LONGEST_LONG_PAUSE = 1.0, 60.0
"""Seconds between tries of a run that waits for a provider: the first and the longest pause."""

MOST_TIME = 3600.0
"""The most seconds that a provider can ask to wait: a slip in its header must not stop a model for years."""

BAD_OUTPUT_TRIES = 3
"""Minimum number of tries for a model whose output its own provider cannot read."""

_BAD_OUTPUT = {"tool_use_failed", "output_parse_failed", "json_validate_failed", "malformed_function_call"}
"""Error codes of providers that could not read their model's output; another reply may be better."""

_LASTING = {"insufficient_quota", "invalid_request_error", "model_not_found", "context_length_exceeded"}
"""Codes and types of errors that the same request will get again."""

_AWAY = {408, 409, 429}
"""HTTP statuses below 500 with which a provider asks to be asked later."""

_LOST_CONNECTIONS = {"APIConnectionError", "APITimeoutError", "TransportError"}
"""Names of the errors of openai and httpx; both packages are optional."""


def of_provider(error: Exception) -> bool:
    """Return True if the error comes from the provider, not from the program."""
    openai = sys.modules.get("openai")
    foreign = openai is not None and isinstance(error, openai.OpenAIError)
    own = isinstance(error, ErrorReply) or isinstance(getattr(error, "status_code", None), int)
    return foreign or own or transient(error)


def transient(error: Exception) -> bool:
    """Return True if the same request may succeed soon: it is worth another try."""
    if is_away(error):
        spent = getattr(error, "code", None) == "insufficient_quota"
        return not spent and _is_near(error)
    # A body that is not JSON (a proxy's page, a cut answer) arrives as the decoder's error.
    kinds = EmptyReply | json.JSONDecodeError | UnicodeDecodeError
    return bad_output(error) or (status_of(error) is None and isinstance(error, kinds))


def is_away(error: Exception) -> bool:
    """Return True if the provider cannot be reached, or has no capacity or no quota left at present."""
    if bad_output(error):
        return False
    status = status_of(error)
    if status is not None:
        refused = _headers(error).get("x-should-retry") == "false"
        return (status in _AWAY or status >= 500) and not refused
    names = {kind.__name__ for kind in type(error).__mro__}
    lost = isinstance(error, ConnectionError | TimeoutError | BrokenStream) or bool(names & _LOST_CONNECTIONS)
    return lost or _may_pass(error)


def bad_output(error: Exception) -> bool:
    """Return True if the provider could not read its model's output: the model's fault, not the request's."""
    body = getattr(error, "body", None)
    inner = body.get("error", body) if isinstance(body, Mapping) else None
    told = isinstance(inner, Mapping) and "failed_generation" in inner
    return told or _word(error, "code") in _BAD_OUTPUT


def _may_pass(error: Exception) -> bool:
    """Return True if an error without a status, in a success or in the middle of a stream, may be transient."""
    said = _is_event(error) or isinstance(error, ErrorReply)
    return said and not any(_word(error, name) in _LASTING for name in ("code", "type"))


def _word(error: Exception, name: str) -> str:
    """Return the provider's code or type of an error, "" if it is not a word: a provider may send any JSON there."""
    found = getattr(error, name, None)
    return found if isinstance(found, str) else ""


def _is_event(error: Exception) -> bool:
    # The exact class: its subclasses are errors of other kinds.
    return type(error).__name__ == "APIError"


def status_of(error: Exception) -> int | None:
    """Return the HTTP status; some providers send it as the code of an error in a success or a stream."""
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return status
    code = str(getattr(error, "code", None)) if _is_event(error) or isinstance(error, ErrorReply) else ""
    return int(code) if re.fullmatch(r"[45]\d\d", code, re.ASCII) else None


def pause(error: Exception, attempt: int) -> float:
    """Return the seconds to wait after try number `attempt`; the provider's own value has priority."""
    asked = retry_after(error)
    if asked is not None:
        return asked
    return float(min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.75, 1))


def long_pause(failures: int) -> float:
    """Return the seconds to wait for a provider that stays away, after this number of failures in a row."""
    return float(min(FIRST_LONG_PAUSE * 2 ** min(failures - 1, 10), LONGEST_LONG_PAUSE) * random.uniform(0.75, 1))


def _is_near(error: Exception) -> bool:
    """Return True if the provider's wait is short enough. An earlier try would only be refused."""
    return (retry_after(error) or 0) <= LONGEST_RETRY_AFTER


def retry_after(error: Exception) -> float | None:
    """Return the seconds that the provider asks to wait, at most `MOST_TIME`, or None.

    They are given in milliseconds, in seconds, or as a date.
    """
    headers = _headers(error)
    for name, seconds in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with contextlib.suppress(TypeError, ValueError):
            asked = float(headers[name]) * seconds
            return min(asked, MOST_TIME) if asked >= 0 and math.isfinite(asked) else None
    until = _moment(headers["retry-after"])
    if until is None:
        return None
    # By the provider's own clock, if it sends one, because ours may be wrong.
    return min(max(until - (_moment(headers["date"]) or time.time()), 0.0), MOST_TIME)


def _moment(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def _headers(error: Exception) -> Mapping[str, str]:
    headers = getattr(getattr(error, "response", None), "headers", None)
    return defaultdict(str) if headers is None else defaultdict(str, {str(k).lower(): v for k, v in headers.items()})


def root_of(error: Exception) -> str:
    """Return the root cause of an error that does not name it, such as a refused connection; not of an answer."""
    if status_of(error) is not None:
        return ""
    root: BaseException = error
    seen = {id(error)}
    # A client that raises an error again from the one it was wrapped in makes a circle.
    while (deeper := root.__cause__ or root.__context__) is not None and id(deeper) not in seen:
        seen.add(id(deeper))
        root = deeper
    text = " ".join(safe_text(root).split())[:200]
    return "" if root is error or not text or text in str(error) else f" ({type(root).__name__}: {text})"


TOO_LONG = (
    "The messages are too long for this model's context, and a resume sends them again: take a model with a larger "
    "context, or fork the run at an earlier turn (durable-swarm fork ID --turn N)"
)
"""Advice for a context that is too long."""

_CONTEXT = re.compile(
    r"context_length_exceeded|(maximum|available|model's|exceed\w*( the)?)( \w+)? context|context (length|window|size)"
    r"|prompt is too long|input is too long|too many (input |prompt )?tokens|reduce the length of the messages",
    re.IGNORECASE,
)


def is_too_long(text: str) -> bool:
    """Return True if a provider's refusal means that the messages do not fit the model's context."""
    return _CONTEXT.search(text) is not None
