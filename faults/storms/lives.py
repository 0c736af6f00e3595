"""Processes of a storm: workers, a plain program that calls the swarm in six ways, and how they are started."""

from __future__ import annotations

import asyncio
import faulthandler
import importlib
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from durable_swarm.errors import DurableSwarmError, RunCancelled, RunFailed
from faults.storms import effects, ledger

WAYS = ("run", "stream", "start", "queue", "async", "async stream")
"""How the plain program has a run executed."""
TARGET = "faults.storms.program"


@dataclass(frozen=True)
class Task:
    """A run: its id, what its model is to do, and how the plain program calls it; "" leaves it to workers."""

    id: str
    plan: str
    way: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """The messages of the run."""
        return [{"role": "user", "content": f"{self.id}: {self.plan}"}]


class Life:
    """A process that executes a function; its output goes to a file of the storm's folder."""

    def __init__(
        self,
        context: ForkServerContext,
        kind: str,
        log: Path,
        env: dict[str, str],
        work: Callable[..., Any],
        *args: Any,
    ) -> None:
        self.kind, self.log = kind, log
        self._process = context.Process(target=_live, args=(log, env, work, *args), daemon=True)
        self._process.start()
        self.pid = int(self._process.pid or 0)
        self.wakes: float | None = None
        """When the process is to be woken, if it stands still."""
        self.asked: float | None = None
        """When the process was asked to end, if it was."""

    @property
    def lives(self) -> bool:
        """True until the process has ended."""
        return self._process.exitcode is None

    @property
    def listens(self) -> bool:
        """True once the process can be interrupted: those of a fork server ignore SIGINT until their own code runs."""
        return self.log.exists()

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while the process lives."""
        return self._process.exitcode

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if the process still lives."""
        if self.lives:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:  # It has ended in this moment.
                return

    def end(self) -> None:
        """Kill the process and wait until it is gone."""
        self.send(signal.SIGKILL)
        self._process.join(10)


def _live(log: Path, env: dict[str, str], work: Callable[..., Any], *args: Any) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(env)
    os.chdir(env[ledger.FOLDER])
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    work(*args)


def worker(url: str) -> None:
    """Execute queued runs until a signal comes."""
    sys.argv = ["durable-swarm", "worker", f"{TARGET}:swarm", "--database", url, "--concurrency", "6", "--grace", "3"]
    runpy.run_module("durable_swarm", run_name="__main__")


def program(tasks: list[Task], gap: float, closes: bool) -> None:
    """Have the tasks executed, each in a thread of its own, and end when all callers have their results.

    On Ctrl+C it closes the swarm, or simply ends, as programs do.
    """
    module = importlib.import_module(TARGET)
    over = threading.Event()
    threads = []
    try:
        for task in tasks:
            threads.append(threading.Thread(target=_see_through, args=(module, task, over), name=task.id))
            threads[-1].start()
            time.sleep(gap)
        for thread in threads:
            thread.join()
        ledger.write("closing")
        module.swarm.close()
    finally:
        over.set()
        if closes:
            module.swarm.close()
    ledger.write("program done")


def _see_through(module: Any, task: Task, over: threading.Event) -> None:
    """Call the swarm with one run until it gives a response; who cancelled or failed it lets it go on."""
    while not over.is_set():
        try:
            response = _call(module, task)
        except (RunCancelled, RunFailed) as error:
            ledger.write("told", run=task.id, error=type(error).__name__, text=str(error)[:300])
        except Exception as error:
            if not over.is_set():
                kind = "told" if str(error) == effects.NOT_YET else "error"
                ours = isinstance(error, DurableSwarmError)
                ledger.write(kind, who=f"program, {task.way}", run=task.id, error=_named(error), ours=ours)
        else:
            ledger.write("result", run=task.id, text=response.messages[-1]["content"])
            return
        over.wait(0.5)


def _named(error: BaseException) -> str:
    kind = type(error)
    return f"{kind.__module__}.{kind.__name__}: {error}"[:400]


def _call(module: Any, task: Task) -> Any:
    swarm, agent = module.swarm, module.triage
    match task.way:
        case "run":
            return swarm.run(agent, task.messages, run_id=task.id)
        case "stream":
            return _last(swarm.run(agent, task.messages, stream=True, run_id=task.id))
        case "start" | "queue":
            run = swarm.start(agent, task.messages, run_id=task.id, queue=task.way == "queue")
            ledger.write("waits", run=task.id)
            return run.result()
        case "async":
            return asyncio.run(swarm.run_async(agent, task.messages, run_id=task.id))
        case _:
            return asyncio.run(_last_async(swarm, agent, task))


def _last(items: Iterator[dict[str, Any]]) -> Any:
    last: dict[str, Any] = {}
    for item in items:
        last = item
    return last["response"]


async def _last_async(swarm: Any, agent: Any, task: Task) -> Any:
    last: dict[str, Any] = {}
    async for item in swarm.run_async(agent, task.messages, stream=True, run_id=task.id):
        last = item
    return last["response"]
