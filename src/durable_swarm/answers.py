"""Reading a model's answer as plain data: its message, its tool calls, its tokens."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from durable_swarm.types import Message, Usage


class EmptyReply(Exception):
    """The provider answered without a message."""


@dataclass(frozen=True)
class Answer:
    """A provider's answer in its own types: the message, the tokens it counted, or None, and its finish reason."""

    message: Any
    usage: Any = None
    finish: Any = None


def checked(answer: Any) -> Answer:
    """Return what matters of a completion. Raises `EmptyReply` where it has no message."""
    choices = getattr(answer, "choices", None)
    choice = choices[0] if choices else None
    message = getattr(choice, "message", None)
    if message is None:
        raise EmptyReply("the provider's answer has no message")
    return Answer(message, getattr(answer, "usage", None), field(choice, "finish_reason"))


_WHOLE = {"stop", "tool_calls", "function_call"}
_CUT = {
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "safety": "content_filter",
    "content_filtered": "content_filter",
    "guardrail_intervened": "content_filter",
    "sensitive": "content_filter",
    "recitation": "content_filter",
    "prohibited_content": "content_filter",
    "blocklist": "content_filter",
    "spii": "content_filter",
}
"""What gateways write who pass on another provider's reason, and the name that OpenAI has for it."""


def read_finish(answer: Answer) -> str:
    """Return the provider's reason for the end of its reply, in OpenAI's words; "" where it is the usual one."""
    if not isinstance(answer.finish, str):
        return ""
    reason = answer.finish.strip()
    word = reason.lower().replace("-", "_")
    return "" if word in _WHOLE else _CUT.get(word, word if word in ("length", "content_filter") else reason)


def read_message(message: Any, turn: int) -> Message:
    """Give the assistant message as plain data, with `content` and `tool_calls` always present.

    Accepts mappings, pydantic models and any object with `content` and `tool_calls`. Fields the provider left null are
    left out; a call without an id gets one, for providers that send none but want it back.
    """
    data = _as_dict(message)
    calls = [_read_call(call, turn, index) for index, call in enumerate(data.pop("tool_calls", None) or [])]
    rest = {key: value for key, value in data.items() if value is not None and key not in ("role", "content", "sender")}
    content = data.get("content")
    if content is not None and not isinstance(content, str | list):
        content = json.dumps(content, default=str)
    return {"role": "assistant", "content": content, **rest, "tool_calls": calls or None}


def _as_dict(message: Any) -> dict[str, Any]:
    if isinstance(message, Mapping):
        return dict(message)
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        dumped = message.model_dump(mode="json")
        if isinstance(dumped, dict):
            return dumped
    return {key: getattr(message, key, None) for key in ("content", "tool_calls")}


def _read_call(call: Any, turn: int, index: int) -> dict[str, Any]:
    function = field(call, "function")
    part = partial(field, function)
    given = field(call, "id")
    arguments = part("arguments")
    if not isinstance(arguments, str):
        arguments = "" if arguments is None else json.dumps(arguments)
    return {
        "id": str(given) if given else f"call_{turn}_{index}",
        "type": "function",
        "function": {"name": str(part("name") or ""), "arguments": arguments},
    }


def field(thing: Any, name: str, default: Any = None) -> Any:
    """Give a field of a mapping or an object, or `default` where there is none."""
    return thing.get(name, default) if isinstance(thing, Mapping) else getattr(thing, name, default)


def read_usage(answer: Answer) -> Usage | None:
    """Give the tokens that the provider counted, or None where it counted none."""
    counts = {name: field(answer.usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    known = {name: count for name, count in counts.items() if isinstance(count, int)}
    return Usage(requests=1, **known) if known else None
