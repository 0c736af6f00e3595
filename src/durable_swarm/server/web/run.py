"""The page of one run, what can be done with it, and the whole of what the page cuts."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from durable_swarm.display import value
from durable_swarm.errors import DurableSwarmError, RunNotFound
from durable_swarm.runs import ENDED
from durable_swarm.server.web.fields import Form
from durable_swarm.server.web.live import Speech, is_still, replaced, seen_now
from durable_swarm.server.web.site import Site, back_to, by_of, form_of, id_in, number_in, number_of
from durable_swarm.server.web.words import crashes
from durable_swarm.service import Query, RunDetail, Runs, RunView, calls_of, is_unusable, text_of, timeline, transcript
from durable_swarm.types import Message

TURNS = 100
"""Turns on one page, and as many of the messages that a run was given."""
PARTS = ("head", "requests", "timeline", "transcript", "pulse")


@dataclass
class Shown:
    """One look at a run: its detail, and the reply in progress. `first` is the first turn on the page."""

    run: RunDetail
    speech: Speech
    first: int
    turns: int
    forks: list[RunView]
    seen: str = "0"

    @property
    def saying(self) -> bool:
        """Return True if a reply is in progress, and no record has it yet."""
        return self.run.status == "running" and not self.run.idle and self.speech.turn >= self.turns

    def data(self) -> dict[str, object]:
        """Return what the templates show."""
        last = self.first + TURNS
        messages = list(transcript(self.run, self.first, TURNS, TURNS))
        steps = [step for step in self.run.steps if self.first <= (step.turn or 0) < last]
        over = self.run.status in ENDED or self.run.idle
        axis = timeline(steps, self.run.updated_at if over else datetime.now(UTC), self.run.executions)
        return {
            "run": self.run, "steps": steps, "messages": messages, "left_out": max(len(self.run.asked) - TURNS, 0),
            "first": self.first, "last": last, "turns": self.turns, "per_page": TURNS, "speech": self.speech,
            "saying": self.saying, "forms": {one.id: Form(one) for one in self.run.requests if one.status == "open"},
            "alert": None, "answers": {}, "forks": self.forks, "axis": axis, "folds": axis.folds,
            "bars": {bar.number: bar for bar in axis.bars}, "crashed": crashes(self.run),
        }  # fmt: skip


def look(runs: Runs, run_id: str, first: int | None, speech: Speech | None = None) -> Shown:
    """Look at a run: its events before its records, so that a reply is shown in one of them, and never in neither."""
    status = runs.status(run_id)
    if speech is None:
        speech = Speech()
        if status == "running":
            speech.hear(runs.reader(run_id).read())
    run = runs.show(run_id)
    turns = sum(step.kind == "model" and step.status == "done" for step in run.steps)
    first = max(turns - TURNS, 0) if first is None else first
    return Shown(run, speech, first, turns, runs.list(Query(forked_from=run_id)))


def parts_of(site: Site, request: Request, shown: Shown) -> dict[str, str]:
    """Return the parts of a run's page as HTML, by their ids."""
    data = shown.data()
    parts = {name: site.html(request, f"run_{name}.html", **data) for name in PARTS[:-1]}
    ended = shown.run.status in ENDED
    streams = shown.run.status in ("queued", "running") and not shown.run.idle
    parts["pulse"] = site.html(request, "run_pulse.html", run=shown.run, ended=ended, streams=streams, seen=shown.seen)
    return parts


async def page(site: Site, request: Request) -> Response:
    """Show a run; a page that asks for changes gets its parts only, if anything has changed."""
    run_id, query = id_in(request), request.query_params
    first = number_in(query, "from") if "from" in query else None

    def found(runs: Runs) -> Shown | None:
        runs.status(run_id)
        mark = runs.mark(run_id)
        return None if is_still(request, mark) else replace(look(runs, run_id, first), seen=seen_now(mark))

    try:
        shown, opened = await site.see(request, found)
    except DurableSwarmError as error:
        if isinstance(error, RunNotFound) or is_unusable(error):
            raise
        # What is stored is damaged, or of another version.
        return site.page(request, "error.html", title=run_id, said=str(error))
    if shown is None:
        return Response(status_code=204)
    parts = parts_of(site, request, shown)
    if "seen" in query:
        return site.with_count(request, replaced(parts), opened)
    marked = {name: Markup(html) for name, html in parts.items()}
    return site.page(request, "run.html", run=shown.run, parts=marked, turns=shown.turns, open=opened)


async def step(site: Site, request: Request) -> Response:
    """Return the whole outcome of one step as text."""
    run_id, number = id_in(request), number_of(request)
    found = await site.use(request, lambda runs: runs.step(runs.exactly(run_id).id, number))
    return PlainTextResponse(found.error or value(found.output))


async def message(site: Site, request: Request) -> Response:
    """Return one whole message as text."""
    run_id, number = id_in(request), number_of(request)
    run = await site.use(request, lambda runs: runs.show(runs.exactly(run_id).id))
    found = [*run.asked, *run.messages][number : number + 1]
    if not found:
        raise RunNotFound(f"run {run_id!r} has no message {number}")
    said = [text_of(found[0]), *calls_of(found[0])]
    return PlainTextResponse("\n".join(part for part in said if part))


async def export(site: Site, request: Request) -> Response:
    """Return a run as a document, as `durable-swarm export` writes it."""
    run_id = id_in(request)
    document = await site.use(request, lambda runs: json.dumps(runs.export(runs.exactly(run_id).id), indent=2))
    name = request.path_params["id"][:80]
    headers = {"content-disposition": f'attachment; filename="{name}.json"'}
    return Response(document, media_type="application/json", headers=headers)


async def change(site: Site, request: Request) -> Response:
    """Cancel a run, or let it continue, as the end of the address says; lead back to it."""
    run_id, act = id_in(request), Runs.cancel if request.url.path.endswith("/cancel") else Runs.resume
    await site.use(request, lambda runs: act(runs, runs.exactly(run_id).id, by_of(request)))
    return back_to(request, "runs", run_id)


async def say(site: Site, request: Request) -> Response:
    """Add a user's message to a run, and lead back to it."""
    run_id = id_in(request)
    text = dict(await form_of(request)).get("text", "").replace("\r\n", "\n")
    if text.strip():
        await site.use(request, lambda runs: runs.inbox.say(runs.exactly(run_id).id, text, by_of(request)))
    return back_to(request, "runs", run_id)


async def fork_form(site: Site, request: Request) -> Response:
    """Ask what a fork is to be: from which turn, under which id, with which message added."""
    run_id, turn = id_in(request), number_in(request.query_params, "turn")
    run, opened = await site.see(request, lambda runs: runs.exactly(run_id))
    return site.page(request, "fork.html", run=run, turn=turn, open=opened)


async def fork(site: Site, request: Request) -> Response:
    """Start a fork, and lead to it."""
    run_id, form = id_in(request), dict(await form_of(request))
    said = form.get("message", "").replace("\r\n", "\n")
    messages: list[Message] = [{"role": "user", "content": said}] if said.strip() else []
    made = await site.use(
        request,
        lambda runs: runs.fork(
            runs.exactly(run_id).id, number_in(form, "turn"), agent=form.get("agent", "").strip() or None,
            messages=messages or None, by=by_of(request), new_id=form.get("run_id", "").strip() or None,
        )
    )  # fmt: skip
    return back_to(request, "runs", made.id)
