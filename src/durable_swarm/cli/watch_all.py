"""`watch --all`: the events of all runs in one feed."""

from __future__ import annotations

import json
import sys
import time
from typing import NoReturn

import click
from rich.text import Text

from durable_swarm.cli.options import Problem, Settings
from durable_swarm.cli.render import DIM, STYLES, plain_console, print_line, width_of
from durable_swarm.cli.render_requests import event_text
from durable_swarm.display import as_call, one_line, shorten, value
from durable_swarm.events import Event
from durable_swarm.service import Runs
from durable_swarm.service.feed import SOON

LONGEST_ID = 24
"""The number of characters of an id before each line; a prefix of an id is enough for every command."""


def watch_all(opened: Runs, settings: Settings, *, as_json: bool) -> NoReturn:
    """Print the events of all runs, each line with its run, until Ctrl+C; an agent's text once it is whole."""
    feed, lines = opened.feed(), _Lines(settings)
    click.echo("Watching all runs. Ctrl+C ends only the watching.", err=True)
    try:
        while True:
            for run_id, event in feed.read():
                if as_json:
                    sys.stdout.write(json.dumps(_record(run_id, event)) + "\n")
                else:
                    lines.tell(run_id, event)
            sys.stdout.flush()
            time.sleep(SOON)
    except KeyboardInterrupt:
        raise Problem("No longer watching; no run is affected.", 130) from None


def _record(run_id: str, event: Event) -> dict[str, object]:
    return {
        "run_id": run_id,
        "seq": event.seq,
        "type": event.type,
        "data": event.data,
        "time": event.time.isoformat(),
    }


class _Lines:
    """Prints events of many runs. A text that comes in pieces is one line, printed once another event follows."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._console = plain_console()
        self._texts: dict[str, str] = {}

    def tell(self, run_id: str, event: Event) -> None:
        """Print one event."""
        if event.type == "text.delta":
            self._texts[run_id] = self._texts.get(run_id, "") + event.data["text"]
            return
        text = self._texts.pop(run_id, "")
        if text and event.type != "text.reset":
            self._line(run_id, f"says: {text}", "")
        said = self._said(event)
        if said is not None:
            self._line(run_id, *said)

    def _said(self, event: Event) -> tuple[str, str] | None:
        data = event.data
        match event.type:
            case "run.started":
                return f"started with {data['agent']}", DIM
            case "tool.started":
                return f"calls {as_call(data['tool'], data['arguments'])}", "bright_magenta"
            case "tool.finished":
                return f"{data['tool']} → {value(data['result'])}", "green"
            case "handoff":
                return f"{data['from']} → {data['to']}", "cyan"
            case "request.opened" | "request.closed" | "run.waiting":
                who = f"{data['tool']} " if "tool" in data else ""
                return f"{who}{event_text(event.type, data, self._settings.command)}", "yellow"
            case "run.recovered":
                return f"continues in {data['process']}; {data['before']}: {data['how']}", "yellow"
            case "run.failed":
                return f"failed: {data['error_type']}: {data['error_message']}", STYLES["failed"]
            case "run.finished":
                return "done", STYLES["done"]
            case "run.cancelled":
                return "cancelled", STYLES["cancelled"]
            case _:
                return None

    def _line(self, run_id: str, text: str, style: str) -> None:
        name = f"{shorten(one_line(run_id), LONGEST_ID):{LONGEST_ID}}  "
        room = max(width_of(self._console) - len(name), 20)
        print_line(self._console, Text.assemble((name, "bold"), (shorten(one_line(text), room), style)))
