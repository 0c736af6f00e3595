"""Processes forked from one server that has imported their modules and launched nothing.

Such a process costs a tenth of what a new interpreter costs, and shares neither threads nor connections with anything.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NoReturn

_one_look = threading.Lock()
"""Every start of a process also polls all others, and only one poll may read how a process ended."""


def fork_server(preload: Sequence[str]) -> ForkServerContext:
    """Return the context for forking processes from a server that has imported these modules."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    return context


class Child:
    """A process that executes `target(*args, answer)`, where `answer` is its end of the connection `self.answer`.

    `log` is the file it writes to, once it has called `redirect`.
    """

    def __init__(
        self,
        context: ForkServerContext,
        target: Callable[..., None],
        args: tuple[object, ...],
        log: Path,
        *,
        daemon: bool,
    ) -> None:
        log.touch()
        self.answer, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(*args, theirs), daemon=daemon)
        with _one_look:
            self._process.start()
        theirs.close()
        self.pid = int(self._process.pid or 0)
        self._log = log
        self._code: int | None = None

    @property
    def log(self) -> str:
        """The output of the process on stdout and stderr so far."""
        return self._log.read_text(errors="replace")

    def receive(self, seconds: float) -> Any:
        """Wait for the next message of the process; None if it ended without one. Raises TimeoutError."""
        # For both: another child may have inherited its end of the connection.
        waited_for: list[Connection | int] = [self.answer]
        if self.code() is None:
            waited_for.append(self._process.sentinel)
        if not multiprocessing.connection.wait(waited_for, seconds):
            raise TimeoutError
        try:
            return self.answer.recv() if self.answer.poll() else None
        except (EOFError, ConnectionResetError):
            return None

    def code(self) -> int | None:
        """Return the process's exit code, or None; an ended process releases its files."""
        with _one_look:
            if self._code is None and self._process.exitcode is not None:
                self._code = self._process.exitcode
                self._process.close()
            return self._code

    def gone(self, seconds: float) -> bool:
        """Return True if the process has ended, or ends within these seconds."""
        return self.code() is not None or bool(
            multiprocessing.connection.wait([self._process.sentinel], seconds) and self.code() is not None
        )

    def send(self, number: int) -> None:
        """Send a signal, if the process still runs."""
        if self.code() is None:
            with contextlib.suppress(ProcessLookupError):  # The server has seen its end, and not yet reported it.
                os.kill(self.pid, number)

    def stacks(self) -> str:
        """Make the process write its threads' stacks, and return its log."""
        self.send(signal.SIGUSR1)
        time.sleep(0.5)
        return self.log


def redirect(log: Path, folder: Path) -> None:
    """In a child: write to `log`, work in `folder`, and write the threads' stacks on SIGUSR1."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def leave(answer: Connection, report: object) -> NoReturn:
    """In a child: report the outcome, and end as abruptly as any crash, without closing anything."""
    answer.send(report)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
