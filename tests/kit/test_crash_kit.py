"""The crash kit finds every planted fault, passes every right agent, and proves that it killed."""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm
from durable_swarm.testing import CrashTestFailed, ScriptedModel, crash_test, effect
from durable_swarm.testing.crash import program
from tests.crash.matrix import LONG
from tests.kit.faulty import FAULTS, QUESTION, doubled_charge, run
from tests.kit.right import RIGHT, handoff, keyed_charge

BOUNDARIES = (
    "start of run r1",
    "checkpoint of the model call of agent Desk",
    "effect charge",
    "checkpoint of a tool call of run r1",
    "checkpoint of the model call of agent Desk",
    "write to the mailbox of a run",
    "end of run r1",
)
"""What the agents that charge pass, on every database and however busy the machine is."""


@pytest.mark.parametrize("scenario", list(FAULTS)[:: 1 if LONG else 3], ids=lambda scenario: scenario.__name__)
def test_each_planted_fault_is_found(scenario: Callable[[], Any]) -> None:
    """A faulty agent gives a finding of its kind."""
    report = crash_test(scenario, check=False, timeout=20)
    assert FAULTS[scenario] in {finding.kind for finding in report.findings}, str(report)


@pytest.mark.parametrize("scenario", RIGHT if LONG else RIGHT[2::8], ids=lambda scenario: scenario.__name__)
def test_each_right_agent_passes(scenario: Callable[..., Any]) -> None:
    """A right agent is killed before and after each of its boundaries, and nothing differs."""
    report = crash_test(scenario)
    assert report.kills == report.cases == 2 * len(report.boundaries) > 10


def test_the_report_speaks_of_tools() -> None:
    """The finding names the tool, the moment, and what to do; the boundaries are named for what they are."""
    with pytest.raises(CrashTestFailed) as failed:
        crash_test(doubled_charge)
    assert "tool `charge` ran twice when killed after its effect and before its checkpoint" in str(failed.value)
    assert "current_call().idempotency_key" in str(failed.value)
    assert failed.value.report.boundaries == BOUNDARIES


def test_a_case_is_repeated_by_its_number() -> None:
    """`only` tries the boundaries it names, which shows one finding again."""
    report = crash_test(doubled_charge, only=[3], check=False)
    assert (report.cases, len(report.findings)) == (2, 1)
    assert report.findings[0].case == "after boundary 3 (effect charge)"


@pytest.mark.parametrize("names", [["charge"], "charge"])
def test_an_effect_that_may_be_repeated(names: Any) -> None:
    """An effect named in `at_least_once` may happen again."""
    assert crash_test(doubled_charge, at_least_once=names, only=[3]).ok


def test_an_async_scenario() -> None:
    """A scenario may be an `async` function."""
    assert crash_test(asynchronous, only=[2, 3]).kills == 4


def test_random_instants() -> None:
    """Kills at random instants are drawn from a seed, as many as wanted, and fall between the boundaries."""
    report = crash_test(keyed_charge, random=12, seed=5)
    assert report.cases == 12
    assert report.kills >= 8
    found = crash_test(answer_by_memory, random=20, check=False)
    assert "messages" in {finding.kind for finding in found.findings}


def test_pairs_of_crashes() -> None:
    """With `pairs` each case is tried again, and the second life killed too, at a boundary that it has."""
    report = crash_test(handoff, pairs=True, only=[1, 3, 5])
    assert (report.cases, report.kills) == (12, 6 + 2 * 6)
    found = crash_test(doubled_charge, pairs=True, only=[3], check=False)
    assert all(", then " in finding.case for finding in found.findings if finding.case.startswith("before"))


def test_on_postgresql(postgres_database: str) -> None:
    """On PostgreSQL each case has a database of its own, and the boundaries and their numbers are those of SQLite."""
    report = crash_test(keyed_charge, database=postgres_database, only=[1, 7])
    assert report.boundaries == BOUNDARIES
    assert report.kills == 4
    found = crash_test(doubled_charge, database=postgres_database, only=[3], check=False)
    assert found.boundaries == BOUNDARIES
    assert found.kills == 2
    assert [finding.kind for finding in found.findings] == ["repeated effect"], str(found)


def unsteady() -> Any:
    """Write fewer checkpoints the second time, so that the kills of the third time miss."""
    count = Path("..", "count")
    count.write_text(f"{count.read_text() if count.exists() else ''}x")
    replies: list[Any] = [["look"]] * (3 if len(count.read_text()) <= 2 else 0)

    def look() -> str:
        return "seen"

    run([*replies, "Done."], look)


def test_a_kill_that_misses_is_told() -> None:
    """A planned kill that does not take place is a finding: such a test proves nothing."""
    report = crash_test(unsteady, only=[9, 10], check=False, workers=1)
    assert [finding.text for finding in report.findings if finding.kind == "missed"] == [
        "only 0 of 4 planned deaths took place"
    ]


def test_effects_do_nothing_outside_a_crash_test(tmp_path: Path) -> None:
    """In an ordinary run `effect` does nothing, and says what it takes."""
    effect("charge", key="k")
    assert list(tmp_path.iterdir()) == []
    for wrong in ((5,), ("x", 5)):
        with pytest.raises(ConfigurationError, match="the name and the key are text"):
            effect(*wrong)  # type: ignore[arg-type]


def fails() -> None:
    """Fail undisturbed."""
    raise ValueError("no such agent")


def elsewhere() -> Any:
    """Work on a database of its own."""
    with DurableSwarm(ScriptedModel(["Hi"]), database="sqlite:///other.sqlite") as swarm:
        return swarm.run(Agent(), QUESTION, run_id="r")


def in_another_process(database: str) -> None:
    """Have another process make the run."""
    program = (
        "from durable_swarm import Agent, DurableSwarm\nfrom durable_swarm.testing import ScriptedModel\n"
        "DurableSwarm(ScriptedModel(['Hi'])).run(Agent(), [], run_id='r')"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def dies_the_second_time() -> Any:
    """Be killed whenever it finds that it has lived before."""
    if Path("lived").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    Path("lived").touch()
    return run(["Hi"])


def leaves_a_process() -> Any:
    """Start a process that outlives the tool."""

    def begin() -> str:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "left-by-a-crash-test"])
        return "begun"

    return run([["begin"], "Done."], begin)


class Receipt:
    """What is no data, but can be compared."""

    def __init__(self, text: str) -> None:
        self.text = text


def gives_an_object() -> Receipt:
    """Return an object that differs after a crash."""
    first = not Path("lived").exists()
    Path("lived").touch()
    run(["Hi"])
    return Receipt("first" if first else "second")


def test_a_restarted_program_that_dies_is_found() -> None:
    """A program that is killed by something else when it starts again does not pass."""
    report = crash_test(dies_the_second_time, only=[2], check=False)
    assert {finding.text for finding in report.findings} == {"the restarted program was killed, by nobody here"}


def test_objects_are_compared() -> None:
    """What a scenario returns is compared by class and attributes where it is no data."""
    assert "value" in {finding.kind for finding in crash_test(gives_an_object, only=[2], check=False).findings}


def test_processes_of_a_life_end_with_it() -> None:
    """A process that a tool has started does not outlive its life, nor does it make a case wait."""
    crash_test(leaves_a_process, only=[5])
    left = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "left-by-a-crash-test" in (process.info["cmdline"] or [])
    ]
    assert left == []


def takes_too_much(database: str, more: int) -> None:
    """Take what nobody gives."""


def does_not_wait(database: str) -> None:
    """Start a run and leave it."""
    swarm = DurableSwarm(ScriptedModel([["wait"], "Done."]), database=database)
    swarm.start(Agent(functions=[wait]), QUESTION, run_id="r")


def wait() -> str:
    """Take some time."""
    time.sleep(1)
    return "waited"


async def asynchronous() -> Any:
    """Run on an event loop of its own."""
    with DurableSwarm(ScriptedModel([["wait_async"], "Done."])) as swarm:
        return await swarm.run_async(Agent(functions=[wait_async]), QUESTION, run_id="r")


async def wait_async() -> str:
    """Take a little time."""
    await asyncio.sleep(0.01)
    return "waited"


def answer_by_memory() -> Any:
    """Answer with what only this life knows, in every tool."""
    asked: list[int] = []

    def ask() -> str:
        asked.append(1)
        return f"asked {len(asked)} times"

    return run([["ask"], ["ask"], ["ask"], "Done."], ask)


def inner() -> Callable[[], None]:
    """Give a function that no other process can find."""

    def scenario() -> None:
        raise AssertionError

    return scenario


@pytest.mark.parametrize(
    ("scenario", "options", "text"),
    [
        (fails, {}, "fails undisturbed: ValueError: no such agent"),
        (elsewhere, {}, "made no run in the database it was given"),
        (takes_too_much, {}, "takes database, more"),
        (inner(), {}, "must be a function at module level"),
        (lambda: None, {}, "must be a function at module level"),
        (functools.partial(keyed_charge), {}, "must be a function at module level"),
        (5, {}, "must be a function at module level"),
        (in_another_process, {}, "made its runs in another process, where they cannot be watched"),
        (does_not_wait, {}, "returned before its run 'r' had ended; wait for it with Run.result()"),
        (keyed_charge, {"only": [99]}, r"must name boundaries from 1 to 7, which the scenario passes; not \[99\]"),
        (keyed_charge, {"only": []}, "must name boundaries from 1 to 7"),
        (keyed_charge, {"only": ["a"]}, "must name boundaries from 1 to 7"),
        (keyed_charge, {"only": [1], "random": 3}, "exclude each other"),
        (keyed_charge, {"timeout": 0}, "timeout must be a number of seconds above 0"),
        (keyed_charge, {"database": "sqlite:///x.sqlite"}, "must be a postgresql:// URL"),
        (keyed_charge, {"random": -1}, "random must be a whole number from 0 up"),
        (keyed_charge, {"workers": 0}, "workers must be a whole number from 1 up"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_wrong_use(scenario: Any, options: dict[str, Any], text: str) -> None:
    """A scenario that cannot be tested, or an option that makes no sense, is told in one sentence."""
    with pytest.raises(ConfigurationError, match=text):
        crash_test(scenario, **options)


def test_a_death_that_is_told_late_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process may be known to have ended a while after its connection has closed."""

    class Late:
        pid, log, answer = 0, "", Connection(os.open(os.devnull, os.O_RDONLY))

        def __init__(self, *_: object, **__: object) -> None:
            pass

        def receive(self, _seconds: float) -> None:
            """Return that there is no report."""

        def gone(self, seconds: float) -> bool:
            return seconds >= 1

        def send(self, _number: int) -> None:
            """Send nothing."""

        def code(self) -> int:
            return -signal.SIGKILL

    monkeypatch.setattr(program, "Child", Late)
    monkeypatch.setattr(os, "killpg", lambda *_: None)
    task = program.Task(program.Scenario(__name__, __file__, "inner", takes_database=False), "sqlite:///x", tmp_path, 1)
    assert program.live(task, timeout=60).how == "killed"
