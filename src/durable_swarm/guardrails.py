"""Guardrails: functions of a program that may stop a run before its tools are called, or before its answer is given.

`guarded_turns` is the turn loop with guardrails around it. It holds no function, only their names, so it is driven by
records, too. `ask_guardrail` calls one.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from durable_swarm.concurrency import Runtime
from durable_swarm.errors import Blocked, ConfigurationError
from durable_swarm.loop import (
    NOT_MADE,
    Ask,
    CallAll,
    Close,
    Effect,
    Ending,
    Guard,
    GuardKind,
    Start,
    Turns,
    Verdict,
    total,
    turns,
)
from durable_swarm.types import AgentLike, Block, Message

_SUBJECT: dict[GuardKind, str] = {"input": "messages", "output": "output"}


def guarded_turns(start: Start) -> Turns:
    """Run the agents as `turns` does, as far as guardrails let it.

    The input guardrails run beside the first model call. Until they have passed, nothing follows it but calls of tools
    that only read. The output guardrails of an answer run before the run ends with it.
    """
    loop = turns(start)
    answer: Any = None
    usages = [turn.reply.usage for turn in start.kept]
    asked, reply = None, None
    unpassed: set[GuardKind] = set()
    while True:
        try:
            effect = loop.send(answer)
        except StopIteration as end:
            ending: Ending = end.value
            return ending
        if unpassed and asked is not None and reply is not None:
            for kind in _due(effect, unpassed):
                guard = Guard(kind, asked.turn, asked.agent, reply, effect.history, asked.context, _calls(effect))
                if block := (yield guard):
                    yield Close(guard.turn, guard.history, at_limit=True)
                    messages = [*_unblocked(start, guard), answer_of(block, guard.agent)]
                    usage = total(usages)
                    return Ending(messages, guard.agent, guard.context, usage, "guardrail")
                unpassed.discard(kind)
        answer = yield effect
        if isinstance(effect, Ask):
            asked, reply = effect, answer
            usages.append(answer.usage)
            unpassed |= {kind for kind in _SUBJECT if getattr(answer, f"{kind}_guardrails")}


def _due(effect: Effect, unpassed: set[GuardKind]) -> list[GuardKind]:
    """Return the kinds of guardrails that must pass before an effect, which follows a reply."""
    due: dict[GuardKind, bool] = {"input": not _only_reads(effect), "output": isinstance(effect, Close)}
    return [kind for kind, is_due in due.items() if is_due and kind in unpassed]


def _only_reads(effect: Effect) -> bool:
    return isinstance(effect, CallAll) and all(call.effect == "read" or call.plan in NOT_MADE for call in effect.calls)


def _calls(effect: Effect) -> list[Any]:
    return effect.calls if isinstance(effect, CallAll) else []


def _unblocked(start: Start, guard: Guard) -> list[dict[str, object]]:
    """Return the new messages that stay: none after a blocked input, all before a blocked answer."""
    return [] if guard.kind == "input" else guard.history[len(start.messages) : -1]


def answer_of(block: Block, agent: str) -> dict[str, object]:
    """Return the message with which a blocked run ends."""
    return {"role": "assistant", "content": block.reply, "tool_calls": None, "sender": agent}


def guardrails_of(agent: AgentLike, kind: GuardKind) -> dict[str, Callable[..., object]]:
    """Return an agent's guardrails by name."""
    return {guardrail_name(function): function for function in getattr(agent, f"{kind}_guardrails", None) or ()}


def output_guardrails(agent: AgentLike, message: Message, verdict: Verdict | None) -> list[str]:
    """Return the names of the guardrails that judge a reply before a run ends with it.

    None judge tool calls, an answer that does not fit the agent's type, or one that was cut and has no value.
    """
    typed = getattr(agent, "output_type", None) is not None
    is_value = verdict is not None and not verdict.tell
    if message.get("tool_calls") or (typed and not is_value):
        return []
    return list(guardrails_of(agent, "output"))


def guardrail_name(function: object) -> str:
    """Return the name of a guardrail, by which it is found after a crash."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def check_guardrails(agent: AgentLike) -> None:
    """Check that an agent's guardrails are functions with names of their own. Raises `ConfigurationError`."""
    for kind in _SUBJECT:
        given = getattr(agent, f"{kind}_guardrails", None) or []
        if not isinstance(given, list | tuple) or not all(callable(function) for function in given):
            raise ConfigurationError(f"agent {agent.name!r}: {kind}_guardrails must be a list of functions")
        if len(guardrails_of(agent, kind)) < len(given):
            raise ConfigurationError(f"agent {agent.name!r}: two of its {kind}_guardrails have one name; rename one")


async def ask_guardrail(
    function: Callable[..., object], kind: GuardKind, subject: Any, context: Mapping[str, object], waits: Runtime
) -> Block | None:
    """Call a guardrail with the messages or the output, and with the context variables if it names them.

    Raises what it raises, and `ConfigurationError` if it returns anything but None and `Block`.
    """
    takes = inspect.signature(function).parameters
    named = {"context_variables": context} if "context_variables" in takes else {}
    if _SUBJECT[kind] in takes:
        named[_SUBJECT[kind]] = subject
        call = functools.partial(function, **named)
    else:
        call = functools.partial(function, subject, **named)
    verdict = await waits.call(call)
    if verdict is None or isinstance(verdict, Block):
        return verdict
    raise ConfigurationError(
        f"guardrail {guardrail_name(function)!r} returned {verdict!r:.80}; return None to let the run continue, or "
        "Block(reason) to stop it"
    )


def blocked(name: str, block: Block) -> Blocked:
    """Return the error of a run that a guardrail stopped without a reply."""
    return Blocked(f"guardrail {name!r} stopped the run: {block.reason}", guardrail=name, reason=block.reason)


def first_block(names: Sequence[str], verdicts: Sequence[Block | None]) -> tuple[str, Block] | None:
    """Return the first guardrail, in the agent's order, that stops the run, and its verdict."""
    return next(((name, block) for name, block in zip(names, verdicts, strict=True) if block is not None), None)
