"""Storms: mixed runs on workers and a plain program, under random faults, with people who interfere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from faults.storms.storm import FAULTS, ON_SQLITE, Storm, Weather, crashing_server
from tests.crash.matrix import LONG

SEED = int(time.time())
"""Another one in each run; a failure names it."""
SHORT = ("kill", "term", "int", "stop", "cut")


def storms(
    context: ForkServerContext, folder: Path, server_url: str | None, crash: Callable[[float], None] | None = None
) -> None:
    """Have some storms, and check that the auditor finds nothing, and that there were faults."""
    database = "sqlite" if server_url is None else "postgres"
    kinds = tuple(kind for kind in (FAULTS if LONG else SHORT) if server_url or kind in ON_SQLITE)
    for number in range(12 if LONG else 1):
        place = folder / f"storm-{number}"
        place.mkdir()
        weather = (
            Weather(SEED + number, database, kinds, 24, 30)
            if LONG
            else Weather(SEED, database, kinds, 6, 5, gap=0.6, longest=2)
        )
        outcome = Storm(context, weather, place, server_url, crash).rage()
        print(f"seed {weather.seed}: {dict(outcome.faults)} {dict(outcome.figures)}")
        assert outcome.wrong == []
        assert outcome.faults.total() > 0
        assert outcome.figures["tool calls"] >= outcome.runs * 4


@pytest.mark.slow
@pytest.mark.timeout(3600 if LONG else 120)
def test_a_storm_on_a_file(life_server: ForkServerContext, tmp_path: Path) -> None:
    """Whatever happens to the processes on a SQLite file, all runs end, and records, effects and decisions agree."""
    storms(life_server, tmp_path, None)


@pytest.mark.slow
@pytest.mark.timeout(3600 if LONG else 120)
def test_a_storm_on_a_server(life_server: ForkServerContext, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Whatever happens to processes, connections and server, all runs end, and records, effects and decisions agree."""
    with contextlib.ExitStack() as stack:
        if LONG:
            crashing = stack.enter_context(crashing_server())
            storms(life_server, tmp_path, crashing.url, crashing.crash)
        else:
            storms(life_server, tmp_path, request.getfixturevalue("postgres_url"))
