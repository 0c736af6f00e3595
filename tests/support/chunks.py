"""Streams made by hand: chunks as providers send them, and what comes of them."""

from __future__ import annotations

from typing import Any

from durable_swarm.models.reply import read_message
from durable_swarm.models.stream import ReplyBuilder


def chunk(delta: dict[str, Any] | None, reason: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    """Give one chunk as a provider sends it."""
    head = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    return {**head, "choices": [{"index": index, "delta": delta, "finish_reason": reason}], **more}


def stream(*deltas: dict[str, Any]) -> list[dict[str, Any]]:
    """Give a whole stream of these deltas."""
    return [*map(chunk, deltas), chunk({}, "stop")]


def part(index: int | None = None, call_id: str | None = None, name: Any = None, text: Any = None) -> dict[str, Any]:
    """Give a delta with one fragment of a tool call."""
    function = {key: value for key, value in (("name", name), ("arguments", text)) if value is not None}
    fragment = {"index": index, "id": call_id, "function": function}
    return {"tool_calls": [{key: value for key, value in fragment.items() if value is not None}]}


def merge(chunks: list[Any]) -> dict[str, Any]:
    """Give the message that the chunks come to."""
    pieces = ReplyBuilder()
    for item in chunks:
        pieces.add(item)
    return read_message(pieces.answer().message, 0)


def shown(chunks: list[Any]) -> list[dict[str, Any] | None]:
    """Give what each chunk shows."""
    pieces = ReplyBuilder()
    return [pieces.add(item) for item in chunks]


def put_together(deltas: list[dict[str, Any] | None]) -> dict[str, Any]:
    """Put shown deltas together as a reader does: texts are joined, calls found by their index."""
    message: dict[str, Any] = {"calls": {}}
    for delta in filter(None, deltas):
        for name, value in delta.items():
            if name != "tool_calls":
                message[name] = message.get(name, "") + value
        for fragment in delta.get("tool_calls", ()):
            made = message["calls"].setdefault(fragment["index"], ["", "", ""])
            made[0] += fragment.get("id", "")
            made[1] += fragment.get("function", {}).get("name", "")
            made[2] += fragment.get("function", {}).get("arguments", "")
    message["calls"] = [tuple(made) for _, made in sorted(message["calls"].items())]
    return message
