"""Two runs side by side, turn by turn."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from durable_swarm.server.web.site import Site, back_to, id_in
from durable_swarm.service import Comparison, Runs

ROWS = 300
"""Parts of a comparison on its page."""


async def page(site: Site, request: Request) -> Response:
    """Show two runs side by side, and where they begin to differ."""
    left, right = id_in(request), id_in(request, "other")

    def found(runs: Runs) -> Comparison:
        return runs.compare(runs.exactly(left).id, runs.exactly(right).id)

    compared, opened = await site.see(found)
    different = next((part for part in compared.parts if not part.same), None)
    return site.page(
        request, "compare.html", compared=compared, parts=compared.parts[:ROWS], different=different,
        left_out=max(len(compared.parts) - ROWS, 0), open=opened,
    )  # fmt: skip


async def chosen(site: Site, request: Request) -> Response:
    """Lead from the form on a run's page to the comparison."""
    run_id, other = id_in(request), request.query_params.get("with", "").strip()
    view = await site.use(lambda runs: runs.exactly(other))
    return back_to(request, "runs", run_id, "compare", view.id)
