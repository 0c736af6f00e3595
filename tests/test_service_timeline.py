"""The timeline of a run, the comparison of two, and the lineage of forks, as data for every screen."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm
from durable_swarm.cli import main
from durable_swarm.runs import StepInfo
from durable_swarm.service import ExecutionView, open_runs, timeline
from durable_swarm.testing import ScriptedModel, call
from tests.engine.helpers import user

START = datetime(2030, 1, 1, tzinfo=UTC)


def moment(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def ran(number: int, begun: float, ended: float | None) -> StepInfo:
    """Return a step that ran between these seconds."""
    at = None if ended is None else moment(ended)
    return StepInfo(number, "tool:x", "tool", "done" if at else "running", started_at=moment(begun), finished_at=at)


def test_bars_are_proportional() -> None:
    """Without long waits, places and widths are parts of the whole time."""
    found = timeline([ran(1, 0, 1), ran(2, 1, 4), ran(3, 4, None)], moment(5))
    assert [(bar.at, bar.width, bar.open) for bar in found.bars] == [
        (0, pytest.approx(0.2), False),
        (pytest.approx(0.2), pytest.approx(0.6), False),
        (pytest.approx(0.8), pytest.approx(0.2), True),
    ]
    assert not any(stretch.folded for stretch in found.stretches)


@pytest.mark.parametrize("wait", [7_200, 720_000])
def test_a_long_wait_is_folded(wait: float) -> None:
    """A stretch in which nothing happens has one width, however long: between steps, and inside a step that waits."""
    found = timeline([ran(1, 0, 1), ran(2, 1, 1 + wait), ran(3, 1 + wait, 2 + wait)], moment(2 + wait))
    assert [(stretch.folded, stretch.width) for stretch in found.stretches] == [
        (False, pytest.approx(0.45)),
        (True, pytest.approx(0.1)),
        (False, pytest.approx(0.45)),
    ]
    assert found.stretches[1].seconds == wait
    assert found.bars[2].at + found.bars[2].width == pytest.approx(1)


def test_many_waits_leave_room() -> None:
    """Folded stretches together take half of the axis at most."""
    steps = [ran(number, number * 100, number * 100 + 1) for number in range(30)]
    found = timeline(steps, moment(5_000))
    assert sum(stretch.width for stretch in found.stretches if stretch.folded) == pytest.approx(0.5)
    assert sum(stretch.width for stretch in found.stretches) == pytest.approx(1)


def test_a_crash_has_its_place() -> None:
    """The end of an execution that died is a place on the axis; steps without times have no bar."""
    died = ExecutionView(1, "a", None, None, START, moment(3), "died")
    done = ExecutionView(2, "b", None, None, moment(4), moment(10), "done")
    kept = StepInfo(3, "model:A", "model", "done", kept=True)
    found = timeline([ran(1, 0, 2), ran(2, 4, 10), kept], moment(10), [died, done])
    assert found.crashes == [pytest.approx(0.3)]
    assert [bar.number for bar in found.bars] == [1, 2]


def test_nothing_and_a_moment() -> None:
    """A run without steps has an empty timeline; steps without a duration do not divide by zero."""
    assert timeline([], START).bars == []
    assert [(bar.at, bar.width) for bar in timeline([ran(1, 0, 0)], START).bars] == [(0, 0)]


def look_up(order: str) -> str:
    """Look an order up."""
    return f"Order {order} is on its way."


def replies(*said: Any) -> ScriptedModel:
    return ScriptedModel([*said])


CLERK = Agent(name="Compared clerk", functions=[look_up])


@pytest.fixture
def compared(tmp_path: Any) -> str:
    """The URL of a database with a run, a fork of it at turn 1 that says something else, and a fork of that."""
    url = f"sqlite:///{tmp_path}/runs.sqlite"
    with DurableSwarm(replies([call("look_up", order="A1")], "It is on its way."), database=url) as swarm:
        swarm.run(CLERK, user(), run_id="one")
    with DurableSwarm(replies([call("look_up", order="A2")], "It is late.", "Sorry."), database=url) as swarm:
        swarm.get("one").fork(1, run_id="two").result(timeout=200)
        swarm.get("two").fork(2, run_id="three").result(timeout=200)
    return url


def test_a_fork_is_compared_with_its_source(compared: str) -> None:
    """Kept turns are the same; of the others each differing line is marked; what one run lacks is all of the other."""
    with open_runs(compared) as runs:
        found = runs.compare("one", "two")
        assert not found.same
        assert [(part.name, part.turns, part.same) for part in found.parts] == [
            ("input", (None, None), True),
            ("turn", (0, 0), True),
            ("turn", (None, 1), False),
            ("turn", (1, 2), False),
            ("end", (None, None), True),
        ]
        assert [(line.mark, line.text) for line in found.parts[3].lines] == [
            ("-", "Compared clerk: It is on its way."),
            ("+", "Compared clerk: It is late."),
        ]
        assert runs.compare("one", "one").same


def test_the_lineage_goes_both_ways(compared: str) -> None:
    """A run has the runs that it was forked from, the first one first, and its own forks."""
    with open_runs(compared) as runs:
        lines = {run: runs.lineage(run) for run in ("one", "two", "three")}
    assert {run: ([one.id for one in above], [one.id for one in forks]) for run, (above, forks) in lines.items()} == {
        "one": ([], ["two"]),
        "two": (["one"], ["three"]),
        "three": (["one", "two"], []),
    }


def test_the_command_compares(compared: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`compare` prints the differing turns, and its exit code says whether there are any."""
    assert main(["compare", "one", "two", "--database", compared]) == 1
    out = capsys.readouterr().out
    assert "- Compared clerk: It is on its way." in out
    assert "+ Compared clerk: It is late." in out
    assert "differ" in out
    assert main(["compare", "two", "two", "--database", compared]) == 0
    assert "same" in capsys.readouterr().out
