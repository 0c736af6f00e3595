"""The crash kit finds every planted fault, passes every right agent, and proves that it killed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm
from durable_swarm.testing import CrashTestFailed, ScriptedModel, crash_test, effect
from tests.kit.faulty import FAULTS, QUESTION, doubled_charge, run
from tests.kit.right import RIGHT, handoff, keyed_charge


@pytest.mark.parametrize("scenario", FAULTS, ids=lambda scenario: scenario.__name__)
def test_each_planted_fault_is_found(scenario: Callable[[], Any]) -> None:
    """A faulty agent gives a finding of its kind."""
    report = crash_test(scenario, check=False, timeout=20)
    assert FAULTS[scenario] in {finding.kind for finding in report.findings}, str(report)


@pytest.mark.parametrize("scenario", RIGHT, ids=lambda scenario: scenario.__name__)
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
    assert failed.value.report.boundaries == (
        "start of run r1",
        "checkpoint of the model call of agent Desk",
        "start of tool charge",
        "effect charge",
        "checkpoint of tool charge",
        "checkpoint of the model call of agent Desk",
        "end of run r1",
    )


def test_a_case_is_repeated_by_its_number() -> None:
    """`only` tries the boundaries it names, which shows one finding again."""
    report = crash_test(doubled_charge, only=[4], check=False)
    assert (report.cases, len(report.findings)) == (2, 1)
    assert report.findings[0].case == "after boundary 4 (effect charge)"


def test_an_effect_that_may_be_repeated() -> None:
    """An effect named in `at_least_once` may happen again."""
    assert crash_test(doubled_charge, at_least_once=["charge"]).ok


def test_random_instants() -> None:
    """Kills at random instants are drawn from a seed, as many as wanted."""
    report = crash_test(keyed_charge, random=12, seed=5)
    assert report.cases == 12
    assert report.kills >= 6


def test_pairs_of_crashes() -> None:
    """With `pairs` the second life is killed too, where it gets so far."""
    report = crash_test(handoff, pairs=True, only=[1, 3, 5])
    assert report.cases == 6 < report.kills


def test_on_postgresql(postgres_database: str) -> None:
    """On PostgreSQL each case has a database of its own; runs end with one statement there, a boundary as well."""
    report = crash_test(keyed_charge, database=postgres_database, only=[1, 7])
    assert report.kills == 4
    assert report.boundaries[-1] == "end of run r1"
    number = report.boundaries.index("effect charge") + 1
    found = crash_test(doubled_charge, database=postgres_database, only=[number], check=False)
    assert [finding.kind for finding in found.findings] == ["repeated effect"]


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
        "only 0 of 4 programs reached their boundary"
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


def takes_too_much(database: str, more: int) -> None:
    """Take what nobody gives."""


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
        (keyed_charge, {"only": [99]}, "there is no boundary 99: the scenario passes 7"),
        (keyed_charge, {"random": -1}, "random must be a whole number from 0 up"),
        (keyed_charge, {"workers": 0}, "workers must be a whole number from 1 up"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_wrong_use(scenario: Any, options: dict[str, Any], text: str) -> None:
    """A scenario that cannot be tested, or an option that makes no sense, is told in one sentence."""
    with pytest.raises(ConfigurationError, match=text):
        crash_test(scenario, **options)
