"""The display of lists of runs: as many columns as there is room for."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from datetime import UTC, datetime

from rich.text import Text

from durable_swarm.cli.render import DIM, columns, plain_console, print_line, style_of, width_of
from durable_swarm.display import clock, duration, one_line, shorten
from durable_swarm.runs import ENDED, without_answer
from durable_swarm.service import RunView

LEAST_ID = 24
"""The number of characters to which the ids of a list are shortened in a narrow terminal."""
LEAST_ROOM = 30
"""The shortest column for reasons; with less room, a reason has a line of its own."""
TITLES = ("ID", "STATUS", "AGENT", "STARTED", "CHANGED")
MORE = ("TOOK", "TURNS", "TOKENS")
"""Further columns, if there is room for them beside the reasons."""


def draw_runs(views: Sequence[RunView]) -> None:
    """Print a list of runs."""
    console = plain_console()
    if not views:
        console.print("No runs.")
        return
    for line in runs_lines(views, width_of(console)):
        print_line(console, line)


def runs_lines(
    views: Sequence[RunView], width: int, bold: Container[str] = (), chosen: str | None = None
) -> Iterator[Text]:
    """Yield the lines of a list of runs, for a width; those in `bold` are bold, that of `chosen` is reversed."""
    rows: list[tuple[str, ...]] = [(*_cells(view), *_more(view)) for view in views]
    titles: tuple[str, ...] = (*TITLES, *MORE)
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    if width - sum(widths) - 2 * len(widths) < LEAST_ROOM:
        rows, titles = [row[: len(TITLES)] for row in rows], TITLES
        widths = widths[: len(TITLES)]
    over = sum(widths) + 2 * len(widths) - width
    if over > 0:  # A prefix of an id is enough for every command.
        widths[0] = max(widths[0] - over, min(widths[0], LEAST_ID))
        rows = [(shorten(row[0], widths[0]), *row[1:]) for row in rows]
    room = width - sum(widths) - 2 * len(widths)
    reasons = [why(view) for view in views]
    beside = room >= LEAST_ROOM
    yield Text(f"{columns(titles, widths)}  {'WHY' if any(reasons) and beside else ''}", DIM)
    for view, row, reason in zip(views, rows, reasons, strict=True):
        line = Text(f"{columns(row, widths)}  {shorten(reason, room) if beside else ''}")
        line.stylize(style_of(view), widths[0] + 2, widths[0] + 2 + len(row[1]))
        if view.id in bold:
            line.stylize("bold")
        if view.id == chosen:
            line.stylize("reverse")
        yield line
        if reason and not beside:
            yield Text(f"  {shorten(reason, max(width - 2, LEAST_ROOM))}", DIM)


def _cells(view: RunView) -> tuple[str, ...]:
    times = clock(view.created_at), clock(view.updated_at)
    return one_line(view.id), view.shown_status, one_line(view.agent), *times


def _more(view: RunView) -> tuple[str, ...]:
    until = view.updated_at if view.status in ENDED else max(view.created_at, datetime.now(UTC))
    took = duration((until - view.created_at).total_seconds())
    return took, str(view.turns), "" if view.tokens is None else f"{view.tokens:,}"


def why(view: RunView) -> str:
    """Return why a run is not done, or has no answer."""
    return view.waits_for or view.failure or without_answer(view.ended_by)
