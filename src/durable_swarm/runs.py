"""A run seen from outside: its states, its steps, and its history rebuilt from its records.

This module uses no database: `follow` drives the turn loop over records that the caller has read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

from durable_swarm.concurrency import finish
from durable_swarm.guardrails import guarded_turns
from durable_swarm.loop import (
    NOT_MADE,
    Ask,
    Call,
    CallAll,
    Close,
    Effect,
    Ending,
    Guard,
    Outcome,
    Reply,
    Start,
    absorb,
    drive,
    known,
    total,
)
from durable_swarm.types import Block, EndedBy, Message, Usage

State = Literal["queued", "running", "waiting", "done", "failed", "cancelled"]
NO_ANSWER: dict[EndedBy, str] = {
    "max_turns": "max turns",
    "limit": "a limit was reached",
    "length": "cut by the provider's token limit",
    "content_filter": "stopped by the provider's content filter",
    "guardrail": "stopped by a guardrail",
}
"""Why a run that is done has no answer, in words for every screen."""


def without_answer(ended_by: EndedBy | None) -> str:
    """Return in words why a run ended without an answer, or ''."""
    return NO_ANSWER.get(ended_by or "answer", "")


def written_as_text(tool: str) -> str:
    """Return the text that every screen shows for a reply that seems to write a tool call in its text."""
    return f"a call of {tool} seems to be written as text; no call was made"


STATES: tuple[State, ...] = get_args(State)
ENDED: frozenset[State] = frozenset({"done", "failed", "cancelled"})


StepKind = Literal["model", "tool", "step", "guardrail"]
StepStatus = Literal["done", "failed", "running"]


@dataclass(frozen=True)
class StepInfo:
    """One recorded effect of a run, in the order in which they were begun.

    `name` is `model:AGENT`, `tool:NAME`, `guardrail:NAME`, `compact:AGENT` (a session's summary) or a step's own name.
    `kind` is `model`, `tool`, `guardrail` or `step` (a `@step` inside the tool before it); `status` is `done`, `failed`
    or `running`. `output` is the assistant message, the tool's text, the step's value, or the verdict of the guardrail
    ("passed", "blocked: REASON"); `error` is "Type: text". `attempts` is how often it was started. Times are aware UTC.
    `version` is the fingerprint of the agent, prompt, tools and model that answered. `turn` is the turn it belongs to,
    counted from 0. `kept` is true for a step that a fork took from its original run.
    `finish` is the provider's reason for the end of a reply if it is not the usual one, such as "length". `index` is
    a call's place in its reply, from 0. A refused call (an unknown tool, unfit arguments, a reply that was cut, a
    repetition) is a `tool` step too, `failed`, with the text sent to the model as `output`. `same_as` is the number of
    the step whose call this one repeats. `written` names a tool whose call a reply without calls seems to have written
    as text. `misfit` is the text sent to the model about an answer that does not fit its agent's output type.
    """

    number: int
    name: str
    kind: StepKind
    status: StepStatus
    started_at: datetime | None = None
    finished_at: datetime | None = None
    output: Any = None
    error: str | None = None
    attempts: int = 1
    version: str | None = None
    turn: int | None = None
    kept: bool = False
    finish: str | None = None
    index: int | None = None
    same_as: int | None = None
    written: str | None = None
    misfit: str | None = None


class _NotYet(Exception):
    """The records end here."""

    def __init__(self, effect: Ask | CallAll | Guard, outcomes: list[Outcome | None]) -> None:
        super().__init__()
        self.effect = effect
        self.outcomes = outcomes


@dataclass
class RunHistory:
    """The content of a run's records: the whole run (`ending`), or as far as they go (`messages`, `usage`)."""

    messages: list[Message]
    usage: Usage | None
    ending: Ending | None = None
    following: Effect | None = None
    """The run's next effect, if the records do not contain its end."""
    agent: str = ""
    """The agent that would be asked next."""
    context: dict[str, Any] = field(default_factory=dict)
    """The context variables as far as the records go."""


@dataclass
class _Recorded:
    """Performs effects by returning their records."""

    next_reply: Callable[[], Reply | None]
    next_outcome: Callable[[int, Call], Outcome | None]
    next_verdict: Callable[[Guard], Block | Literal[False] | None]
    usages: list[Usage | None]
    ahead: Reply | None = None
    """The reply after one without tool calls: the run continued, because more messages were sent to it."""

    async def __call__(self, effect: Effect) -> Reply | list[Outcome] | Block | bool:
        if isinstance(effect, Guard):
            if (verdict := self.next_verdict(effect)) is None:
                raise _NotYet(effect, [None for _ in effect.calls])
            return verdict
        if isinstance(effect, Close):
            self.ahead = self.next_reply()
            return self.ahead is not None
        if isinstance(effect, Ask):
            reply, self.ahead = self.ahead or self.next_reply(), None
            if reply is None:
                raise _NotYet(effect, [])
            self.usages.append(reply.usage)
            return reply
        outcomes: list[Outcome | None] = []
        for call in effect.calls:
            made = call.plan not in NOT_MADE
            outcomes.append(self.next_outcome(effect.turn, call) if made else known(call, outcomes))
        found = [outcome for outcome in outcomes if outcome is not None]
        if len(found) < len(outcomes):
            raise _NotYet(effect, outcomes)
        return found


def follow(
    start: Start,
    next_reply: Callable[[], Reply | None],
    next_outcome: Callable[[int, Call], Outcome | None],
    next_verdict: Callable[[Guard], Block | Literal[False] | None] = lambda _: False,
    *,
    pending: str,
) -> RunHistory:
    """Rebuild a run's history from its records, with the same loop that ran it.

    The functions return the next record, or None where the records end.

    The messages are always a history that a provider accepts: a tool call without a result gets `pending` as its text.
    """
    recorded = _Recorded(next_reply, next_outcome, next_verdict, [turn.reply.usage for turn in start.kept])
    try:
        ending = finish(drive(guarded_turns(start), recorded))
    except _NotYet as end:
        messages, (agent, context) = _so_far(end, len(start.messages), pending), _left(end)
        return RunHistory(messages, total(recorded.usages), following=end.effect, agent=agent, context=context)
    return RunHistory(ending.messages, ending.usage, ending, agent=ending.agent, context=ending.context)


def _left(end: _NotYet) -> tuple[str, dict[str, object]]:
    """Return the agent and the context variables after the calls that have an outcome."""
    agent, context = end.effect.agent, dict(end.effect.context)
    found = [outcome for outcome in end.outcomes if outcome is not None]
    for outcome in found:
        absorb(context, outcome)
        agent = outcome.agent or agent
    for outcome in found:
        context.update(outcome.updates)
    return agent, context


def _so_far(end: _NotYet, first: int, pending: str) -> list[Message]:
    effect = end.effect
    if not isinstance(effect, CallAll | Guard):
        return effect.history[first:]
    history = list(effect.history)
    for call, outcome in zip(effect.calls, end.outcomes, strict=True):
        text = pending if outcome is None else outcome.text
        history.append({"role": "tool", "tool_call_id": call.id, "tool_name": call.tool, "content": text})
    return history[first:]
