"""A scripted reply in the shapes of the Responses API: the response, its stream's events, and their progress.

The script's `reasoning_content` becomes a reasoning item, with encrypted content that must come back.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from durable_swarm.testing.responses_reader import sealed
from durable_swarm.testing.shapes import AssistantMessage, Completion
from durable_swarm.testing.streams import ARGUMENTS_PIECE, words

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


@dataclass
class Scripted:
    """One response, and the events of its stream. The first event is due at once, the others with latency and pace."""

    id: str
    whole: dict[str, Any]
    events: list[dict[str, Any]]
    latency: float = 0.0
    pace: float = 0.0
    begun: float = field(default_factory=time.monotonic)
    cancelled: bool = False

    def due(self, number: int) -> float:
        """Return the seconds until event `number` is due."""
        if number == 0:
            return 0.0
        return max(0.0, self.begun + self.latency + number * self.pace - time.monotonic())

    def now(self) -> dict[str, Any]:
        """Return the response in its present state."""
        if self.cancelled:
            return {**self.whole, "status": "cancelled", "output": [], "usage": None}
        if not self.due(len(self.events) - 1):
            return self.whole
        return _begun(self.whole, "in_progress")

    def cancel(self) -> None:
        """End the response, unless it has ended."""
        self.cancelled = bool(self.due(len(self.events) - 1))


def scripted(completion: Completion, body: dict[str, Any], name: str, turn: int) -> Scripted:
    """Make the response `name` with the content of a completion; the ids of its items depend only on its `turn`."""
    choice = completion.choices[0] if completion.choices else None
    reason = None if choice is None else _INCOMPLETE.get(str(choice.finish_reason))
    output = [] if choice is None else _items(choice.message, turn)
    if reason and output:
        output[-1]["status"] = "incomplete"
    whole = {
        "id": name,
        "object": "response",
        "created_at": 0.0,
        "status": "incomplete" if reason else "completed",
        "error": None,
        "incomplete_details": {"reason": reason} if reason else None,
        "output": output,
        "usage": _usage(completion, choice.message if choice else None),
        **_echoed(body),
    }
    return Scripted(name, whole, [*_events(whole)])


def _echoed(body: Mapping[str, Any]) -> dict[str, object]:
    """Return the request's values that a response repeats."""
    tools = [{"strict": None, **tool} for tool in body.get("tools") or ()]
    repeated = ("instructions", "max_output_tokens", "metadata", "reasoning", "temperature", "text", "top_p")
    return {
        "model": str(body.get("model", "scripted")),
        "tools": tools,
        "tool_choice": body.get("tool_choice") or "auto",
        "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
        "background": bool(body.get("background")),
        "store": body.get("store") is not False,
        **{name: body.get(name) for name in repeated if body.get(name) is not None},
    }


def _items(message: AssistantMessage, number: int) -> list[dict[str, object]]:
    items: list[dict[str, object]] = []
    thought = (message.model_extra or {}).get("reasoning_content")
    if isinstance(thought, str):
        summary = [{"type": "summary_text", "text": thought}]
        items.append(
            {"id": f"rs_{number}", "type": "reasoning", "summary": summary, "encrypted_content": sealed(thought)}
        )
    parts: list[dict[str, object]] = []
    if message.content is not None:
        parts.append({"type": "output_text", "text": message.content, "annotations": [], "logprobs": []})
    if message.refusal is not None:
        parts.append({"type": "refusal", "refusal": message.refusal})
    if parts:
        said = {"id": f"msg_{number}", "type": "message", "role": "assistant", "status": "completed"}
        items.append({**said, "content": parts})
    for index, call in enumerate(message.tool_calls or ()):
        made = {"id": f"fc_{number}_{index}", "type": "function_call", "call_id": call.id, "status": "completed"}
        items.append({**made, "name": call.function.name, "arguments": call.function.arguments})
    return items


def _usage(completion: Completion, message: AssistantMessage | None) -> dict[str, object] | None:
    """Return the counts of a completion in the API's names; the words of the reasoning are reasoning tokens."""
    counted = completion.usage
    if counted is None:
        return None
    details = (counted.model_extra or {}).get("prompt_tokens_details") or {}
    thought = (message.model_extra or {}).get("reasoning_content") if message is not None else None
    reasoning = len(thought.split()) if isinstance(thought, str) else 0
    cached, written = details.get("cached_tokens", 0), details.get("cache_write_tokens", 0)
    return {
        "input_tokens": counted.prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "output_tokens": counted.completion_tokens + reasoning,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": counted.total_tokens + reasoning,
    }


def _begun(whole: Mapping[str, object], status: str) -> dict[str, object]:
    return {**whole, "status": status, "output": [], "usage": None, "incomplete_details": None}


def _events(whole: dict[str, Any]) -> Iterator[dict[str, object]]:
    """Yield the events of a response's stream, numbered from 0."""
    events: list[dict[str, object]] = [
        {"type": "response.created", "response": _begun(whole, "queued" if whole["background"] else "in_progress")},
        {"type": "response.in_progress", "response": _begun(whole, "in_progress")},
    ]
    for index, item in enumerate(whole["output"]):
        events += [{"output_index": index, **event} for event in _item_events(item)]
    events.append({"type": f"response.{whole['status']}", "response": whole})
    return ({**event, "sequence_number": number} for number, event in enumerate(events))


def _item_events(item: dict[str, Any]) -> Iterator[dict[str, object]]:
    empty: dict[str, dict[str, object]] = {
        "reasoning": {"summary": []},
        "message": {"content": []},
        "function_call": {"arguments": ""},
    }
    begun = {**item, **empty[item["type"]]}
    if item["type"] != "reasoning":
        begun["status"] = "in_progress"
    yield {"type": "response.output_item.added", "item": begun}
    pieces = {"reasoning": _thought_events, "message": _text_events, "function_call": _argument_events}
    for event in pieces[item["type"]](item):
        yield {"item_id": item["id"], **event}
    yield {"type": "response.output_item.done", "item": item}


def _thought_events(item: dict[str, Any]) -> Iterator[dict[str, object]]:
    for index, part in enumerate(item["summary"]):
        at = {"summary_index": index}
        yield {"type": "response.reasoning_summary_part.added", **at, "part": {**part, "text": ""}}
        for word in words(part["text"]):
            yield {"type": "response.reasoning_summary_text.delta", **at, "delta": word}
        yield {"type": "response.reasoning_summary_text.done", **at, "text": part["text"]}
        yield {"type": "response.reasoning_summary_part.done", **at, "part": part}


def _text_events(item: dict[str, Any]) -> Iterator[dict[str, object]]:
    for index, part in enumerate(item["content"]):
        at, key = {"content_index": index}, "text" if part["type"] == "output_text" else "refusal"
        more: dict[str, object] = {"logprobs": []} if key == "text" else {}
        kind = "output_text" if key == "text" else "refusal"
        yield {"type": "response.content_part.added", **at, "part": {**part, key: ""}}
        for word in words(part[key]):
            yield {"type": f"response.{kind}.delta", **at, **more, "delta": word}
        yield {"type": f"response.{kind}.done", **at, **more, key: part[key]}
        yield {"type": "response.content_part.done", **at, "part": part}


def _argument_events(item: dict[str, Any]) -> Iterator[dict[str, object]]:
    text = item["arguments"]
    for start in range(0, len(text), ARGUMENTS_PIECE):
        yield {"type": "response.function_call_arguments.delta", "delta": text[start : start + ARGUMENTS_PIECE]}
    yield {"type": "response.function_call_arguments.done", "name": item["name"], "arguments": text}
