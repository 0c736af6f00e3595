"""Two runs side by side, turn by turn."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

from starlette.requests import Request
from starlette.responses import Response

from durable_swarm.server.web.run import Said, transcript
from durable_swarm.server.web.site import Site, back_to, id_in
from durable_swarm.service import RunDetail, Runs

ROWS = 300
"""Rows of a comparison on its page."""


@dataclass
class Row:
    """One message of each run, or None where a run has no more."""

    left: Said | None
    right: Said | None
    first: bool = False
    """True for the first row that differs."""

    @property
    def same(self) -> bool:
        """Return True if both runs have the same message."""
        return _plain(self.left) == _plain(self.right)


async def page(site: Site, request: Request) -> Response:
    """Show two runs side by side, and where they begin to differ."""
    left_id, right_id = id_in(request), id_in(request, "other")

    def found(runs: Runs) -> tuple[RunDetail, RunDetail]:
        return runs.show(runs.exactly(left_id).id), runs.show(runs.exactly(right_id).id)

    (left, right), opened = await site.see(found)
    rows = [Row(*pair) for pair in zip_longest(transcript(left), transcript(right))]
    different = next((row for row in rows if not row.same), None)
    if different is not None:
        different.first = True
    return site.page(
        request, "compare.html", left=left, right=right, rows=rows[:ROWS], different=different,
        left_out=max(len(rows) - ROWS, 0), open=opened,
    )  # fmt: skip


async def chosen(site: Site, request: Request) -> Response:
    """Lead from the form on a run's page to the comparison."""
    run_id, other = id_in(request), request.query_params.get("with", "").strip()
    view = await site.use(lambda runs: runs.exactly(other))
    return back_to(request, "runs", run_id, "compare", view.id)


def _plain(said: Said | None) -> tuple[object, ...] | None:
    return None if said is None else (said.role, said.who, said.text, said.calls)
