"""Compares two runs turn by turn: a run and its fork, or the same task with another prompt or model."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from durable_swarm import codec
from durable_swarm.display import as_call
from durable_swarm.runs import StepInfo, without_answer
from durable_swarm.service.views import RunDetail
from durable_swarm.types import Message


@dataclass(frozen=True)
class Line:
    """A line of a comparison: `mark` is " " if both have it, "-" or "+" if only the first or only the second has."""

    mark: str
    text: str


@dataclass(frozen=True)
class Compared:
    """A part of two runs: what it is, its turn in each of them or None, and its lines."""

    name: str
    turns: tuple[int | None, int | None]
    lines: list[Line]

    @property
    def same(self) -> bool:
        """True if no line differs."""
        return all(line.mark == " " for line in self.lines)


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side: their input, their turns, aligned, and their ends."""

    first: str
    second: str
    parts: list[Compared]

    @property
    def same(self) -> bool:
        """True if nothing differs."""
        return all(part.same for part in self.parts)


def compare(first: RunDetail, second: RunDetail) -> Comparison:
    """Compare two runs.

    A fork and its source are aligned by the turns that the fork keeps, and from there on, like any other runs, by the
    agents that answered and the tools that they called. Times, ids of calls and tokens are not compared.
    """
    one, other = _turns(first), _turns(second)
    kept = min(_kept(first, second), len(one), len(other))
    parts = [Compared("input", (None, None), _differing(_asked(first), _asked(second)))]
    for left, right in [*((turn, turn) for turn in range(kept)), *_aligned(one, other, kept)]:
        lines = _differing(one[left].lines if left is not None else [], other[right].lines if right is not None else [])
        parts.append(Compared("turn", (left, right), lines))
    parts.append(Compared("end", (None, None), _differing(_end(first), _end(second))))
    return Comparison(first.id, second.id, parts)


@dataclass(frozen=True)
class _Turn:
    agent: str
    tools: tuple[str, ...]
    lines: list[str]


def _kept(first: RunDetail, second: RunDetail) -> int:
    """Return how many turns one of the runs has from the other."""
    if second.forked_from == first.id:
        return second.turn or 0
    if first.forked_from == second.id:
        return first.turn or 0
    siblings = first.forked_from is not None and first.forked_from == second.forked_from
    return min(first.turn or 0, second.turn or 0) if siblings else 0


def _turns(run: RunDetail) -> list[_Turn]:
    found: dict[int, list[StepInfo]] = {}
    for step in run.steps:
        if step.kind != "step" and step.turn is not None:
            found.setdefault(step.turn, []).append(step)
    return [_turn(found.get(number, [])) for number in range(max(found, default=-1) + 1)]


def _turn(steps: Sequence[StepInfo]) -> _Turn:
    agent = next((step.name.removeprefix("model:") for step in steps if step.kind == "model"), "")
    tools = tuple(step.name.removeprefix("tool:") for step in steps if step.kind == "tool")
    return _Turn(agent, tools, [line for step in steps for line in _lines(step)])


def _lines(step: StepInfo) -> Iterator[str]:
    """Yield what a step says, without what differs by chance."""
    name = step.name.partition(":")[2]
    if step.kind == "model" and isinstance(step.output, dict):
        yield from (f"{name}: {line}" for line in _text(step.output.get("content") or "").splitlines())
        for call in step.output.get("tool_calls") or []:
            yield f"{name} calls {as_call(call['function']['name'], call['function']['arguments'])}"
    elif step.status == "running":
        yield f"{name} is in progress"
    else:
        yield from (f"{name} → {line}" for line in (_text(step.error or step.output).splitlines() or [""]))


def _aligned(one: Sequence[_Turn], other: Sequence[_Turn], after: int) -> Iterator[tuple[int | None, int | None]]:
    """Yield the turns after the kept ones in pairs: by agent and tools, then one by one where these differ."""
    left_keys, right_keys = ([(turn.agent, turn.tools) for turn in turns[after:]] for turns in (one, other))
    matcher = difflib.SequenceMatcher(None, left_keys, right_keys, autojunk=False)
    for _, left, left_end, right, right_end in matcher.get_opcodes():
        for number in range(max(left_end - left, right_end - right)):
            yield (
                after + left + number if left + number < left_end else None,
                after + right + number if right + number < right_end else None,
            )


def _differing(one: Sequence[str], other: Sequence[str]) -> list[Line]:
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
    lines: list[Line] = []
    for kind, left, left_end, right, right_end in matcher.get_opcodes():
        if kind == "equal":
            lines += [Line(" ", text) for text in one[left:left_end]]
        else:
            lines += [Line("-", text) for text in one[left:left_end]]
            lines += [Line("+", text) for text in other[right:right_end]]
    return lines


def _asked(run: RunDetail) -> list[str]:
    messages: list[Message] = [*run.asked, *(message for added in run.added.values() for message in added)]
    return [
        f"{message.get('role', '')}: {line}"
        for message in messages
        for line in _text(message.get("content") or "").splitlines()
    ]


def _end(run: RunDetail) -> list[str]:
    why = without_answer(run.ended_by)
    return [f"{run.status} ({why})" if why else run.status, *([run.failure] if run.failure else [])]


def _text(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(codec.encode(value), ensure_ascii=False)
