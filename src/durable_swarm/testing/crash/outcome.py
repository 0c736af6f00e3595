"""The outcome of a program: the runs in its database, the effects in its ledger, and how two outcomes differ."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from durable_swarm.engine.api.inspector import NoRuns
from durable_swarm.service import Query, RunDetail, open_runs
from durable_swarm.testing.crash.ledger import Entry
from durable_swarm.types import Message

MANY = 1000
"""Maximum number of runs of one scenario that are compared."""


@dataclass(frozen=True)
class Outcome:
    """The compared data: the program's return value, its runs (oldest first), and its effects."""

    value: object = None
    runs: list[RunDetail] = field(default_factory=list)
    effects: list[Entry] = field(default_factory=list)


def runs_of(database: str) -> list[RunDetail]:
    """Read all runs of a database, oldest first; [] if there are none."""
    try:
        with open_runs(database) as runs:
            return [runs.show(view.id) for view in reversed(runs.list(Query(limit=MANY)))]
    except NoRuns:
        return []


@dataclass(frozen=True)
class Difference:
    """One difference: `kind` names the broken rule, `tool` the tool it concerns, if any."""

    kind: str
    text: str
    tool: str | None = None


def differences(expected: Outcome, got: Outcome, at_least_once: Collection[str]) -> Iterator[Difference]:
    """Return how an outcome differs from that of the undisturbed program."""
    if len(got.runs) != len(expected.runs):
        kind = "another run" if len(got.runs) > len(expected.runs) else "lost run"
        # All other differences follow from that.
        yield Difference(kind, f"there are {len(got.runs)} runs, undisturbed {len(expected.runs)}")
        return
    found = [*_runs(expected.runs, got.runs), *_effects(expected.effects, got.effects, at_least_once)]
    yield from found
    # The scenario's return value mostly consists of its runs, and differs with them.
    if got.value != expected.value and not found:
        yield Difference("value", f"the scenario returned {_short(got.value)}, undisturbed {_short(expected.value)}")


def _runs(expected: Sequence[RunDetail], got: Sequence[RunDetail]) -> Iterator[Difference]:
    for undisturbed, run in zip(*_paired(expected, got), strict=True):
        yield from _run(undisturbed, run)


def _paired(expected: Sequence[RunDetail], got: Sequence[RunDetail]) -> tuple[Sequence[RunDetail], Sequence[RunDetail]]:
    """Pair the runs by their ids if these are the same in each execution, otherwise by their order."""
    by_id = {run.id: run for run in got}
    if by_id.keys() == {run.id for run in expected}:
        return expected, [by_id[run.id] for run in expected]
    return expected, got


def _run(expected: RunDetail, got: RunDetail) -> Iterator[Difference]:
    if got.status != expected.status:
        why = got.error.line if got.error else got.waits_for or "it has not ended"
        kind = "not ended" if got.status in ("queued", "running", "waiting") else "status"
        yield Difference(kind, f"run {got.id!r} is {got.status}, undisturbed {expected.status}: {why}")
        return
    if got.agent != expected.agent:
        yield Difference(
            "agent", f"run {got.id!r} was started with agent {got.agent!r}, undisturbed {expected.agent!r}"
        )
        return
    yield from _messages(expected, got)
    yield from _context(expected.context_variables, got.context_variables)
    if got.last_agent != expected.last_agent:
        yield Difference("messages", f"the last agent is {got.last_agent!r}, undisturbed {expected.last_agent!r}")
    yield from _steps(expected, got)


def _messages(expected: RunDetail, got: RunDetail) -> Iterator[Difference]:
    pairs = zip(renumbered(expected.messages), renumbered(got.messages), strict=False)
    for number, (undisturbed, message) in enumerate(pairs, 1):
        if message != undisturbed:
            who = message.get("tool_name") or message.get("sender") or message.get("role")
            # The first one shows the cause; the others are consequences.
            yield Difference(
                "messages",
                f"message {number} ({who}) is {_short(_content(message))}, undisturbed {_short(_content(undisturbed))}",
                message.get("tool_name"),
            )
            return
    if len(got.messages) != len(expected.messages):
        yield Difference("messages", f"there are {len(got.messages)} messages, undisturbed {len(expected.messages)}")


def renumbered(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with the ids of their tool calls counted from 1, because a model invents the ids."""
    numbers: dict[str, str] = {}
    made = [dict(message) for message in messages]
    for message in made:
        if message.get("tool_calls"):
            calls = [
                {**call, "id": numbers.setdefault(call["id"], f"call {len(numbers) + 1}")}
                for call in message["tool_calls"]
            ]
            message["tool_calls"] = calls
        if "tool_call_id" in message:
            message["tool_call_id"] = numbers.get(message["tool_call_id"], message["tool_call_id"])
    return made


def name_calls(label: str, runs: Sequence[RunDetail]) -> str:
    """Return a boundary's label with tool names in place of the calls' positions in the run."""
    for run in runs:
        replies = [message for message in run.messages if message.get("role") == "assistant"]
        for turn, reply in enumerate(replies):
            for index, call in enumerate(reply.get("tool_calls") or ()):
                position = rf"tool call {re.escape(run.id)}/{turn}\.{index}(?![\d/])"
                label = re.sub(position, f"tool {call['function']['name']}", label)
    return label


def _content(message: Mapping[str, object]) -> object:
    return message.get("content") if message.get("content") is not None else message.get("tool_calls")


def _context(expected: Mapping[str, object], got: Mapping[str, object]) -> Iterator[Difference]:
    missing = object()
    for name in sorted(expected.keys() | got.keys(), key=str):
        before, after = expected.get(name, missing), got.get(name, missing)
        if before != after:
            shown = ["missing" if value is missing else _short(value) for value in (after, before)]
            yield Difference("context", f"context variable {name!r} is {shown[0]}, undisturbed {shown[1]}")


def _steps(expected: RunDetail, got: RunDetail) -> Iterator[Difference]:
    names = [Counter((step.name, step.status) for step in run.steps) for run in (expected, got)]
    more, fewer = names[1] - names[0], names[0] - names[1]
    if more or fewer:
        shown = [", ".join(f"{name} ({status})" for name, status in sorted(found)) or "none" for found in (more, fewer)]
        yield Difference("steps", f"other steps ran: {shown[0]}; and these of the undisturbed run did not: {shown[1]}")


def _effects(expected: list[Entry], got: list[Entry], at_least_once: Collection[str]) -> Iterator[Difference]:
    for name in dict.fromkeys(entry.name for entry in [*expected, *got]):
        wanted, made = _count(expected, name), _count(got, name)
        last = next((entry for entry in reversed(got) if entry.name == name), None)
        if made < wanted:
            yield Difference("lost effect", f"effect {name!r} happened {_times(made)}, undisturbed {_times(wanted)}")
        elif made > wanted and name not in at_least_once:
            keyed = last is not None and last.key is not None
            yield Difference(
                "another key" if keyed else "repeated effect",
                _too_often(name, last, made, wanted),
                last.tool if last else None,
            )


def _too_often(name: str, last: Entry | None, made: int, wanted: int) -> str:
    if last is None or last.tool is None:
        return f"effect {name!r} happened {_times(made)}, undisturbed {_times(wanted)},"
    about = "" if name == last.tool else f" (effect {name!r})"
    return f"tool `{last.tool}` ran {_times(made - wanted + 1)}{about}"


def _count(entries: list[Entry], name: str) -> int:
    """Count the effects of a name; those with a key once for each key."""
    found = [entry for entry in entries if entry.name == name]
    return sum(entry.key is None for entry in found) + len({entry.key for entry in found if entry.key is not None})


def _times(number: int) -> str:
    return {0: "not at all", 1: "once", 2: "twice"}.get(number, f"{number} times")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
