"""The console as an ASGI application: its routes, the errors as pages, signing in."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from durable_swarm import errors
from durable_swarm.server.guard import Access, Guard, equal, signed_in
from durable_swarm.server.open_streams import OpenStreams
from durable_swarm.server.web import inbox, run, runs, status, stream
from durable_swarm.server.web.site import TYPES, Site, form_of
from durable_swarm.service import NoRequest, NoRuns, NoStep, is_unusable

Page = Callable[[Site, Request], Awaitable[Response]]

PAGES: dict[str, Page] = {
    "/runs": runs.listed,
    "/runs/{id}": run.page,
    "/runs/{id}/events": stream.events,
    "/runs/{id}/step/{number}": run.step,
    "/runs/{id}/message/{number}": run.message,
    "/runs/{id}/export": run.export,
    "/runs/{id}/compare/{other}": runs.compared,
    "/runs/{id}/compare": runs.chosen,
    "/inbox": inbox.listed,
    "/inbox/{id}": inbox.page,
    "/sessions": status.sessions,
    "/sessions/{id}": status.session,
    "/workers": status.workers,
    "/health": status.health,
}
CHANGES: dict[str, Page] = {
    "/runs/bulk": runs.bulk,
    "/runs/{id}/cancel": run.change,
    "/runs/{id}/resume": run.change,
    "/runs/{id}/say": run.say,
    "/runs/{id}/fork": run.fork,
    "/inbox/{id}": inbox.decide,
}
FORMS: dict[str, Page] = {"/runs/{id}/fork": run.fork_form}
"""Pages that only lead to a change."""

HTTP = {
    404: ("Not found", "There is nothing at this address."),
    413: ("Too large", "A form takes at most 10 MB."),
    429: ("Too many open pages", "The server has as many open streams as it may have (--max-streams); close a page."),
}
STATUSES: dict[type[Exception], tuple[int, str]] = {
    errors.RunNotFound: (404, "Not found"),
    NoRequest: (404, "Not found"),
    NoStep: (404, "Not found"),
    errors.AlreadyAnswered: (409, "Decided already"),
    errors.RequestExpired: (409, "Expired"),
    errors.RunConflict: (409, "In use"),
    errors.DurableSwarmError: (422, "That did not work"),
}


class Console:
    """The console of one database, as an ASGI application."""

    def __init__(
        self, database: str | None, access: Access, *, read_only: bool, streams: OpenStreams | None = None
    ) -> None:
        self._site = Site(database, read_only=read_only, streams=streams or OpenStreams())
        self._access = access
        changes = {} if read_only else CHANGES
        pages = PAGES if read_only else PAGES | FORMS
        routes = [
            Route("/", self._home),
            Route("/healthz", self._healthz),
            Route("/login", self._login, methods=["GET", "POST"]),
            Route("/static/{version}/{name}", self._file),
            *(Route(path, partial(page, self._site), methods=["POST"]) for path, page in changes.items()),
            *(Route(path, partial(page, self._site)) for path, page in pages.items()),
        ]
        handlers = dict.fromkeys((*STATUSES, 404, 405, 413, 429, Exception), self._failed)
        app = Starlette(
            routes=routes, middleware=[Middleware(GZipMiddleware, minimum_size=500)],
            exception_handlers={**handlers, NoRuns: self._fresh}, lifespan=self._lifespan,
        )  # fmt: skip
        app.router.redirect_slashes = False
        self._app = Guard(app, access, _is_free, self._refuse)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._app(scope, receive, send)

    def stop(self) -> None:
        """End all streams, because the server is about to end; may be called in a signal handler."""
        self._site.stopping = True

    def close(self) -> None:
        """End all streams and close the database. Needed only where the application gets no lifespan: mounted."""
        self.stop()
        self._site.close()

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        self.close()

    async def _home(self, request: Request) -> Response:
        return RedirectResponse(f"{request.scope.get('root_path', '')}/runs", 303)

    async def _healthz(self, _: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def _file(self, request: Request) -> Response:
        name, version = request.path_params["name"], request.path_params["version"]
        if name not in self._site.files or version != self._site.version:
            return PlainTextResponse("There is no such file.\n", 404)
        headers = {"cache-control": "public, max-age=31536000, immutable"}
        return Response(self._site.files[name], media_type=TYPES[name], headers=headers)

    async def _login(self, request: Request) -> Response:
        """Take the token from a form, which a browser without the printed address needs."""
        token = self._access.token
        if token is None:
            return await self._home(request)
        if request.method != "POST":
            return self._refuse(request, False)
        if not equal(dict(await form_of(request)).get("token", ""), token):
            await self._app.slow_down()
            return self._refuse(request, True)
        return signed_in(request, token, f"{request.scope.get('root_path', '')}/runs")

    def _refuse(self, request: Request, wrong: bool) -> Response:
        page = self._site.page(request, "login.html", 401, wrong=wrong, open=None)
        page.headers["www-authenticate"] = "Bearer"
        return page

    async def _fresh(self, request: Request, error: Exception) -> Response:
        return self._site.page(request, "fresh.html", said=str(error))

    async def _failed(self, request: Request, error: Exception) -> Response:
        code, title, said = _explained(error)
        return self._site.page(request, "error.html", code, title=title, said=said)


def _explained(error: Exception) -> tuple[int, str, str]:
    """Return the status, the heading and the sentence of an error."""
    if is_unusable(error):
        return 503, "The database does not answer", str(error)
    if isinstance(error, errors.DurableSwarmError):
        kind = next(kind for kind in type(error).__mro__ if kind in STATUSES)
        return *STATUSES[kind], str(error)
    if isinstance(error, HTTPException):
        return error.status_code, *HTTP.get(error.status_code, HTTP[404])
    return 500, "This should not happen", f"{type(error).__name__}: {error}. The log of the console has more."


def _is_free(path: str) -> bool:
    return path in ("/healthz", "/login") or path.startswith("/static/")
