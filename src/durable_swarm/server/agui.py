"""The door `agui`: agents for front ends that speak AG-UI, `POST /agui/{agent}`.

A thread is a session. An interrupt ends the run of the protocol, never ours: the next request answers it in `resume`
and reads on behind it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from ag_ui.core import RunAgentInput
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from durable_swarm.engine.api.run import Run
from durable_swarm.events import Event
from durable_swarm.requests import Request as HumanRequest
from durable_swarm.server.answer_form import answer_form, answer_in, verdict_in
from durable_swarm.server.backend import Backend, Caller, Refused, id_in, served
from durable_swarm.server.content import Part, content_of, data_url, file_part, text_part
from durable_swarm.server.openapi import EVENTS, Described
from durable_swarm.server.outcome import LOOK, last_event, waits

Told = dict[str, Any]


class Agui:
    """The handlers of the door."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route("/agui/{agent}", served(self.run), methods=["POST"])]

    @classmethod
    def described(cls) -> Iterator[Described]:
        """Yield the description of each route."""
        yield Described(
            "POST", "/agui/{agent}", "Run an agent (AG-UI)", RunAgentInput.model_json_schema(), media=(EVENTS,)
        )

    async def run(self, request: Request) -> Response:
        """Run an agent, or answer what its run asks, and follow the run."""
        body, caller = await self._backend.body(request), self._backend.caller(request)
        try:
            asked = RunAgentInput.model_validate(body)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise Refused(422, "InvalidBody", f"{where}: {first['msg']}") from None
        name = id_in(request, "agent")
        run, after = await self._backend.call(lambda: self._begin(caller, name, asked, body))
        return self._backend.stream(self._stream(run, after, asked))

    def _begin(self, caller: Caller, name: str, asked: RunAgentInput, body: Told) -> tuple[Run, int]:
        """Return the run to follow, and the number of the event behind which it is followed."""
        session = caller.session(asked.thread_id, self._backend.agent(name))
        if asked.resume:
            waiting = next((run for run in reversed(session.runs()) if run.status == "waiting"), None)
            if waiting is None:
                raise Refused(409, "NothingWaits", f"no run of thread {asked.thread_id!r} waits for an answer")
            seen = last_event(waiting)
            open_ones = {request.id: request for request in waiting.requests()}
            for entry in asked.resume:
                if entry.interrupt_id not in open_ones:
                    raise Refused(
                        409,
                        "AlreadyAnswered",
                        f"interrupt {entry.interrupt_id!r} is not open: it was answered, or its run has ended",
                    )
                _decide(caller, open_ones[entry.interrupt_id], entry)
            return waiting, seen
        messages = [_message(one) for one in body["messages"] if one.get("role") in ("user", "system", "developer")]
        if not messages:
            raise Refused(422, "InvalidBody", "messages: the last one must be the user's")
        return caller.send(session, messages[-1:], run_id=asked.run_id), 0

    async def _stream(self, run: Run, after: int, asked: RunAgentInput) -> AsyncGenerator[str]:
        about = {"threadId": asked.thread_id, "runId": asked.run_id}
        told = Telling(run.id)
        yield _line({"type": "RUN_STARTED", **about})
        async for events in self._backend.batches(run, after, LOOK):
            yield "".join(_line(one) for event in events for one in told.take(event)) or ": still here\n\n"
            if told.end is not None:
                break
            if not events and await self._backend.call(lambda: waits(run)):
                requests = await self._backend.call(run.requests)
                interrupts = [_interrupt(request) for request in requests]
                yield "".join(map(_line, told.close()))
                outcome = {"type": "interrupt", "interrupts": interrupts}
                yield _line({"type": "RUN_FINISHED", **about, "outcome": outcome})
                return
        if told.end is not None:
            yield _line({**told.end, **(about if told.end["type"] == "RUN_FINISHED" else {})})


class Telling:
    """Makes AG-UI's events of a run's. Text that is void ends its message; what comes in its place is another one."""

    def __init__(self, run_id: str) -> None:
        self.end: Told | None = None
        self._run_id = run_id
        self._message: str | None = None

    def take(self, event: Event) -> Iterator[Told]:
        """Yield what an event becomes."""
        data = event.data
        match event.type:
            case "text.delta":
                if self._message is None:
                    self._message = f"{self._run_id}/{event.seq}"
                    yield {"type": "TEXT_MESSAGE_START", "messageId": self._message, "role": "assistant"}
                yield {"type": "TEXT_MESSAGE_CONTENT", "messageId": self._message, "delta": data["text"]}
            case "text.reset" | "turn.started":
                yield from self.close()
            case "tool.started":
                yield from self.close()
                call = {"toolCallId": data["call_id"]}
                yield {"type": "TOOL_CALL_START", **call, "toolCallName": data["tool"]}
                yield {"type": "TOOL_CALL_ARGS", **call, "delta": data["arguments"] or "{}"}
                yield {"type": "TOOL_CALL_END", **call}
            case "tool.finished":
                message = f"{self._run_id}/{event.seq}"
                result = {"messageId": message, "toolCallId": data["call_id"], "content": data["result"]}
                yield {"type": "TOOL_CALL_RESULT", **result, "role": "tool"}
            case "handoff" | "tool.progress":
                yield {"type": "CUSTOM", "name": event.type, "value": data}
            case "run.finished":
                yield from self.close()
                self.end = {"type": "RUN_FINISHED", "outcome": {"type": "success"}}
            case "run.cancelled":
                yield from self.close()
                self.end = {"type": "RUN_FINISHED", "outcome": {"type": "cancelled"}}
            case "run.failed":
                yield from self.close()
                self.end = {"type": "RUN_ERROR", "message": data["error_message"], "code": data["error_type"]}

    def close(self) -> Iterator[Told]:
        """End the message in progress."""
        if self._message is not None:
            yield {"type": "TEXT_MESSAGE_END", "messageId": self._message}
            self._message = None


def _message(given: Told) -> Told:
    content = given["content"]
    if isinstance(content, list):
        content = content_of(map(_part, content))
    return {"role": "user" if given["role"] == "user" else "system", "content": content}


def _part(part: Told) -> Part:
    if part["type"] == "text":
        return text_part(part["text"])
    source = part["source"]
    kind = source.get("mimeType") or ("image/*" if part["type"] == "image" else part["type"])
    if source["type"] == "file":
        raise Refused(422, "InvalidBody", "messages: files that a provider keeps are not passed on; send data or a URL")
    return file_part(kind, data_url(kind, source["value"]) if source["type"] == "data" else source["value"])


def _interrupt(request: HumanRequest) -> Told:
    known = {"id": request.id, "reason": request.kind, "message": request.question, "toolCallId": request.call_id}
    metadata = {"tool": request.tool, "arguments": request.arguments}
    return {**known, "responseSchema": answer_form(request), "metadata": metadata}


def _decide(caller: Caller, request: HumanRequest, entry: Any) -> None:
    given = entry.payload
    fields = given if isinstance(given, dict) else {}
    if entry.status == "cancelled":
        caller.reject(request.id, "cancelled") if request.kind != "question" else caller.answer(request.id, "")
    elif request.kind == "question":
        plain = request.schema is None and isinstance(given, dict)
        caller.answer(request.id, answer_in(request, fields) if plain else given)
    elif given is True or (given is not False and verdict_in(request, fields)):
        caller.approve(request.id, fields.get("arguments"))
    else:
        caller.reject(request.id, str(fields.get("reason") or ""))


def _line(told: Told) -> str:
    return f"data: {json.dumps(told)}\n\n"
