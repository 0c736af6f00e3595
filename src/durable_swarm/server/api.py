"""The door `api`: runs, their events and requests as JSON over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from durable_swarm.engine.api.run import Run
from durable_swarm.errors import InvalidAnswer
from durable_swarm.events import Event
from durable_swarm.runs import ENDED, STATES
from durable_swarm.server.api_bodies import BODIES, limits_of
from durable_swarm.server.backend import Backend, Refused, check_query, id_in, served, whole
from durable_swarm.server.openapi import EVENTS, JSON, Described
from durable_swarm.service import Query, Runs, RunView, to_json
from durable_swarm.types import Message

LARGEST_PAGE = 1000


@dataclass(frozen=True)
class Operation:
    """One route: its method and path, what it does, and its body by name."""

    method: str
    path: str
    summary: str
    handle: Callable[[Api, Request], Awaitable[Response]] = field(repr=False)
    body: str | None = None
    query: tuple[str, ...] = ()
    status: int = 200
    """The status of success."""


class Api:
    """The handlers of the door."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def routes(self) -> list[Route]:
        """Return the routes."""

        def bound(operation: Operation) -> Callable[[Request], Awaitable[Response]]:
            async def handle(request: Request) -> Response:
                check_query(request, operation.query)
                return await operation.handle(self, request)

            return served(handle)

        return [Route(one.path, bound(one), methods=[one.method]) for one in OPERATIONS]

    @classmethod
    def described(cls) -> Iterator[Described]:
        """Yield the description of each route."""
        for one in OPERATIONS:
            body = None if one.body is None else BODIES[one.body]
            media = (EVENTS,) if one.path.endswith("/events") else (JSON,)
            yield Described(one.method, one.path, one.summary, body, one.query, one.status, media)

    # Runs

    async def start(self, request: Request) -> Response:
        asked = await self._asked(request, "start")
        run_id = asked.get("run_id") or request.headers.get("idempotency-key")
        if request.headers.get("idempotency-key", run_id) != run_id:
            raise Refused(422, "InvalidBody", "run_id and the header Idempotency-Key differ")
        if ("message" in asked) == ("messages" in asked):
            raise Refused(422, "InvalidBody", "give either message or messages")
        messages = asked.get("messages") or [_message(asked["message"])]

        caller = self._backend.caller(request)

        def begin(runs: Runs) -> tuple[RunView, bool]:
            agent, context = self._backend.agent(asked["agent"]), asked.get("context_variables")
            limits = limits_of(asked.get("limits"))
            if "session" in asked:
                session = caller.session(asked["session"], agent, context_variables=context)
                busy = asked.get("when_busy", "queue")
                run = caller.send(session, messages, run_id=run_id, when_busy=busy, limits=limits)
            else:
                run = caller.start(agent, messages, context, run_id=run_id, limits=limits)
            return runs.exactly(run.id), run.is_new

        view, new = await caller.use(begin)
        return JSONResponse(to_json(view), 201 if new else 200)

    async def listed(self, request: Request) -> Response:
        asked = request.query_params
        limit = whole(asked.get("limit", "100"), "limit")
        status = asked.get("status")
        if status is not None and status not in STATES:
            raise Refused(422, "InvalidQuery", f"status must be one of {', '.join(STATES)}")
        query = Query(status, asked.get("agent"), min(limit, LARGEST_PAGE) + 1, before=asked.get("before"))
        found = await self._backend.caller(request).use(lambda runs: runs.list(query))
        page = found[: query.limit - 1]
        following = page[-1].id if len(found) > len(page) and page else None
        return JSONResponse({"runs": to_json(page), "next": following})

    async def shown(self, request: Request) -> Response:
        run_id, caller = id_in(request), self._backend.caller(request)
        return JSONResponse(to_json(await caller.use(lambda runs: runs.show(runs.exactly(run_id).id))))

    async def events(self, request: Request) -> Response:
        run_id = id_in(request)
        seen = request.headers.get("last-event-id") or request.query_params.get("after") or "0"
        after = whole(seen, "after", 0)
        caller = self._backend.caller(request)
        run, over = await self._backend.call(lambda: _following(caller.run(run_id), after))
        if over:  # To a browser it says that there is nothing to connect to again.
            return Response(status_code=204)
        return self._backend.stream(self._stream(run, after))

    async def _stream(self, run: Run, after: int) -> AsyncGenerator[str]:
        yield "retry: 500\n\n"
        async for lines in self._backend.encoded(run, after, _line):
            yield "".join(lines) or ": still here\n\n"

    async def cancel(self, request: Request) -> Response:
        return await self._changed(request, "none", lambda run, _: run.cancel())

    async def resume(self, request: Request) -> Response:
        return await self._changed(request, "none", lambda run, _: run.resume())

    async def say(self, request: Request) -> Response:
        def change(run: Run, asked: Mapping[str, Any]) -> None:
            if run.status in ENDED:
                raise Refused(
                    409,
                    "RunEnded",
                    f"run {run.id!r} has ended ({run.status}), so it takes no message; fork it, or start one",
                )
            run.say(asked["text"])

        return await self._changed(request, "say", change)

    async def extend(self, request: Request) -> Response:
        return await self._changed(request, "extend", lambda run, asked: run.extend(**_named(asked)))

    async def fork(self, request: Request) -> Response:
        asked, run_id, caller = await self._asked(request, "fork"), id_in(request), self._backend.caller(request)
        made = await caller.use(lambda runs: runs.exactly(caller.fork(run_id, **asked).id))
        return JSONResponse(to_json(made), 201)

    async def _changed(self, request: Request, body: str, change: Callable[[Run, dict[str, Any]], object]) -> Response:
        asked, run_id, caller = await self._asked(request, body), id_in(request), self._backend.caller(request)

        def work(runs: Runs) -> object:
            change(caller.run(run_id), asked)
            return runs.exactly(run_id)

        return JSONResponse(to_json(await caller.use(work)))

    # Requests

    async def requests(self, request: Request) -> Response:
        run_id = request.query_params.get("run")
        found = await self._backend.caller(request).use(lambda runs: runs.inbox.list(run_id))
        return JSONResponse({"requests": to_json(found)})

    async def decide(self, request: Request) -> Response:
        asked, request_id = await self._asked(request, "decide"), id_in(request)
        caller = self._backend.caller(request)

        def work(runs: Runs) -> object:
            runs.inbox.find(request_id)
            match asked["verdict"]:
                case "approve":
                    caller.approve(request_id, asked.get("arguments"))
                case "reject":
                    caller.reject(request_id, asked.get("reason", ""))
                case _:
                    if "value" not in asked:
                        raise InvalidAnswer("an answer needs a value", request_id=request_id)
                    caller.answer(request_id, asked["value"])
            return runs.inbox.find(request_id)

        return JSONResponse(to_json(await caller.use(work)))

    async def complete(self, request: Request) -> Response:
        asked, token, caller = (
            await self._asked(request, "complete"),
            id_in(request, "token"),
            self._backend.caller(request),
        )
        waits = await caller.use(lambda _: caller.complete(token, asked["result"]))
        return JSONResponse({"waits": waits})

    async def _asked(self, request: Request, name: str) -> dict[str, Any]:
        """Return the body, which fits its schema. Raises `Refused`."""
        return await self._backend.body(request, BODIES[name])


OPERATIONS = [
    Operation("POST", "/api/runs", "Start a run, or attach to the one of this id", Api.start, "start", status=201),
    Operation("GET", "/api/runs", "List runs, newest first", Api.listed, None, ("status", "agent", "limit", "before")),
    Operation("GET", "/api/runs/{id}", "Return a run in full", Api.shown),
    Operation("GET", "/api/runs/{id}/events", "Follow the events of a run (SSE)", Api.events, None, ("after",)),
    Operation("POST", "/api/runs/{id}/cancel", "Stop a run at its next checkpoint", Api.cancel, "none"),
    Operation("POST", "/api/runs/{id}/resume", "Let a failed or cancelled run continue", Api.resume, "none"),
    Operation("POST", "/api/runs/{id}/say", "Add a user's message to a run", Api.say, "say"),
    Operation("POST", "/api/runs/{id}/fork", "Start a new run from a turn of another", Api.fork, "fork", status=201),
    Operation("POST", "/api/runs/{id}/extend", "Add to the limits of a run", Api.extend, "extend"),
    Operation("GET", "/api/requests", "List open requests, oldest first", Api.requests, None, ("run",)),
    Operation("POST", "/api/requests/{id}", "Decide about a request", Api.decide, "decide"),
    Operation("POST", "/api/tokens/{token}", "Post the result of a call", Api.complete, "complete"),
]


def _message(given: str | Message) -> Message:
    return {"role": "user", "content": given} if isinstance(given, str) else given


def _named(amounts: dict[str, object]) -> dict[str, object]:
    if unknown := [name for name in amounts if not name.isidentifier() or name == "self"]:
        raise Refused(422, "InvalidBody", f"a limit cannot be named {unknown[0]!r}")
    return amounts


def _following(run: Run, after: int) -> tuple[Run, bool]:
    """Return a run with True if it has ended, and has no event after this number."""
    if run.status not in ENDED or not after:
        return run, False
    reader = run.follower(after)
    return run, not reader.read() and reader.over


def _line(event: Event) -> str:
    data = {"seq": event.seq, "type": event.type, "data": event.data, "time": event.time.isoformat()}
    return f"id: {event.seq}\nevent: {event.type}\ndata: {json.dumps(data)}\n\n"
