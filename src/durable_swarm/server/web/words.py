"""Words, times and shapes that the templates use."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from durable_swarm.display import clock, duration, one_line, value
from durable_swarm.limits import EXTENDABLE, words_of
from durable_swarm.requests import Request
from durable_swarm.runs import ENDED, STATES, without_answer, written_as_text
from durable_swarm.service import INTERRUPTED, ExecutionView, RunDetail, RunView, calls_of, remedy_of, text_of

CUT = 2000  # Characters of a value on a page; the whole of it is a page of its own.
SIGNS = dict(zip((*STATES, INTERRUPTED), "◌◐●✓✕⊘◌", strict=True))
KINDS = {"unknown_outcome": "unknown outcome", "result": "result of another program"}


def last_word(run: RunView) -> str:
    """Return why a run is not done, or has no answer."""
    return run.waits_for or run.failure or without_answer(run.ended_by)


def took(run: RunView) -> str:
    """Return how long a run took, or has been in progress."""
    until = run.updated_at if run.status in ENDED else max(run.created_at, datetime.now(UTC))
    return duration((until - run.created_at).total_seconds())


def ago(moment: datetime) -> str:
    """Return how long ago a time is, in its largest unit; or how soon it will be."""
    seconds = (datetime.now(UTC) - moment).total_seconds()
    text = coarse(abs(seconds))
    return f"{text} ago" if seconds >= 0 else f"in {text}"


def coarse(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def cut(data: object) -> str:
    """Return a value as text, shortened to what a page carries."""
    text = value(data)
    return text if len(text) <= CUT else text[:CUT]


def pretty(data: object) -> str:
    """Return plain JSON for people, with the characters that cannot be seen escaped."""
    return json.dumps(data, ensure_ascii=False, indent=2, default=str)


def decided(request: Request) -> str:
    """Return the outcome of a request in words: what, by whom."""
    said = verdict(request)
    return f"{said} by {request.answered_by}" if request.answered_by else said


def verdict(request: Request) -> str:
    """Return the outcome of a request in words."""
    decision = request.decision
    if decision is None or decision.verdict == "expired":
        return "expired" if request.status == "expired" else ""
    if decision.verdict == "answered":
        return f"answered {one_line(value(decision.value))[:200]}"
    if decision.arguments is not None:
        return f"approved with {json.dumps(decision.arguments, ensure_ascii=False, default=str)}"
    return f"rejected: {decision.reason}" if decision.reason else decision.verdict


def reply(message: object) -> str:
    """Return what a reply says, and its calls."""
    if not isinstance(message, dict):
        return value(message)
    return "  ".join(part for part in (text_of(message), *(f"→ {call}" for call in calls_of(message))) if part)


def crashes(run: RunDetail) -> dict[int, str]:
    """Return what to say of a crash, by the number of the first step that began after it."""
    found: dict[int, str] = {}
    for one in run.executions:
        if one.end in ("died", "stopped") and one.ended_at is not None:
            after = [step.number for step in run.steps if step.started_at and step.started_at > one.ended_at]
            found[min(after, default=0)] = f"{place_of(one)} {one.end}"
    return found


def place_of(one: ExecutionView) -> str:
    """Return the process of an execution in words."""
    return f"process {one.pid} on {one.host}" if one.pid is not None else one.process[:16]


def percent(part: float) -> str:
    """Return a part of 1 for a drawing."""
    return f"{100 * part:.2f}%"


def spent(run: RunDetail) -> Iterator[str]:
    """Yield what a run has spent of what it may."""
    if run.spent is None or run.limits is None:
        return
    for limit in EXTENDABLE:
        allowed = getattr(run.limits, limit)
        if allowed is not None and limit != "repeats":
            used = run.spent.of(limit)
            yield f"{f'{used:.1f}' if limit == 'seconds' else used} of {allowed} {words_of(limit)}"


_FILTERS = (
    ago, clock, coarse, cut, decided, duration, last_word, one_line, percent, place_of, pretty, remedy_of,
    reply, spent, took, verdict, without_answer, written_as_text,
)  # fmt: skip
FILTERS: dict[str, Callable[..., object]] = {function.__name__: function for function in _FILTERS}
GLOBALS: dict[str, object] = {"CUT": CUT, "SIGNS": SIGNS, "KINDS": KINDS, "ENDED": ENDED, "words_of": words_of}
