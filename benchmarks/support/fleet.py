"""Workers as processes: starting, stopping and ending them, and waiting until they have done everything."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import sqlalchemy

from durable_swarm import DurableSwarm
from durable_swarm.engine.database import connection as database_connection
from durable_swarm.engine.database import urls

APP = """
import os, time
from durable_swarm import Agent, DurableSwarm, current_call, step
from durable_swarm.testing import ScriptedModel

@step
def work(number: int) -> str:
    if PACE:
        with open("ledger", "a") as ledger:
            ledger.write(f"{current_call().run_id} {os.getpid()} {time.time()}\\n")
        time.sleep(PACE)
    return "worked"

def reply(request):
    turn = sum(message["role"] == "assistant" for message in request["messages"])
    return [("work", {"number": turn})] if turn < TURNS else "Done."

PACE, TURNS = float(os.environ["PACE"]), int(os.environ["TURNS"])
clerk = Agent(name="Clerk", functions=[work])
swarm = DurableSwarm(ScriptedModel(reply, strict=False))
"""
"""A run of it is TURNS tool calls and one model call more; to stand in `app.py` of the current directory."""


def fresh(url: str) -> str:
    """Give a database of its own to a part."""
    made = urls.choose(url).set(database=f"workers_{time.time_ns()}")
    return made.set(drivername="postgresql").render_as_string(hide_password=False)


def started(command: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start a process, and wait for its first line."""
    process = subprocess.Popen(
        [sys.executable, *command], env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def worker(url: str, pace: float, turns: int, concurrency: int = 10) -> subprocess.Popen[str]:
    """Start a worker."""
    command = ["-u", "-m", "durable_swarm", "worker", "app:swarm", "--database", url, "--concurrency", str(concurrency)]
    return started(command, PACE=str(pace), TURNS=str(turns))


def end(*processes: subprocess.Popen[str]) -> None:
    """Kill the processes."""
    for process in processes:
        process.kill()
        process.communicate()


def send(number: signal.Signals, processes: list[subprocess.Popen[str]]) -> None:
    """Send the processes a signal."""
    for process in processes:
        process.send_signal(number)


@contextlib.contextmanager
def ready(
    url: str, runs: int, workers: int, concurrency: int = 10, name: str = "r"
) -> Iterator[list[subprocess.Popen[str]]]:
    """Give workers that are stopped, while so many short runs, named with numbers, wait on their queue."""
    with DurableSwarm(database=url) as swarm:
        swarm.runs()
        processes = [worker(url, 0, 1, concurrency) for _ in range(workers)]
        send(signal.SIGSTOP, processes)
        for number in range(runs):
            swarm.enqueue("Clerk", [{"role": "user", "content": "Go."}], run_id=f"{name}{number}")
    try:
        yield processes
    finally:
        end(*processes)


def until_done(url: str, meanwhile: Callable[[], None] = lambda: None) -> float:
    """Give the seconds until no workflow is unfinished; `meanwhile` is called after each look."""
    left = sqlalchemy.text("SELECT count(*) FROM dbos.workflow_status WHERE status IN ('ENQUEUED', 'PENDING')")
    engine, began = database_connection.connect(urls.choose(url), create=False), time.monotonic()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        while connection.execute(left).scalar():
            meanwhile()
            time.sleep(0.02)
    engine.dispose()
    return time.monotonic() - began
