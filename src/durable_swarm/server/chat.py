"""The door of front ends that use Vercel's AI SDK: `POST /api/chat/{agent}`, a UI message stream of version 1.

A chat is a session, and the id of the user's message is the id of its run. A call that needs an approval asks for it in
the SDK's own way. `GET /api/chat/{agent}/{id}/stream` is where the SDK reads on after its page was loaded again.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from durable_swarm.engine.api.run import Run
from durable_swarm.events import Event
from durable_swarm.requests import Request as HumanRequest
from durable_swarm.runs import ENDED
from durable_swarm.server.backend import Backend, Caller, Refused, id_in, served
from durable_swarm.server.openapi import EVENTS, Described
from durable_swarm.server.outcome import LOOK, last_event, waits

Told = dict[str, Any]
ID = {"type": "string"}
VERSION = "x-vercel-ai-ui-message-stream"


class Chat:
    """The handlers of the door."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/api/chat/{agent}", served(self.ask), methods=["POST"]),
            Route("/api/chat/{agent}/{id}/stream", served(self.resume)),
        ]

    @classmethod
    def described(cls) -> Iterator[Described]:
        """Yield the description of each route."""
        message = {"type": "object", "required": ["id", "role", "parts"]}
        messages = {"type": "array", "minItems": 1, "items": message}
        body = {"type": "object", "required": ["id", "messages"], "properties": {"id": ID, "messages": messages}}
        yield Described("POST", "/api/chat/{agent}", "Ask an agent (AI SDK)", body, media=(EVENTS,))
        yield Described(
            "GET", "/api/chat/{agent}/{id}/stream", "Follow the run in progress of a chat (AI SDK)", media=(EVENTS,)
        )

    async def ask(self, request: Request) -> Response:
        """Begin a run with the user's message, or take the approvals that the last message has; follow the run."""
        body, caller = await self._backend.body(request), self._backend.caller(request)
        last = _last(body)
        chat, name = str(body.get("id") or ""), id_in(request, "agent")
        if not chat:
            raise Refused(422, "InvalidBody", "id: the chat needs one")
        run, after = await self._backend.call(lambda: self._begin(caller, name, chat, last))
        return self._streamed(run, after)

    async def resume(self, request: Request) -> Response:
        """Follow the run in progress of a chat from its beginning; nothing (204) if there is none."""
        chat, name, caller = id_in(request), id_in(request, "agent"), self._backend.caller(request)

        def find() -> Run | None:
            session = caller.session(chat, self._backend.agent(name))
            return next((run for run in reversed(session.runs()) if run.status not in ENDED), None)

        run = await self._backend.call(find)
        return Response(status_code=204) if run is None else self._streamed(run, 0)

    def _begin(self, caller: Caller, name: str, chat: str, last: Told) -> tuple[Run, int]:
        """Return the run to follow, and the number of the event behind which it is followed."""
        session = caller.session(chat, self._backend.agent(name))
        if last["role"] == "user":
            said = "".join(str(part.get("text", "")) for part in last["parts"] if part.get("type") == "text")
            return caller.send(session, [{"role": "user", "content": said}], run_id=str(last["id"])), 0
        answers = [part["approval"] for part in last["parts"] if part.get("state") == "approval-responded"]
        waiting = next((run for run in reversed(session.runs()) if run.status == "waiting"), None)
        asked = {} if waiting is None else {request.id: request for request in waiting.requests()}
        taken = [answer for answer in answers if answer.get("id") in asked]
        if waiting is None or not taken:
            raise Refused(409, "NothingWaits", f"no run of chat {chat!r} waits for what this message answers")
        seen = last_event(waiting)
        for answer in taken:
            if answer.get("approved") is True:
                caller.approve(answer["id"])
            else:
                caller.reject(answer["id"], str(answer.get("reason") or ""))
        return waiting, seen

    def _streamed(self, run: Run, after: int) -> Response:
        answer = self._backend.stream(self._stream(run, after))
        answer.headers[VERSION] = "v1"
        return answer

    async def _stream(self, run: Run, after: int) -> AsyncGenerator[str]:
        telling = Telling(run.id)
        yield _line({"type": "start", "messageId": f"{run.id}/answer", "messageMetadata": {"runId": run.id}})
        held: list[Event] | None = None
        async for new in self._backend.batches(run, after, LOOK):
            # After a crash the text at the end of the first batch is void, as the next event will say.
            events = [*(held or ()), *new] if new else []
            if new:
                events, held = _until_open_text(events) if held is None else (events, [])
            told = [one for event in without_void(events) for one in telling.take(event)]
            yield "".join(map(_line, told)) or ": still here\n\n"
            if telling.over:
                break
            if not new and await self._backend.call(lambda: waits(run)):
                requests = await self._backend.call(run.requests)
                yield "".join(map(_line, telling.wait(requests)))
                break
        else:
            return  # The server ends: a stream without an end tells the client to come back.
        yield "data: [DONE]\n\n"


def _until_open_text(events: list[Event]) -> tuple[list[Event], list[Event]]:
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


def _last(body: Told) -> Told:
    """Return the last message. Raises `Refused`."""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or last.get("role") not in ("user", "assistant") or not last.get("id"):
        raise Refused(422, "InvalidBody", "messages: the last one must be the user's, or have its answers to approvals")
    parts = last.get("parts")
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise Refused(422, "InvalidBody", "messages: a message has parts")
    if any(not isinstance(part.get("approval", {}), dict) for part in parts):
        raise Refused(422, "InvalidBody", "messages: an approval is an object")
    if body.get("trigger") == "regenerate-message":
        raise Refused(422, "InvalidBody", "trigger: what was said stays said; fork the run instead")
    return last


def _call(data: Told) -> Told:
    call = {"toolCallId": data["call_id"], "toolName": data["tool"], "dynamic": True}
    return {"type": "tool-input-available", **call, "input": _parsed(data["arguments"])}


def _broken(data: Told) -> Told:
    if "error_type" in data:
        return {"type": "error", "errorText": f"{data['error_type']}: {data['error_message']}"}
    return {"type": "abort"}


def _result(call_id: str, result: Any) -> Told:
    if isinstance(result, str) and result.startswith("Error:"):
        return {"type": "tool-output-error", "toolCallId": call_id, "errorText": result, "dynamic": True}
    return {"type": "tool-output-available", "toolCallId": call_id, "output": result, "dynamic": True}


def _parsed(arguments: Any) -> Any:
    try:
        return json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments


def _line(told: Told) -> str:
    return f"data: {json.dumps(told)}\n\n"
