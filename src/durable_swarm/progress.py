"""Progress of long work on a terminal: a line on stderr that goes when the work ends; nothing in a script or a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Tell = Callable[[int], None]
"""Takes the number of things that are done so far."""


@contextlib.contextmanager
def progress(text: str, total: int | None = None) -> Iterator[Tell]:
    """Show `text` and how much is done, of `total` if that is known, until the block ends."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    # Imported now: only a terminal needs it.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

    bar = (BarColumn(), MofNCompleteColumn()) if total is not None else (TextColumn("{task.fields[done]}"),)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), *bar)
    console = Console(stderr=True, highlight=False)
    with Progress(*columns, console=console, transient=True, disable=console.is_dumb_terminal) as shown:
        task = shown.add_task(text, total=total, done="")
        yield lambda done: shown.update(task, completed=done, done=str(done))
