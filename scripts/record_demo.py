"""Records `docs/demo.svg`: the refund demo, killed and started again, typed into a real shell.

    python scripts/record_demo.py [FILE]

Nothing in the picture is drawn by hand: its text, colours and times are what the shell printed, except that long pauses
are cut to one second. The picture moves by CSS alone, so it moves in a README, too, and stands still where a reader
has asked for less motion.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

from rich.ansi import AnsiDecoder
from rich.color import Color
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

COLUMNS, ROWS = 96, 38
CELL, LINE, MARGIN, BAR = 8.0, 19.0, 16.0, 30.0
"""Pixels: the width of a character, the height of a line, the margin, and the height of the bar above."""

LONGEST_PAUSE, LAST_PAUSE = 1.0, 6.0
"""Seconds: the longest pause between two pieces of text, and the pause before the picture starts again."""

TOGETHER = 0.06
"""Seconds within which pieces of text appear as one."""

PROMPT = "$ "
DEMO = "durable-swarm demo refund --name Max"


class Piece(NamedTuple):
    """Text that the shell printed at one moment, in seconds from the beginning."""

    at: float
    text: str


class Shell:
    """A shell on a terminal of its own, which remembers what it printed and when."""

    def __init__(self, folder: str) -> None:
        self.pieces: list[Piece] = []
        self._began = time.monotonic()
        self._process, self._terminal = pty.fork()
        if self._process == 0:
            self._become(folder)

    @staticmethod
    def _become(folder: str) -> None:
        """Turn the new process into the shell, with nothing of the user's own settings in it."""
        programs = Path(sys.executable).parent
        settings = Path(folder) / "inputrc"
        settings.write_text("set enable-bracketed-paste off\n", encoding="utf-8")
        os.chdir(folder)
        kept = {name: value for name, value in os.environ.items() if name.startswith(("DURABLE_SWARM_DEMO", "LC_"))}
        given = {"PATH": f"{programs}:/usr/bin:/bin", "PS1": PROMPT, "TERM": "xterm-256color", "HOME": folder}
        size = {"COLUMNS": str(COLUMNS), "LINES": str(ROWS), "INPUTRC": str(settings), "LANG": "C.UTF-8"}
        os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "-i"], {**kept, **given, **size})

    @property
    def text(self) -> str:
        """Everything that was printed so far."""
        return "".join(piece.text for piece in self.pieces)

    def type(self, line: str) -> None:
        """Type a line as a person would."""
        for letter in line:
            os.write(self._terminal, letter.encode())
            self.read(0.03)
        os.write(self._terminal, b"\n")

    def wait_for(self, pattern: str, *, times: int = 1, timeout: float = 60.0) -> str:
        """Read until the pattern has matched so often, and return the last match. Raises `TimeoutError`."""
        end = time.monotonic() + timeout
        while len(found := re.findall(pattern, self.text)) < times:
            if time.monotonic() > end:
                raise TimeoutError(f"{pattern!r} did not come in {timeout:.0f} s:\n{self.text}")
            self.read(0.1)
        return str(found[-1])

    def close(self) -> None:
        """End the shell."""
        os.kill(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)
        os.close(self._terminal)

    def read(self, seconds: float) -> None:
        """Remember what comes next, if anything comes within so many seconds."""
        ready, _, _ = select.select([self._terminal], [], [], seconds)
        if ready:
            text = os.read(self._terminal, 65536).decode("utf-8", "replace").replace("\r", "")
            self.pieces.append(Piece(time.monotonic() - self._began, text))


def record() -> list[Piece]:
    """Kill the demo in its third step, start it again, and return what the shell printed."""
    with tempfile.TemporaryDirectory() as folder:
        shell = Shell(folder)
        try:
            shell.wait_for(re.escape(PROMPT))
            shell.type(DEMO)
            process = shell.wait_for(r"kill -9 (\d+)")
            shell.wait_for(r"step 3 of 5 \.\.\.")
            shell.read(0.3)
            os.kill(int(process), signal.SIGKILL)
            shell.wait_for(rf"Killed[^\n]*\n{re.escape(PROMPT)}")
            shell.type(DEMO)
            shell.wait_for(r"Its steps: .*show \S+")
        finally:
            shell.close()
    return shell.pieces


def timed(pieces: list[Piece]) -> list[Piece]:
    """Return the pieces with long pauses cut, those at nearly the same time as one, and no end of the last line."""
    made: list[Piece] = []
    clock = before = pieces[0].at
    for piece in pieces:
        clock += min(piece.at - before, LONGEST_PAUSE)
        before = piece.at
        if made and clock - made[-1].at < TOGETHER:
            made[-1] = Piece(made[-1].at, made[-1].text + piece.text)
        else:
            made.append(Piece(clock, piece.text))
    return made


class Span(NamedTuple):
    """Text of one colour in one row of the screen; it appears at a time."""

    at: float
    row: int
    column: int
    text: str
    colour: str
    bold: bool


def spans(pieces: list[Piece]) -> Iterator[Span]:
    """Lay the pieces out on the screen, with their colours."""
    decoder, row, column = AnsiDecoder(), 0, 0
    for piece in pieces:
        for number, line in enumerate(piece.text.split("\n")):
            if number:
                row, column = row + 1, 0
            for part in _parts(decoder.decode_line(line)):
                if part.plain.strip():
                    colour, bold = _look(part)
                    yield Span(piece.at, row, column, part.plain, colour, bold)
                column += part.cell_len


def _parts(line: Text) -> Iterator[Text]:
    borders = sorted({0, len(line), *(edge for span in line.spans for edge in (span.start, span.end))})
    yield from line.divide(borders[1:-1]) if len(borders) > 2 else [line]


def _look(part: Text) -> tuple[str, bool]:
    style = part.spans[0].style if part.spans else None
    colour = None if style is None or isinstance(style, str) else style.color
    bold = style is not None and not isinstance(style, str) and bool(style.bold)
    return _hex(colour) if colour else "#d9d9d9", bold


def _hex(colour: Color) -> str:
    return str(colour.get_truecolor(SVG_EXPORT_THEME).hex)


def svg(pieces: list[Piece]) -> str:
    """Return the recording as a moving picture."""
    shown = list(spans(pieces))
    first, last = pieces[0].at, pieces[-1].at
    total = last - first + LAST_PAUSE
    rows = max(span.row for span in shown) + 1
    width, height = COLUMNS * CELL + 2 * MARGIN, rows * LINE + 2 * MARGIN + BAR
    times = sorted({span.at for span in shown})
    keys, groups = [], []
    for number, at in enumerate(times):
        share = 100 * (at - first) / total
        keys.append(f"@keyframes k{number}{{0%,{share:.2f}%{{opacity:0}}{share + 0.01:.2f}%,100%{{opacity:1}}}}")
        texts = "".join(_drawn(span) for span in shown if span.at == at)
        groups.append(f'<g style="animation-name:k{number}">{texts}</g>')
    style = (
        "text{font:13.3px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}"
        f"g{{animation-duration:{total:.1f}s;animation-iteration-count:infinite;animation-timing-function:linear}}"
        "@media (prefers-reduced-motion:reduce){g{animation:none}}"
    )
    dots = "".join(
        f'<circle cx="{MARGIN + 8 + 20 * place}" cy="{BAR / 2 + 2}" r="6" fill="{colour}"/>'
        for place, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    title = "A terminal: the demo is killed in step 3 of a refund, started again, and continues from step 3."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="{title}"><title>{title}</title>'
        f"<style>{style}{''.join(keys)}</style>"
        f'<rect width="100%" height="100%" rx="9" fill="#1b1d23"/>{dots}{"".join(groups)}</svg>\n'
    )


def _drawn(span: Span) -> str:
    x, y = MARGIN + span.column * CELL, MARGIN + BAR + (span.row + 0.6) * LINE
    bold = ' style="font-weight:bold"' if span.bold else ""
    length = Text(span.text).cell_len * CELL
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" textLength="{length:.0f}" fill="{span.colour}"{bold} xml:space="preserve">'
        f"{escape(span.text)}</text>"
    )


def main(path: str | None = None) -> None:
    """Record the demo into a file."""
    target = Path(path) if path else Path(__file__).parents[1] / "docs" / "demo.svg"
    target.write_text(svg(timed(record())), encoding="utf-8")
    print(f"wrote {target}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
