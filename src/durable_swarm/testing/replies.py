"""The forms of a scripted reply, and the response made from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from durable_swarm.errors import ConfigurationError
from durable_swarm.testing.faults import Cut, CutOff, Page, Slow
from durable_swarm.testing.request_reader import messages_of
from durable_swarm.testing.shapes import (
    AssistantMessage,
    Choice,
    Completion,
    Function,
    TokenUsage,
    ToolCall,
    as_completion,
)

REPLY_FORMS = (
    "A reply is a string, a list of tool calls, a dict that is an assistant message, an exception, a fault such "
    "as cut(...), or a callable of the request."
)
CALL_FORMS = 'A tool call is "name", ("name", {"arg": 1}), ("name", "raw text") or call("name", arg=1).'


def call(name: str, /, **arguments: object) -> dict[str, Any]:
    """Write a tool call for a script: `call("refund", order="A1")`."""
    return {"name": name, "arguments": arguments}


def is_exception(reply: object) -> bool:
    """Return True if the reply is an exception or an exception class."""
    return isinstance(reply, BaseException) or (isinstance(reply, type) and issubclass(reply, BaseException))


def check_reply(reply: object) -> None:
    """Refuse a reply of an unknown form. A callable's reply is checked when it is called.

    Raises `ConfigurationError`.
    """
    while isinstance(reply, Slow | Cut | CutOff):
        reply = reply.reply
    if not (is_exception(reply) or callable(reply) or isinstance(reply, Page) or hasattr(reply, "choices")):
        message_of(reply, str)


def message_of(reply: object, new_id: Callable[[], str]) -> AssistantMessage:
    """Make the assistant message for a string, a list of calls or a dict."""
    if isinstance(reply, str):
        return AssistantMessage(content=reply)
    if isinstance(reply, list) and reply:
        return AssistantMessage(tool_calls=[_tool_call(spec, new_id) for spec in reply])
    if isinstance(reply, dict) and not reply.keys().isdisjoint({"role", "content", "tool_calls"}):
        return _whole_message(reply, new_id)
    raise ConfigurationError(f"ScriptedModel cannot give the reply {reply!r}. {REPLY_FORMS}")


def _whole_message(reply: dict[str, Any], new_id: Callable[[], str]) -> AssistantMessage:
    calls = reply.get("tool_calls")
    parts = reply if calls is None else {**reply, "tool_calls": [_tool_call(spec, new_id) for spec in calls]}
    try:
        return AssistantMessage(**parts)
    except ValidationError as error:
        raise ConfigurationError(f"{reply!r} is not an assistant message: {error}") from error


def _tool_call(spec: object, new_id: Callable[[], str]) -> ToolCall:
    given = None
    match spec:
        case str(name):
            arguments: Any = {}
        case (str(name), dict() | str() as arguments):
            pass
        case {"function": {"name": str(name), "arguments": dict() | str() as arguments}, **rest}:
            given = rest.get("id")
        case {"name": str(name), **rest} if isinstance(rest.get("arguments", {}), (dict, str)):
            arguments, given = rest.get("arguments", {}), rest.get("id")
        case _:
            raise ConfigurationError(f"ScriptedModel cannot make the tool call {spec!r}. {CALL_FORMS}")
    if not isinstance(given, str | None):
        raise ConfigurationError(f"the id of the scripted tool call {name!r} must be a string, not {given!r}")
    text = arguments if isinstance(arguments, str) else _as_json(name, arguments)
    return ToolCall(id=new_id() if given is None else given, function=Function(name=name, arguments=text))


def _as_json(name: str, arguments: Mapping[str, object]) -> str:
    try:
        return json.dumps(arguments)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"the arguments of the scripted tool call {name!r} are not JSON: {error}") from error


def completion_of(number: int, request: dict[str, Any], message: AssistantMessage, finish: str | None) -> Completion:
    """Make the response to request `number` with the message; `finish` is its finish reason if it was cut off."""
    prompt = sum(_words(asked) for asked in messages_of(request))
    answer = _words(message.model_dump())
    return Completion(
        id=f"chatcmpl-{number}",
        model=str(request.get("model", "scripted")),
        choices=[Choice(message=message, finish_reason=finish or ("tool_calls" if message.tool_calls else "stop"))],
        usage=TokenUsage(prompt_tokens=prompt, completion_tokens=answer, total_tokens=prompt + answer),
    )


def cut_short(answer: object, finish: str) -> Completion:
    """Return a whole response object with another finish reason."""
    cut = as_completion(answer).model_copy(deep=True)
    for choice in cut.choices:
        choice.finish_reason = finish
    return cut


def _words(message: dict[str, Any]) -> int:
    """Count a message's tokens: the words of its text, and those of the names and arguments of its calls."""
    texts = [str(message.get("content") or "")]
    texts += [f"{made['function']['name']} {made['function']['arguments']}" for made in message.get("tool_calls") or ()]
    return len(" ".join(texts).split())
