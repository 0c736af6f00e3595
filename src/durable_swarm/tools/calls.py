"""Planning and performing the tool calls of one reply.

The plan is made by the code as it is when the reply arrives, and is recorded with the reply. The functions for use
inside tools are in `tools.decorators` and `tools.inside`.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from durable_swarm import ends
from durable_swarm.codec import mended_text, mended_values
from durable_swarm.concurrency import Calls, Runtime
from durable_swarm.credentials import without_secrets
from durable_swarm.errors import ConfigurationError, LimitReached, ToolError, safe_text
from durable_swarm.limits import words_of
from durable_swarm.loop import CUT, Call, Outcome
from durable_swarm.schema import BadArguments, check_arguments, wants_connection, wants_context
from durable_swarm.tools.approval import needs_approval
from durable_swarm.tools.asking import Later
from durable_swarm.tools.attempts import retrying
from durable_swarm.tools.context import Inside
from durable_swarm.tools.repeats import Made, key_of, succeeded
from durable_swarm.toolsets import functions_of, to_load
from durable_swarm.types import AgentLike, Message, Repeat, Result, ToolSettings, settings_of, tool_name
from durable_swarm.validation import check_name


def find_tool(agent: AgentLike, name: str) -> Callable[..., object] | None:
    """Return the agent's tool of that name, the last one if there are several, or None."""
    return next((function for function in reversed(functions_of(agent)) if tool_name(function) == name), None)


async def load_tools(agent: AgentLike, waits: Runtime) -> None:
    """Read the agent's tools that are still to be read. Raises `ConfigurationError`."""
    for toolset in to_load(agent):
        await waits.call(toolset.load)


QUOTED = 500
"""Characters of an earlier result that a refusal shows to the model."""

MOST_NAMED = 50
"""Number of tools that are named to a model that called an unknown one."""

LONGEST_WRITTEN = 20_000
"""Characters of a text that are searched for a written call."""

_CUT_BY = {"length": "at its token limit", "content_filter": "by the provider's content filter"}


async def plan_calls(
    agent: AgentLike,
    message: Message,
    waits: Runtime,
    finish: str = "",
    before: Sequence[Message] = (),
    limit: str = "",
) -> list[Call]:
    """Decide how each tool call of a reply is made, by the code as it is now.

    No call of a cut reply (`finish`) is made, even one that looks whole: the missing text may have been a part of it,
    and empty arguments would be the tool's defaults. `before` are the new messages of the run so far: how a tool's
    `repeat` treats earlier calls is decided here, once. `limit` names the limit because of which the run ends now: then
    no call is made.
    """
    calls = message.get("tool_calls") or []
    if limit:
        return [
            Call(index, call["id"], **_named(call), plan="tell", text=not_made(limit))
            for index, call in enumerate(calls)
        ]
    if finish in CUT:
        return [Call(index, call["id"], **_named(call), **_cut(finish)) for index, call in enumerate(calls)]
    planned = [
        Call(index, call["id"], **_named(call), **await _plan(agent, call, waits)) for index, call in enumerate(calls)
    ]
    guarded = {call.index for call in planned if call.plan != "tell" and _repeat_of(agent, call) != "allow"}
    if not guarded:
        return planned
    made, twins = succeeded(before), dict[str, int]()
    for call in planned:
        key = key_of(call.tool, call.arguments)
        if call.index in guarded and (key in made or key in twins):
            again = _again(_repeat_of(agent, call), made.get(key), twins.get(key))
            planned[call.index] = replace(call, effect="idempotent", approval=False, why="", **again)
        elif call.plan != "tell":
            twins.setdefault(key, call.index)
    return planned


def _repeat_of(agent: AgentLike, call: Call) -> Repeat:
    return settings_of(find_tool(agent, call.tool)).repeat


def _again(repeat: Repeat, made: Made | None, twin: int | None) -> dict[str, Any]:
    """Plan a call that was made before in the run, or is a twin of an earlier call of the reply."""
    if repeat == "reuse":
        return {"plan": "same", "twin": twin} if made is None else {"plan": "tell", "text": made.text}
    if made is None:
        return {"plan": "tell", "text": "Error: this call occurs twice in your reply, and is made once."}
    text = made.text if len(made.text) <= QUOTED else f"{made.text[:QUOTED]}…"
    told = "you have made this call in this run, with the same arguments, and it succeeded; it is not made again"
    return {"plan": "tell", "text": f"Error: {told}. Its result was: {text}"}


def written_call(agent: AgentLike, message: Message) -> str:
    """Return the tool whose call seems to be written in the text of a reply without calls, or ''."""
    text = message.get("content")
    if message.get("tool_calls") or not isinstance(text, str) or len(text) > LONGEST_WRITTEN:
        return ""
    bare = text.strip(" \t\r\n`\"'.()")
    for name in map(tool_name, functions_of(agent)):
        as_call = rf"(?<![\w-]){re.escape(name)}\s*\(|[\"']{re.escape(name)}[\"']|[=:>]\s*{re.escape(name)}\s*[<>{{\n]"
        if bare == name or re.search(as_call, text):
            return name
    return ""


def _cut(finish: str) -> dict[str, Any]:
    text = (
        f"Error: your reply was cut {_CUT_BY[finish]} (finish_reason {finish!r}), so this call was not made. "
        "If it is still needed, make it again in a shorter reply."
    )
    return {"plan": "tell", "text": text}


def not_made(limit: str) -> str:
    """Return the text for the model in place of a call that a limit of the run does not permit."""
    return f"Error: this call was not made, because the run has reached its limit of {words_of(limit)}."


def _named(call: dict[str, Any]) -> dict[str, Any]:
    return {"tool": call["function"]["name"], "arguments": call["function"]["arguments"]}


async def _plan(agent: AgentLike, call: dict[str, Any], waits: Runtime) -> dict[str, Any]:
    name = call["function"]["name"]
    function = find_tool(agent, name)
    if function is None:
        return {"plan": "tell", "text": not_found(agent, name)}
    try:
        arguments = check_arguments(function, call["function"]["arguments"])
    except BadArguments as error:
        return {"plan": "tell", "text": f"Error: {error}"}
    settings = settings_of(function)
    approval, why = await needs_approval(function, settings, arguments, waits)
    # The records of an approval, or of a mark before the call, are among the call's own.
    alone = settings.is_step and not approval and settings.effect in ("read", "idempotent")
    return {"plan": "step" if alone else "flow", "effect": settings.effect, "approval": approval, "why": why}


def not_found(agent: AgentLike, name: str) -> str:
    """Return the text for the model in place of a call of a tool that the agent does not have.

    It names the agent's tools, because a small model learns nothing from less.
    """
    names = list(dict.fromkeys(map(tool_name, functions_of(agent))))
    shown = ", ".join(names[:MOST_NAMED]) + (", …" if len(names) > MOST_NAMED else "")
    return f"Error: Tool {name[:100]} not found. " + (f"Your tools are: {shown}." if names else "You have no tools.")


Cast = dict[str, AgentLike]
"""Agents that a run has met in this process, by name: the first one, and those that tools returned."""


async def call_tool(
    function: Callable[..., object],
    call: Call,
    context: dict[str, object],
    here: Inside,
    *,
    cast: Cast,
    tell_errors: bool,
    waits: Runtime,
) -> Outcome:
    """Call a tool with the model's arguments and return its outcome.

    The tool's changes of `context` are kept; an agent that the tool returns is added to `cast`. The tool's exceptions
    pass, except `ToolError`; with `tell_errors` every exception is sent to the model.
    """
    if wants_connection(function):
        raise ConfigurationError(
            f"tool {call.tool!r} is transactional, and there is no database here; use DurableSwarm in place of Swarm"
        )
    made = invoke(function, call, context, here, cast=cast, waits=waits)
    return await told(made, tell_errors=tell_errors, limited_by=here.limited_by)


async def told(making: Awaitable[Outcome], *, tell_errors: bool, limited_by: Collection[str]) -> Outcome:
    """Await a call's outcome; a `ToolError`, or with `tell_errors` any exception, becomes text for the model.

    A limit that a child run has reached ends this run, too, if it is one of its own: `limited_by` are the ids of the
    runs whose limits hold here. Half characters in the text (a file name that is not UTF-8, a text cut within an emoji)
    become U+FFFD.
    """
    outcome = await _told(making, tell_errors, limited_by)
    return replace(outcome, text=mended_text(outcome.text), updates=mended_values(outcome.updates))


async def _told(making: Awaitable[Outcome], tell_errors: bool, limited_by: Collection[str]) -> Outcome:
    try:
        return await making
    except (BadArguments, ToolError) as error:
        return Outcome(f"Error: {error}")
    except BaseException as error:
        failure = ends.failure_of(error)
        shared = isinstance(failure, LimitReached) and failure.run_id in limited_by
        if failure is None or not tell_errors or shared:
            raise
        return Outcome(f"Error: {type(failure).__name__}: {without_secrets(safe_text(failure))}")


async def invoke(
    function: Callable[..., object],
    call: Call,
    context: Mapping[str, object],
    here: Inside,
    *,
    cast: Cast,
    waits: Calls,
    **given: object,
) -> Outcome:
    """Call a tool with the model's arguments and the `given` ones. Raises the tool's exceptions and `BadArguments`."""
    arguments = {**check_arguments(function, call.arguments), **given}
    if wants_context(function):
        arguments["context_variables"] = context
    settings = settings_of(function)
    if settings.is_step and here.recorder is not None:
        settings = ToolSettings()  # The step has its own attempts.
    return read_result(await waits.call(retrying(functools.partial(function, **arguments), settings, here)), cast)


def read_result(value: Any, cast: Cast) -> Outcome:
    """Convert a tool's return value to an `Outcome`: text, a `Result`, or an agent (a handoff, added to `cast`).

    Raises TypeError, as Swarm does, for a value that cannot be made a string.
    """
    if inspect.isgenerator(value) or inspect.isasyncgen(value):
        raise TypeError(
            "the tool returned a generator, of which nothing was executed; return the whole result, and report "
            "progress by emit()"
        )
    if isinstance(value, Later):
        return Outcome("", later=value.token)
    if isinstance(value, Result) or _has(value, "value", "agent", "context_variables"):
        return Outcome(str(value.value), _handoff(value.agent, cast), dict(value.context_variables))
    if _has(value, "name", "instructions", "functions"):
        return Outcome(json.dumps({"assistant": value.name}), _handoff(value, cast))
    try:
        return Outcome(str(value))
    except Exception as error:
        raise TypeError(
            f"Failed to cast response to string: a {type(value).__name__}. Make sure agent functions return a string "
            f"or Result object. Error: {safe_text(error)}"
        ) from error


def _has(value: object, *names: str) -> bool:
    return not isinstance(value, type) and all(hasattr(value, name) for name in names)


def _handoff(agent: AgentLike, cast: Cast) -> str | None:
    if agent is None:
        return None
    cast[check_name("the name of the agent that the tool returned", agent.name)] = agent
    return str(agent.name)
