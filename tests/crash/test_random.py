"""Kills at random instants: wherever no boundary was thought of."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from faults.kills import kill, wrongs
from tests.crash import scenarios
from tests.crash.lives import Lives
from tests.crash.matrix import LONG, Matrix

SEED = int(time.time())
"""Another one in each run; a failure names it."""


@pytest.mark.slow
def test_a_run_survives_kills_at_random_instants(lives: Lives, tmp_path: Path) -> None:
    """Killed at any instant, up to three times, a run loses nothing and repeats only what was in flight."""
    wanted = 500 if LONG else 30
    print(f"seed {SEED}")
    matrices = [Matrix(lives, tmp_path, name) for name in scenarios.SCENARIOS]
    report = kill(matrices, wanted, random.Random(SEED))
    report.check(least_kills=wanted)
    assert wrongs(report).total() == 0
