"""The display of sessions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from durable_swarm.cli.render import (
    DIM,
    STYLES,
    columns,
    fact,
    plain_console,
    print_line,
    reply_text,
    style_of,
    width_of,
)
from durable_swarm.cli.render_requests import Command
from durable_swarm.display import clock, one_line, shorten, value
from durable_swarm.service import SessionDetail, SessionView
from durable_swarm.types import Message


def draw_sessions(views: Sequence[SessionView]) -> None:
    """Print a list of sessions."""
    console = plain_console()
    if not views:
        console.print("No sessions.")
        return
    titles = ("ID", "STATUS", "AGENT", "RUNS", "WAITING", "CHANGED")
    rows = [
        (view.id, view.shown_status, view.agent, str(view.runs), str(view.waiting or ""), clock(view.updated_at))
        for view in views
    ]
    widths = [max(len(one_line(cell)) for cell in column) for column in zip(titles, *rows, strict=True)]
    print_line(console, Text(columns(titles, widths), DIM))
    for row in rows:
        line = Text(columns(row, widths))
        line.stylize(STYLES.get(row[1], ""), widths[0] + 2, widths[0] + 2 + len(row[1]))
        print_line(console, line)


def draw_session(session: SessionDetail, command: Command) -> None:
    """Print a session: its state, its conversation, and its runs."""
    console = plain_console()
    width = width_of(console)
    for line in (*_head(session), Text(), *_conversation(session, width), *_runs(session, command)):
        print_line(console, line)


def _head(session: SessionDetail) -> Iterator[Text]:
    yield fact("session", Text(one_line(session.id), "bold"))
    yield fact("status", Text(session.shown_status, STYLES.get(session.shown_status, "")))
    yield fact("agent", Text(one_line(session.agent)))
    if session.swarm:
        yield fact("swarm", Text(one_line(session.swarm)))
    yield fact("started", Text(clock(session.created_at)))
    yield fact("changed", Text(clock(session.updated_at)))
    if session.usage is not None:
        yield fact("tokens", Text(f"{session.usage.total_tokens:,}"))


def _conversation(session: SessionDetail, width: int) -> Iterator[Text]:
    if session.closed is not None:
        yield Text(one_line(f"(encrypted) It cannot be read here: {session.closed.rstrip('.')}."), "yellow")
    for message in session.messages:
        yield _message(message, width)
    yield Text()


def _message(message: Message, width: int) -> Text:
    role = str(message.get("role", ""))
    name = {"assistant": message.get("sender"), "tool": message.get("tool_name")}.get(role) or role
    text = reply_text(message) if role == "assistant" else value(message.get("content") or "")
    return Text.assemble((f"{one_line(str(name))}: ", DIM), shorten(text, max(width - len(str(name)) - 2, 20)))


def _runs(session: SessionDetail, command: Command) -> Iterator[Text]:
    for run in session.all_runs:
        number = "" if run.number is None else str(run.number)
        shown = one_line(command("show", run.id))
        yield Text.assemble((f"{number:>4}  ", DIM), (f"{run.shown_status:11}  ", style_of(run)), shown)
