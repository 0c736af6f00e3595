"""The matrix itself: it turns red where something is wrong, and where it proves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from durable_swarm.testing.crash.boundaries import KillPoint
from tests.crash.lives import Lives
from tests.crash.matrix import Effect, Matrix, Report, every_place, judge_effects
from tests.crash.test_tools import place_of

MODEL = Effect("RUN/0", "model", 0, ("run-1", "1"))
PAY = Effect("RUN/0.0", "pay", 1, ("run-1", "2"))
PAY_AGAIN = Effect("RUN/0.0", "pay", 2, ("run-1", "2"))


@pytest.mark.parametrize(
    ("made", "recorded", "text"),
    [
        ([MODEL], [], "lost effects"),
        ([MODEL, Effect("RUN/9.9", "pay", 1, ("run-1", "2")), PAY], [], "effects under another key"),
        ([MODEL, PAY, PAY_AGAIN], [PAY], "recorded, and executed again"),
        ([MODEL, PAY, PAY_AGAIN, PAY_AGAIN], [], "2 effects repeated"),
        ([MODEL, PAY, PAY], [], "repeated without telling the tool"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_each_wrong_is_told(made: list[Effect], recorded: list[Effect], text: str) -> None:
    """Lost, foreign, needlessly repeated and secretly repeated effects are each told apart."""
    problems = list(judge_effects(made, [MODEL, PAY], [(2, {effect.what for effect in recorded})], 1))
    assert [problem for problem in problems if text in problem]


def test_a_repetition_in_flight_is_no_wrong() -> None:
    """An effect that was in flight may happen once more, if its tool is told."""
    assert list(judge_effects([MODEL, PAY, PAY_AGAIN], [MODEL, PAY], [(2, {MODEL.what})], 1)) == []


@pytest.mark.parametrize(
    ("scenario", "last", "text"),
    [("careless", "mail", "2 effects repeated"), ("forgetful", "answer", "messages differ")],
)
def test_a_wrong_program_turns_the_matrix_red(
    scenario: str, last: str, text: str, lives: Lives, tmp_path: Path
) -> None:
    """A tool that repeats too much, or answers otherwise the second time, does not pass."""
    matrix = Matrix(lives, tmp_path, scenario)
    report = matrix.judge_all([("sync", "attach", place_of(matrix, f"effect {last}", "after"))])
    assert text in " ".join(report.verdicts[0].problems)
    with pytest.raises(AssertionError, match="1 of 1 cases are wrong"):
        report.check(least_kills=1)


def test_a_kill_that_does_not_happen_proves_nothing(lives: Lives, tmp_path: Path) -> None:
    """A matrix whose kills miss their mark fails, however well its runs end."""
    report = Matrix(lives, tmp_path, "refund").judge_all([("sync", "attach", KillPoint(999, "before"))])
    assert report.verdicts[0].problems == []
    with pytest.raises(AssertionError, match="only 0 of 1 lives were killed"):
        report.check(least_kills=1)
    with pytest.raises(AssertionError, match="only 0 of 0 lives were killed"):
        Report([]).check(least_kills=0)


def test_every_place_is_tried_once(lives: Lives, tmp_path: Path) -> None:
    """The short form tries each side of each boundary, in one colour or the other."""
    matrix = Matrix(lives, tmp_path, "refund")
    tried = [place for _, _, *places in every_place(matrix) for place in places]
    assert len(tried) == len(set(tried))
    assert set(tried) == set(matrix.places("sync"))
