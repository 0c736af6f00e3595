"""Pages about the whole: sessions, workers, the check-up of the database."""

from __future__ import annotations

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from durable_swarm.errors import RunNotFound
from durable_swarm.server.guard import OWN
from durable_swarm.server.web.site import Site, id_in
from durable_swarm.service import Runs, SessionDetail, checkup

PAGE = 100
"""Sessions on one page."""


async def sessions(site: Site, request: Request) -> Response:
    """Show the sessions, the latest change first."""
    found, opened = await site.see(request, lambda runs: runs.sessions.listed(limit=PAGE))
    return site.page(request, "sessions.html", found=found, open=opened)


async def session(site: Site, request: Request) -> Response:
    """Show one session: its conversation and its runs."""
    name = id_in(request)
    found, opened = await site.see(request, lambda runs: _exactly(runs, name))
    return site.page(request, "session.html", session=found, open=opened)


async def workers(site: Site, request: Request) -> Response:
    """Show the processes, the queues, the schedules and the limits; a page that asks for changes gets these only.

    They are always read anew: the death of a process changes no mark, and to read them costs hardly more.
    """
    _for_operators(request)

    def look(runs: Runs) -> dict[str, object]:
        return {"found": runs.workers(), "schedules": runs.schedules.list()}

    found, opened = await site.see(request, look)
    html = site.html(request, "workers_live.html", **found)
    if "seen" in request.query_params:
        return HTMLResponse(html)
    return site.page(request, "workers.html", live=Markup(html), open=opened)


async def health(site: Site, request: Request) -> Response:
    """Show the check-up, which reads the whole database: only when somebody asks for it."""
    _for_operators(request)
    asked = "check" in request.query_params
    checks, opened = await site.see(request, lambda _: checkup(site.database) if asked else [])
    return site.page(request, "health.html", checks=checks, asked=asked, open=opened)


def _for_operators(request: Request) -> None:
    """Raise `RunNotFound` for a person who sees only runs of its own: these pages are about all."""
    if request.scope.get(OWN) is not None:
        raise RunNotFound("this page is about the runs of all, and you see your own")


def _exactly(runs: Runs, name: str) -> SessionDetail:
    found = runs.sessions.show(name)
    if found.id != name:
        raise RunNotFound(f"there is no session {name!r}")
    return found
