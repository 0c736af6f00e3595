"""Six programs, killed before and after each of their durable boundaries."""

from __future__ import annotations

from pathlib import Path

import pytest

from durable_swarm.testing.crash.boundaries import KillPoint
from tests.crash.lives import Lives
from tests.crash.matrix import COLOURS, LONG, WAYS, Case, Matrix, both_sides, every_combination, every_place
from tests.crash.scenarios import SCENARIOS


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_run_survives_a_kill_at_every_boundary(scenario: str, lives: Lives, tmp_path: Path) -> None:
    """Whatever the boundary a process is killed at, the next life ends the run as if nothing had happened."""
    matrix = Matrix(lives, tmp_path, scenario)
    every = {"refund": 1, "journey": 3}.get(scenario, 4)
    cases = every_combination(matrix) if LONG else every_place(matrix, lambda number: number % every == 0)
    matrix.judge_all(cases).check(least_kills=len(cases))


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS if LONG else ["refund", "journey"])
def test_a_run_on_postgresql_survives_a_kill_at_every_boundary(
    scenario: str, lives: Lives, tmp_path: Path, postgres_database: str
) -> None:
    """What holds on SQLite holds on PostgreSQL."""
    matrix = Matrix(lives, tmp_path, scenario, postgres_database)
    cases = every_combination(matrix) if LONG else every_place(matrix, lambda number: number % 4 == 0)
    matrix.judge_all(cases).check(least_kills=len(cases))


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_the_events_of_a_streamed_run_survive_a_kill_at_every_boundary(
    database: str, lives: Lives, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Wherever a streamed run is killed, all its readers put together the transcript, and get each number once."""
    postgres = request.getfixturevalue("postgres_database") if database == "postgres" else None
    matrix = Matrix(lives, tmp_path, "streamed_replies", postgres)
    every = 8 if postgres is None else 14
    cases = every_combination(matrix) if LONG else every_place(matrix, lambda number: number % every == 0)
    # Rows of events are written as time goes: one more or less, and the last places are not there.
    matrix.judge_all(cases).check(least_kills=len(cases) * 3 // 4)


def doubled(matrix: Matrix, every: int) -> list[Case]:
    """Give a case for every so many places, with a second kill soon after the first."""
    cases: list[Case] = []
    for number, place in enumerate(matrix.places("sync")[::every]):
        # A recovery passes a few boundaries at least: taking over, and the end.
        second = both_sides(1 + number % 4)[number % 2]
        cases.append((COLOURS[number % 2], WAYS[number // 2 % 2], place, second))
    return cases


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS if LONG else ["journey"])
def test_a_crash_during_recovery_is_no_different(scenario: str, lives: Lives, tmp_path: Path) -> None:
    """A second kill while the run is being recovered loses and repeats no more than any kill does."""
    matrix = Matrix(lives, tmp_path, scenario)
    cases = doubled(matrix, every=1 if LONG else 3)
    matrix.judge_all(cases).check(least_kills=len(cases) * 7 // 4)


@pytest.mark.slow
def test_a_run_survives_a_kill_at_each_boundary_in_turn(lives: Lives, tmp_path: Path) -> None:
    """Twenty lives in a row that all end after one more checkpoint bring the run to its end."""
    matrix = Matrix(lives, tmp_path, "journey")
    deaths = [KillPoint(3, "after")] * 20
    matrix.judge_all([("sync", "attach", *deaths), ("async", "recover", *deaths)]).check(least_kills=16)
