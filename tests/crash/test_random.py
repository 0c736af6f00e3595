"""Kills at random instants: wherever no boundary was thought of."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.crash import scenarios
from tests.crash.lives import Lives
from tests.crash.matrix import COLOURS, LONG, WAYS, Case, Matrix, Report

SEED = int(time.time())
"""Another one in each run; a failure names it."""


def instants(chance: random.Random) -> list[float]:
    """Give when to kill up to three lives of one run: a life ends within 0.1 to 0.4 s of its start."""
    return [chance.uniform(0.02, 0.3) for _ in range(chance.randint(1, 3))]


@pytest.mark.slow
def test_a_run_survives_kills_at_random_instants(lives: Lives, tmp_path: Path) -> None:
    """Killed at any instant, up to three times, a run loses nothing and repeats only what was in flight."""
    wanted = 500 if LONG else 60
    print(f"seed {SEED}")
    matrices = [Matrix(lives, tmp_path, name) for name in scenarios.SCENARIOS]
    chance, report = random.Random(SEED), Report([])
    while report.kills < wanted:
        for matrix in matrices:
            cases: list[Case] = [
                (colour, chance.choice(WAYS), *instants(chance)) for colour in COLOURS for _ in range(2)
            ]
            report.verdicts.extend(matrix.judge_all(cases).verdicts)
    report.check(least_kills=wanted)
