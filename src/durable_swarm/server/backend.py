"""What every door needs: the swarm and its agents, a JSON body, errors as JSON, the events of a run as a stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from durable_swarm import agents, errors
from durable_swarm.engine.api.durable import DurableSwarm
from durable_swarm.engine.api.run import Run
from durable_swarm.events import Event
from durable_swarm.server.guard import USER
from durable_swarm.server.ids import decode_id
from durable_swarm.service import NoRequest, Runs, open_runs
from durable_swarm.streaming import from_any_thread

T = TypeVar("T")

MOST = 10 * 2**20
"""Bytes of a body, unless it is given."""
AT_ONCE = 16
"""How many threads serve all requests together."""
STREAMS = 2000
"""How many streams are open at once."""
ALIVE = 15.0
"""Seconds of silence after which a comment keeps proxies from closing a stream."""
AHEAD = 1000
"""How many events are read for a reader that does not take them."""

STATUSES: dict[type[Exception], int] = {
    errors.RunNotFound: 404,
    NoRequest: 404,
    errors.AlreadyAnswered: 409,
    errors.RequestExpired: 409,
    errors.RunConflict: 409,
    errors.SessionBusy: 409,
    errors.DurableSwarmError: 422,
}

STREAM = {"x-accel-buffering": "no", "cache-control": "no-store"}


class Refused(Exception):
    """A request that is answered with an error: its HTTP status, its type and a sentence."""

    def __init__(self, status: int, kind: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


class Backend:
    """The swarm behind the doors."""

    def __init__(self, swarm: DurableSwarm, known: Mapping[str, Any] | None, most: int) -> None:
        self.swarm = swarm
        self._stopped = False
        self._ends: set[Callable[[], None]] = set()
        """What ends each open stream."""
        self._known = known
        self._most = most
        self._opening = threading.Lock()
        self._opened = contextlib.ExitStack()
        self._runs: Runs | None = None
        self._limiter: anyio.CapacityLimiter | None = None
        self._streams = 0

    # Runs and agents

    async def call(self, function: Callable[[], T]) -> T:
        """Call a function that may block, in a thread."""
        self._limiter = self._limiter or anyio.CapacityLimiter(AT_ONCE)
        return await anyio.to_thread.run_sync(function, limiter=self._limiter)

    async def use(self, function: Callable[[Runs], T]) -> T:
        """Call a function with the runs of the swarm's database, in a thread."""
        return await self.call(lambda: function(self._open()))

    def _open(self) -> Runs:
        with self._opening:
            if self._runs is None:
                self.swarm.runs(limit=1)  # Opens the database, and continues what dead processes left.
                self._runs = self._opened.enter_context(open_runs(self.swarm.database))
            return self._runs

    def stop(self) -> None:
        """End all streams, because the server is about to end; may be called in a signal handler."""
        self._stopped = True
        for end in list(self._ends):
            end()

    def close(self) -> None:
        """Give back what was opened for requests; the swarm stays as it is."""
        with self._opening:
            self._runs = None
            self._opened.close()

    def agent(self, name: str) -> Any:
        """Return the agent of a name. Raises `UnknownAgent`, `AmbiguousAgent`."""
        if self._known is None:
            return agents.find(name)
        if name not in self._known:
            raise errors.UnknownAgent(f"no agent named {name!r} is served here", agent=name)
        return self._known[name]

    def agent_names(self) -> list[str]:
        """Return the names of the agents that are served."""
        return sorted(agents.names() if self._known is None else self._known)

    # Requests and answers

    async def body(self, request: Request) -> dict[str, Any]:
        """Return the JSON object in a body. Raises `Refused`."""
        taken = bytearray()
        async for chunk in request.stream():
            taken += chunk
            if len(taken) > self._most:
                raise Refused(413, "TooLarge", f"a body takes at most {self._most} bytes (--max-body)")
        try:
            given = json.loads(bytes(taken) or b"{}")
        except (ValueError, RecursionError) as error:
            raise Refused(400, "InvalidJSON", f"the body is not JSON: {error}") from None
        if not isinstance(given, dict):
            raise Refused(422, "InvalidBody", "the body must be a JSON object")
        return given

    @contextlib.contextmanager
    def streaming(self) -> Iterator[None]:
        """Count an open stream. Raises `Refused` if there are too many."""
        if self._streams >= STREAMS:
            raise Refused(429, "TooManyStreams", f"{STREAMS} streams are open; close one")
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    async def batches(self, run: Run, after: int, silence: float = ALIVE) -> AsyncIterator[list[Event]]:
        """Yield the events of a run as they come, all that are there at once; an empty list after `silence` seconds.

        They end with the run, when the run cannot continue here, and when the server ends.
        """
        buffer: list[Event] = []
        loop, more, taken = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

        def end() -> None:
            from_any_thread(loop, more)

        async def pump() -> None:
            async for event in run.events_async(after):
                buffer.append(event)
                more.set()
                if len(buffer) >= AHEAD:
                    taken.clear()
                    await taken.wait()

        work = asyncio.ensure_future(pump())
        work.add_done_callback(lambda _: more.set())
        self._ends.add(end)
        try:
            while not self._stopped:
                if not work.done():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(more.wait(), silence)
                more.clear()
                found, buffer[:] = list(buffer), []
                taken.set()
                if not found and work.done():
                    with contextlib.suppress(errors.DurableSwarmError):
                        await work
                    return
                yield found
        finally:
            self._ends.discard(end)
            work.cancel()


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
        return problem(STATUSES[kind], type(error).__name__, str(error))
    raise error


def problem(status: int, kind: str, message: str) -> Response:
    """Return the answer of an error."""
    return JSONResponse({"error": {"type": kind, "message": message}}, status)


def id_in(request: Request, name: str = "id") -> str:
    """Return the id in a request's path. Raises `RunNotFound` if it is none."""
    found = decode_id(request.path_params[name])
    if found is None:
        raise errors.RunNotFound("ids in addresses are written with ~XX for all but letters, digits, - and _")
    return found


def by_of(request: Request) -> str | None:
    """Return who asks, to be recorded."""
    name: str | None = request.scope.get(USER)
    return name


def event_stream(lines: AsyncIterator[str]) -> Response:
    """Return server-sent events."""
    return StreamingResponse(lines, media_type="text/event-stream", headers=STREAM)
