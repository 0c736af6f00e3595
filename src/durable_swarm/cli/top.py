"""`top`: one screen of what happens in a database, with keys to act on it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import click
from rich.text import Text

from durable_swarm.cli.options import Settings, by_person, common
from durable_swarm.cli.render import DIM, draw_run, plain_console, print_line, width_of
from durable_swarm.cli.render_requests import Command, requests_lines
from durable_swarm.cli.render_runs import runs_lines
from durable_swarm.cli.screen import Screen, screen
from durable_swarm.display import duration, one_line
from durable_swarm.errors import DurableSwarmError
from durable_swarm.requests import Request
from durable_swarm.runs import STATES
from durable_swarm.service import Query, Runs, RunView, Workers, open_runs

EVERY, SOON = 2.0, 0.25
"""Seconds between readings, and between looks whether anything has changed."""
RUNS, REQUESTS = 20, 3
"""How many of the newest runs and of the oldest requests are shown."""
KEYS = "j k move   enter show   a approve   r reject   c cancel   / search   q quit"


@click.command(short_help="Show runs, queues, workers and requests on one live screen.")
@by_person
@common
@click.pass_obj
def top(settings: Settings, by: str | None) -> None:
    """Show the newest runs, queues, workers, rates and the oldest requests on one live screen, until q or Ctrl+C.

    In a pipe it is shown once.
    """
    with open_runs(settings.database) as opened:
        if not sys.stdout.isatty():
            console = plain_console()
            for line in _Look.at(opened, "").lines(width_of(console), settings.command):
                print_line(console, line)
            return
        with screen() as shown:
            _Top(opened, settings, shown, by).run()


@dataclass(frozen=True)
class _Look:
    """Everything that a frame shows."""

    runs: Sequence[RunView]
    requests: Sequence[Request]
    workers: Workers
    search: str

    @classmethod
    def at(cls, opened: Runs, search: str) -> _Look:
        """Read everything now."""
        runs = opened.list(Query(limit=RUNS, search=search or None))
        return cls(runs, opened.inbox.list(limit=REQUESTS), opened.workers(), search)

    def lines(self, width: int, command: Command, chosen: str | None = None) -> Iterator[Text]:
        """Yield the lines of a frame; the row of the run `chosen` is marked."""
        yield Text(_ended(self.workers), "bold")
        yield from (Text(one_line(line)) for line in _workers(self.workers))
        yield Text()
        if self.search:
            yield Text(one_line(f"Runs with {self.search!r} in their ID"), DIM)
        yield from runs_lines(self.runs, width, chosen=chosen) if self.runs else [Text("No runs.")]
        yield from requests_lines(self.requests, command, runs=True)


def _ended(workers: Workers) -> str:
    counts = ", ".join(f"{workers.ended[state]} {state}" for state in STATES if state in workers.ended)
    return f"Within the last hour: {counts or 'no run has ended'}"


def _workers(workers: Workers) -> Iterator[str]:
    now = datetime.now(UTC)
    for process in workers.processes:
        where = process.name if process.host is None else f"{process.name} ({process.host}, pid {process.pid})"
        runs = f"{process.runs} run{'s' * (process.runs != 1)}"
        if not process.alive:
            yield f"dead {where}: {runs} to be taken over"
        else:
            places = f" of {process.places} places" if process.places else ""
            yield f"process {where}: {runs}{places}"
    for queue in workers.queues:
        oldest = f", the oldest for {duration((now - queue.oldest_at).total_seconds())}" if queue.oldest_at else ""
        served = f"{queue.places} places" if queue.places else "no worker serves it"
        yield f"queue {queue.swarm or '(no name)'}: {queue.waiting} waiting{oldest}; {served}"
    for rate in workers.rates:
        wait = f"next call in {duration(rate.wait)}" if rate.wait else "free"
        yield f"rate {rate.model}: a call each {duration(rate.spacing)}, {wait}"
    if workers.unclaimed:
        yield f"left: {workers.unclaimed} runs wait for a program that defines their agents"


class _Top:
    """One use of the command: what is chosen, and what the last key said."""

    def __init__(self, opened: Runs, settings: Settings, shown: Screen, by: str | None) -> None:
        self._opened = opened
        self._settings = settings
        self._screen = shown
        self._by = by
        self._place = 0
        self._search = ""
        self._said = ""
        self._look = _Look.at(opened, "")

    def run(self) -> None:
        """Show frames until `q`."""
        mark, due = self._opened.mark(), 0.0
        while True:
            self._show()
            key = self._screen.key(SOON)
            if key == "q":
                return
            if key is not None:
                self._pressed(key)
                due = 0.0
            now = self._opened.mark()
            if now != mark or time.monotonic() > due:
                mark, due = now, time.monotonic() + EVERY
                self._look = _Look.at(self._opened, self._search)

    @property
    def _chosen(self) -> RunView | None:
        runs = self._look.runs
        return runs[min(self._place, len(runs) - 1)] if runs else None

    def _show(self) -> None:
        chosen, console = self._chosen, self._screen.console
        lines = [*self._look.lines(console.width, self._settings.command, None if chosen is None else chosen.id)]
        foot = [Text(one_line(self._said), "yellow"), Text(KEYS, DIM)]
        self._screen.show([*lines[: console.height - len(foot)], *foot])

    def _pressed(self, key: str) -> None:
        self._said = ""
        if key in ("j", "k"):
            self._place = max(0, min(self._place + (1 if key == "j" else -1), len(self._look.runs) - 1))
        elif key == "/":
            self._search, self._place = self._typed("Text in the ID: "), 0
        elif (chosen := self._chosen) is not None:
            try:
                self._act(key, chosen)
            except DurableSwarmError as error:
                self._said = str(error)

    def _act(self, key: str, chosen: RunView) -> None:
        if key == "enter":
            with self._screen.aside(), self._screen.console.pager(styles=True):
                draw_run(self._opened.show(chosen.id), self._settings.command, self._screen.console)
        elif key == "c" and self._confirmed([f"Cancel run {chosen.id}?"]):
            self._said = f"Run {chosen.id} is {self._opened.cancel(chosen.id, self._by).status}."
        elif key in ("a", "r"):
            asked = self._opened.inbox.list(chosen.id)
            if not asked:
                self._said = f"Run {chosen.id} has no open request."
            else:
                self._decide(key, asked[0])

    def _decide(self, key: str, request: Request) -> None:
        """Show a request in full, and decide it after a `y`."""
        inbox, lines = self._opened.inbox, requests_lines([request], self._settings.command, runs=True)
        shown = [line.plain for line in lines]
        if self._confirmed([*shown[1:], "", "Approve it?" if key == "a" else "Reject it?"]):
            if key == "a":
                inbox.approve(request.id, None, self._by)
            else:
                inbox.reject(request.id, "", self._by)
            self._said = f"Request {request.id} is {'approved' if key == 'a' else 'rejected'}."

    def _confirmed(self, question: Sequence[str]) -> bool:
        lines = [*(Text(one_line(line)) for line in question), Text("y yes, any other key no", DIM)]
        self._screen.show(lines)
        while (key := self._screen.key(EVERY)) is None:
            self._screen.show(lines)
        return key == "y"

    def _typed(self, label: str) -> str:
        text = ""
        while True:
            self._screen.show([Text(one_line(f"{label}{text}▏"))])
            key = self._screen.key(EVERY)
            if key in ("enter", "escape"):
                return text if key == "enter" else ""
            if key == "backspace":
                text = text[:-1]
            elif key is not None and key.isprintable():
                text += key
