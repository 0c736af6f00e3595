"""Reading a model's answer as plain data: its message, its tool calls, its tokens."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard

from pydantic import BaseModel

from durable_swarm.codec import MAX_DEPTH, mended
from durable_swarm.types import Message, Usage

DATA = (str, bytes, int, float, list, tuple, set, type(None))
"""Types without fields, which cannot be a message, a chunk or a tool call."""


class EmptyReply(Exception):
    """The provider answered without a message."""


class ErrorReply(Exception):
    """An error in the provider's own words in place of a reply: in a success, or in a stream."""

    def __init__(self, message: str, code: object = None, kind: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.type = kind


@dataclass(frozen=True)
class Answer:
    """A provider's answer in its own types: the message, the tokens if counted, and its finish reason."""

    message: object
    usage: object = None
    finish: object = None


def checked(answer: object) -> Answer:
    """Return the relevant parts of a completion. Raises `EmptyReply` if it has no message."""
    refuse_error(answer)
    choices = field(answer, "choices")
    choice = next(iter(choices), None) if _is_list(choices) else None
    message = field(choice, "message")
    if isinstance(message, DATA) or not _are_calls(field(message, "tool_calls")):
        refuse_error(choice)
        raise EmptyReply(f"the provider's answer has no message{instead(answer)}")
    found = Answer(message, field(answer, "usage"), field(choice, "finish_reason"))
    refuse_broken(found, choice)
    return found


def _is_list(value: object) -> TypeGuard[Iterable[object]]:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def _are_calls(calls: object) -> bool:
    """Return True unless something that was sent as the tool calls of a message cannot be any."""
    if isinstance(calls, list | tuple):
        return not any(isinstance(call, DATA) for call in calls)
    return not calls or _is_list(calls)


def refuse_error(part: object) -> None:
    """Raise `ErrorReply` if an answer, a chunk or a choice reports an error of the provider."""
    error = field(part, "error")
    if isinstance(error, BaseModel):
        error = dumped(error)
    if isinstance(error, str) and error:
        raise ErrorReply(error)
    if isinstance(error, Mapping) and error:
        said = error.get("message")
        text = said if isinstance(said, str) and said else json.dumps(dict(error), default=str)
        raise ErrorReply(text, error.get("code"), error.get("type"))


_BROKEN_OFF = {"error", "network_error", "server_error", "insufficient_system_resource", "abort", "aborted"}
"""Finish reasons by which providers report that they could not finish a reply."""

_UNREADABLE = "malformed_function_call"
"""Part of Gemini's finish reason for a call of its model that it could not read."""


def refuse_broken(answer: Answer, choice: object = None) -> None:
    """Raise `ErrorReply` if the finish reason says that this is not a reply."""
    word = answer.finish.strip().lower() if isinstance(answer.finish, str) else ""
    if word in _BROKEN_OFF:
        refuse_error(choice)
        raise ErrorReply(f"the provider broke off its reply (finish_reason {answer.finish!r})", word)
    if _UNREADABLE in word and not field(answer.message, "tool_calls"):
        raise ErrorReply("the provider could not read the tool call that its model wrote", _UNREADABLE)


def instead(answer: object) -> str:
    """Return the text that a provider sent in place of a message."""
    if isinstance(answer, str | bytes):
        said: object = answer
    else:
        extra = answer if isinstance(answer, Mapping) else getattr(answer, "model_extra", None)
        said = {key: value for key, value in extra.items() if value} if isinstance(extra, Mapping) else None
    return f": {said!r:.300}" if said else ""


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
"""Finish reasons of gateways that pass on another provider's, and OpenAI's name for each."""


def read_finish(answer: Answer) -> str:
    """Return the provider's finish reason in OpenAI's words; "" if it is the usual one."""
    if not isinstance(answer.finish, str):
        return ""
    reason = answer.finish.strip()
    word = reason.lower().replace("-", "_")
    return "" if word in _WHOLE else _CUT.get(word, word if word in ("length", "content_filter") else reason)


def read_message(message: object, turn: int) -> Message:
    """Return the assistant message as plain data, with `content` and `tool_calls` always present.

    Accepts mappings, pydantic models and any object with `content` and `tool_calls`. Null fields are left out; a call
    without an id gets one, because some providers send none but require it back.
    """
    data = sendable(mended(_as_dict(message)))
    calls = [_read_call(call, turn, index) for index, call in enumerate(data.pop("tool_calls", None) or [])]
    rest = {key: value for key, value in data.items() if value is not None and key not in ("role", "content", "sender")}
    content = data.get("content")
    if content is not None and not isinstance(content, str | list):
        content = json.dumps(content, default=str)
    return {"role": "assistant", "content": content, **rest, "tool_calls": calls or None}


def sendable(value: Any, depth: int = MAX_DEPTH - 10) -> Any:
    """Return what a provider sent with null for what cannot be kept and sent back: NaN, infinity, and endless nesting.

    Python reads them in JSON. The records around a message are nested, too.
    """
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else None
    if kind is dict:
        return {key: sendable(item, depth - 1) for key, item in value.items()} if depth else None
    if kind is list:
        return [sendable(item, depth - 1) for item in value] if depth else None
    return value


def dumped(model: BaseModel) -> dict[str, object]:
    """Return a client's model as plain data; the client does not check that fields have their declared types."""
    return model.model_dump(mode="json", warnings=False)


def _as_dict(message: Any) -> dict[str, object]:
    if isinstance(message, Mapping):
        return dict(message)
    if isinstance(message, BaseModel):
        return dumped(message)
    with contextlib.suppress(AttributeError, TypeError, ValueError):
        data = message.model_dump(mode="json")
        if isinstance(data, dict):
            return data
    return {key: getattr(message, key, None) for key in ("content", "tool_calls")}


def _read_call(call: object, turn: int, index: int) -> dict[str, object]:
    """Return a tool call as plain data, with the provider's own fields beside id, type and function."""
    custom = field(call, "custom") if field(call, "type") == "custom" else None
    function = field(call, "function") if custom is None else custom
    part = partial(field, function)
    given = field(call, "id")
    arguments = part("arguments", part("input"))
    if not isinstance(arguments, str):
        arguments = "" if arguments is None else json.dumps(arguments, default=str)
    read: dict[str, object] = mended(
        {
            **beside(call, ("id", "type", "function", "index")),
            "id": str(given) if given else f"call_{turn}_{index}",
            "type": "function" if custom is None else "custom",
            "function": {
                **(beside(function, ("name", "arguments")) if custom is None else {}),
                "name": str(part("name") or ""),
                "arguments": arguments,
            },
        }
    )
    return read


def beside(thing: object, known: tuple[str, ...]) -> dict[str, object]:
    """Return the further fields of a mapping or a client's model, without nulls.

    Other objects are not inspected: a mock has every field.
    """
    if isinstance(thing, BaseModel):
        thing = dumped(thing)
    if not isinstance(thing, Mapping):
        return {}
    return {str(key): value for key, value in thing.items() if value is not None and key not in known}


def field(thing: object, name: str, default: object = None) -> object:
    """Return a field of a mapping or an object, or `default` if it has none."""
    return thing.get(name, default) if isinstance(thing, Mapping) else getattr(thing, name, default)


_TOTALS = ("prompt_tokens", "completion_tokens", "total_tokens")
_DETAILS = {
    "cached_tokens": (
        ("prompt_tokens_details", "cached_tokens"),
        ("prompt_cache_hit_tokens",),
        ("cache_read_input_tokens",),
    ),
    "cache_write_tokens": (
        ("prompt_tokens_details", "cache_write_tokens"),
        ("prompt_tokens_details", "cache_creation_tokens"),
        ("cache_creation_input_tokens",),
    ),
    "reasoning_tokens": (("completion_tokens_details", "reasoning_tokens"), ("reasoning_tokens",)),
}
"""Where providers write the tokens that are part of the totals: the first place with a count is used."""


def read_usage(answer: Answer) -> Usage | None:
    """Return the tokens that the provider counted, or None if it counted none."""
    counts = ((name, field(answer.usage, name)) for name in _TOTALS)
    known = {name: count for name, count in counts if _is_count(count)}
    counted = partial(_count, answer.usage)
    details = {name: next(filter(None, map(counted, places)), 0) for name, places in _DETAILS.items()}
    return Usage(requests=1, **known, **details) if known else None


def _count(usage: object, place: tuple[str, ...]) -> int:
    for name in place:
        usage = field(usage, name)
    return usage if _is_count(usage) else 0


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
