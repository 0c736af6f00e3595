"""Lives: processes that a test starts, kills and starts again.

They are forks of a server process that has imported everything and launched nothing, so a life costs a tenth of what a
new interpreter costs, and shares neither threads nor connections with anything.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from durable_swarm.testing.crash.boundaries import PROBE, Place, watch
from tests.crash.boundaries import keep_ledger

PATIENCE = 45.0
"""Seconds after which a life that has not ended counts as hanging."""


Report = tuple[str, Any, tuple[str, ...]]
"""What a life tells the test: `said`, `ended` or `failed`; a value or the error's text; the boundaries passed."""

_one_look = threading.Lock()


@dataclass(frozen=True)
class End:
    """How a life ended: killed, or with a value; the boundaries it passed, and what it wrote."""

    killed: bool
    value: Any = None
    passed: tuple[str, ...] = ()
    log: str = ""


class Life:
    """A process that executes one function; end it with `end` (wait), `kill` or `interrupt`."""

    def __init__(self, process: BaseProcess, answer: Connection, log: Path) -> None:
        self._process = process
        assert process.pid
        self._pid = process.pid
        self._ended: int | None = None
        self._answer = answer
        self._log = log

    @property
    def log(self) -> str:
        """What the process wrote to stdout and stderr so far."""
        return self._log.read_text(errors="replace")

    def say(self, word: str) -> None:
        """Send a word to the life, which gets it with `hear`."""
        self._answer.send(word)

    def hear(self) -> Any:
        """Wait for what the life says next."""
        if not self._answer.poll(PATIENCE):
            raise AssertionError(f"the life says nothing\n{self._stacks()}")
        try:
            kind, said, *_ = self._answer.recv()
        except EOFError:
            raise AssertionError(f"the life is over before it said anything\n{self.log}") from None
        assert kind == "said", f"the life is over before it said anything: {said}\n{self.log}"
        return said

    def end(self) -> End:
        """Wait for the end. Raises AssertionError if the function failed, or if nothing ends."""
        report = self._report()
        self._answer.close()
        if report is None:
            assert self._killed(), f"the life ended by itself, without a word: {self._code()}\n{self.log}"
            return End(killed=True, log=self.log)
        kind, value, passed = report
        assert kind == "ended", f"the life failed: {value}\n{self.log}"
        assert self._gone(), f"the life has ended and stays\n{self._stacks()}"
        return End(killed=False, value=value, passed=passed, log=self.log)

    def outcome(self) -> tuple[int, Any]:
        """Wait for the end, whatever it is, and give the exit code and the value; None if it ended without a word."""
        report = self._report()
        assert self._gone(), f"the life does not end\n{self._stacks()}"
        code = self._code()
        assert code is not None
        assert report is None or report[0] == "ended", f"the life failed: {report}\n{self.log}"
        return code, report and report[1]

    def _report(self) -> Report | None:
        """Wait for what the life says at its end; None if it ends without a word."""
        while self._answer.poll(PATIENCE):
            try:
                report: Report = self._answer.recv()
            except (EOFError, ConnectionResetError):
                return None
            if report[0] != "said":
                return report
        raise AssertionError(f"the life has not ended within {PATIENCE:g} s\n{self._stacks()}")

    def _gone(self) -> bool:
        """Whether the process has ended, or does so within some seconds."""
        return self._code() is not None or bool(
            multiprocessing.connection.wait([self._process.sentinel], 10) and self._code() is not None
        )

    def _killed(self) -> bool:
        return self._gone() and self._code() == -signal.SIGKILL

    def _code(self) -> int | None:
        """Give how the process ended, or None; one that has ended gives back its files."""
        # Every start of a process looks at all others too, and only one look may read how a process ended.
        with _one_look:
            if self._ended is None and self._process.exitcode is not None:
                self._ended = self._process.exitcode
                self._process.close()
            return self._ended

    def _stacks(self) -> str:
        """Kill the life, having made it write down where its threads stand."""
        self.send(signal.SIGUSR1)
        time.sleep(0.5)
        self.kill()
        return self.log

    def send(self, number: int) -> None:
        """Send a signal, if the process still lives."""
        if self._code() is None:
            os.kill(self._pid, number)

    def kill(self) -> End:
        """Kill the process and wait until it is gone."""
        self.send(signal.SIGKILL)
        return End(killed=self._killed(), log=self.log)


class Lives:
    """Starts lives. `folder` takes their logs."""

    def __init__(self, context: ForkServerContext, folder: Path) -> None:
        self._context = context
        self._folder = folder
        self._started = 0
        self._all: list[Life] = []

    def start(self, function: Callable[..., Any], *args: Any, ledger: Path, at: Place | None = None) -> Life:
        """Start a life that executes the module-level function and is killed at `at`, if it gets there."""
        self._started += 1
        log = self._folder / f"life-{self._started}-{os.urandom(3).hex()}.log"
        log.touch()
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_live, args=(function, args, str(ledger), at, str(log), str(self._folder), theirs), daemon=True
        )
        with _one_look:
            process.start()
        theirs.close()
        life = Life(process, ours, log)
        self._all.append(life)
        return life

    def live(self, function: Callable[..., Any], *args: Any, ledger: Path, at: Place | float | None = None) -> End:
        """Start a life and wait for its end, or kill it: at a place, or after some seconds."""
        if not isinstance(at, float):
            return self.start(function, *args, ledger=ledger, at=at).end()
        life = self.start(function, *args, ledger=ledger)
        time.sleep(at)
        life.send(signal.SIGKILL)
        return life.end()

    def close(self) -> None:
        """Kill whatever still lives."""
        for life in self._all:
            life.send(signal.SIGKILL)


def fork_server() -> ForkServerContext:
    """Give the context whose processes are forks of one server that has imported what lives need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "tests.crash.preload"])
    return context


_parent: Connection | None = None


def say(word: Any) -> None:
    """Tell the test something; `Life.hear` gets it."""
    assert _parent is not None
    _parent.send(("said", word, ()))


def hear() -> Any:
    """Wait for a word of the test."""
    assert _parent is not None
    return _parent.recv()


def _live(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    ledger: str,
    at: Place | None,
    log: str,
    folder: str,
    answer: Connection,
) -> None:
    global _parent
    _parent = answer
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(folder)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    keep_ledger(ledger)
    watch()
    PROBE.arm(at)
    try:
        report: Report = ("ended", function(*args), tuple(PROBE.passed))
    except BaseException as error:
        report = ("failed", f"{type(error).__name__}: {error}", tuple(PROBE.passed))
    answer.send(report)
    sys.stdout.flush()
    sys.stderr.flush()
    # As abrupt as any end: a program that closes nothing must lose nothing.
    os._exit(0)
