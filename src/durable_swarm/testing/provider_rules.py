"""The rules of a strict provider: `check_request`, and `ProviderError`, the error it raises.

Providers accept different requests. These checks are the strictest of each, so a request that passes here passes
everywhere.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn

from durable_swarm.testing.format_rules import format_problem

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MESSAGE_KEYS = frozenset(
    {"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "audio", "function_call"},
)
NOT_SENT_BACK = frozenset({"sender", "tool_name", "provider", "annotations", "tool_call_id"})
"""Fields that an assistant message of a request must not have. Provider-specific ones (reasoning, signatures) may."""

FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
CLIENT_OPTIONS = frozenset({"timeout", "extra_headers", "extra_query"})
"""Arguments of `create` that control the client and are not part of the body."""


class ProviderResponse:
    """The HTTP response behind a `ProviderError`: `status_code`, and `headers` with lower-case names."""

    def __init__(self, status_code: int, headers: dict[str, str]) -> None:
        self.status_code = status_code
        self.headers = headers


class ProviderError(Exception):
    """A provider's refusal, with the attributes of `openai.APIStatusError`.

    `status_code` is the HTTP status (429, 500, …), `code` openai's own word for the error. `retry_after`, in seconds or
    as an HTTP date, becomes the header `retry-after` of `response.headers`; `headers` are further ones.
    """

    def __init__(
        self,
        message: str,
        status_code: int = 500,
        retry_after: float | str | None = None,
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code
        self.code = code
        sent = {name.lower(): text for name, text in (headers or {}).items()}
        if retry_after is not None:
            sent["retry-after"] = str(retry_after)
        self.response = ProviderResponse(status_code, sent)


def check_request(kwargs: Mapping[str, object]) -> None:
    """Check the arguments of `chat.completions.create` as a strict provider would.

    Raises `ProviderError` with status 400, naming the part, for: messages that are not a list of well-formed messages;
    tool calls without exactly one tool message each right after them, and tool messages without their call; tools that
    are not a well-formed list of functions; `parallel_tool_calls` without tools; `stream_options` without `stream`;
    a `response_format` whose schema is not what it says (`strict`, of an object);
    anything that is not JSON. `tools`, `tool_choice`, `parallel_tool_calls` and `stream_options` may be None.
    """
    _check_messages(kwargs.get("messages"))
    tools = kwargs.get("tools")
    if tools is not None:
        _check_tools(tools)
    elif kwargs.get("parallel_tool_calls") is not None:
        _refuse("parallel_tool_calls is only allowed when tools are given")
    if kwargs.get("response_format") is not None and (problem := format_problem(kwargs["response_format"])):
        _refuse(problem)
    if kwargs.get("stream_options") is not None and not kwargs.get("stream"):
        _refuse("stream_options is only allowed when stream is true")
    _check_json({name: value for name, value in kwargs.items() if name not in CLIENT_OPTIONS})


def _refuse(message: str) -> NoReturn:
    raise ProviderError(message, status_code=400)


def _check_json(body: Mapping[str, object]) -> None:
    try:
        # Not as ASCII, which would hide half characters.
        json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        _refuse(f"the request cannot be written as JSON: {error}")


def _check_messages(messages: object) -> None:
    if not isinstance(messages, list) or not messages:
        _refuse("messages must be a list with at least one message")
    for index, message in enumerate(messages):
        _check_message(f"messages[{index}]", message)
    _check_pairs(messages)


def _check_message(where: str, message: object) -> None:
    if not isinstance(message, dict):
        _refuse(f"{where} must be a dict, not {type(message).__name__}")
    role = message.get("role")
    if role not in ROLES:
        _refuse(f"{where}.role {role!r} is none of {', '.join(ROLES)}")
    foreign = message.keys() & NOT_SENT_BACK if role == "assistant" else message.keys() - MESSAGE_KEYS
    if unknown := sorted(map(str, foreign)):
        _refuse(f"{where} has unknown keys: {', '.join(unknown)}")
    for key, value in message.items():
        if value is None and (role, key) != ("assistant", "content"):
            _refuse(f"{where}.{key} must not be null; leave it out")
    if role == "assistant":
        _check_reply(where, message)
    else:
        _check_input(where, message)


def _check_reply(where: str, message: Mapping[str, object]) -> None:
    content = message.get("content")
    if content is not None:
        _check_content(where, content)
    elif message.keys().isdisjoint({"tool_calls", "refusal", "audio", "function_call"}):
        _refuse(f"{where} needs content or tool_calls")
    if "audio" in message and (not isinstance(message["audio"], dict) or message["audio"].keys() != {"id"}):
        _refuse(f"{where}.audio must be the id of an earlier reply's audio, and nothing else")
    if "tool_calls" not in message:
        return
    calls = message["tool_calls"]
    if not isinstance(calls, list) or not calls:
        _refuse(f"{where}.tool_calls must be a list with at least one call; leave it out when there is none")
    for index, call in enumerate(calls):
        _check_call(f"{where}.tool_calls[{index}]", call)


def _check_input(where: str, message: Mapping[str, object]) -> None:
    _check_content(where, message.get("content"))
    if "tool_calls" in message:
        _refuse(f"{where}.tool_calls is only allowed when the role is assistant")
    if message["role"] == "tool":
        _check_id(f"{where}.tool_call_id", message.get("tool_call_id"))


def _check_content(where: str, content: object) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list) or not content:
        _refuse(f"{where}.content must be a string or a list of parts, not {content!r}")
    for index, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            _refuse(f"{where}.content[{index}] must be a part, a dict with a type")


def _check_id(where: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        _refuse(f"{where} must be a string that is not empty, not {value!r}")


def _check_call(where: str, call: object) -> None:
    if isinstance(call, dict) and call.get("type") == "custom" and isinstance(call.get("custom"), dict):
        _check_id(f"{where}.id", call.get("id"))
        _check_name(f"{where}.custom.name", call["custom"].get("name"))
        return
    if not isinstance(call, dict) or call.get("type") != "function" or not isinstance(call.get("function"), dict):
        _refuse(f"{where} must have the type 'function' and a function")
    _check_id(f"{where}.id", call.get("id"))
    _check_name(f"{where}.function.name", call["function"].get("name"))
    _check_arguments(f"{where}.function.arguments", call["function"].get("arguments"))


def _check_name(where: str, name: object) -> None:
    if not isinstance(name, str) or not FUNCTION_NAME.fullmatch(name):
        _refuse(f"{where} {name!r} must be 1 to 64 of the characters a-z A-Z 0-9 _ -")


def _check_arguments(where: str, text: object) -> None:
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        _refuse(f"{where} must be the text of a JSON object, not {text!r}")


def _check_pairs(messages: list[dict[str, Any]]) -> None:
    waiting: Counter[str] = Counter()
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            if not waiting[message["tool_call_id"]]:
                _refuse(f"messages[{index}] answers no tool call of the assistant message before it")
            waiting[message["tool_call_id"]] -= 1
            continue
        _check_answered(f"before messages[{index}]", waiting)
        waiting = Counter(call["id"] for call in message.get("tool_calls", ()))
    _check_answered("at the end", waiting)


def _check_answered(where: str, waiting: Counter[str]) -> None:
    if missing := list(waiting.elements()):
        _refuse(f"tool messages are missing {where}, for the calls {', '.join(missing)}")


def _check_tools(tools: object) -> None:
    if not isinstance(tools, list) or not tools:
        _refuse("tools must be a list with at least one tool; leave it out when there is none")
    names = [_checked_tool(f"tools[{index}]", tool) for index, tool in enumerate(tools)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        _refuse(f"tools has several functions named {', '.join(twice)}")


def _checked_tool(where: str, tool: object) -> str:
    if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(tool.get("function"), dict):
        _refuse(f"{where} must have the type 'function' and a function")
    function = tool["function"]
    _check_name(f"{where}.function.name", function.get("name"))
    if not isinstance(function.get("description", ""), str):
        _refuse(f"{where}.function.description must be a string")
    if "parameters" in function:
        _check_parameters(f"{where}.function.parameters", function["parameters"])
    return str(function["name"])


def _check_parameters(where: str, schema: object) -> None:
    if not isinstance(schema, dict) or schema.get("type") != "object":
        _refuse(f"{where} must be a JSON schema of the type 'object'")
    if not isinstance(schema.get("properties", {}), dict):
        _refuse(f"{where}.properties must be a dict")
