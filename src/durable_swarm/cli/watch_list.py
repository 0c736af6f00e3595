"""`runs --watch`, `inbox --watch`: lists that stay open."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from rich.text import Text

from durable_swarm.cli.options import Problem, Settings
from durable_swarm.cli.render import DIM, PIPE_WIDTH, plain_console, print_line
from durable_swarm.cli.render_requests import requests_lines
from durable_swarm.cli.render_runs import runs_lines
from durable_swarm.cli.screen import screen
from durable_swarm.requests import Request
from durable_swarm.service import Query, Runs, RunView, to_json

NEWS = 2.0
"""Seconds for which a row that has changed is bold."""
SOON = 0.25
"""Seconds between looks whether anything has changed."""
BELL = "\a"

Seen = TypeVar("Seen", RunView, Request)


def watch_runs(opened: Runs, query: Query, seconds: float, *, as_json: bool) -> None:
    """Show a list of runs until Ctrl+C; in a pipe, and as JSON, one line for each run that is new or has changed."""
    follow = _Followed(opened, lambda: opened.list(query), seconds)
    if as_json or not sys.stdout.isatty():
        for changed in follow.changes():
            _print([json.dumps(to_json(view)) for view in reversed(changed)] if as_json else _rows(changed))
        return
    with screen() as shown:
        bold: dict[str, float] = {}
        for changed in follow.looks(lambda wait: shown.key(wait) == "q"):
            now = time.monotonic()
            bold |= {view.id: now + NEWS for view in changed} if follow.began else {}
            recent = {run_id for run_id, until in bold.items() if until > now}
            lines = runs_lines(follow.found, shown.console.width, recent) if follow.found else [Text("No runs.")]
            shown.show([*lines, Text(), Text("Ctrl+C or q ends.", DIM)])
            follow.began = True


def watch_inbox(opened: Runs, settings: Settings, run_id: str | None, limit: int | None, *, as_json: bool) -> None:
    """Show the open requests until Ctrl+C, with a bell for each new one; in a pipe, and as JSON, only the new ones."""
    follow = _Followed(opened, lambda: opened.inbox.list(run_id, limit), NEWS)
    if as_json or not sys.stdout.isatty():
        for changed in follow.changes():
            told = [line.plain for line in requests_lines(changed, settings.command, runs=True)]
            _print([json.dumps(to_json(request)) for request in changed] if as_json else told)
        return
    with screen() as shown:
        for changed in follow.looks(lambda wait: shown.key(wait) == "q"):
            if changed and follow.began:
                shown.console.file.write(BELL)
            found = follow.found
            lines = [*requests_lines(found, settings.command, runs=True)][1:] if found else [Text("No open requests.")]
            shown.show([*lines, Text(), Text("Ctrl+C or q ends.", DIM)])
            follow.began = True


class _Followed(Generic[Seen]):
    """A list that is read again when the database has changed, and every few seconds, since a death changes nothing."""

    def __init__(self, opened: Runs, read: Callable[[], Sequence[Seen]], seconds: float) -> None:
        self._opened = opened
        self._read: Callable[[], Sequence[Seen]] = read
        self._seconds = seconds
        self.found: Sequence[Seen] = []
        self.began = False
        """True once something was shown."""

    def changes(self) -> Iterator[Sequence[Seen]]:
        """Yield what is new or has changed, whenever that is anything."""
        for changed in self.looks(_wait):
            if changed:
                yield changed

    def looks(self, ended: Callable[[float], bool]) -> Iterator[Sequence[Seen]]:
        """Yield after each reading what is new or has changed; `ended` waits, and says whether to stop."""
        mark: object = None
        known: dict[str, object] = {}
        due = 0.0
        try:
            while True:
                now = self._opened.mark()
                if now != mark or time.monotonic() >= due:
                    mark, due = now, time.monotonic() + self._seconds
                    self.found = self._read()
                    changed = [one for one in self.found if known.get(one.id) != one]
                    known = {one.id: one for one in self.found}
                    yield changed
                if ended(min(SOON, self._seconds)):
                    return
        except KeyboardInterrupt:
            raise Problem("No longer watching.", 130) from None


def _wait(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _rows(changed: Sequence[RunView]) -> list[str]:
    return [line.plain for line in runs_lines(changed, PIPE_WIDTH)][1:][::-1]


def _print(lines: Sequence[str]) -> None:
    console = plain_console()
    for line in lines:
        print_line(console, Text(line))
    sys.stdout.flush()
