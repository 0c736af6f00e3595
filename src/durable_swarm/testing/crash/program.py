"""Executions: processes that execute a scenario and are killed on the way."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import inspect
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from durable_swarm import codec
from durable_swarm.engine.database.urls import VARIABLE
from durable_swarm.errors import ConfigurationError
from durable_swarm.testing.crash.boundaries import PROBE, Death, watch
from durable_swarm.testing.crash.ledger import keep_ledger
from durable_swarm.testing.crash.outcome import renumbered
from durable_swarm.testing.crash.processes import Child, fork_server, leave, redirect
from durable_swarm.types import Response

PRELOAD = ["durable_swarm.testing.crash.program", "asyncio", "sqlite3", "psycopg", "sqlalchemy.dialects.sqlite"]


@dataclass(frozen=True)
class Scenario:
    """The user's function in a form that another process can find: module, file and name."""

    module: str
    file: str
    name: str
    takes_database: bool

    def __str__(self) -> str:
        return self.name


def scenario_of(function: Callable[..., object]) -> Scenario:
    """Describe a scenario. Raises `ConfigurationError` if another process could not find it."""
    if not inspect.isfunction(function) or "<" in function.__qualname__ or "." in function.__qualname__:
        raise ConfigurationError(
            f"a crash test starts its scenario in fresh processes, which find it by name: {function!r} must be a "
            "function at module level"
        )
    needed = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed not in ([], ["database"]):
        raise ConfigurationError(
            f"the scenario {function.__name__} takes {', '.join(needed)}; a scenario takes nothing, or one argument "
            "named `database`: the URL of the database to work on"
        )
    file = str(Path(inspect.getfile(function)).resolve())
    return Scenario(function.__module__, file, function.__name__, "database" in inspect.signature(function).parameters)


@dataclass(frozen=True)
class Task:
    """The task of an execution: run `scenario` on a database, in a folder, and die at a place, if it gets there."""

    scenario: Scenario
    database: str
    folder: Path
    number: int
    at: Death | None = None

    @property
    def ledger(self) -> Path:
        """The file with the effects of all executions in this folder."""
        return self.folder / "effects.jsonl"

    @property
    def log(self) -> Path:
        """The output of this execution on stdout and stderr."""
        return self.folder / f"life-{self.number}.log"


@dataclass(frozen=True)
class End:
    """The end of an execution: a value, an error, a kill, or none. `passed` are its boundaries."""

    how: Literal["returned", "raised", "killed", "hung"]
    value: object = None
    passed: tuple[str, ...] = ()
    times: tuple[float, ...] = ()
    """The time when each boundary was reached, in seconds."""
    log: str = ""


def live(task: Task, *, timeout: float) -> End:
    """Run one execution to its end; one that has not ended `timeout` seconds after its start hangs."""
    task.folder.mkdir(parents=True, exist_ok=True)
    child = Child(fork_server(PRELOAD), _live, (task,), task.log, daemon=False)
    report, patience = None, timeout
    try:
        report = child.receive(timeout)
    except TimeoutError:
        patience = 0.2
    # A process without a report has ended, but on a busy machine its end may be known only later.
    hung = report is None and not child.gone(patience)
    log = child.stacks() if hung else ""
    return _judged(report, _end(child), hung, log or child.log)


def _judged(report: Any, code: int | None, hung: bool, log: str) -> End:
    if hung:
        return End("hung", log=log)
    if report is not None:
        how, value, passed, times = report
        return End(how, value, passed, times, log)
    if code == -signal.SIGKILL:
        return End("killed", log=log)
    return End("raised", f"it ended by itself, with exit code {code}", log=log)


def _end(child: Child) -> int | None:
    """Kill the process if it still runs, with those it started, and return how it ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.send(signal.SIGKILL)
    child.gone(10)
    child.answer.close()
    return child.code()


def _live(task: Task, answer: Connection) -> None:
    """Execute the task in this child process."""
    os.setsid()
    redirect(task.log, task.folder)
    os.environ[VARIABLE] = task.database
    keep_ledger(task.ledger)
    watch()
    PROBE.arm(task.at)
    try:
        function = _load(task.scenario)
        value = function(task.database) if task.scenario.takes_database else function()
        value = asyncio.run(value) if inspect.iscoroutine(value) else value
        report = ("returned", plain(value), tuple(PROBE.passed), tuple(PROBE.times))
    except BaseException as error:
        traceback.print_exc()
        report = ("raised", f"{type(error).__name__}: {error}", tuple(PROBE.passed), tuple(PROBE.times))
    leave(answer, report)


def _load(scenario: Scenario) -> Callable[..., object]:
    """Load the scenario again: from its module, otherwise from its file."""
    module = None
    if scenario.module != "__main__" and importlib.util.find_spec(scenario.module.partition(".")[0]) is not None:
        module = _imported(scenario)
    if module is None:
        spec = importlib.util.spec_from_file_location(Path(scenario.file).stem, scenario.file)
        if spec is None or spec.loader is None:
            raise ConfigurationError(
                f"the scenario {scenario.name} cannot be found again: {scenario.file} is not a module"
            )
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    function: Callable[..., object] = getattr(module, scenario.name)
    return function


def _imported(scenario: Scenario) -> object:
    try:
        module = importlib.import_module(scenario.module)
    except ModuleNotFoundError:
        return None
    same = getattr(module, "__file__", None) and Path(str(module.__file__)).resolve() == Path(scenario.file)
    return module if same else None


def plain(value: object) -> object:
    """Return a scenario's return value as comparable data; for other objects their class and attributes."""
    if isinstance(value, Response):
        agent = None if value.agent is None else value.agent.name
        value = {"messages": renumbered(value.messages), "agent": agent, "context_variables": value.context_variables}
    for data in (value, vars(value) if hasattr(value, "__dict__") else {}):
        with contextlib.suppress(Exception):
            return {"class": type(value).__qualname__, "data": codec.encode(data)}
    return {"class": type(value).__qualname__}
