"""Frames on a terminal's second screen, and the keys that are pressed meanwhile."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Iterable, Iterator

from rich.console import Group
from rich.live import Live
from rich.text import Text

from durable_swarm.cli.render import plain_console

KEYS = {"\x1b[A": "k", "\x1b[B": "j", "\r": "enter", "\n": "enter", "\x1b": "escape", "\x7f": "backspace"}
"""Names of keys other than characters; the arrows are other names of the letters."""


class Screen:
    """Shows one frame after the other. The terminal is left as it was, whatever happens."""

    def __init__(self) -> None:
        self.console = plain_console()
        self._live = Live(console=self.console, screen=True, auto_refresh=False, redirect_stderr=False)

    def show(self, lines: Iterable[Text]) -> None:
        """Show a frame; what does not fit is cut off."""
        some = list(lines)[: self.console.height]
        for line in some:
            line.no_wrap, line.overflow = True, "crop"
        self._live.update(Group(*some), refresh=True)

    def key(self, seconds: float) -> str | None:
        """Return the next key, or None if none is pressed within some seconds."""
        if not sys.stdin.isatty():
            time.sleep(seconds)
            return None
        if not select.select([sys.stdin], [], [], seconds)[0]:
            return None
        pressed = os.read(sys.stdin.fileno(), 32).decode(errors="replace")
        return KEYS.get(pressed, pressed)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Give the terminal back for a while, to a pager for example."""
        import termios  # Not on Windows, where the commands that need no screen say what they need.

        self._live.stop()
        try:
            with contextlib.suppress(termios.error):
                termios.tcflush(sys.stdin, termios.TCIFLUSH)
            yield
        finally:
            self._live.start(refresh=True)


@contextlib.contextmanager
def screen() -> Iterator[Screen]:
    """Open the second screen; the keys are read as they are pressed, and not shown."""
    import termios
    import tty

    found = Screen()
    before = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    try:
        if before is not None:
            tty.setcbreak(sys.stdin)
        with found._live:
            yield found
    finally:
        if before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
