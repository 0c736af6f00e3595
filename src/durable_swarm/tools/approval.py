"""Requests before and after a tool call: a person's approval, and a result that another program posts later."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, Unpack

from durable_swarm import ends
from durable_swarm.awaitables import is_awaitable, settled
from durable_swarm.concurrency import Runtime
from durable_swarm.credentials import without_secrets
from durable_swarm.errors import InvalidAnswer, safe_text
from durable_swarm.loop import Call, Outcome
from durable_swarm.requests import TOKEN, Decision, Kind, RequestSpec
from durable_swarm.schema import BadArguments, accepted, check_arguments, tool_schema
from durable_swarm.tools.context import CurrentCall, People, RequestFields, request_of
from durable_swarm.types import ToolSettings, settings_of

log = logging.getLogger("durable_swarm")


async def needs_approval(
    function: Callable[..., object], settings: ToolSettings, arguments: Mapping[str, object], waits: Runtime
) -> tuple[bool, str]:
    """Return whether a person must approve a call with these arguments, and the reason if the rule failed."""
    rule = settings.approval
    if isinstance(rule, bool):
        return rule, ""
    try:
        verdict = rule(**accepted(rule, function, arguments))
        if is_awaitable(verdict):
            verdict = await waits.call(settled, verdict)
        return bool(verdict), ""
    except BaseException as error:  # A rule that fails must not let anything through.
        failure = ends.failure_of(error)
        if failure is None:
            raise
        why = f"its rule for approvals raised {type(failure).__name__}: {without_secrets(safe_text(failure))[:200]}"
        log.warning("tool %r: %s; a person is asked", getattr(function, "__name__", function), why)
        return True, why


def approval_of(
    function: Callable[..., object], call: Call, current: CurrentCall, same_as: int | None = None
) -> RequestSpec:
    """Return the approval request for a call: exactly the tool and the arguments.

    `same_as` is the number of the step whose call this one repeats.
    """
    return _asked(
        current,
        kind="approval",
        name="approval",
        question=f"{current.agent} asks to call {call.tool}" + (f"; {call.why}" if call.why else ""),
        arguments=json.loads(call.arguments) if call.arguments.strip() else {},
        schema=tool_schema(function)["function"]["parameters"],
        timeout=settings_of(function).approval_timeout,
        same_as=same_as,
    )


def outcome_of(call: Call, current: CurrentCall, number: int, why: str) -> RequestSpec:
    """Return the request about a call that may have happened and must not happen twice."""
    return _asked(
        current,
        kind="unknown_outcome",
        name=f"outcome{number}",
        question=f"{call.tool} was entered, and nothing is recorded of what came of it: its process ended, or it "
        "raised or timed out. It must not be repeated unseen: did it happen? "
        "Answer with its result if it did, approve to have it repeated, reject to report to the agent that it failed"
        + (f". {why}" if why else ""),
        arguments=json.loads(call.arguments) if call.arguments.strip() else {},
    )


def later_of(call: Call, current: CurrentCall, token: str) -> RequestSpec:
    """Return the request for the result of a call that has returned `later(token)`."""
    question = f"{call.tool} waits for its result, posted under {token!r}"
    return request_of(current, id=TOKEN + token, kind="result", question=question)


def _asked(current: CurrentCall, *, kind: Kind, name: str, question: str, **more: Unpack[RequestFields]) -> RequestSpec:
    return request_of(current, id=f"{current.idempotency_key}/{name}", kind=kind, question=question, **more)


def back_off(function: Callable[..., object], arguments: Mapping[str, object]) -> str:
    """Return why the tool, as its code is now, does not take these arguments; '' if it does."""
    try:
        check_arguments(function, json.dumps(arguments))
    except BadArguments as error:
        return str(error)
    return ""


def refuse_misfit(function: Callable[..., object], request_id: str, arguments: Mapping[str, object]) -> None:
    """Check that the tool takes the approved arguments. Raises `InvalidAnswer`."""
    if problem := back_off(function, arguments):
        raise InvalidAnswer(f"the approval does not fit: {problem}", request_id=request_id)


async def approved(
    asked: RequestSpec, function: Callable[..., object], call: Call, people: People, waits: Runtime
) -> tuple[Call, Outcome | None]:
    """Wait for the decision about a call; return the call as approved, or the outcome of a rejection."""

    def unfit(decision: Decision) -> str:
        if decision.verdict != "approved":
            return ""
        return back_off(function, asked.arguments or {} if decision.arguments is None else decision.arguments)

    decision: Decision = await waits.call(people.wait, asked, unfit)
    if decision.verdict == "approved":
        changed = decision.arguments
        return (call if changed is None else dataclasses.replace(call, arguments=json.dumps(changed))), None
    return call, Outcome(refusal("call", decision))


def refusal(what: str, decision: Decision) -> str:
    """Return the model's text for a request that was rejected or expired."""
    if decision.verdict == "expired":
        return f"Error: nobody has approved this {what} in time; it was not made."
    return f"Error: this {what} was rejected" + (f": {decision.reason}" if decision.reason else ".")


def posted(decision: Decision, read: Callable[[Any], Outcome], outcome: Outcome) -> Outcome:
    """Return the outcome of a call with a posted result: its changes of the context, and the later text."""
    if decision.verdict == "rejected":
        return dataclasses.replace(outcome, text=refusal("call", decision), later=None)
    return dataclasses.replace(outcome, text=read(decision.value).text, later=None)
