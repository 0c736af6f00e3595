"""The door of front ends that use Vercel's AI SDK: `POST /api/chat/{agent}`, a UI message stream of version 1.

A chat is a session, and the id of the user's message is the id of its run. A call that needs an approval asks for it in
the SDK's own way. `GET /api/chat/{agent}/{id}/stream` is where the SDK reads on after its page was loaded again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from durable_swarm.engine.api.run import Run
from durable_swarm.events import Event
from durable_swarm.runs import ENDED
from durable_swarm.server.backend import Backend, Caller, Refused, id_in, served
from durable_swarm.server.chat_shapes import BODY, Telling, Told, line, said_in, until_open_text, without_void
from durable_swarm.server.openapi import EVENTS, Described
from durable_swarm.server.outcome import LOOK, last_event, waits

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
        yield Described("POST", "/api/chat/{agent}", "Ask an agent (AI SDK)", BODY, media=(EVENTS,))
        yield Described(
            "GET", "/api/chat/{agent}/{id}/stream", "Follow the run in progress of a chat (AI SDK)", media=(EVENTS,)
        )

    async def ask(self, request: Request) -> Response:
        """Begin a run with the user's message, or take the approvals that the last message has; follow the run."""
        body, caller = await self._backend.body(request, BODY), self._backend.caller(request)
        last, name = _last(body), id_in(request, "agent")
        run, after = await self._backend.call(lambda: self._begin(caller, name, body["id"], last))
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
            return caller.send(session, [{"role": "user", "content": said_in(last)}], run_id=last["id"]), 0
        answers = [part["approval"] for part in last["parts"] if part.get("state") == "approval-responded"]
        waiting = next((run for run in reversed(session.runs()) if run.status == "waiting"), None)
        asked = {} if waiting is None else {request.id: request for request in waiting.requests()}
        taken = [answer for answer in answers if answer["id"] in asked]
        if waiting is None or not taken:
            raise Refused(
                409,
                "NothingWaits",
                f"no run of chat {chat!r} waits for what this message answers: it was decided, or has ended",
            )
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
        yield line({"type": "start", "messageId": f"{run.id}/answer", "messageMetadata": {"runId": run.id}})
        held: list[Event] | None = None
        async for new in self._backend.batches(run, after, LOOK):
            # After a crash the text at the end of the first batch is void, as the next event will say.
            events = [*(held or ()), *new] if new else []
            if new:
                events, held = until_open_text(events) if held is None else (events, [])
            told = [one for event in without_void(events) for one in telling.take(event)]
            yield "".join(map(line, told)) or ": still here\n\n"
            if telling.over:
                break
            if not new and await self._backend.call(lambda: waits(run)):
                requests = await self._backend.call(run.requests)
                yield "".join(map(line, telling.wait(requests)))
                break
        else:
            return  # The server ends: a stream without an end tells the client to come back.
        yield "data: [DONE]\n\n"


def _last(body: Told) -> Told:
    """Return the last message. Raises `Refused`."""
    last: Told = body["messages"][-1]
    if last["role"] not in ("user", "assistant"):
        raise Refused(422, "InvalidBody", "messages: the last one must be the user's, or have its answers to approvals")
    if body.get("trigger") == "regenerate-message":
        raise Refused(422, "InvalidBody", "trigger: what was said stays said; fork the run instead")
    return last
