"""What every page needs: the database, the templates, the paths of the console, the fields of a form."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Callable, Mapping
from functools import partial
from importlib import resources
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode

import anyio
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from durable_swarm.display import harmless
from durable_swarm.errors import RunNotFound
from durable_swarm.server.guard import OWN, USER, route_path
from durable_swarm.server.ids import decode_id, encode_id, encode_rest
from durable_swarm.server.open_streams import OpenStreams
from durable_swarm.server.web import words
from durable_swarm.service import Runs, open_runs

T = TypeVar("T")

AT_ONCE = 4
"""How many threads read the database for all pages together: runs in this process need connections, too."""
COUNTED = 100
"""Open requests are counted up to this number."""
MOST = 10 * 2**20
"""Bytes of a form."""
SCRIPTS = ("htmx.min.js", "hx-sse.min.js", "console.js")
TYPES = {"style.css": "text/css", "scripts.js": "text/javascript", "icon.svg": "image/svg+xml"}


class Site:
    """The console's database, templates and files; shared by all pages."""

    def __init__(self, database: str | None, *, read_only: bool, streams: OpenStreams) -> None:
        self.read_only = read_only
        self.streams = streams
        self.stopping = False
        """True once the server ends: streams end, too."""
        self.files = _files()
        self.version = hashlib.sha256(b"".join(self.files.values())).hexdigest()[:12]
        self.database = database
        self._opened = contextlib.ExitStack()
        self._runs: Runs | None = None
        self._opening = threading.Lock()
        self._limiter: anyio.CapacityLimiter | None = None
        self._templates = Environment(
            loader=PackageLoader("durable_swarm.server.web"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True, finalize=_visible,
        )  # fmt: skip
        self._templates.filters.update(words.FILTERS)
        self._templates.globals.update(words.GLOBALS)

    async def use(self, request: Request, function: Callable[[Runs], T]) -> T:
        """Call a function with the runs of the database that a caller sees, in a thread.

        Raises `NoRuns` as `open_runs` does.
        """
        self._limiter, own = self._limiter or anyio.CapacityLimiter(AT_ONCE), request.scope.get(OWN)
        return await anyio.to_thread.run_sync(lambda: function(self._open().seen_by(own)), limiter=self._limiter)

    async def see(self, request: Request, function: Callable[[Runs], T]) -> tuple[T, str]:
        """Call a function as `use` does; return its result, and the number of open requests as pages show it."""
        return await self.use(request, lambda runs: (function(runs), _count(runs)))

    def with_count(self, request: Request, html: str, opened: str) -> HTMLResponse:
        """Return changed parts of a page, with the number of open requests."""
        count = self.html(request, "count.html", open=opened)
        return HTMLResponse(f'{html}<hx-partial hx-target="#nav-inbox" hx-swap="innerHTML">{count}</hx-partial>')

    def _open(self) -> Runs:
        with self._opening:
            if self._runs is None:
                self._runs = self._opened.enter_context(open_runs(self.database))
            return self._runs

    def close(self) -> None:
        """Close the database; the next use opens it again."""
        with self._opening:
            self._runs = None
            self._opened.close()

    def page(self, request: Request, template: str, status: int = 200, **data: object) -> HTMLResponse:
        """Return a page."""
        return HTMLResponse(self.html(request, template, **data), status)

    def html(self, request: Request, template: str, **data: object) -> str:
        """Return a template as HTML; it knows the paths of the console, and who asks."""
        root = request.scope.get("root_path", "")
        data.setdefault("open", "")
        return self._templates.get_template(template).render(
            path=partial(path_of, root), here=route_path(request.scope), static=f"{root}/static/{self.version}",
            user=request.scope.get(USER), own=request.scope.get(OWN), read_only=self.read_only, **data,
        )  # fmt: skip


def _count(runs: Runs) -> str:
    found = len(runs.inbox.list(limit=COUNTED))
    return f"{COUNTED - 1}+" if found == COUNTED else str(found or "")


def path_of(root: str, *parts: str | int, **query: object) -> str:
    """Return the path of a page below `root`, its parts encoded as ids are; empty parameters are left out."""
    encoded = "/".join(encode_id(str(part)) for part in parts)
    asked = {name: value for name, value in query.items() if value not in (None, "", False)}
    return f"{root}/{encoded}{'?' * bool(asked)}{urlencode(asked)}"


def id_in(request: Request, name: str = "id") -> str:
    """Return the id in a request's path. Raises `RunNotFound` if it is none."""
    segment = request.path_params[name]
    found = decode_id(segment)
    if found is None:
        raise RunNotFound(
            "ids in addresses are written with ~XX for all but letters, digits, - and _: "
            f"{segment!r} is {encode_rest(segment)!r}"
        )
    return found


async def form_of(request: Request) -> list[tuple[str, str]]:
    """Return the fields of a form, in order; a too large one is answered with status 413."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST:
            raise HTTPException(413)
    text = bytes(body).decode("utf-8", "replace")
    return await asyncio.to_thread(parse_qsl, text, True)


def back_to(request: Request, *parts: str | int) -> Response:
    """Return the way to a page, after a change."""
    return RedirectResponse(path_of(request.scope.get("root_path", ""), *parts), 303)


def by_of(request: Request) -> str | None:
    """Return who asks, to be recorded."""
    name: str | None = request.scope.get(USER)
    return name


def number_in(query: Mapping[str, str], name: str) -> int:
    """Return a whole number of a query, 0 if it is none."""
    text = query.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else 0


def number_of(request: Request) -> int:
    """Return the number in a request's path. Raises `RunNotFound` if it is none."""
    found = number_in(request.path_params, "number")
    if str(found) != request.path_params["number"]:
        raise RunNotFound("this address names nothing; it ends with a number")
    return found


def _visible(value: object) -> object:
    """Return a value as pages show it: what a model or a tool wrote has no invisible characters."""
    return harmless(value) if type(value) is str else value


def _files() -> dict[str, bytes]:
    folder = resources.files("durable_swarm.server.web") / "static"
    scripts = b"\n;\n".join((folder / name).read_bytes() for name in SCRIPTS)
    return {
        "style.css": (folder / "style.css").read_bytes(),
        "icon.svg": (folder / "icon.svg").read_bytes(),
        "scripts.js": scripts,
    }
