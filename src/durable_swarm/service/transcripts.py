"""The messages of a run as people read them: by turns, each with its number and the step that made it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from durable_swarm.display import as_call, value
from durable_swarm.runs import StepInfo
from durable_swarm.service.views import RunDetail
from durable_swarm.types import Message


@dataclass(frozen=True)
class Said:
    """One message. `number` counts all messages of the run from 0, `turn` those that the model wrote.

    `who` is the agent or the tool. `asked` is true for a message that the run was given, `reply` for one of the model;
    `calls` are the calls in it, as text. `step` is the step of the run that made it, or None.
    """

    number: int
    role: str
    who: str
    text: str
    turn: int = 0
    reply: bool = False
    calls: list[str] = field(default_factory=list)
    step: StepInfo | None = None
    asked: bool = False


def transcript(run: RunDetail, first: int, turns: int, given: int) -> Iterator[Said]:
    """Yield the messages of some turns of a run, in order; before turn 0 those that it was given, the last `given`."""
    tools = {(one.turn, one.index): one for one in run.steps if one.kind == "tool"}
    models = {one.turn: one for one in run.steps if one.kind == "model"}
    skipped = len(run.asked) if first else max(len(run.asked) - given, 0)
    for number, one in enumerate(run.asked[skipped:], skipped):
        yield Said(number, str(one.get("role", "")), "", text_of(one), asked=True)
    turn, index = -1, 0
    for number, one in enumerate(run.messages, len(run.asked)):
        role = str(one.get("role", ""))
        if role == "assistant":
            turn, index = turn + 1, -1
        index += role == "tool"
        if not first <= max(turn, 0) < first + turns:
            continue
        if role == "assistant":
            who = str(one.get("sender") or run.agent)
            yield Said(number, role, who, text_of(one), turn, True, calls_of(one), models.get(turn))
        elif role == "tool":
            who = str(one.get("tool_name") or "")
            yield Said(number, role, who, text_of(one), turn, step=tools.get((turn, index)))
        else:
            yield Said(number, role, "", text_of(one), max(turn, 0))


def text_of(message: Message) -> str:
    """Return the text of a message."""
    return value(message.get("content") or message.get("refusal") or "")


def calls_of(message: Message) -> list[str]:
    """Return the calls of a reply, each as text."""
    return [as_call(one["function"]["name"], one["function"]["arguments"]) for one in message.get("tool_calls") or []]
