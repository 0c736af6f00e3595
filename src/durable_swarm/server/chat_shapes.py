"""The shapes of Vercel's AI SDK: what it sends, and the chunks of a UI message, made of a run's events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from durable_swarm.events import Event
from durable_swarm.requests import Request as HumanRequest
from durable_swarm.server.content import Part, content_of, file_part, text_part

Told = dict[str, Any]
ID = {"type": "string", "minLength": 1}
APPROVAL = {"type": "object", "required": ["id"], "properties": {"id": ID}}
PART = {
    "type": "object",
    "required": ["type"],
    "properties": {"type": ID},
    "if": {"properties": {"state": {"const": "approval-responded"}}, "required": ["state"]},
    "then": {"required": ["approval"], "properties": {"approval": APPROVAL}},
}
MESSAGE = {
    "type": "object",
    "required": ["id", "role", "parts"],
    "properties": {"id": ID, "parts": {"type": "array", "items": PART}},
}
BODY = {
    "type": "object",
    "required": ["id", "messages"],
    "properties": {"id": ID, "messages": {"type": "array", "minItems": 1, "items": MESSAGE}},
}


def said_in(message: Told) -> str | list[Part]:
    """Return what a user's message says to an agent. Raises `Refused`.

    Parts that are neither text nor file are for the page, as in the SDK.
    """
    return content_of(_part(part) for part in message["parts"] if part["type"] in ("text", "file"))


def _part(part: Told) -> Part:
    if part["type"] == "text":
        return text_part(str(part.get("text", "")))
    return file_part(str(part.get("mediaType")), str(part.get("url")))


def until_open_text(events: list[Event]) -> tuple[list[Event], list[Event]]:
    """Return events without the pieces of text at their end, and those."""
    end = len(events)
    while end and events[end - 1].type == "text.delta":
        end -= 1
    return events[:end], events[end:]


def without_void(events: Iterable[Event]) -> Iterator[Event]:
    """Yield events that came together without the text that one of them makes void."""
    kept: list[Event] = []
    for event in events:
        if event.type == "text.reset":
            while kept and kept[-1].type == "text.delta":
                kept.pop()
        kept.append(event)
    yield from kept


class Telling:
    """Makes the chunks of a UI message of a run's events.

    A chunk cannot be taken back: text that becomes void after it was sent is followed by what comes in its place.
    """

    def __init__(self, run_id: str) -> None:
        self.over = False
        self._run_id = run_id
        self._text: str | None = None
        self._steps = False

    def take(self, event: Event) -> Iterator[Told]:
        """Yield what an event becomes."""
        data = event.data
        match event.type:
            case "turn.started":
                yield from self._end_step()
                self._steps = True
                yield {"type": "start-step"}
            case "text.delta":
                if self._text is None:
                    self._text = f"{self._run_id}/{event.seq}"
                    yield {"type": "text-start", "id": self._text}
                yield {"type": "text-delta", "id": self._text, "delta": data["text"]}
            case "text.reset":
                yield from self._end_text()
            case "tool.started":
                yield from self._end_text()
                yield _call(data)
            case "tool.finished":
                yield _result(data["call_id"], data["result"])
            case "handoff" | "tool.progress":
                yield {"type": f"data-{event.type.replace('.', '-')}", "data": data}
            case "run.finished":
                yield from self.finish()
            case "run.failed" | "run.cancelled":
                yield from self._end_step()
                yield _broken(data)
                self.over = True

    def wait(self, requests: Iterable[HumanRequest]) -> Iterator[Told]:
        """Yield the end of a stream whose run waits: an approval of a call, or anything else as data."""
        for request in requests:
            if request.kind == "approval" and request.call_id:
                yield {"type": "tool-approval-request", "approvalId": request.id, "toolCallId": request.call_id}
            else:
                asked = {"kind": request.kind, "question": request.question, "choices": request.choices}
                yield {"type": "data-request", "id": request.id, "data": {"requestId": request.id, **asked}}
        yield from self.finish()

    def finish(self) -> Iterator[Told]:
        """Yield the end of the message."""
        yield from self._end_step()
        yield {"type": "finish"}
        self.over = True

    def _end_step(self) -> Iterator[Told]:
        yield from self._end_text()
        if self._steps:
            self._steps = False
            yield {"type": "finish-step"}

    def _end_text(self) -> Iterator[Told]:
        if self._text is not None:
            yield {"type": "text-end", "id": self._text}
            self._text = None


def _call(data: Told) -> Told:
    call = {"toolCallId": data["call_id"], "toolName": data["tool"], "dynamic": True}
    return {"type": "tool-input-available", **call, "input": _parsed(data["arguments"])}


def _broken(data: Told) -> Told:
    if "error_type" in data:
        return {"type": "error", "errorText": f"{data['error_type']}: {data['error_message']}"}
    return {"type": "abort"}


def _result(call_id: str, result: object) -> Told:
    if isinstance(result, str) and result.startswith("Error:"):
        return {"type": "tool-output-error", "toolCallId": call_id, "errorText": result, "dynamic": True}
    return {"type": "tool-output-available", "toolCallId": call_id, "output": result, "dynamic": True}


def _parsed(arguments: Any) -> object:
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments


def line(told: Told) -> str:
    """Return a chunk as it is sent."""
    return f"data: {json.dumps(told)}\n\n"
