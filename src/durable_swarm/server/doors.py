"""The server of a swarm as one ASGI application: its doors, and the console, behind one guard."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from importlib import import_module
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from durable_swarm.display import one_line
from durable_swarm.engine.api.durable import DurableSwarm
from durable_swarm.errors import ConfigurationError
from durable_swarm.server.api import Api
from durable_swarm.server.backend import MOST, Backend, check_query, problem, served
from durable_swarm.server.chat import Chat
from durable_swarm.server.guard import Access, Guard, route_path
from durable_swarm.server.open_streams import MOST_STREAMS, OpenStreams
from durable_swarm.server.openai import OpenAI
from durable_swarm.server.openapi import document
from durable_swarm.server.web.app import Console

EXTRA = {"agui": "agui:Agui", "a2a": "a2a:A2A", "mcp": "mcp:Mcp"}
"""The doors that need an extra of their name, with their modules and classes."""
WRONG = "this token is wrong; the right one is in the address that the server printed, or in its environment"
TYPES = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 405: "MethodNotAllowed", 421: "Misdirected"}


class Server:
    """The doors of a swarm and its console."""

    def __init__(
        self,
        swarm: DurableSwarm,
        known: Mapping[str, object] | None,
        doors: Collection[str],
        access: Access,
        *,
        console: bool,
        read_only: bool,
        max_body: int = MOST,
        max_streams: int = MOST_STREAMS,
    ) -> None:
        self.streams = OpenStreams(max_streams)
        self._backend = Backend(swarm, known, max_body, self.streams)
        self._console = Console(swarm.database, access, read_only=read_only, streams=self.streams) if console else None
        # The AI SDK asks below /api, so its door comes with that one.
        made = [*map(door_of, doors), *([Chat] if "api" in doors else [])]
        routes = [route for door in made for route in door(self._backend).routes()]
        if "api" in doors:
            routes.append(_description(made))
        if read_only:
            routes = [route for route in routes if (route.methods or set()) <= {"GET", "HEAD"}]
        self._prefixes = tuple({f"/{route.path.split('/')[1]}" for route in routes})
        handlers = dict.fromkeys((404, 405), _failed)
        app = Starlette(
            routes=[Route("/healthz", _healthz), *routes], exception_handlers=handlers, lifespan=self._lifespan
        )
        app.router.redirect_slashes = False
        self._doors = Guard(app, access, lambda path: path == "/healthz", _refuse, _deny)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: what belongs to no door goes to the console."""
        if self._console is None or scope["type"] == "lifespan" or self._is_at_a_door(route_path(scope)):
            await self._doors(scope, receive, send)
        else:
            await self._console(scope, receive, send)

    def _is_at_a_door(self, path: str) -> bool:
        return any(path == prefix or path.startswith(f"{prefix}/") for prefix in self._prefixes)

    def stop(self) -> None:
        """End all streams, because the server is about to end; may be called in a signal handler."""
        self._backend.stop()
        if self._console is not None:
            self._console.stop()

    def close(self) -> None:
        """End all streams and give back what was opened. The swarm stays open: it belongs to the program."""
        self.stop()
        self._backend.close()
        if self._console is not None:
            self._console.close()

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        await self._backend.call(self._backend.open)  # Runs that dead processes left continue when the server starts.
        yield
        self.close()


def door_of(name: str) -> Any:
    """Return the class of a door, which is made of a backend and has routes.

    Raises `ConfigurationError` without its extra.
    """
    if name in EXTRA:
        module, _, made = EXTRA[name].partition(":")
        try:
            return getattr(import_module(f"durable_swarm.server.{module}"), made)
        except ModuleNotFoundError as error:
            text = f"the door {name!r} needs the extra: pip install 'durable-swarm[{name}]'"
            raise ConfigurationError(text) from error
    return {"api": Api, "openai": OpenAI}[name]


def _description(doors: Iterable[Any]) -> Route:
    """Return the route of the description of all doors."""
    described = document(one for door in doors for one in door.described())

    async def openapi(request: Request) -> Response:
        check_query(request, ())
        return JSONResponse(described)

    return Route("/api/openapi.json", served(openapi))


async def _healthz(_: Request) -> Response:
    return PlainTextResponse("ok\n")


async def _failed(request: Request, error: Exception) -> Response:
    status, path = getattr(error, "status_code", 404), one_line(route_path(request.scope))[:200]
    if status == 404:
        return _deny(request, status, f"there is nothing at {path}; /api/openapi.json describes the routes")
    allowed = (getattr(error, "headers", None) or {}).get("Allow", "").split(", ")
    takes = ", ".join(sorted(method for method in allowed if method != "HEAD"))
    return _deny(request, status, f"{path} does not take {request.method}; it takes {takes}")


def _refuse(request: Request, wrong: bool) -> Response:
    answer = _deny(request, 401, WRONG if wrong else "show the token: Authorization: Bearer TOKEN")
    answer.headers["www-authenticate"] = "Bearer"
    return answer


def _deny(_: Request, status: int, text: str) -> Response:
    return problem(status, TYPES.get(status, "Error"), text)
