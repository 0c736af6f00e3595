"""The turn loop, written once: a generator that yields effects and is sent their results.

This file does no I/O, reads no clock and knows no database. `Swarm`, `DurableSwarm` and the reader of recorded runs
drive the same loop; they differ in how they perform its effects. All values that cross are plain data, agents by name,
so a recorded run can be followed where its agents and tools are not defined.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from durable_swarm.types import Effect as EffectClass
from durable_swarm.types import EndedBy, Message, Usage

CUT: dict[str, EndedBy] = {"length": "length", "content_filter": "content_filter"}
"""The finish reasons of replies that the provider cut: none of their calls is made."""


@dataclass(frozen=True)
class Call:
    """One tool call of a reply, the `index`-th, and how it is made.

    The plan is recorded with the reply, so a change of the code never changes the order of calls in progress: `step` is
    one checkpoint, `flow` may contain steps, and a `tell` is not made at all: `text` is sent to the model. `same` marks
    a twin in the same reply, which gets the outcome of call number `twin`. `effect` is the tool's effect class. With
    `approval` a person is asked before the call is made; `why` is the reason if it is not the rule itself.
    """

    index: int
    id: str
    tool: str
    arguments: str
    plan: str
    text: str = ""
    effect: EffectClass = "idempotent"
    approval: bool = False
    why: str = ""
    twin: int | None = None


@dataclass(frozen=True)
class Verdict:
    """The judgement of an answer by its agent's output type; `tell` is the text for the model if it does not fit.

    `wrapped` means that the value is in the answer under a key of its own.
    """

    tell: str = ""
    wrapped: bool = False


@dataclass(frozen=True)
class Reply:
    """A model's reply: the message, and its tool calls with their plans.

    `together`, a part of the plan, means that the calls are made together, not one after the other. `heard` are
    messages sent to the run meanwhile, which the model gets after the history. `finish` is the provider's finish reason
    if it is not the usual one: "length" and "content_filter" mean that the reply was cut. `written` names a tool whose
    call seems to be written in the text of a reply without calls. `verdict` judges an answer of an agent with an
    output type; other replies have none. `limit` names the limit because of which this is the run's last reply.
    `input_guardrails` are the names of those that run beside this model call, `output_guardrails` of those that must
    pass before the run ends with this reply.
    """

    message: Message
    calls: list[Call]
    usage: Usage | None = None
    together: bool = False
    heard: list[Message] = field(default_factory=list)
    finish: str = ""
    written: str = ""
    verdict: Verdict | None = None
    limit: str = ""
    input_guardrails: list[str] = field(default_factory=list)
    output_guardrails: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """The outcome of one tool call: text for the model, perhaps a handoff, and the changed context.

    `changed` and `removed` are the tool's changes of its context variables in place, `updates` those in its `Result`.
    `later` is the token under which the text will be posted, if the tool has none yet; such an outcome is not final.
    `limit` names the limit because of which the call was not made.
    """

    text: str
    agent: str | None = None
    updates: dict[str, object] = field(default_factory=dict)
    changed: dict[str, object] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    later: str | None = None
    limit: str = ""


@dataclass(frozen=True)
class Turn:
    """A whole recorded turn: the reply, and the outcome of each of its calls; empty if they were not made."""

    reply: Reply
    outcomes: list[Outcome]


@dataclass(frozen=True)
class TurnOverride:
    """A change just before a turn begins: another agent takes it, and messages are added to the history."""

    agent: str | None = None
    messages: list[Message] = field(default_factory=list)


@dataclass(frozen=True)
class Start:
    """The start of a run; `max_turns` counts messages, as in Swarm, and None means no bound.

    `kept` are the first turns of a fork: they are taken as recorded and not performed. `detours` are by turn.
    """

    agent: str
    messages: list[Message]
    context: dict[str, object]
    model_override: str | None = None
    max_turns: float | None = None
    execute_tools: bool = True
    kept: list[Turn] = field(default_factory=list)
    detours: dict[int, TurnOverride] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """Effect: one model call. Answered by a `Reply`.

    `misfits` is how many answers of the agent did not fit its type since one did.
    """

    turn: int
    agent: str
    history: list[Message]
    context: dict[str, object]
    misfits: int = 0


@dataclass(frozen=True)
class CallAll:
    """Effect: the tool calls of one reply, one batch in the model's order. Answered by an `Outcome` for each call."""

    turn: int
    agent: str
    calls: list[Call]
    context: dict[str, object]
    history: list[Message]
    together: bool = False


@dataclass(frozen=True)
class Close:
    """Effect: the run is about to end. Answered by True if more messages were sent to it.

    `at_limit` means that it ends in any case, because it has reached its `max_turns` or a limit.
    """

    turn: int
    history: list[Message]
    at_limit: bool = False


GuardKind = Literal["input", "output"]


@dataclass(frozen=True)
class Guard:
    """Effect: wait for the guardrails of a reply. Answered by the `Block` of one that stops the run, or by False.

    `calls` are the reply's calls that wait for them.
    """

    kind: GuardKind
    turn: int
    agent: str
    reply: Reply
    history: list[Message]
    context: dict[str, object]
    calls: list[Call]

    @property
    def names(self) -> list[str]:
        """The names of the guardrails."""
        return self.reply.input_guardrails if self.kind == "input" else self.reply.output_guardrails


Effect = Ask | CallAll | Close | Guard


@dataclass(frozen=True)
class Ending:
    """The end of a run: its new messages, its last agent, the context variables, the reason, the answer's verdict."""

    messages: list[Message]
    agent: str
    context: dict[str, object]
    usage: Usage | None
    ended_by: EndedBy = "answer"
    verdict: Verdict | None = None


Turns = Generator[Effect, Any, Ending]


def turns(start: Start) -> Turns:
    """Run the agents until one answers without calling a tool, or `max_turns` messages are reached."""
    agent, context, turn, misfits = start.agent, start.context, 0, 0
    usages: list[Usage | None] = []
    history, first = list(start.messages), len(start.messages)
    given = first
    while start.max_turns is None or len(history) - given < start.max_turns:
        if detour := start.detours.get(turn):
            history.extend(detour.messages)
            given += len(detour.messages)
            agent, misfits = detour.agent or agent, 0
        reply = yield from ask(start, Ask(turn, agent, history, context, misfits))
        history += [*reply.heard, {**reply.message, "sender": agent}]
        given += len(reply.heard)
        usages.append(reply.usage)
        calls, told = reply.calls if start.execute_tools else [], [] if reply.limit else correction(reply)
        history += told
        if reply.verdict is not None:
            misfits = misfits + 1 if told else 0
        if not calls and not told and not reply.limit and not (yield from goes_on(start, Close(turn, history))):
            ended_by, verdict = CUT.get(reply.finish, "answer"), reply.verdict
            break
        outcomes = yield from call_all(start, CallAll(turn, agent, calls, context, history, reply.together))
        for call, outcome in zip(calls, outcomes, strict=True):
            history.append({"role": "tool", "tool_call_id": call.id, "tool_name": call.tool, "content": outcome.text})
            absorb(context, outcome)
            agent = outcome.agent or agent
            misfits = 0 if outcome.agent else misfits
        # After the batch, as in Swarm: a call sees changes of its siblings in place, but not the ones they returned.
        for outcome in outcomes:
            context.update(outcome.updates)
        if reply.limit:
            yield Close(turn, history, at_limit=True)
            ended_by, verdict = "limit", None if correction(reply) else reply.verdict
            break
        turn += 1
    else:
        yield Close(turn - 1, history, at_limit=True)
        ended_by, verdict = "max_turns", None
    return Ending(history[first:], agent, context, total(usages), ended_by, verdict)


def ask(start: Start, effect: Ask) -> Generator[Ask, Reply, Reply]:
    """Yield a model call, unless its turn is kept."""
    return start.kept[effect.turn].reply if effect.turn < len(start.kept) else (yield effect)


def correction(reply: Reply) -> list[Message]:
    """Return the message by which the model learns that its answer does not fit, if it does not."""
    told = "" if reply.verdict is None else reply.verdict.tell
    return [{"role": "user", "content": told}] if told else []


def call_all(start: Start, effect: CallAll) -> Generator[CallAll, list[Outcome], list[Outcome]]:
    """Yield a batch of tool calls, unless there is none or its turn is kept."""
    if not effect.calls:
        return []
    return start.kept[effect.turn].outcomes if effect.turn < len(start.kept) else (yield effect)


def goes_on(start: Start, effect: Close) -> Generator[Close, bool, bool]:
    """Yield the end of a run, unless the following turn is known."""
    known = effect.turn + 1 in start.detours or effect.turn + 1 < len(start.kept)
    return known or (yield effect)


def known(call: Call, outcomes: Sequence[Outcome | None]) -> Outcome | None:
    """Return the outcome of a call that is not made, from the calls before it; None for one that must be made."""
    if call.plan == "same" and call.twin is not None:
        twin = outcomes[call.twin]
        return None if twin is None else Outcome(twin.text)
    return Outcome(call.text) if call.plan == "tell" else None


NOT_MADE = ("tell", "same")
"""The plans of calls that have no record of their own."""


def absorb(context: dict[str, object], outcome: Outcome) -> None:
    """Make in `context` the changes a tool made in place."""
    for key in outcome.removed:
        context.pop(key, None)
    context.update(outcome.changed)


def total(usages: Iterable[Usage | None]) -> Usage | None:
    """Return the sum of token usages, any of which may be unknown; None if all are."""
    counted = [usage for usage in usages if usage is not None]
    if not counted:
        return None
    return Usage(**{name: sum(getattr(usage, name) for usage in counted) for name in Usage.model_fields})


async def drive(loop: Turns, perform: Callable[[Effect], Awaitable[object]]) -> Ending:
    """Drive the loop to its end with `perform`, which performs one effect and returns its answer."""
    answer: object = None
    while True:
        try:
            effect = loop.send(answer)
        except StopIteration as end:
            ending: Ending = end.value
            return ending
        answer = await perform(effect)
