r"""A program in a terminal of its own, to be typed at, read and killed.

with Terminal([sys.executable, "program.py"]) as terminal:
    terminal.read_until("Name? ")
    terminal.type("Max\n")
    terminal.kill(signal.SIGKILL)
    output, code = terminal.end()
"""

from __future__ import annotations

import os
import pty
import select
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Self

from tests.support import programs
from tests.support.patience import PATIENCE


class Terminal:
    """Start `command` with a pseudo-terminal as its input and output; `env` is added to the environment."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self._master, slave = pty.openpty()
        self._process = programs.Program(
            command, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, **(env or {})}, start_new_session=True
        )
        os.close(slave)
        self._read = b""

    @property
    def pid(self) -> int:
        """The program's process id."""
        return self._process.pid

    @property
    def output(self) -> str:
        """What was printed so far, with plain line ends."""
        return self._read.decode(errors="replace").replace("\r\n", "\n")

    def type(self, text: str) -> None:
        """Type `text`; the terminal echoes it into the output."""
        os.write(self._master, text.encode())

    def read_until(self, text: str, times: int = 1) -> None:
        """Wait until the output holds `text`, so many times."""
        deadline = time.monotonic() + PATIENCE
        while self.output.count(text) < times:
            assert self._take(deadline), f"no {text!r} in what the program printed:\n{self.output}"

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the program."""
        self._process.send_signal(number)

    def end(self) -> tuple[str, int]:
        """Wait for the program's end; give all of its output, and its exit code (a signal's is negative)."""
        deadline = time.monotonic() + PATIENCE
        while self._take(deadline):
            pass
        return self.output, self._process.wait(timeout=PATIENCE)

    def _take(self, deadline: float) -> bool:
        """Read what there is to read; False at the end of the output."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"the program printed nothing more within {PATIENCE:g} s:\n{self.output}"
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # Linux: nobody holds the other side any more.
            return False
        self._read += piece
        return bool(piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._master)
