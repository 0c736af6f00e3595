"""Lives: processes that a test starts, talks with, kills and starts again."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from durable_swarm.testing.crash.boundaries import PROBE, KillPoint, watch
from durable_swarm.testing.crash.ledger import keep_ledger
from durable_swarm.testing.crash.processes import Child, fork_server, leave, redirect
from tests.support import patience

PATIENCE = 1.5 * patience.PATIENCE
"""Seconds after which a life that has not ended counts as hanging: longer than it waits itself."""


Report = tuple[str, Any, tuple[str, ...]]
"""What a life tells the test: `said`, `ended` or `failed`; a value or the error's text; the boundaries passed."""


@dataclass(frozen=True)
class End:
    """How a life ended: killed, or with a value; the boundaries it passed, and what it wrote."""

    killed: bool
    value: Any = None
    passed: tuple[str, ...] = ()
    log: str = ""


class Life:
    """A process that executes one function; end it with `end` (wait), `kill` or `send`."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self.send = child.send

    @property
    def log(self) -> str:
        """What the process wrote to stdout and stderr so far."""
        return self._child.log

    def say(self, word: str) -> None:
        """Send a word to the life, which gets it with `hear`."""
        self._child.answer.send(word)

    def hear(self) -> Any:
        """Wait for what the life says next."""
        try:
            report = self._child.receive(PATIENCE)
        except TimeoutError:
            raise AssertionError(f"the life says nothing\n{self._stacks()}") from None
        assert report is not None, f"the life is over before it said anything\n{self.log}"
        assert report[0] == "said", f"the life is over before it said anything: {report[1]}\n{self.log}"
        return report[1]

    def end(self) -> End:
        """Wait for the end. Raises AssertionError if the function failed, or if nothing ends."""
        report = self._report()
        self._child.answer.close()
        if report is None:
            assert self._killed(), f"the life ended by itself, without a word: {self._child.code()}\n{self.log}"
            return End(killed=True, log=self.log)
        kind, value, passed = report
        assert kind == "ended", f"the life failed: {value}\n{self.log}"
        assert self._child.gone(10), f"the life has ended and stays\n{self._stacks()}"
        return End(killed=False, value=value, passed=passed, log=self.log)

    def outcome(self) -> tuple[int, Any]:
        """Wait for the end, whatever it is, and give the exit code and the value; None if it ended without a word."""
        report = self._report()
        assert self._child.gone(10), f"the life does not end\n{self._stacks()}"
        code = self._child.code()
        assert code is not None
        assert report is None or report[0] == "ended", f"the life failed: {report}\n{self.log}"
        return code, report and report[1]

    def _report(self) -> Report | None:
        """Wait for what the life says at its end; None if it ends without a word."""
        try:
            while (report := self._child.receive(PATIENCE)) is not None:
                if report[0] != "said":
                    ended: Report = report
                    return ended
        except TimeoutError:
            raise AssertionError(f"the life has not ended within {PATIENCE:g} s\n{self._stacks()}") from None
        return None

    def _killed(self) -> bool:
        return self._child.gone(10) and self._child.code() == -signal.SIGKILL

    def _stacks(self) -> str:
        """Kill the life, having made it write down where its threads stand."""
        self._child.stacks()
        self.kill()
        return self.log

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

    def start(self, function: Callable[..., Any], *args: Any, ledger: Path, at: KillPoint | None = None) -> Life:
        """Start a life that executes the module-level function and is killed at `at`, if it gets there."""
        self._started += 1
        log = self._folder / f"life-{self._started}-{os.urandom(3).hex()}.log"
        task = (function, args, ledger, at, log, self._folder)
        life = Life(Child(self._context, _live, task, log, daemon=True))
        self._all.append(life)
        return life

    def live(self, function: Callable[..., Any], *args: Any, ledger: Path, at: KillPoint | float | None = None) -> End:
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


def server() -> ForkServerContext:
    """Give the context whose processes have imported what lives need."""
    return fork_server(["pytest", "tests.crash.preload"])


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
    ledger: Path,
    at: KillPoint | None,
    log: Path,
    folder: Path,
    answer: Connection,
) -> None:
    global _parent
    _parent = answer
    redirect(log, folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    keep_ledger(ledger)
    watch()
    PROBE.arm(at)
    try:
        report: Report = ("ended", function(*args), tuple(PROBE.passed))
    except BaseException as error:
        told = f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error))}"
        report = ("failed", told, tuple(PROBE.passed))
    leave(answer, report)
