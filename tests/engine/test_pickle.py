"""Stored data never executes: a row forged as a pickle is refused wherever it is read."""

from __future__ import annotations

import base64
import contextlib
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, DurableSwarmError, ReplayMismatch, sleep, step
from durable_swarm.testing import ProviderError, ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, Program, change, rows, unique, user

MODEL = "workflow_uuid = 'r' AND function_name LIKE 'model:%'"
COLUMNS = {
    "input of the run": ("workflow_input", "inputs", "workflow_uuid = 'r'"),
    "output of the run": ("workflow_output", "output", "workflow_uuid = 'r'"),
    "error of the run": ("workflow_output", "error", "workflow_uuid = 'r'"),
    "input of a tool": ("workflow_input", "inputs", "workflow_uuid = 'r/0.0'"),
    "output of a tool": ("workflow_output", "output", "workflow_uuid = 'r/0.0'"),
    "error of a tool": ("workflow_output", "error", "workflow_uuid = 'r/0.0'"),
    "output of a model call": ("operation_outputs", "output", MODEL),
    "error of a model call": ("operation_outputs", "error", MODEL),
    "output of a step tool": ("operation_outputs", "output", "workflow_uuid = 'r' AND function_name LIKE 'tool:%'"),
    "output of a finished tool's step": ("operation_outputs", "output", "workflow_uuid = 'r/0.0'"),
    "error of a finished tool's step": ("operation_outputs", "error", "workflow_uuid = 'r/0.0'"),
    "output of an open tool's step": ("operation_outputs", "output", "workflow_uuid = 'r/1.0'"),
    "error of an open tool's step": ("operation_outputs", "error", "workflow_uuid = 'r/1.0'"),
}


class Gadget:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._path,))


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """The file that shows that a gadget was executed."""
    return tmp_path / "executed"


def forge(url: str, column: str, trap: Path) -> None:
    """Put a gadget into a column, marked as a pickle, as somebody could who may write the database."""
    table, name, where = COLUMNS[column]
    text = base64.b64encode(pickle.dumps(Gadget(trap))).decode()
    change(url, f"UPDATE {{schema}}{table} SET {name} = :text WHERE {where}", text=text)
    marked = table if table == "operation_outputs" else "workflow_status"
    change(url, f"UPDATE {{schema}}{marked} SET serialization = 'py_pickle' WHERE {where}")


def test_the_gadget_works(tmp_path: Path, trap: Path) -> None:
    """The trap springs when a gadget is really unpickled, so that these tests prove something."""
    pickle.loads(pickle.dumps(Gadget(trap)))
    assert trap.exists()


@step
def double(number: int) -> int:
    """Double a number."""
    return 2 * number


def compute(number: int) -> str:
    """Use a step."""
    return str(double(number))


def agent() -> Agent:
    """Give an agent with a tool of each kind."""
    return Agent(name=unique(), functions=[compute, double])


REPLIES: list[Any] = [[("compute", {"number": 2}), ("double", {"number": 5})], "Done"]
LOOKS: dict[str, Callable[[DurableSwarm], Any]] = {
    "list": lambda swarm: [(run.status, run.agent) for run in swarm.runs()],
    "status": lambda swarm: swarm.get("r").status,
    "times": lambda swarm: (swarm.get("r").created_at, swarm.get("r").updated_at),
    "messages": lambda swarm: swarm.get("r").messages(),
    "steps": lambda swarm: swarm.get("r").steps(),
    "usage": lambda swarm: swarm.get("r").usage,
    "result": lambda swarm: swarm.get("r").result(5),
    "resume": lambda swarm: swarm.get("r").resume(),
    "cancel": lambda swarm: swarm.get("r").cancel(),
    "recover": lambda swarm: swarm.recover(),
}


@pytest.mark.parametrize("column", [column for column in COLUMNS if "open" not in column])
def test_reading_a_forged_run(make: Make, url: str, trap: Path, column: str) -> None:
    """Whatever is asked of a finished run with a forged row, nothing executes, and the run is still listed."""
    with make(ScriptedModel(REPLIES)) as first:
        first.run(agent(), user(), run_id="r")
    forge(url, column, trap)
    swarm = make(ScriptedModel([]))
    for look in LOOKS.values():
        with contextlib.suppress(DurableSwarmError):
            look(swarm)
    assert not trap.exists()
    assert [run.id for run in swarm.runs()] == ["r"]


@pytest.mark.parametrize("column", ["input of the run", "error of the run", "output of the run", "input of a tool"])
def test_reading_a_forged_failure(make: Make, url: str, trap: Path, column: str) -> None:
    """The error of a failed run is not executed either."""

    def fail() -> str:
        sleep(0.001)
        raise ValueError("broken")

    swarm = make(ScriptedModel([["fail"]]))
    with pytest.raises(ValueError, match="broken"):
        swarm.run(Agent(name=unique(), functions=[fail]), user(), run_id="r")
    swarm.close()
    forge(url, column, trap)
    for look in LOOKS.values():
        with contextlib.suppress(DurableSwarmError):
            look(swarm)
    assert not trap.exists()


@pytest.mark.parametrize("column", ["input of the run", "output of a model call", "output of a step tool"])
def test_the_refusal_is_clear(make: Make, url: str, trap: Path, column: str) -> None:
    """The error for a forged row says what is wrong in one line, and is one of this package."""
    with make(ScriptedModel(REPLIES)) as first:
        first.run(agent(), user(), run_id="r")
    forge(url, column, trap)
    swarm = make(ScriptedModel([]))
    with pytest.raises((ConfigurationError, ReplayMismatch), match=r"pickle|cannot be read|not a record") as caught:
        swarm.get("r").messages()
    assert "\n" not in str(caught.value)
    assert not trap.exists()


class Held:
    """An agent whose second turn does not end before it is let go."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()
        self.agent = Agent(name=unique(), functions=[compute, double, self.hold])
        self.replies: list[Any] = [[("compute", {"number": 2}), ("double", {"number": 5})], ["hold"], "Done"]

    def hold(self) -> str:
        """Make a step, and wait."""
        double(1)
        self.entered.set()
        assert self.opened.wait(PATIENCE)
        return "held"


UNFINISHED = ["input of the run", "input of a tool", "output of a tool", "error of a tool", "output of a model call"]
UNFINISHED += ["error of a model call", "output of a step tool", "output of an open tool's step"]
UNFINISHED += ["error of an open tool's step"]


@pytest.mark.parametrize("column", UNFINISHED)
def test_recovering_a_forged_run(make: Make, url: str, trap: Path, column: str) -> None:
    """A run that is taken over meets its forged row and executes nothing of it."""
    held = Held()
    first = make(ScriptedModel(held.replies))
    first.start(held.agent, user(), run_id="r")
    assert held.entered.wait(PATIENCE)
    first.close()
    forge(url, column, trap)
    swarm = make(ScriptedModel(held.replies))
    run = swarm.get("r")
    with contextlib.suppress(DurableSwarmError, TimeoutError):
        run.result(1)
    assert not trap.exists()
    if column.startswith("output"):
        assert run.status != "done"
    # Not before: until the run is taken over, the first life still owns it, and may record what its tool gives.
    held.opened.set()


HOST = """
    import json, sys, threading, time
    from dbos import DBOS
    from durable_swarm import Agent, DurableSwarm, step
    from durable_swarm.testing import ScriptedModel

    @DBOS.workflow()
    def own(value):
        return {"own": value, "kinds": {1, 2}}

    @step
    def double(number: int) -> int:
        return 2 * number

    def compute(number: int) -> str:
        return str(double(number))

    def hold() -> str:
        double(1)
        if life == "first":
            print("{}", flush=True)
            threading.Event().wait(30)
        return "held"

    url, life = sys.argv[1:]
    agent = Agent(name="Clerk", functions=[compute, double, hold])
    DBOS(config={"name": "host", "system_database_url": url})
    DBOS.launch()
    assert own((1, 2)) == {"own": (1, 2), "kinds": {1, 2}}
    replies = [[("compute", {"number": 2}), ("double", {"number": 5})], ["hold"], "Done"]
    swarm = DurableSwarm(ScriptedModel(replies), database=url)
    if life == "first":
        swarm.run(agent, [{"role": "user", "content": "Hi"}], run_id="r")
    found = {}
    deadline = time.monotonic() + 5
    run = swarm.get("r")
    while time.monotonic() < deadline:
        try:
            found["status"], found["waits"] = run.status, run.waits_for
        except Exception as error:
            found["error"] = f"{type(error).__name__}: {error}"
            break
        if found["status"] in ("done", "failed") or found["waits"]:
            break
        time.sleep(0.05)
    assert own((3,)) == {"own": (3,), "kinds": {1, 2}}
    DBOS.destroy()
    print(json.dumps(found))
"""


HOSTED = ["output of a tool", "output of a model call", "output of an open tool's step"]


@pytest.mark.slow
@pytest.mark.parametrize("column", HOSTED)
def test_recovering_a_forged_run_in_a_host(url: str, trap: Path, column: str) -> None:
    """In a program whose DBOS pickles, rows of our runs are not unpickled either, and the program's own still are."""
    host = Program(HOST, anew=True)
    host.run_and_kill(lambda: _is_held(url), url, "first")
    forge(url, column, trap)
    found = host.run(url, "second")
    assert not trap.exists()
    assert found.get("status") != "done"


def _is_held(url: str) -> bool:
    with contextlib.suppress(Exception):
        return "r/1.0" in {row[0] for row in rows(url, "workflow_uuid", "operation_outputs")}
    return False


def test_an_error_is_no_pickle(make: Make, url: str) -> None:
    """Errors of runs are written as JSON too."""
    with pytest.raises(DurableSwarmError):
        make(ScriptedModel([ProviderError("no", status_code=400)])).run(Agent(), user(), run_id="r")
    assert rows(url, "serialization") == [("portable_json",)]
    [(error,)] = rows(url, "error", "workflow_output")
    assert error.startswith("{")
