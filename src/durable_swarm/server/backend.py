"""What every door needs: the swarm and its agents, a JSON body, errors as JSON, the events of a run as a stream."""

from __future__ import annotations

import contextlib
import difflib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import anyio
from jsonschema import Draft202012Validator, ValidationError
from pydantic_core import from_json
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive

from durable_swarm import agents, errors
from durable_swarm.engine.api.durable import DurableSwarm
from durable_swarm.engine.api.run import Run
from durable_swarm.engine.api.session import DurableSession
from durable_swarm.engine.records.owners import beginning_for
from durable_swarm.events import Event
from durable_swarm.fields import unknown_field
from durable_swarm.limits import Limits
from durable_swarm.requests import Request as HumanRequest
from durable_swarm.server.event_hub import EventHubs
from durable_swarm.server.guard import OWN, SAFE, USER
from durable_swarm.server.ids import decode_id, encode_rest
from durable_swarm.server.open_streams import OpenStreams
from durable_swarm.service import NoRequest, Runs, is_unusable, open_runs
from durable_swarm.swarm.session import WhenBusy
from durable_swarm.types import Message as ChatMessage

T = TypeVar("T")
E = TypeVar("E")

MOST = 10 * 2**20
"""Bytes of a body, unless it is given."""
AT_ONCE = 16
"""How many threads serve all requests together."""
ALIVE = 15.0
"""Seconds of silence after which a comment keeps proxies from closing a stream."""

STATUSES: dict[type[Exception], int] = {
    errors.RunNotFound: 404,
    errors.UnknownAgent: 404,
    NoRequest: 404,
    errors.AlreadyAnswered: 409,
    errors.RequestExpired: 409,
    errors.RunConflict: 409,
    errors.SessionBusy: 409,
    errors.DurableSwarmError: 422,
}

INVALID_JSON = "InvalidJSON"
STREAM = {"x-accel-buffering": "no", "cache-control": "no-store"}


class Refused(Exception):
    """A request that is answered with an error: its HTTP status, its type and a sentence."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


def _as_it_is(event: Event) -> Event:
    return event


class Backend:
    """The swarm behind the doors."""

    def __init__(
        self,
        swarm: DurableSwarm,
        known: Mapping[str, object] | None,
        most: int,
        streams: OpenStreams | None = None,
    ) -> None:
        self._swarm = swarm
        self._hubs = EventHubs()
        self._known = known
        self._most = most
        self._opening = threading.Lock()
        self._opened = contextlib.ExitStack()
        self._runs: Runs | None = None
        self._limiter: anyio.CapacityLimiter | None = None
        self._streams = streams or OpenStreams()

    # Runs and agents

    async def call(self, function: Callable[[], T]) -> T:
        """Call a function that may block, in a thread."""
        self._limiter = self._limiter or anyio.CapacityLimiter(AT_ONCE)
        return await anyio.to_thread.run_sync(function, limiter=self._limiter)

    def caller(self, request: Request | None) -> Caller:
        """Return the way to the swarm for whoever makes a request; None is somebody who may see all."""
        scope: Mapping[str, Any] = {} if request is None else request.scope
        return Caller(self, self._swarm, scope.get(USER), scope.get(OWN))

    def open(self) -> Runs:
        """Open the database, and continue what dead processes left."""
        with self._opening:
            if self._runs is None:
                self._swarm.runs(limit=1)
                self._runs = self._opened.enter_context(open_runs(self._swarm.database))
            return self._runs

    def stop(self) -> None:
        """End all streams, because the server is about to end; may be called in a signal handler."""
        self._hubs.stop()

    def close(self) -> None:
        """Give back what was opened for requests; the swarm stays as it is."""
        with self._opening:
            self._runs = None
            self._opened.close()

    def agent(self, name: str) -> Any:
        """Return the agent of a name. Raises `UnknownAgent`, `AmbiguousAgent`."""
        served = self.agent_names()
        if name not in served:
            near = difflib.get_close_matches(name, served, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"served are {', '.join(served) or 'none'}"
            raise errors.UnknownAgent(f"no agent named {name!r} is served here; {hint}", agent=name)
        return agents.find(name) if self._known is None else self._known[name]

    def agent_names(self) -> list[str]:
        """Return the names of the agents that are served."""
        return sorted(agents.names() if self._known is None else self._known)

    # Requests and answers

    async def body(self, request: Request, schema: Mapping[str, object] | None = None) -> dict[str, Any]:
        """Return the JSON object in a body, which fits its schema. Raises `Refused`."""
        given = json_in(await self.raw(request) or b"{}")
        if not isinstance(given, dict):
            raise Refused(422, "InvalidBody", "the body must be a JSON object")
        misfits = [] if schema is None else Draft202012Validator(schema).iter_errors(given)
        # A name that is not known first: another one, which is missing, was probably meant.
        found = min(misfits, key=lambda error: error.validator != "additionalProperties", default=None)
        if found is not None:
            where = ".".join(map(str, found.absolute_path)) or "the body"
            raise Refused(422, "InvalidBody", _misfit(where, found))
        return given

    async def raw(self, request: Request) -> bytes:
        """Return a body. Raises `Refused` for one that is too large."""
        taken = bytearray()
        async for chunk in request.stream():
            taken += chunk
            if len(taken) > self._most:
                raise Refused(413, "TooLarge", f"a body takes at most {self._most} bytes (--max-body)")
        return bytes(taken)

    async def whole(self, request: Request) -> Receive:
        """Return what gives a body again, and then what follows it, for an SDK that reads it as JSON.

        Raises `Refused`, also for JSON which the SDK would take for an error of its own.
        """
        body, given = await self.raw(request), False
        json_in(body or b"{}")

        async def receive() -> Message:
            nonlocal given
            if given:
                return await request.receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return receive

    def stream(self, lines: AsyncGenerator[str]) -> Response:
        """Return server-sent events. Raises `Refused` if too many streams are open."""
        self.check_streams()
        return StreamingResponse(self._counted(lines), media_type="text/event-stream", headers=STREAM)

    async def _counted(self, lines: AsyncGenerator[str]) -> AsyncIterator[str]:
        async with contextlib.aclosing(lines):
            with self.streaming():
                async for line in lines:
                    yield line

    def check_streams(self) -> None:
        """Check that a stream may be opened. Raises `Refused`, before an answer has begun."""
        if self._streams.full:
            raise Refused(429, "TooManyStreams", f"{self._streams.most} streams are open (--max-streams); close one")

    def streaming(self) -> contextlib.AbstractContextManager[None]:
        """Count an open stream."""
        return self._streams.counting()

    def batches(self, run: Run, after: int, silence: float = ALIVE) -> AsyncGenerator[list[Event]]:
        """Yield the events of a run as they come, as `EventHubs.batches` does."""
        return self.encoded(run, after, _as_it_is, silence)

    def encoded(
        self, run: Run, after: int, encode: Callable[[Event], E], silence: float = ALIVE
    ) -> AsyncGenerator[list[E]]:
        """Yield the encoded events of a run as they come; each is encoded once, however many read it."""
        return self._hubs.batches(run, after, encode, silence)


@dataclass(frozen=True)
class Caller:
    """The swarm as one who asks may use it: `name` is recorded with what is decided.

    With `own`, runs, requests and sessions that belong to others do not exist, and what is begun belongs to `own`. The
    methods that are not async may block.
    """

    backend: Backend
    _swarm: DurableSwarm
    name: str | None
    own: str | None

    async def use(self, function: Callable[[Runs], T]) -> T:
        """Call a function with the runs of the swarm's database, in a thread."""
        return await self.backend.call(lambda: function(self.runs()))

    def runs(self) -> Runs:
        """Return the runs that the caller sees."""
        return self.backend.open().seen_by(self.own)

    def run(self, run_id: str) -> Run:
        """Return the handle of a run. Raises `RunNotFound`."""
        if self.own is not None:
            self.runs().exactly(run_id)
        return self._swarm.get(run_id)

    def start(
        self,
        agent: object,
        messages: list[ChatMessage],
        context: dict[str, Any] | None = None,
        *,
        run_id: str | None = None,
        limits: Limits | None = None,
    ) -> Run:
        """Start a run, as `DurableSwarm.start` does."""
        with beginning_for(self.own):
            return self._swarm.start(agent, messages, context, run_id=run_id, limits=limits)

    def session(
        self, session_id: str, agent: object, *, context_variables: dict[str, Any] | None = None
    ) -> DurableSession:
        """Return a session. Raises `RunNotFound` for one of somebody else."""
        if self.own is not None:
            self.runs().sessions.check(session_id)
        return self._swarm.session(session_id, agent, context_variables=context_variables)

    def send(
        self,
        session: DurableSession,
        messages: list[ChatMessage],
        *,
        run_id: str | None = None,
        when_busy: WhenBusy = "queue",
        limits: Limits | None = None,
    ) -> Run:
        """Send messages to a session, as `Session.start` does."""
        with beginning_for(self.own):
            return session.start(messages, run_id=run_id, when_busy=when_busy, limits=limits)

    def fork(self, run_id: str, /, **asked: Any) -> Run:
        """Fork a run, as `Run.fork` does."""
        with beginning_for(self.own):
            return self.run(run_id).fork(**asked)

    def request(self, request_id: str) -> HumanRequest:
        """Return a request. Raises `NoRequest`."""
        return self.runs().inbox.find(request_id)

    def approve(self, request_id: str, arguments: dict[str, Any] | None = None) -> None:
        """Approve a request. Raises `NoRequest`, and as `DurableSwarm.approve` does."""
        self._swarm.approve(self.request(request_id).id, arguments=arguments, by=self.name)

    def reject(self, request_id: str, reason: str = "") -> None:
        """Reject a request. Raises as `approve` does."""
        self._swarm.reject(reason, self.request(request_id).id, by=self.name)

    def answer(self, request_id: str, value: object) -> None:
        """Answer a request. Raises as `approve` does."""
        self._swarm.answer(value, self.request(request_id).id, by=self.name)

    def complete(self, token: str, result: object) -> bool:
        """Post the result of a call. Whoever knows the token may: it is made to be handed to another program."""
        return self._swarm.complete(token, result, by=self.name)


def json_in(raw: bytes) -> object:
    """Return the JSON in a body.

    Raises `Refused` for text that is not JSON, and for what cannot be stored or sent back: half a surrogate pair, NaN,
    numbers and levels without end.
    """
    try:
        return from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise Refused(400, INVALID_JSON, f"the body is not JSON: {error}") from None


def served(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler that answers with errors as JSON."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Exception as error:
            return failed(error)

    return answer


def failed(error: Exception) -> Response:
    """Return an error as JSON. Raises what is not an error of the request."""
    if isinstance(error, Refused):
        return problem(error.status, error.kind, str(error))
    if isinstance(error, errors.DurableSwarmError):
        kind = next(kind for kind in type(error).__mro__ if kind in STATUSES)
        status = 503 if is_unusable(error) else STATUSES[kind]
        return problem(status, type(error).__name__, str(error))
    raise error


def problem(status: int, kind: str, message: str) -> Response:
    """Return the answer of an error."""
    return JSONResponse({"error": {"type": kind, "message": message}}, status)


def _misfit(where: str, found: ValidationError) -> str:
    """Return what does not fit in a body, in a sentence."""
    schema, given = cast(dict[str, Any], found.schema), cast(dict[str, Any], found.instance)
    if found.validator != "additionalProperties":
        return f"{where}: {found.message:.300}"
    known = list(schema["properties"])
    return unknown_field(where, next(name for name in given if name not in known), known)


def check_query(request: Request, known: Sequence[str]) -> None:
    """Check that a request has no other names in its query. Raises `Refused`."""
    # The guard takes the token of an address, and leaves it there if the request shows one in its head, too.
    for name in request.query_params:
        if name not in known and not (name == "token" and request.method in SAFE):
            raise Refused(422, "InvalidQuery", unknown_field("the query", name, known, "parameter"))


def whole(text: str, name: str, least: int = 1) -> int:
    """Return the whole number in a query. Raises `Refused`."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 16) or int(text) < least:
        raise Refused(422, "InvalidQuery", f"{name} must be a whole number of at least {least}")
    return int(text)


def id_in(request: Request, name: str = "id") -> str:
    """Return the id in a request's path. Raises `RunNotFound` if it is none."""
    segment = request.path_params[name]
    found = decode_id(segment)
    if found is None:
        raise errors.RunNotFound(
            "ids and names in addresses are written with ~XX for all but letters, digits, - and _: "
            f"{segment!r} is {encode_rest(segment)!r}"
        )
    return found
