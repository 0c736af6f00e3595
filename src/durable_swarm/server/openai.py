"""The door `openai`: agents as models of OpenAI's API, for any client of chat completions or responses."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from durable_swarm import errors
from durable_swarm.engine.api.run import Run
from durable_swarm.server.backend import Backend, Caller, Refused, failed, whole
from durable_swarm.server.ids import decode_id, encode_id
from durable_swarm.server.openai_chat import ChatStream, completion
from durable_swarm.server.openai_input import messages_of
from durable_swarm.server.openai_responses import ResponseStream, response_of
from durable_swarm.server.openapi import EVENTS, JSON, Described
from durable_swarm.server.outcome import LOOK, outcome_of, waits
from durable_swarm.types import Message

BOTH = (JSON, EVENTS)
TEXT = {"type": ["string", "null"]}
ASKED = {
    "model": {"type": "string", "description": "the name of an agent"},
    "conversation": {
        "type": ["string", "object", "null"],
        "properties": {"id": {"type": "string"}},
        "required": ["id"],
        "description": "the id of a session",
    },
    "metadata": {"type": ["object", "null"], "properties": {"run_id": TEXT, "session": TEXT}},
    "stream_options": {"type": ["object", "null"]},
}
"""What both bodies have."""
CHAT = {
    "type": "object",
    "required": ["model", "messages"],
    "properties": {
        **ASKED,
        "messages": {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["role"]}},
    },
}
RESPONSE = {
    "type": "object",
    "required": ["model", "input"],
    "properties": {**ASKED, "input": {}, "instructions": TEXT, "previous_response_id": TEXT},
}
MODELS = 1_700_000_000
"""When the models were made, which agents do not know, in seconds since 1970."""


class OpenAI:
    """The handlers of the door."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/v1/models", _told(self.models)),
            Route("/v1/models/{name}", _told(self.model)),
            Route("/v1/chat/completions", _told(self.chat), methods=["POST"]),
            Route("/v1/responses", _told(self.respond), methods=["POST"]),
            Route("/v1/responses/{id}", _told(self.response)),
            Route("/v1/responses/{id}/cancel", _told(self.cancel), methods=["POST"]),
        ]

    @classmethod
    def described(cls) -> Iterator[Described]:
        """Yield the description of each route."""
        yield Described("GET", "/v1/models", "List the agents (OpenAI)")
        yield Described("GET", "/v1/models/{name}", "Return an agent (OpenAI)")
        yield Described("POST", "/v1/chat/completions", "Ask an agent (OpenAI)", CHAT, media=BOTH)
        yield Described("POST", "/v1/responses", "Ask an agent (OpenAI)", RESPONSE, media=BOTH)
        asked = ("stream", "starting_after")
        yield Described("GET", "/v1/responses/{id}", "Read a response (OpenAI)", None, asked, media=BOTH)
        yield Described("POST", "/v1/responses/{id}/cancel", "Cancel the run of a response (OpenAI)")

    # Models

    async def models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(name) for name in self._backend.agent_names()]})

    async def model(self, request: Request) -> Response:
        return JSONResponse(_model(self._agent(request.path_params["name"]).name))

    # Chat completions

    async def chat(self, request: Request) -> Response:
        asked = await self._backend.body(request, CHAT)
        self._refuse_unfit(asked)
        run = await self._start(self._backend.caller(request), asked, asked["messages"], _run_id(request, asked))
        if not asked.get("stream"):
            return JSONResponse(completion(await outcome_of(self._backend, run)))
        usage = (asked.get("stream_options") or {}).get("include_usage") is True
        return self._backend.stream(self._chat_stream(run, ChatStream(run.id, asked["model"], usage=usage)))

    async def _chat_stream(self, run: Run, chat: ChatStream) -> AsyncGenerator[str]:
        async for events in self._backend.batches(run, 0, LOOK):
            yield "".join(_lines(chat.take(event)) for event in events) or ": still here\n\n"
            if chat.over or (not events and await self._backend.call(lambda: waits(run))):
                break
        if not chat.over:
            outcome = await outcome_of(self._backend, run, patience=0)
            if not outcome.waits_for:
                return  # The server ends: a stream without an end tells the client that it is not whole.
            yield _lines(chat.end(outcome))
        yield _lines(chat.usage(await self._backend.call(lambda: run.usage)))
        yield "data: [DONE]\n\n"

    # Responses

    async def respond(self, request: Request) -> Response:
        asked = await self._backend.body(request, RESPONSE)
        self._refuse_unfit(asked)
        messages, run_id, caller = messages_of(asked), _run_id(request, asked), self._backend.caller(request)
        if asked.get("previous_response_id"):
            before = await caller.use(lambda runs: runs.show(runs.exactly(_run_in(asked["previous_response_id"])).id))
            messages = [*before.asked, *before.messages, *messages]
        run = await self._start(caller, asked, messages, run_id)
        if asked.get("stream"):
            return self._backend.stream(self._response_stream(run, 0))
        patience = 0 if asked.get("background") else None
        return JSONResponse(response_of(_id_of(run.id), await outcome_of(self._backend, run, patience=patience)))

    async def response(self, request: Request) -> Response:
        run = await self._known(request)
        if request.query_params.get("stream") == "true":
            after = whole(request.query_params.get("starting_after") or "-1", "starting_after", -1)
            return self._backend.stream(self._response_stream(run, after + 1))
        return JSONResponse(response_of(_id_of(run.id), await outcome_of(self._backend, run, patience=0)))

    async def cancel(self, request: Request) -> Response:
        run = await self._known(request)
        await self._backend.call(run.cancel)
        return JSONResponse(response_of(_id_of(run.id), await outcome_of(self._backend, run, patience=0)))

    async def _response_stream(self, run: Run, first: int) -> AsyncGenerator[str]:
        """Yield the stream of a response from its number `first` on: a function of the run's events."""
        start = await outcome_of(self._backend, run, patience=0)
        stream = ResponseStream(_id_of(run.id), start)
        async for events in self._backend.batches(run, 0, LOOK):
            made = [told for event in events for told in stream.take(event)]
            yield _named(made, first) or ": still here\n\n"
            if stream.over or (not events and await self._backend.call(lambda: waits(run))):
                break
        outcome = await outcome_of(self._backend, run, patience=0)
        if stream.over or outcome.waits_for:
            yield _named(stream.end(outcome), first)

    async def _known(self, request: Request) -> Run:
        run_id, caller = _run_in(request.path_params["id"]), self._backend.caller(request)
        return await self._backend.call(lambda: caller.run(run_id))

    async def _start(self, caller: Caller, asked: dict[str, Any], messages: list[Message], run_id: str) -> Run:
        name, session = asked["model"], asked.get("conversation")
        session = session["id"] if isinstance(session, dict) else session
        if session is None:
            session = (asked.get("metadata") or {}).get("session")

        def begin() -> Run:
            agent = self._agent(name)
            if session is None:
                return caller.start(agent, messages, run_id=run_id)
            # What the session knows is not sent again: clients of chat completions send all of it each time.
            return caller.send(caller.session(session, agent), _new(messages), run_id=run_id)

        return await self._backend.call(begin)

    def _agent(self, name: str) -> Any:
        try:
            return self._backend.agent(name)
        except errors.UnknownAgent as error:
            raise Refused(404, "model_not_found", str(error)) from None

    def _refuse_unfit(self, asked: Mapping[str, object]) -> None:
        if asked.get("stream"):
            self._backend.check_streams()  # Now: a client without a key of its own would start a second run.
        if asked.get("tools"):
            raise Refused(422, "InvalidBody", "agents have tools of their own; tools of a client are not called")
        if asked.get("n") not in (None, 1):
            raise Refused(422, "InvalidBody", "n must be 1: a run has one answer")


def _new(messages: list[Message]) -> list[Message]:
    """Return the messages behind the last answer."""
    last = max((at for at, message in enumerate(messages) if message.get("role") == "assistant"), default=-1)
    return messages[last + 1 :] or messages[-1:]


def _run_id(request: Request, asked: dict[str, Any]) -> str:
    """Return the id of the run: that of the caller, so that a repeated request attaches, or a new one."""
    return request.headers.get("idempotency-key") or (asked.get("metadata") or {}).get("run_id") or str(uuid.uuid4())


def _id_of(run_id: str) -> str:
    return f"resp_{encode_id(run_id)}"


def _run_in(response_id: object) -> str:
    found = decode_id(str(response_id).removeprefix("resp_"))
    if found is None:
        raise errors.RunNotFound(f"there is no response {response_id!r}")
    return found


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": MODELS, "owned_by": "durable-swarm"}


def _told(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler whose errors have the fields that OpenAI's clients read, too."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as error:
            made = failed(error)
            body = json.loads(bytes(made.body))
            body["error"] |= {"code": body["error"]["type"], "param": None}
            return JSONResponse(body, made.status_code)

    return answer


def _lines(chunks: Iterable[dict[str, object]]) -> str:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)


def _named(told: Iterable[dict[str, Any]], first: int) -> str:
    return "".join(
        f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in told if one["sequence_number"] >= first
    )
