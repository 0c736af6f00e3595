"""Calls that a model makes again: the same tool with the same arguments, in one run.

Models repeat calls that have succeeded. Which calls count as the same is decided here alone, for plans, approvals and
screens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from durable_swarm.types import Message

FAILED = "Error:"
"""First words of the text of a call that did not succeed."""

Place = tuple[int, int]
"""The position of a call: its turn, and its index among the calls of that turn, both from 0."""


@dataclass(frozen=True)
class Made:
    """A call that was made: its place, and its result text."""

    place: Place
    text: str


_sorted = json.JSONEncoder(sort_keys=True).encode


def key_of(tool: str, arguments: str) -> str:
    """Return a text that is equal for equal calls, however their arguments are written."""
    try:
        plain = _sorted(json.loads(arguments or "{}"))
    except (ValueError, RecursionError):
        plain = arguments
    return f"{tool}({plain})"


def succeeded(messages: Iterable[Message]) -> dict[str, Made]:
    """Return the first success of each call among the new messages of a run, by its key.

    Calls that handed over to another agent are excluded, because a repeated handoff hands over again.
    """
    found: dict[str, Made] = {}
    turn, index, calls = -1, 0, list[dict[str, Any]]()
    for message in messages:
        if message.get("role") == "assistant":
            turn, calls, index = turn + 1, message.get("tool_calls") or [], 0
        elif message.get("role") == "tool" and index < len(calls):
            function, text = calls[index]["function"], message.get("content")
            if isinstance(text, str) and not text.startswith(FAILED) and not _hands_over(text):
                found.setdefault(key_of(function["name"], function["arguments"]), Made((turn, index), text))
            index += 1
    return found


def _hands_over(text: str) -> bool:
    if not text.startswith('{"assistant"'):
        return False
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(given, dict) and list(given) == ["assistant"]


def failing_in_a_row(messages: Sequence[Message], turns: int) -> int:
    """Return how often in a row a tool call of the last turn has failed; of several, the largest number.

    Each turn in which the same call fails counts, as often as it fails there. A success of the call, or a turn without
    it, begins anew. `turns` is the number of turns that count, the newest of the new `messages` of a run.
    """
    streaks: dict[str, int] = {}
    open_ended: set[str] | None = None
    end = len(messages)
    for _ in range(turns):
        at = next((at for at in range(end - 1, -1, -1) if messages[at].get("role") == "assistant"), None)
        if at is None:
            break
        counts, whole = _failures(messages[at:end])
        open_ended = set(counts) if open_ended is None else open_ended & set(counts)
        for key in open_ended:
            streaks[key] = streaks.get(key, 0) + counts[key]
        open_ended &= whole
        if not open_ended:
            break
        end = at
    return max(streaks.values(), default=0)


def _failures(turn: Sequence[Message]) -> tuple[dict[str, int], set[str]]:
    """Return how often each call of a turn has failed since it last succeeded there, and those that never succeeded."""
    counts: dict[str, int] = {}
    succeeded_there: set[str] = set()
    results = [message for message in turn if message.get("role") == "tool"]
    for call, result in zip(turn[0].get("tool_calls") or [], results, strict=False):
        key, text = key_of(call["function"]["name"], call["function"]["arguments"]), result.get("content")
        if isinstance(text, str) and text.startswith(FAILED):
            counts[key] = counts.get(key, 0) + 1
        else:
            counts.pop(key, None)
            succeeded_there.add(key)
    return counts, set(counts) - succeeded_there


def repeated(messages: list[Message]) -> set[Place]:
    """Return the places of the calls that repeat a success, or appear twice in their reply."""
    found: set[Place] = set()
    replies = [at for at, message in enumerate(messages) if message.get("role") == "assistant"]
    for turn, at in enumerate(replies):
        calls = messages[at].get("tool_calls") or []
        found |= {(turn, index) for index in range(len(calls)) if same_before(messages[: at + 1], index) is not None}
    return found


def same_before(messages: list[Message], index: int) -> Place | None:
    """Return the place of the call that the `index`-th call of the last reply repeats, or None."""
    last = max((at for at, message in enumerate(messages) if message.get("role") == "assistant"), default=None)
    if last is None:
        return None
    keys = [key_of(call["function"]["name"], call["function"]["arguments"]) for call in messages[last]["tool_calls"]]
    made = succeeded(messages[:last]).get(keys[index])
    if made is not None:
        return made.place
    turn = sum(message.get("role") == "assistant" for message in messages[:last])
    return (turn, keys.index(keys[index])) if keys.index(keys[index]) < index else None


def step_number(messages: list[Message], place: Place) -> int:
    """Return the number of a call as a step of a run in memory, which has only replies and their calls."""
    replies = [message for message in messages if message.get("role") == "assistant"]
    return sum(1 + len(reply.get("tool_calls") or []) for reply in replies[: place[0]]) + 2 + place[1]
