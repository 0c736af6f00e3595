"""Limits of runs: what counts, which limit is reached, and how limits are extended. Data and rules only.

A limit that is used up permits nothing further: with `requests=3` there is no fourth model call. Tokens, cost and
seconds are known only after a call, so the last permitted call may exceed them.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, get_args

from durable_swarm.errors import ConfigurationError, LimitReached
from durable_swarm.fields import named_fields
from durable_swarm.types import Usage
from durable_swarm.validation import check_seconds

OnLimit = Literal["fail", "ask", "finish"]
Amount = int | float | Decimal

COUNTS = ("requests", "tool_calls", "input_tokens", "output_tokens", "total_tokens")
"""The limits that are whole numbers and are counted over a run and its child runs."""
EXTENDABLE = (*COUNTS, "cost", "seconds", "repeats")

MOST = 2**53
"""The largest whole number that every JSON reader keeps exact."""


def _check_count(name: str, value: object, least: int) -> None:
    if value is not None and (type(value) is not int or not least <= value <= MOST):
        raise ConfigurationError(f"{name} must be a whole number from {least} up or None, not {value!r:.40}")


@named_fields
@dataclass(frozen=True)
class Limits:
    """The amounts that a run may spend, together with its child runs. None means no limit.

    `requests` are model calls, also those whose answer was lost in a crash. `tool_calls` are calls that were made, not
    refused ones. Tokens are those that the provider counts. `cost` is in US dollars, as an int, float, Decimal or str.
    `seconds` is time worked: waiting for people, times and providers does not count. `repeats` is how often in a row
    the same tool call (name and arguments) may fail.

    `on_limit` says what happens at a limit: `"fail"` ends the run with `LimitReached`, and `Run.extend` lets it
    continue; `"ask"` opens a request of kind `limit`; `"finish"` makes one last model call without tools.

    Raises `ConfigurationError` for an invalid value.
    """

    requests: int | None = None
    tool_calls: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cost: Decimal | int | float | str | None = None
    seconds: float | None = None
    repeats: int | None = 10
    on_limit: OnLimit = "fail"

    def __post_init__(self) -> None:
        for name in (*COUNTS, "repeats"):
            _check_count(name, getattr(self, name), 1 if name == "repeats" else 0)
        if self.cost is not None:
            object.__setattr__(self, "cost", dollars("cost", self.cost))
        if self.seconds is not None:
            check_seconds("seconds", self.seconds)
        if self.on_limit not in get_args(OnLimit):
            choices = ", ".join(map(repr, get_args(OnLimit)))
            raise ConfigurationError(f"on_limit must be one of {choices}, not {self.on_limit!r:.40}")

    @property
    def counted(self) -> bool:
        """True if anything but repetitions is limited."""
        return any(getattr(self, name) is not None for name in EXTENDABLE if name != "repeats")

    def of_child(self) -> Limits:
        """Return the limits of a child run that is given none: it spends from its parent's."""
        return Limits(repeats=self.repeats, on_limit=self.on_limit)


DEFAULT_LIMITS = Limits(requests=200)
"""The limits of a run that is given none, in a swarm that is given none."""


def check_limits(limits: object) -> Limits | None:
    """Check that it is `Limits` or None, and return it. Raises `ConfigurationError`."""
    if limits is not None and not isinstance(limits, Limits):
        raise ConfigurationError(f"limits must be Limits(...), such as Limits(requests=50), not {limits!r:.80}")
    return limits


def dollars(name: str, value: object) -> Decimal:
    """Return an amount of US dollars as a Decimal. Raises `ConfigurationError`."""
    try:
        if isinstance(value, bool) or not isinstance(value, Decimal | int | float | str):
            raise TypeError
        amount: Decimal | None = Decimal(repr(float(value)) if isinstance(value, float) else value)
    except (InvalidOperation, TypeError, ValueError):
        amount = None
    if amount is None or not amount.is_finite() or amount < 0:
        raise ConfigurationError(f"{name} must be an amount of US dollars from 0 up, not {value!r:.40}")
    return amount


@dataclass(frozen=True)
class Spent:
    """The amounts that a run has spent, together with its child runs.

    `requests` are its model calls; of these, the answers of `uncertain` ones are unknown: the process died during the
    call, so it may have been paid. `usage` has the tokens of the others. `cost` is in US dollars, None if no call was
    priced. `seconds` is time worked.
    """

    requests: int = 0
    tool_calls: int = 0
    usage: Usage = field(default_factory=Usage)
    cost: Decimal | None = None
    seconds: float = 0.0
    uncertain: int = 0

    def __add__(self, other: Spent) -> Spent:
        priced = [cost for cost in (self.cost, other.cost) if cost is not None]
        return Spent(
            self.requests + other.requests,
            self.tool_calls + other.tool_calls,
            self.usage + other.usage,
            sum(priced, Decimal()) if priced else None,
            self.seconds + other.seconds,
            self.uncertain + other.uncertain,
        )

    def of(self, limit: str) -> Amount:
        """Return what counts towards the limit of that name."""
        tokens = {"input_tokens": "prompt_tokens", "output_tokens": "completion_tokens"}
        if limit in (*tokens, "total_tokens"):
            count: int = getattr(self.usage, tokens.get(limit, limit))
            return count
        amount: Amount | None = getattr(self, limit)
        return Decimal() if amount is None else amount


@dataclass(frozen=True)
class Reached:
    """A limit that is used up: its name, what was used, and what is allowed."""

    limit: str
    used: Amount
    allowed: Amount


def reached(limits: Limits, spent: Spent, failing: int = 0) -> Reached | None:
    """Return the limit that permits no further model call, or None.

    `failing` is how often in a row the last tool call has failed.
    """
    for name in EXTENDABLE:
        allowed = getattr(limits, name)
        if allowed is None or name == "tool_calls":  # A model call makes no tool call.
            continue
        used = failing if name == "repeats" else spent.of(name)
        if used >= allowed:
            return Reached(name, used, allowed)
    return None


def calls_left(limits: Limits, made: int) -> int | None:
    """Return how many tool calls are permitted after `made` ones; None for any number."""
    return None if limits.tool_calls is None else max(0, limits.tool_calls - made)


def extended(limits: Limits | None, more: Mapping[str, Any], run_id: str) -> Limits:
    """Return the limits with the amounts in `more` added. Raises `ConfigurationError` for what is not limited."""
    if not more:
        raise ConfigurationError(f"extend() needs an amount, such as requests=50: one of {', '.join(EXTENDABLE)}")
    changed: dict[str, Any] = {}
    for name, amount in more.items():
        if name not in EXTENDABLE:
            raise ConfigurationError(f"{name!r:.40} is not a limit that can be extended; it is one of {EXTENDABLE}")
        before = None if limits is None else getattr(limits, name)
        if before is None:
            raise ConfigurationError(
                f"run {run_id!r} has no limit of {words_of(name)} of its own, so nothing to extend"
            )
        checked = getattr(Limits(**{"repeats": None, name: amount}), name)
        if checked is None or checked == 0:
            raise ConfigurationError(f"{name} must be more than 0 to extend a limit, not {amount!r:.40}")
        changed[name] = before + checked
    return replace(limits or Limits(), **changed)


def words_of(limit: str) -> str:
    """Return what a limit counts, in words."""
    own = {"cost": "US dollars", "seconds": "seconds of work", "repeats": "failing repetitions"}
    return own.get(limit, limit.replace("_", " "))


def limit_error(found: Reached, name: str, at_first: Amount, *, of: str = "run", run_id: str = "") -> LimitReached:
    """Return the error of a run that has reached a limit of what is called `name`.

    `of` says what that is: a "run", a "session", or a "run in memory", which ends with the error. `at_first` is what
    was allowed when it started, `run_id` the run that has reached it, if commands reach that.
    """
    what, option, quoted = words_of(found.limit), found.limit.replace("_", "-"), shlex.quote(run_id or name)
    if found.limit == "repeats":
        done = f"the same tool call has failed {found.used} times in a row"
    else:
        done = f"{found.used} of {found.allowed} {what} are used"
    if of == "run" or run_id:
        remedy = (
            f"`durable-swarm extend {quoted} --{option} {at_first or 1}` (Run.extend) allows more, then "
            f"`durable-swarm resume {quoted}` (Run.resume) continues"
        )
    else:
        remedy = f"limits=Limits({found.limit}=...) allows more"
    kind = "session" if of == "session" else "run"
    return LimitReached(
        f"{kind} {name!r} has reached its limit of {what}: {done}; {remedy}",
        run_id=name if kind == "run" else "",
        limit=found.limit,
        used=found.used,
        allowed=found.allowed,
    )


def limits_record(limits: Limits | None) -> dict[str, Any]:
    """Return limits as plain JSON, without what is not limited."""
    if limits is None:
        return {}
    named = {one.name: getattr(limits, one.name) for one in fields(limits)}
    return {name: str(value) if name == "cost" else value for name, value in named.items() if value is not None}


def read_limits(record: Mapping[str, Any] | None) -> Limits | None:
    """Return limits from their record; None if there is none, as in runs of earlier versions."""
    return Limits(**{"repeats": None, **record}) if record else None
