"""Reading a request, the keyword arguments of `chat.completions.create`.

Without strict checks a request may contain anything, so these functions accept any input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def messages_of(request: Mapping[str, object]) -> list[dict[str, Any]]:
    """Return the messages that are dicts."""
    messages = request.get("messages")
    return [message for message in messages if isinstance(message, dict)] if isinstance(messages, list) else []


def text_of(message: Mapping[str, object]) -> str:
    """Return the message's text; of a list of parts, that of all its text parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def system_of(request: Mapping[str, object]) -> str:
    """Return the system prompt."""
    return "\n".join(
        text_of(message) for message in messages_of(request) if message.get("role") in ("system", "developer")
    )


def said_in(request: Mapping[str, object]) -> str | None:
    """Return the user's text, or None if the last message is not the user's."""
    last = (messages_of(request) or [{}])[-1]
    return text_of(last) if last.get("role") == "user" else None


def results_in(request: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return name and result of each tool whose messages end the request; empty if another message does."""
    messages = messages_of(request)
    start = len(messages)
    while start and messages[start - 1].get("role") == "tool":
        start -= 1
    names = dict(calls_in(messages[start - 1])) if start else {}
    return [(names.get(message.get("tool_call_id"), ""), text_of(message)) for message in messages[start:]]


def offers_in(request: Mapping[str, object]) -> list[str]:
    """Return the names of the available tools."""
    return [str(function.get("name")) for function in functions_in(request)]


def functions_in(request: Mapping[str, object]) -> list[dict[str, Any]]:
    """Return the functions of the available tools: name, description and parameters of each, as far as it has them."""
    tools = request.get("tools")
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    return [function for function in functions if isinstance(function, dict)]


def last_id(request: Mapping[str, object]) -> int:
    """Return the highest n of the ids `call_n` in the request, so that ids stay unique after a restart too."""
    ids = [str(made) for message in messages_of(request) for made, _ in calls_in(message)]
    return max((int(found[1]) for text in ids if (found := re.fullmatch(r"call_(\d+)", text))), default=0)


def ending(request: Mapping[str, object]) -> str:
    """Show the last message of the request in a few words."""
    last = (messages_of(request) or [{}])[-1]
    return f"{last.get('role')}: {short(str(last.get('content')))}"


def short(text: str, length: int = 200) -> str:
    """Return the beginning of a text."""
    return text if len(text) <= length else text[:length] + "…"


def calls_in(message: Mapping[str, object]) -> list[tuple[object, str]]:
    """Return id and function name of each tool call."""
    calls = message.get("tool_calls")
    known = [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
    functions = [(call.get("id"), call.get("function")) for call in known]
    return [(made, str(function.get("name"))) for made, function in functions if isinstance(function, dict)]
