"""The answer as a call of a final tool, for providers that refuse `response_format`.

The final tool exists in the request and in the provider's reply only. In the reply its arguments become the text of the
answer, so the history, the records and the readers of a stream are the same with both kinds of providers.
"""

from __future__ import annotations

import contextlib
import re
import weakref
from collections.abc import Mapping
from typing import Any

from durable_swarm.models.receiver import DeltaSink
from durable_swarm.schema.output import OutputType
from durable_swarm.types import Message

NAME = "final_answer"
"""The name of the final tool, with underscores behind it if a tool of the agent has that name."""

REFUSED = re.compile(r"response_format|json_schema|text\.format|structured.?outputs?", re.IGNORECASE)
"""Found in the error by which a provider refuses `response_format`."""

_refusing: weakref.WeakKeyDictionary[object, set[str]] = weakref.WeakKeyDictionary()
"""For each client, the models that refused `response_format`."""


def refuses_format(client: object, model: str) -> bool:
    """Return True if a model of this client has refused `response_format` in this process."""
    with contextlib.suppress(TypeError):
        return model in _refusing.get(client, ())
    return False


def note_refusal(client: object, model: str) -> None:
    """Record that a model of this client refuses `response_format`."""
    with contextlib.suppress(TypeError):  # Some clients are not hashable.
        _refusing.setdefault(client, set()).add(model)


def refused_format(error: Exception, request: Mapping[str, object]) -> bool:
    """Return True if an error says that the provider, or a client with a fixed signature, takes no such argument."""
    refuses = isinstance(error, TypeError) or getattr(error, "status_code", None) in (400, 404, 422, 501)
    return refuses and "response_format" in request and REFUSED.search(str(error)) is not None


def with_final_tool(request: dict[str, Any], output: OutputType) -> tuple[dict[str, Any], str]:
    """Return the request with a final tool in place of `response_format`, and the tool's name."""
    tools = list(request.get("tools") or [])
    taken, name = {tool.get("function", {}).get("name") for tool in tools}, NAME
    while name in taken:
        name += "_"
    described = {"name": name, "description": "Give your final answer by this call.", "parameters": output.schema}
    asked = {key: value for key, value in request.items() if key != "response_format"}
    asked["tools"] = [*tools, {"type": "function", "function": described}]
    if asked.get("tool_choice") is None:
        asked["tool_choice"] = "required"
    return asked, name


def as_answer(message: Message, name: str) -> Message:
    """Return a reply in which the arguments of the final tool `name`, if any, are the text, and its call is gone."""
    calls = message.get("tool_calls") or []
    final = [call["function"]["arguments"] for call in calls if call["function"]["name"] == name]
    if not name or not final:
        return message
    others = [call for call in calls if call["function"]["name"] != name]
    return {**message, "content": "".join(final), "tool_calls": others or None}


class AnswerSink:
    """Shows the arguments of the final tool as the text of the reply, as they arrive."""

    def __init__(self, show: DeltaSink, name: str) -> None:
        self._show = show
        self._name = name
        self._final: set[object] = set()
        """The indexes of its calls in this reply."""
        self._spoke = False
        """True if the reply has a text beside, which the answer replaces."""
        self._shown: list[dict[str, object]] = []
        """What was shown of other calls: it must be shown again if that text is taken back."""

    def delta(self, delta: dict[str, Any]) -> None:
        """Show a piece of the reply."""
        said = {key: value for key, value in delta.items() if key != "tool_calls"}
        calls = delta.get("tool_calls") or []
        begins = {call["index"] for call in calls if call.get("function", {}).get("name") == self._name}
        if begins and self._spoke and not self._final:
            self._show.reset()
            for shown in self._shown:
                self._show.delta(shown)
        self._final |= begins
        others = [call for call in calls if call["index"] not in self._final]
        pieces = [call.get("function", {}).get("arguments") or "" for call in calls if call["index"] in self._final]
        if self._final:
            said.pop("content", None)
        if text := "".join(pieces):
            said["content"] = text
        if others:
            said["tool_calls"] = others
            self._shown.append({"tool_calls": others})
        self._spoke = self._spoke or bool(said.get("content"))
        if said:
            self._show.delta(said)

    def reset(self) -> None:
        """Void the pieces shown so far."""
        self._final, self._spoke, self._shown = set(), False, []
        self._show.reset()
