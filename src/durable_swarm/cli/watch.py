"""`watch`: shows the events of a run as they happen, in any process."""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

import click
from rich.text import Text

from durable_swarm.cli.completion import optional_run_argument
from durable_swarm.cli.options import Problem, Settings, as_json, common
from durable_swarm.cli.render import DIM, PIPE_WIDTH, STYLES, plain_console, remedy_line
from durable_swarm.cli.render_requests import Command, event_text
from durable_swarm.cli.watch_all import watch_all
from durable_swarm.display import as_call, harmless, one_line, shorten, value
from durable_swarm.events import Event
from durable_swarm.runs import State, without_answer, written_as_text
from durable_swarm.service import Query, RunDetail, Runs, RunView, open_runs

ANEW = "— the reply begins anew —"
"""Shown when the text of a reply so far is void, and comes again."""


@click.command(short_help="Follow a run live, or read how it went.")
@optional_run_argument
@click.option("--after", metavar="N", type=click.IntRange(min=0), default=0, help="Only the events after number N.")
@click.option("--all", "all_runs", is_flag=True, help="The events of all runs from now on, in one feed.")
@as_json
@common
@click.pass_obj
def watch(settings: Settings, run_id: str | None, after: int, all_runs: bool, as_json: bool) -> int:
    """Follow a run, in whichever process, until it ends; show all events of a run that has ended.

    Agents' replies appear as they come. As JSON each event is one line with its number, `seq`: after a disconnection,
    continue with --after. Exit code 0 if the run is done, 1 if it failed or was cancelled. Ctrl+C ends only the
    watching.

    Without an ID it follows the newest unfinished run; if all have ended, a terminal offers a choice of the last ones.
    """
    if all_runs and (run_id is not None or after):
        raise click.UsageError("--all shows the runs from now on: give it without an ID and without --after.")
    with open_runs(settings.database) as opened:
        if all_runs:
            watch_all(opened, settings, as_json=as_json)
        found = _chosen(opened) if run_id is None else opened.view(run_id).id
        teller = None if as_json else _Teller(settings.command, continued=after > 0)
        return _Watching(settings, opened, found, after).follow(teller)


CHOICE = 9
"""How many of the last runs are offered."""


def _chosen(opened: Runs) -> str:
    """Return the newest unfinished run; if there is none, ask which of the last ones is meant."""
    states: tuple[State, ...] = ("running", "waiting", "queued")
    unfinished = [view for state in states for view in opened.list(Query(state, limit=1))]
    if unfinished:
        newest = max(unfinished, key=lambda view: view.created_at)
        click.echo(one_line(f"Run {newest.id} of {newest.agent}, {newest.shown_status}:"), err=True)
        return newest.id
    last = opened.list(Query(limit=CHOICE))
    if not last:
        raise Problem("There are no runs to watch. Start one, or name another database with --database.")
    if not sys.stdin.isatty():
        raise Problem("No run is unfinished. Name the run to read; `durable-swarm runs` lists them.")
    for number, view in enumerate(last, 1):
        click.echo(one_line(f"{number}  {view.id}  {view.shown_status}  {view.agent}"), err=True)
    number = click.prompt("Which one", type=click.IntRange(1, len(last)), default=1, err=True)
    return last[number - 1].id


class _Watching:
    """One use of the command: the run, and the number of the last event shown."""

    def __init__(self, settings: Settings, opened: Runs, run_id: str, after: int) -> None:
        self._settings = settings
        self._opened = opened
        self._last = after
        self._id = run_id

    def follow(self, teller: _Teller | None) -> int:
        """Show every event, as JSON for programs or as text for people, and return the exit code."""
        tell, stands = (_as_json, _warn) if teller is None else (teller.tell, teller.stands)
        try:
            for event in self._opened.events(self._id, self._last, stands):
                tell(event)
                self._last = event.seq
        except KeyboardInterrupt:
            if teller is not None:
                teller.close()
            again = self._settings.command("watch", self._id, "--after", str(self._last))
            text = f"No longer watching; run {self._id} is not affected. To continue watching: {again}"
            raise Problem(text, 130) from None
        state = self._opened.view(self._id).status
        if teller is not None and state != "done":
            teller.remedy(self._opened.show(self._id))
        return int(state != "done")


def _as_json(event: Event) -> None:
    line = {"seq": event.seq, "type": event.type, "data": event.data, "time": event.time.isoformat()}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _warn(view: RunView) -> None:
    click.echo(one_line(_standing(view)), err=True)


def _standing(view: RunView) -> str:
    return f"Run {view.id} waits: {(view.waits_for or '').rstrip('.')}."


RECOVERED = {
    "died": "process {} died",
    "stopped": "process {} stands still",
    "handed over": "process {} has handed the run over",
}
"""Why a run continues in another process, by the way in which its execution ended."""


class _Teller:
    """Prints events for people. The text of an agent stays one open line until another event is printed."""

    def __init__(self, command: Command, *, continued: bool) -> None:
        self._command = command
        self._console = plain_console()
        self._width = shutil.get_terminal_size().columns if self._console.is_terminal else PIPE_WIDTH
        self._agent = ""
        self._open = False
        self._before = ""
        self._spoke = continued
        # A reader that continues after a number may have read the beginning of a reply.
        self._told = continued
        self._void = False

    def tell(self, event: Event) -> None:
        """Print one event."""
        data = event.data
        match event.type:
            case "run.started" | "turn.started":
                self.close()
                self._agent, self._told, self._void = data["agent"], False, False
                self._spoke = False
            case "text.delta":
                self._say(data["text"])
            case "text.reset":
                self._void = self._told
            case "handoff":
                self._line(f"{data['from']} → {data['to']}", "cyan")
            case "run.recovered":
                self._line(
                    f"{RECOVERED[data['how']].format(data['before'])}; it continues in {data['process']}", "yellow"
                )
            case "run.finished" | "run.failed" | "run.cancelled":
                self._end(event)
            case "child.started":
                self._asks(f"{data['tool']} → run {data['run_id']} of agent {data['agent']}", DIM)
            case "child.finished":
                style = STYLES[data["status"]]
                self._asks(f"{data['tool']} ← run {data['run_id']}: {data['status']}", style)
            case "request.opened" | "request.closed" | "run.waiting":
                style = "green" if event.type == "request.closed" else "yellow"
                who = data.get("tool", self._agent)  # The model call itself waits for its provider, or at a limit.
                self._asks(f"{who} {event_text(event.type, data, self._command)}", style)
            case _:
                self._tool(event.type, data)

    def close(self) -> None:
        """End the open line, if there is one."""
        if self._open:
            self._open, self._before = False, ""
            _write("\n")

    def remedy(self, run: RunDetail) -> None:
        """Print the remedy that lets a failed or cancelled run continue."""
        self._line(remedy_line(run, self._command), "")

    def stands(self, view: RunView) -> None:
        """Print why the run does not continue."""
        self._line(_standing(view), DIM)

    def _say(self, text: str) -> None:
        if self._void:  # Printed only now: no reply begins anew after the run has ended.
            self._line(ANEW, DIM)
        self._told, self._void, self._spoke = True, False, True
        if not self._open:
            self._open = True
            name = f"{one_line(self._agent)}: " if self._agent else ""
            self._console.print(Text(name, "bright_blue"), end="", soft_wrap=True)
        # Not by Rich, which strips spaces from the end of a long piece.
        _write(harmless(text, self._before))
        self._before = text

    def _line(self, text: str, style: str) -> None:
        self.close()
        self._console.print(Text(one_line(text), style), soft_wrap=True)

    def _asks(self, text: str, style: str) -> None:
        self.close()
        self._console.print(Text(f"  {one_line(text)}", style), soft_wrap=True)

    def _tool(self, kind: str, data: dict[str, Any]) -> None:
        self.close()
        name = one_line(data["tool"])
        if kind == "tool.started":
            line = Text.assemble((f"{one_line(self._agent)}: ", "bright_blue"), (name, "bright_magenta"))
            text = as_call("", data["arguments"])
        elif kind == "tool.progress":
            line, text = Text(f"  {name} … ", DIM), value(data["progress"])
        else:
            line, text = Text(f"  {name} → ", "green"), value(data["result"])
        # On a new line of its own style, because text added to a styled line would take that style.
        self._console.print(Text().append_text(line).append(shorten(text, self._room(line))), soft_wrap=True)

    def _room(self, line: Text) -> int:
        return max(self._width - len(line), 20)

    def _end(self, event: Event) -> None:
        state = event.type.removeprefix("run.").replace("finished", "done")
        text = state
        if ended := without_answer(event.data.get("ended_by")):
            text = f"done, without an answer: {ended}"
            self._line(text, "yellow")
            return
        if state == "done" and not self._spoke:
            self._line("(empty reply)", DIM)
        if written := event.data.get("written"):
            self._line(written_as_text(written), "yellow")
        if state == "failed":
            text = f"failed: {event.data['error_type']}: {event.data['error_message']}"
        self._line(text.rstrip(": "), STYLES[state])


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
