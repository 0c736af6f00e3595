"""The stream of one run's page: parts that have changed, and the text of the reply in progress, piece by piece.

Each message carries the number of the last event it shows. A stream begins with the whole of what is new to its reader,
so its text is exact, whichever process was killed meanwhile. It ends with the run, and when the run begins to wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator

from markupsafe import escape
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from durable_swarm.errors import DurableSwarmError
from durable_swarm.server.web.live import Speech, replaced
from durable_swarm.server.web.run import Shown, look, parts_of
from durable_swarm.server.web.site import Site, id_in, number_in
from durable_swarm.service import Runs

ALIVE = 15.0
"""Seconds of silence after which a comment keeps proxies from closing the stream."""
ANEW = 2.0
"""Seconds after which a run is looked at though it reported nothing: the death of its process writes nothing."""
RARELY = 0.25
"""Seconds between two messages that change parts of the page."""


async def events(site: Site, request: Request) -> Response:
    """Return the stream of a run for its page, after the event number that the reader has seen."""
    if site.streams.full:
        raise HTTPException(429)
    run_id = id_in(request)
    after = max(number_in(request.query_params, "after"), number_in(request.headers, "last-event-id"))
    reading = await site.use(request, lambda runs: _Reading(runs, runs.exactly(run_id).id, after))
    return StreamingResponse(
        _counted(site, _messages(site, request, reading)),
        media_type="text/event-stream",
        headers={"x-accel-buffering": "no"},
    )


async def _counted(site: Site, messages: AsyncGenerator[str]) -> AsyncIterator[str]:
    async with contextlib.aclosing(messages):
        with site.streams.counting():
            async for message in messages:
                yield message


class _Reading:
    """One reader of a run. `look` runs in a thread."""

    def __init__(self, runs: Runs, run_id: str, after: int) -> None:
        self.id = run_id
        self.reader = runs.reader(run_id)
        self._after = after
        self._mark: object = None
        self._looked = 0.0
        self._saying = False
        self.speech = Speech()

    def look(self, runs: Runs) -> tuple[str | None, Shown | None]:
        """Return the text that was only added, or the run anew if anything else has happened."""
        begins, mark = not self._looked, runs.mark(self.id)
        events = [] if mark == self._mark else self.reader.read()
        self._mark = mark
        added = self.speech.hear(events)
        if added is not None and time.monotonic() - self._looked < ANEW:
            return (added if self._saying else None), None
        self._looked = time.monotonic()
        shown = look(runs, self.id, None, self.speech)
        self._saying = shown.saying
        known = begins and self.speech.seq <= self._after and shown.run.status == "running"
        return None, None if known else shown


async def _messages(site: Site, request: Request, reading: _Reading) -> AsyncGenerator[str]:
    sent: dict[str, str] = {}
    spoken = drawn = time.monotonic()
    yield "retry: 500\n\n"
    while not site.stopping:
        try:
            added, shown = await site.use(request, reading.look)
        except DurableSwarmError:
            return  # A database that cannot be used now: the page comes back.
        if shown is not None:
            parts = parts_of(site, request, shown)
            pulse = parts.pop("pulse")
            changed = {name: html for name, html in parts.items() if sent.get(name) != html}
            sent |= changed
            over = shown.run.status not in ("queued", "running") or shown.run.idle
            yield _message(reading.speech.seq, replaced(changed | ({"pulse": pulse} if over else {})))
            spoken = drawn = time.monotonic()
            if over:
                break
        elif added:
            span = f'<hx-partial hx-target="#saying" hx-swap="beforeend"><span>{escape(added)}</span></hx-partial>'
            yield _message(reading.speech.seq, span)
            spoken = time.monotonic()
        elif time.monotonic() - spoken > ALIVE:
            yield ": still here\n\n"
            spoken = time.monotonic()
        await asyncio.sleep(reading.reader.pause if time.monotonic() - drawn > RARELY else RARELY)
    if not site.stopping:
        yield "event: end\ndata: \n\n"


def _message(seq: int, html: str) -> str:
    lines = "".join(f"data: {line}\n" for line in html.split("\n"))
    return f"id: {seq}\n{lines}\n"
