"""Tools that read the folder of a SQLite database, in every way and at any moment, take nothing from anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.readers import trial
from tests.crash.matrix import LONG


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_reading_the_folder_loses_nothing(tmp_path: Path) -> None:
    """While all programs read their folder and are killed, no acknowledged row is lost and nobody sees half of one."""
    figures = trial(tmp_path, 120 if LONG else 8)
    assert figures.wrong == []
    assert min(figures.kills, figures.acknowledged, figures.looks) >= (50 if LONG else 10)
