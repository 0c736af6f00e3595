"""The list of runs, one change for several of them, and two side by side."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from markupsafe import Markup
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from durable_swarm.errors import ConfigurationError, DurableSwarmError
from durable_swarm.runs import ENDED, STATES
from durable_swarm.server.web.live import is_still, seen_now
from durable_swarm.server.web.site import Site, back_to, by_of, form_of, id_in
from durable_swarm.service import Query, Runs

FILTERS = ("status", "agent", "swarm", "q", "since")
SINCE = {"1h": 1, "24h": 24, "7d": 168}  # In hours.
PAGE = 50
"""Runs on one page."""
ROWS = 300
"""Parts of a comparison on its page."""


async def listed(site: Site, request: Request) -> Response:
    """Show one page of the list; a page that asks for changes gets its rows only, if anything has changed."""

    def found(runs: Runs) -> dict[str, Any] | None:
        mark = runs.mark()
        return None if is_still(request, mark) else _found(runs, request.query_params) | {"seen": seen_now(mark)}

    data, opened = await site.see(request, found)
    if data is None:
        return Response(status_code=204)
    live = Markup(site.html(request, "rows_live.html", **data))
    if "seen" in request.query_params:
        return site.with_count(request, live, opened)
    return site.page(request, "runs.html", open=opened, live=live, **data)


async def bulk(site: Site, request: Request) -> Response:
    """Cancel or resume the ticked runs, and show what became of each."""
    form = await form_of(request)
    change, by = dict(form).get("change", ""), by_of(request)
    if change not in ("cancel", "resume"):
        raise ConfigurationError("tick some runs, and choose Cancel or Resume")
    ids = [value for name, value in form if name == "id"]

    def changed(runs: Runs) -> dict[str, Any]:
        outcomes = [(run_id, _outcome(runs, change, run_id, by)) for run_id in dict.fromkeys(ids)]
        return _found(runs, QueryParams("")) | {"outcomes": outcomes}

    data, opened = await site.see(request, changed)
    rows = Markup(site.html(request, "rows.html", **data))
    return site.page(request, "runs.html", open=opened, live=rows, **data)


def _outcome(runs: Runs, change: str, run_id: str, by: str | None) -> str:
    """Change one run, and return what became of it in words."""
    try:
        before = runs.exactly(run_id)
        after = (runs.cancel if change == "cancel" else runs.resume)(run_id, by)
    except DurableSwarmError as error:
        return str(error)
    if change == "cancel" and before.status in ENDED:
        return f"was {before.status} already"
    return after.shown_status


def _found(runs: Runs, query: QueryParams) -> dict[str, object]:
    """Return one page of the list. `top` is the first run of a page that looks again: newer ones are only counted."""
    wanted = {name: query.get(name, "").strip() for name in FILTERS}
    before = query.get("before") or None
    found = runs.list(_query(wanted, before, PAGE + 1))
    ids = [run.id for run in found]
    newer = ids.index(query["top"]) if query.get("top") in ids[:PAGE] else 0
    if newer:
        found = found[newer:] + runs.list(_query(wanted, ids[-1], newer))
    return {
        "runs": found[:PAGE], "older": len(found) > PAGE, "wanted": wanted, "before": before or "",
        "outcomes": [], "newer": newer,
    }  # fmt: skip


def _query(wanted: dict[str, str], before: str | None, limit: int) -> Query:
    hours = SINCE.get(wanted["since"])
    return Query(
        status=next((state for state in STATES if state == wanted["status"]), None),
        idle=wanted["status"] == "interrupted", agent=wanted["agent"] or None, swarm=wanted["swarm"] or None,
        search=wanted["q"] or None, since=None if hours is None else datetime.now(UTC) - timedelta(hours=hours),
        before=before, limit=limit,
    )  # fmt: skip


async def compared(site: Site, request: Request) -> Response:
    """Show two runs side by side, and where they begin to differ."""
    left, right = id_in(request), id_in(request, "other")
    both, opened = await site.see(request, lambda runs: runs.compare(runs.exactly(left).id, runs.exactly(right).id))
    different = next((part for part in both.parts if not part.same), None)
    return site.page(
        request, "compare.html", compared=both, parts=both.parts[:ROWS], different=different,
        left_out=max(len(both.parts) - ROWS, 0), open=opened,
    )  # fmt: skip


async def chosen(site: Site, request: Request) -> Response:
    """Lead from the form on a run's page to the comparison."""
    run_id, other = id_in(request), request.query_params.get("with", "").strip()
    view = await site.use(request, lambda runs: runs.exactly(other))
    return back_to(request, "runs", run_id, "compare", view.id)
