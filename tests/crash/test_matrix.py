"""Six programs, killed before and after each of their durable boundaries."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.lives import Lives
from tests.crash.matrix import Matrix, every_combination, every_place

IN_FLIGHT = {"refund": 1, "journey": 1, "five_steps": 1, "together_async": 3, "together_plain": 3, "nested": 1}


@pytest.mark.slow
@pytest.mark.parametrize("scenario", IN_FLIGHT)
def test_a_run_survives_a_kill_at_every_boundary(scenario: str, lives: Lives, tmp_path: Path, long_form: bool) -> None:
    """Whatever the boundary a process is killed at, the next life ends the run as if nothing had happened."""
    matrix = Matrix(lives, tmp_path, scenario, IN_FLIGHT[scenario])
    cases = every_combination(matrix) if long_form else every_place(matrix)
    matrix.judge_all(cases).check(least_kills=len(cases))
