"""A model that answers offline by what it is offered: it calls tools, hands off, and ends.

    with serve_scripted(mock_model()) as server: ...        # or: durable-swarm mock, durable-swarm run --mock SCRIPT

It chooses by words: a tool is called if the user's message shares a word with its name or description. If no tool fits,
one that the instructions name is called, and after each call others that they name. No tool is called twice for one
message, so every run ends. Its reply depends on the request alone, so a run that continues after a crash continues as
it would have.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from durable_swarm.display import shorten
from durable_swarm.errors import ConfigurationError
from durable_swarm.testing.examples import Examples
from durable_swarm.testing.faults import http_error
from durable_swarm.testing.replies import call
from durable_swarm.testing.request_reader import calls_in, functions_in, messages_of, system_of, text_of

SHORT = frozenset(
    re.findall(
        r"\w+",
        "about after also and any are can could for from give have help her him his how into its just like make "
        "more need not now one our out over please some tell than thank that the their them then there they this "
        "user want was what when where which will with would you your",
    )
)
"""Words that say nothing of what a tool does."""

REQUEST = 3
"""The number of words that a message has at least if it asks for something; fewer are a greeting or thanks."""

SAME = 4
"""The number of letters that two words share at least if they count as one: refund, refunds, refunding."""


def mock_model(
    *, seed: int = 0, fail: float = 0.0, status: int = 429, retry_after: float = 0
) -> Callable[[dict[str, Any]], Any]:
    """Return a script for `ScriptedModel` and `serve_scripted` that answers any request.

    `seed` varies invented arguments. Of all requests, the share `fail` (0 to 1) is refused with `status`; the order of
    refusals depends on the seed. Raises `ConfigurationError` for a share outside 0 to 1.
    """
    if isinstance(fail, bool) or not isinstance(fail, int | float) or not 0 <= fail <= 1:
        raise ConfigurationError(f"fail must be a share from 0 to 1, such as 0.1, not {fail!r}")
    dice = random.Random(seed)

    def reply(request: dict[str, object]) -> object:
        if fail and dice.random() < fail:
            return http_error(status, retry_after=retry_after, message="the mock model refuses some requests (--fail)")
        return answer(request, seed)

    return reply


def answer(request: dict[str, Any], seed: int = 0) -> Any:
    """Return the reply to a request: a tool call, or the last text, in JSON where the request asks for it."""
    said, called, result = _turn(request)
    tools = {tool["name"]: tool for tool in functions_in(request) if isinstance(tool.get("name"), str)}
    examples = Examples(said, seed)
    name = _forced(request, tools) if not called else None
    name = name or _next(
        said, system_of(request), [tool for tool in tools.values() if tool["name"] not in called], called
    )
    if name is None and not called and request.get("tool_choice") == "required" and tools:
        name = next(iter(tools))
    if name is not None and request.get("tool_choice") != "none":
        return [call(name, **examples.arguments(tools[name].get("parameters")))]
    schema = _schema(request)
    if schema is not None:
        return json.dumps(examples.value(schema))
    text = f" The last tool said: {_sentence(result)}" if result else ""
    return f"(mock answer) You said: {_sentence(said or 'nothing')}{text}"


def _sentence(text: str) -> str:
    short = shorten(text, 120)
    return short if short.endswith((".", "!", "?", "…")) else f"{short}."


def _turn(request: dict[str, object]) -> tuple[str, set[str], str]:
    """Return what the user said last, the tools called since, and the last result."""
    said, called, result = "", set[str](), ""
    for message in messages_of(request):
        match message.get("role"):
            case "user":
                said, called, result = text_of(message), set(), ""
            case "assistant":
                called |= {name for _, name in calls_in(message)}
            case "tool":
                result = text_of(message)
    return said, called, result


def _forced(request: Mapping[str, object], tools: Mapping[str, object]) -> str | None:
    choice = request.get("tool_choice")
    name = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    return str(name) if name in tools else None


def _next(said: str, instructions: str, tools: list[dict[str, Any]], called: set[str]) -> str | None:
    """Return the tool to call: the one that shares most words with the message, else one that the instructions name."""
    wanted = _words(said)
    best = _best(tools, lambda tool: _score(wanted, tool))
    if best is not None or not tools:
        return best
    if called:
        return next((tool["name"] for tool in tools if _is_named(tool["name"], instructions)), None)
    if len(said.split()) < REQUEST:
        return None
    words = _words(instructions)
    return _best(tools, lambda tool: _shared(words, _words(tool["name"])))


def _best(tools: list[dict[str, object]], score: Callable[[dict[str, Any]], int]) -> str | None:
    """Return the name of the tool with the highest score above 0."""
    best = max(tools, key=score, default=None)
    return None if best is None or score(best) <= 0 else str(best["name"])


def _is_named(name: str, instructions: str) -> bool:
    """Return True if the instructions name a tool, written as its name or in words."""
    return re.search(rf"\b{re.escape(name).replace('_', '[_ ]')}\b", instructions, re.IGNORECASE) is not None


def _score(wanted: set[str], tool: dict[str, Any]) -> int:
    name, described = _words(tool["name"]), _words(str(tool.get("description") or ""))
    return 2 * _shared(wanted, name) + _shared(wanted, described - name)


def _shared(some: set[str], others: set[str]) -> int:
    return sum(any(_alike(one, other) for other in others) for one in some)


def _alike(one: str, other: str) -> bool:
    shorter = min(len(one), len(other))
    return one == other or (shorter >= SAME and one[:shorter] == other[:shorter])


def _words(text: str) -> set[str]:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", text)
    return {word for word in re.findall(r"[^\W\d_]{3,}", spaced.lower()) if word not in SHORT}


def _schema(request: Mapping[str, object]) -> dict[str, object] | None:
    """Return the JSON schema that the answer must fit, if the request has one."""
    form = request.get("response_format")
    if not isinstance(form, dict):
        return None
    if form.get("type") == "json_object":
        return {"type": "object"}
    schema = form.get("json_schema", {}).get("schema") if form.get("type") == "json_schema" else None
    return schema if isinstance(schema, dict) else None
