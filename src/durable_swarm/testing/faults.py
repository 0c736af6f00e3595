"""Replies that fail or are slow. Each works in a `ScriptedModel` and in `serve_scripted`.

| reply | the client in this process | over HTTP |
|---|---|---|
| `rate_limited()`, `http_error(500)` | raises `ProviderError` | the status, its headers, openai's error body |
| `proxy_page(502)` | raises `ProviderError`; with status 200 gives bare text | a page of HTML |
| `timed_out()` | raises `TimeoutError` at once | silence, until the client leaves |
| `dropped()` | raises `ConnectionResetError` | the connection is reset before any header |
| `cut(reply, after=n)` | a stream ends after n chunks with `ConnectionResetError`, a whole answer is that error | \
a stream breaks after n events, a whole answer in its middle |
| `garbled()` | raises `json.JSONDecodeError` | a success whose body is broken JSON |
| `no_choices()` | a response without a choice | the same |
| `cut_off(reply, reason="length")` | the reply with that finish reason, whole or streamed | the same |
| `slowly(reply, ...)` | waits, no longer than the request's `timeout` | waits |

Any `ProviderError`, `TimeoutError`, `ConnectionError` or `JSONDecodeError` of your own does the same as these. Two more
faults are replies of the ordinary forms: broken arguments are `[("name", "raw text")]`, an empty message is
`{"content": None}`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from durable_swarm.errors import ConfigurationError
from durable_swarm.testing.provider_rules import ProviderError
from durable_swarm.testing.shapes import Completion
from durable_swarm.validation import check_text

BROKEN_JSON = '{"id": "chatcmpl-0", "choices": ['


@dataclass(frozen=True)
class Slow:
    """The reply of `slowly`."""

    reply: Any
    latency: float | None
    pace: float | None


@dataclass(frozen=True)
class Cut:
    """The reply of `cut`."""

    reply: Any
    after: int


@dataclass(frozen=True)
class CutOff:
    """The reply of `cut_off`."""

    reply: Any
    reason: str


@dataclass(frozen=True)
class Page:
    """The reply of `proxy_page`."""

    status: int

    @property
    def text(self) -> str:
        return f"<html><body><h1>{self.status} from a proxy</h1></body></html>"


def rate_limited(retry_after: float | str = 0, message: str = "rate limit reached") -> ProviderError:
    """Refuse with status 429 and a `Retry-After` header, in seconds or as an HTTP date."""
    return ProviderError(message, 429, retry_after)


def http_error(
    status: int,
    message: str = "",
    *,
    retry_after: float | str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> ProviderError:
    """Refuse with an HTTP status, 400 to 599. `code` is openai's own, such as "insufficient_quota".

    Raises `ConfigurationError` for another status.
    """
    _check_status(status, 400)
    return ProviderError(message or f"scripted {status}", status, retry_after, code=code, headers=headers)


def proxy_page(status: int = 502) -> Page:
    """Answer with the HTML page of a proxy in front of the provider, with any status from 200 to 599.

    Raises `ConfigurationError` for another status.
    """
    _check_status(status, 200)
    return Page(status)


def timed_out() -> TimeoutError:
    """Never answer. In this process the error is raised at once; over HTTP the client's own timeout applies."""
    return TimeoutError("the scripted provider did not answer in time")


def dropped() -> ConnectionResetError:
    """Drop the connection before any answer."""
    return ConnectionResetError("the scripted provider dropped the connection")


def cut(reply: object, *, after: int = 1) -> Cut:
    """Begin to answer with `reply`, and lose the connection after `after` chunks of the stream.

    A request without `stream` loses it in the middle of the answer. Raises `ConfigurationError` for a negative number.
    """
    if after < 0:
        raise ConfigurationError(f"cut(after=...) is a number of chunks, 0 or more, not {after!r}")
    return Cut(reply, after)


def garbled() -> json.JSONDecodeError:
    """Answer with a success whose body is not JSON."""
    return json.JSONDecodeError("the scripted provider's answer is not JSON", BROKEN_JSON, len(BROKEN_JSON))


def no_choices() -> Completion:
    """Answer with a success without a choice."""
    return Completion(id="chatcmpl-0", model="scripted", choices=[])


def cut_off(reply: object, reason: str = "length") -> CutOff:
    """Answer with a reply that the provider cut, at its token limit or for its content.

    `reason` is the finish reason, "length" or "content_filter"; others, as some gateways have, are sent as they are.
    The reply may contain arguments that break off: `cut_off([("refund", '{"order": "A')])`. Raises `ConfigurationError`
    for a reason that is not a text.
    """
    check_text("cut_off(reason=...)", reason)
    return CutOff(reply, reason)


def slowly(reply: object, *, latency: float | None = None, pace: float | None = None) -> Slow:
    """Answer with `reply` at its own latency and pace, in seconds; None keeps the model's values.

    `latency` comes before the answer, `pace` before each chunk of a stream. Raises `ConfigurationError` for a number
    that is negative or not finite.
    """
    for seconds in (latency, pace):
        check_seconds(seconds)
    return Slow(reply, latency, pace)


def check_seconds(seconds: float | None) -> None:
    """Refuse an invalid wait. Raises `ConfigurationError`."""
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        raise ConfigurationError(f"latency and pace are seconds, 0 or more, not {seconds!r}")


def _check_status(status: int, lowest: int) -> None:
    if isinstance(status, bool) or not isinstance(status, int) or not lowest <= status <= 599:
        raise ConfigurationError(f"an HTTP status from {lowest} to 599 is needed here, not {status!r}")
