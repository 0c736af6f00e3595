"""Which tool calls a crash repeats, and how tools are found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from durable_swarm.testing.crash.boundaries import KillPoint, Side
from tests.crash import scenarios
from tests.crash.lives import Lives
from tests.crash.matrix import COLOURS, Case, Matrix, both_sides, read_ledger

RUN = "run-1"


def place_of(matrix: Matrix, label: str, side: Side) -> KillPoint:
    """Give the place at the first boundary of that label."""
    end, _ = matrix.undisturbed("sync")
    return KillPoint(end.passed.index(label) + 1, side)


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_finished_tool_is_not_repeated_when_the_next_of_its_reply_crashes(
    colour: str, side: Side, lives: Lives, tmp_path: Path
) -> None:
    """A kill inside the second tool of a reply repeats the second, not the first."""
    at = place_of(Matrix(lives, tmp_path, "journey"), "effect reserve", side)
    ledger, url = tmp_path / "ledger", f"sqlite:///{tmp_path}/runs.sqlite"
    first = lives.live(scenarios.live, "journey", url, RUN, colour, "attach", ledger=ledger, at=at)
    assert first.killed
    lives.live(scenarios.live, "journey", url, RUN, colour, "attach", ledger=ledger)
    happened = [effect.label for effect in read_ledger(ledger, RUN)]
    assert happened.count("search") == 1
    assert happened.count("reserve") == (2 if side == "after" else 1)


def test_tools_of_every_shape_are_found_again(lives: Lives, tmp_path: Path) -> None:
    """A lambda, a closure, a bound method, a partial and a callable object work as tools before and after a crash."""
    matrix = Matrix(lives, tmp_path, "shapes")
    passed = matrix.undisturbed("sync")[0].passed
    numbers = [number for number, label in enumerate(passed, 1) if label.startswith("effect")]
    places = [place for number in numbers for place in both_sides(number)]
    cases: list[Case] = [(COLOURS[index % 2], "recover", place) for index, place in enumerate(places)]
    matrix.judge_all(cases).check(least_kills=len(cases))
