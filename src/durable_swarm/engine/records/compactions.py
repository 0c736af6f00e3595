"""The records of compaction: what a run was told of it, and the summary that a run has written."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from types import NoneType

from durable_swarm import codec
from durable_swarm.engine.records.base import Record, _checked, _slim, reading
from durable_swarm.engine.records.runs import read_usage, usage_record
from durable_swarm.limits import Spent
from durable_swarm.swarm.compaction import Compaction, name_of
from durable_swarm.types import Usage


@dataclass(frozen=True)
class CompactionPlan:
    """The compaction of a run's session, with the name of its function instead of the function."""

    compaction: Compaction
    function: str | None


@dataclass(frozen=True)
class Summary:
    """A summary that a run has written of the first messages of its session.

    `upto` counts all messages that it stands for, `kept` those between them and the run.
    """

    text: str
    upto: int
    kept: int
    usage: Usage | None = None
    model: str | None = None
    """The model that has written it; None if a function has."""
    cost: Decimal | None = None
    """What the model has cost, in US dollars."""
    worked: float | None = None
    """Seconds that the run has worked so far."""

    @property
    def spent(self) -> Spent:
        """The cost of it to the run."""
        if self.model is None:
            return Spent()
        return Spent(1, 0, self.usage or Usage(), self.cost, self.worked or 0.0)


def plan_record(compaction: Compaction) -> Record:
    """Return what a run's start record says of the compaction of its session."""
    kept: Record = {
        "at_tokens": compaction.at_tokens,
        "at_messages": compaction.at_messages,
        "keep_last": compaction.keep_last,
        "model": compaction.model,
        "instructions": codec.encode(compaction.instructions),
        "function": None if compaction.function is None else name_of(compaction.function),
    }
    return {name: value for name, value in kept.items() if value is not None}


def read_plan(start: Record) -> CompactionPlan | None:
    """Return the compaction of a run's session from its start record, or None if there is none."""
    if "compaction" not in start:
        return None
    with reading("the compaction of a session"):
        found = _checked(start["compaction"], dict)
        text = _checked(codec.decode(found.get("instructions")), str, NoneType)
        tokens, messages = (_checked(found.get(name), int, NoneType) for name in ("at_tokens", "at_messages"))
        keep_last, model = _checked(found.get("keep_last", 8), int), _checked(found.get("model"), str, NoneType)
        named = _checked(found.get("function"), str, NoneType)
        return CompactionPlan(Compaction(tokens, messages, keep_last, model, text), named)


def summary_record(summary: Summary, at: int) -> Record:
    """Return the record of the step that wrote a summary; `at` is the time in milliseconds since 1970."""
    return _slim(
        text=codec.encode(codec.mended_text(summary.text)),
        upto=summary.upto,
        kept=summary.kept,
        **usage_record(summary.usage),
        model=summary.model,
        cost=None if summary.cost is None else str(summary.cost),
        worked=None if summary.worked is None else round(summary.worked * 1000),
        at=at,
    )


def read_summary(record: Record) -> Summary:
    """Return a summary from its record."""
    with reading("the summary of a session"):
        text = _checked(codec.decode(record.get("text", "")), str)
        upto, kept = _checked(record.get("upto", 0), int), _checked(record.get("kept", 0), int)
        model, cost = (_checked(record.get(name), str, NoneType) for name in ("model", "cost"))
        worked = _checked(record.get("worked"), int, NoneType)
        price, seconds = None if cost is None else Decimal(cost), None if worked is None else worked / 1000
        return Summary(text, upto, kept, read_usage(record), model, price, seconds)
