"""The display of runs: styled in a terminal, the same plain text in a pipe."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import chain, repeat
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console
from rich.text import Text

from durable_swarm.cli.render_requests import Command, requests_lines
from durable_swarm.display import clock, duration, one_line, shorten, value
from durable_swarm.limits import EXTENDABLE, Limits, Spent, words_of
from durable_swarm.loop import CUT
from durable_swarm.requests import Request
from durable_swarm.runs import ENDED, StepInfo, without_answer, written_as_text
from durable_swarm.service import Failure, RunDetail, RunView, calls_of, remedy_of, text_of
from durable_swarm.types import Message, Usage

if TYPE_CHECKING:
    from durable_swarm.cli.waterfall import Waterfall  # Lists have none.

STYLES = {
    "interrupted": "yellow",
    "queued": "cyan",
    "running": "cyan",
    "waiting": "yellow",
    "done": "green",
    "failed": "bold red",
    "cancelled": "magenta",
}
DIM = "bright_black"
PIPE_WIDTH = 160
"""The line length if no terminal gives a width."""

ROOM, LEAST = 20, 8
"""Characters of a step's outcome that come before the version of its agent, and that are shown on any terminal."""


def columns(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return a line of a table."""
    return "  ".join(f"{one_line(cell):{width}}" for cell, width in zip(cells, widths, strict=True))


def style_of(view: RunView) -> str:
    """Return the style of the displayed status of a run."""
    return "yellow" if without_answer(view.ended_by) else STYLES[view.shown_status]


def draw_run(run: RunDetail, command: Command, to: Console | None = None) -> None:
    """Print one run: its status, input, steps and requests, its end and the possible next commands.

    `command` returns the command line for some words. `to` is the console, by default standard output.
    """
    console = to or plain_console()
    width = width_of(console)
    for line in (*_head(run), Text(), *_asked(run, width), *_steps(run, width), *_end(run, command, width)):
        print_line(console, line)
    for line in requests_lines(run.requests, command, ended=run.status in ENDED):
        print_line(console, line)


def draw_requests(found: Sequence[Request], command: Command) -> None:
    """Print requests; open ones with the commands that decide about them."""
    console = plain_console()
    if not found:
        console.print("No open requests.")
    for number, line in enumerate(requests_lines(found, command, runs=True)):
        if number:  # The first line only separates a request from the text above it.
            print_line(console, line)


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Leave a broken pipe to the command, because Rich would end the program."""
        raise BrokenPipeError


def plain_console() -> Console:
    """Return the console that prints to stdout: with styles in a terminal, without them in a pipe.

    A `$NO_COLOR` or a `$FORCE_COLOR` that is not empty decides otherwise.
    """
    styled = sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR"))
    return _Console(force_terminal=styled, highlight=False)


def width_of(console: Console) -> int:
    """Return the number of characters of a line."""
    return shutil.get_terminal_size().columns if console.file.isatty() else PIPE_WIDTH


def print_line(console: Console, line: Text) -> None:
    """Print a line; a pipe gets the whole of it."""
    line.rstrip()
    console.print(line, soft_wrap=True)


def _head(run: RunDetail) -> Iterator[Text]:
    yield fact("run", Text(one_line(run.id), "bold"))
    why = without_answer(run.ended_by)
    yield fact("status", Text(f"{run.shown_status} ({why})" if why else run.shown_status, style_of(run)))
    yield fact("agent", Text(one_line(_agents(run))))
    if run.swarm:
        yield fact("swarm", Text(one_line(run.swarm)))
    if run.worker:
        yield fact("process", Text(one_line(run.worker)))
    if run.session is not None:
        yield fact(
            "session", Text(one_line(run.session if run.number is None else f"{run.session}, number {run.number}"))
        )
    if run.status == "queued" and not run.waits_for:
        yield fact("waits for", Text("a worker"))
    if run.forked_from is not None:
        yield fact("forked", Text(one_line(f"from turn {run.turn} of run {run.forked_from}")))
    if run.parent is not None:
        yield fact("child of", Text(one_line(run.parent)))
    for label, child in zip(chain(["children"], repeat("")), run.children, strict=False):
        yield fact(label, Text(one_line(child)))
    yield from _executions(run)
    yield from _actions(run)
    yield fact("started", Text(clock(run.created_at)))
    ended = run.status in ENDED
    until = run.updated_at if ended else max(run.created_at, datetime.now(UTC))
    yield fact("took" if ended else "so far", Text(duration((until - run.created_at).total_seconds())))
    if run.usage is not None:
        yield fact("tokens", Text(_tokens(run.usage)))
    if run.spent is not None and run.limits is not None:
        yield fact("spent", Text(", ".join(_spent(run.spent, run.limits))))


def _executions(run: RunDetail) -> Iterator[Text]:
    """Yield a line for each execution, if there was more than one."""
    if len(run.executions) < 2:
        return
    for label, one in zip(chain(["executions"], repeat("")), run.executions, strict=False):
        where = one.process if one.host is None else f"{one.process} ({one.host}, pid {one.pid})"
        until = "" if one.ended_at is None else f" to {clock(one.ended_at)}"
        end = f", {one.end}" if one.end else ""
        yield fact(label, Text(one_line(f"{where}, {clock(one.began_at)}{until}{end}")))


def _actions(run: RunDetail) -> Iterator[Text]:
    for label, action in zip(chain(["changes"], repeat("")), run.actions, strict=False):
        by = f" by {action.by}" if action.by else ""
        yield fact(label, Text(one_line(f"{action.action}{by}, {clock(action.at)}")))


def _spent(spent: Spent, limits: Limits) -> Iterator[str]:
    """Yield what a run has spent of what it may, and what else is worth knowing."""
    for limit in EXTENDABLE:
        allowed = getattr(limits, limit)
        if allowed is not None and limit != "repeats":
            used = spent.of(limit)
            yield f"{f'{used:.1f}' if limit == 'seconds' else used} of {allowed} {words_of(limit)}"
    if spent.uncertain:
        yield f"{spent.uncertain} of the requests uncertain (in flight at a crash)"


def fact(name: str, text: Text) -> Text:
    """Return a line that says one thing."""
    return Text.assemble((f"{name:11}", DIM), text)


def _agents(run: RunDetail) -> str:
    return run.agent if run.last_agent in (None, run.agent) else f"{run.agent}, at last {run.last_agent}"


def _tokens(usage: Usage) -> str:
    calls = "1 model call" if usage.requests == 1 else f"{usage.requests} model calls"
    parts = f"{usage.prompt_tokens:,} in, {usage.completion_tokens:,} out"
    return f"{usage.total_tokens:,} in {calls} ({parts})"


def _asked(run: RunDetail, width: int) -> Iterator[Text]:
    if run.closed is not None:
        yield Text(one_line(f"(encrypted) It cannot be read here: {run.closed.rstrip('.')}."), "yellow")
        yield Text()
    for message in run.asked[-1:]:
        yield _said(message, width)
        yield Text()


def _said(message: Message, width: int) -> Text:
    role = f"{message.get('role', '')}:"
    return Text.assemble((f"{one_line(role)} ", DIM), shorten(value(message.get("content") or ""), width - 12))


def _added(messages: Sequence[Message], width: int) -> Iterator[Text]:
    """Yield a line for each message that a fork added."""
    for message in messages:
        yield Text("     added  ", DIM).append_text(_said(message, width - 12))


def _steps(run: RunDetail, width: int) -> Iterator[Text]:
    """Yield a line for each step, for each addition of a fork, and at each change of the answering agent."""
    from durable_swarm.cli.waterfall import Waterfall

    versions: dict[str, str] = {}
    added = dict(run.added)
    names = min(max((len(_name(step)) for step in run.steps), default=0), max(min(width // 4, 40), 12))
    bars = Waterfall.of(run, width)
    if bars.width:
        yield Text(f"{'':{names + 25}}{bars.axis()}", DIM)
    for step in run.steps:
        if step.kind == "model":
            yield from _added(added.pop(str(step.turn), []), width)
        before = versions.get(step.name)
        if step.version and before not in (None, step.version):
            yield Text(
                f"     the code changed: {one_line(_name(step).strip())} was version {before} until here", "yellow"
            )
        if step.version:
            versions[step.name] = step.version
        yield _step(step, names, width, bars, run.shown_progress)
    for messages in added.values():
        yield from _added(messages, width)


def _name(step: StepInfo) -> str:
    own = "sleep" if _is_sleep(step) else step.name.removeprefix(f"{step.kind}:")
    return f"  {own}" if step.kind == "step" else own


def _is_sleep(step: StepInfo) -> bool:
    return step.name == "DBOS.sleep" and isinstance(step.output, int | float)


def _step(step: StepInfo, names: int, width: int, bars: Waterfall, progress: str) -> Text:
    took = "kept" if step.kept else ""
    # The record of a sleep is the setting of its end, which takes no time.
    if step.started_at and step.finished_at and not _is_sleep(step):
        took = duration((step.finished_at - step.started_at).total_seconds())
    style = {"failed": "red", "running": "cyan"}.get(step.status, "")
    line = Text.assemble(
        (f"{step.number:3}  ", DIM),
        (f"{step.kind:5}  ", DIM),
        (f"{_shown_name(step, names):{names}}  ", style or "bold"),
        (f"{took:>9}  ", DIM),
    )
    if bars.width:
        line.append(f"{bars.bar(step.number)}  ", style or "bright_blue")
    if step.kind == "model" and step.turn is not None:
        line.append(f"turn {step.turn}  ", DIM)
    for mark in _marks(step):
        line.append(f"{mark}  ", "yellow")
    version = f"version {one_line(step.version)}  " if step.version else ""
    if len(line) + len(version) + ROOM <= width:
        line.append(version, DIM)
    return line.append(shorten(_outcome(step, progress), max(width - len(line), LEAST)), style)


def _marks(step: StepInfo) -> Iterator[str]:
    """Yield the peculiarities of real models that look like ordinary steps."""
    if step.same_as is not None:
        yield f"same call as step {step.same_as}"
    if step.finish:
        cut = without_answer(CUT.get(step.finish))
        yield cut or f"finish_reason {one_line(step.finish)!r}"
    if step.misfit:
        yield "does not fit the output type"
    if step.written:
        yield written_as_text(one_line(step.written))
    if step.kind == "model" and step.status == "done" and step.output is not None and not _outcome(step):
        yield "empty reply"


def _shown_name(step: StepInfo, names: int) -> str:
    indent = "  " if step.kind == "step" else ""
    return indent + shorten(_name(step), names - len(indent))


def _outcome(step: StepInfo, progress: str = "") -> str:
    """Return what came of a step; `progress` is said of one in progress."""
    if step.status == "running":
        return f"{progress} (repeated after a crash)"
    if step.error:
        return step.error
    if _is_sleep(step):
        return f"until {clock(datetime.fromtimestamp(step.output, UTC))}"
    return reply_text(step.output) if step.kind == "model" and isinstance(step.output, dict) else value(step.output)


def reply_text(message: Message) -> str:
    """Return what a reply says, and its calls."""
    calls = ", ".join(calls_of(message))
    return "  ".join(part for part in (text_of(message), calls and f"→ {calls}") if part)


def remedy_line(run: RunDetail, command: Command) -> str:
    """Return the line with the command that lets a failed or cancelled run continue, or ''."""
    remedy, resume = remedy_of(run), command("resume", run.id)
    if remedy is None:
        return f"To continue it: {resume}" if run.status == "cancelled" else ""
    if remedy.turn is None:
        return f"{remedy.said}: {resume}"
    fork = command("fork", run.id, "--turn", str(remedy.turn))
    return f"{remedy.said}: {fork}{f'; {remedy.otherwise}: {resume}' if remedy.otherwise else ''}"


def _end(run: RunDetail, command: Command, width: int) -> Iterator[Text]:
    if run.error is not None:
        if not any(step.status == "failed" and step.error == run.error.line for step in run.steps):
            yield _failed(run.error, len(run.steps) + 1, width)
        yield Text()
        yield Text(one_line(f"It failed (--json has the traceback): {run.error.line}"), "red")
        yield Text(one_line(remedy_line(run, command)))
    elif run.status == "cancelled":
        yield Text()
        yield Text(one_line(remedy_line(run, command)))
    elif ended := without_answer(run.ended_by):
        yield Text()
        yield Text(f"It ended without an answer: {ended}.", "yellow")
        if run.ended_by == "guardrail":
            yield _said(run.messages[-1], width)
    elif run.waits_for is not None:
        yield Text()
        yield Text(one_line(f"It waits: {run.waits_for.rstrip('.')}."), "yellow")


def _failed(error: Failure, number: int, width: int) -> Text:
    kind, _, name = error.step.partition(":")
    line = Text.assemble((f"{number:3}  ", DIM), (f"{one_line(kind):5}  ", DIM), (f"{one_line(name)}  ", "bold red"))
    return line.append(shorten(error.line, max(width - len(line), 60)), "red")
