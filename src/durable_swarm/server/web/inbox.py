"""The inbox: what all runs ask, and one decision on one page, which works on a phone and without script."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from durable_swarm import requests
from durable_swarm.errors import AlreadyAnswered, DurableSwarmError, InvalidAnswer
from durable_swarm.server.web.fields import PLAIN, Form, digest_of
from durable_swarm.server.web.live import mark_of
from durable_swarm.server.web.site import Site, back_to, by_of, form_of, id_in
from durable_swarm.service import Runs

PAGE = 100
"""Open requests on one page."""
SHORT = 50
"""Closed requests on one page: a line each."""
CHANGED = "This has changed since it was shown to you, so nothing was decided. This is what is asked now."


@dataclass
class Outcome:
    """The outcome of a decision: the request as it is now, and a sentence if it was not taken."""

    request: requests.Request
    status: int = 200
    said: str = ""


async def listed(site: Site, request: Request) -> Response:
    """Show the open requests, oldest first; or those that are closed, the last one first."""
    if request.query_params.get("state") == "decided":
        return await _closed(site, request)
    found, opened = await site.see(request, lambda runs: runs.inbox.list(limit=PAGE))
    data: dict[str, Any] = {"found": found, "forms": _forms(found), "answers": {}, "alert": None, "open": opened}
    mark = mark_of(*sorted(one.id for one in found))
    if "seen" in request.query_params:
        known = request.query_params["seen"] == mark
        return Response(status_code=204) if known else site.page(request, "inbox_poll.html", mark=mark, news=True)
    return site.page(request, "inbox.html", mark=mark, news=False, **data)


async def _closed(site: Site, request: Request) -> Response:
    before = request.query_params.get("before") or None
    found, opened = await site.see(request, lambda runs: runs.inbox.closed(SHORT + 1, before))
    return site.page(request, "decided.html", found=found[:SHORT], older=len(found) > SHORT, open=opened)


async def page(site: Site, request: Request) -> Response:
    """Show one request."""
    asked = id_in(request)
    found, opened = await site.see(request, lambda runs: runs.inbox.find(asked))
    return _one(site, request, Outcome(found), opened, {})


async def decide(site: Site, request: Request) -> Response:
    """Take a decision, once, about what was shown; lead back to where it was taken."""
    form, asked, by = dict(await form_of(request)), id_in(request), by_of(request)
    outcome, opened = await site.see(request, lambda runs: _decided(runs, asked, form, by))
    if outcome.said:
        return _one(site, request, outcome, opened, form)
    found = outcome.request
    at_run = form.get("at") == "run"
    return back_to(request, "runs", found.run_id) if at_run else back_to(request, "inbox", found.id)


def _one(site: Site, request: Request, outcome: Outcome, opened: str, form: dict[str, str]) -> Response:
    found = outcome.request
    typed = {name.removeprefix(PLAIN): text for name, text in form.items() if name.startswith(PLAIN)}
    said = form | typed if outcome.status == 422 else {}
    return site.page(
        request, "request.html", outcome.status, found=found, forms=_forms([found]), answers=said,
        alert=outcome.said or None, open=opened,
    )  # fmt: skip


def _decided(runs: Runs, asked: str, form: dict[str, str], by: str | None) -> Outcome:
    found = runs.inbox.find(asked)
    shown = Form(found)
    if found.status == "open" and form.get("seen") != shown.digest:
        return Outcome(found, 409, CHANGED)
    verdict = form.get("verdict", "")

    def same(now: requests.Request) -> None:
        if digest_of(now) != shown.digest:
            raise InvalidAnswer(CHANGED, request_id=asked)

    try:
        if verdict == "approve":
            return Outcome(runs.inbox.approve(asked, shown.arguments(form), by, same))
        if verdict == "reject":
            return Outcome(runs.inbox.reject(asked, form.get("reason", ""), by, same))
        return Outcome(runs.inbox.answer(asked, _answer(found, form), by, same))
    except InvalidAnswer as error:
        return Outcome(runs.inbox.find(asked), 422, str(error))
    except AlreadyAnswered:
        return Outcome(runs.inbox.find(asked), 409, "Decided already, before you: nothing was changed.")
    except DurableSwarmError as error:
        return Outcome(runs.inbox.find(asked), 409, str(error))


def _answer(found: requests.Request, form: dict[str, str]) -> str:
    text = form.get("answer", "").replace("\r\n", "\n")
    if not text.strip() and found.kind == "question" and found.choices is None:
        raise InvalidAnswer("An answer needs at least one character.", request_id=found.id)
    return text


def _forms(found: list[requests.Request]) -> dict[str, Form]:
    return {one.id: Form(one) for one in found if one.status == "open"}
