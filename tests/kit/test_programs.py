"""The demo and every example survive a kill at each of their boundaries, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from durable_swarm.testing import crash_test
from tests.crash.matrix import LONG
from tests.kit.gallery import GALLERY
from tests.kit.programs import EXAMPLES, PROGRAMS


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_on_sqlite(program: Callable[[], Any]) -> None:
    """Killed before and after each boundary, the program ends as if nothing had happened."""
    whole = LONG or program.__name__ == "refund"
    report = crash_test(program, only=None if whole else [1, 3, 4, 5, 6])
    assert report.kills == report.cases >= 6


@pytest.mark.parametrize("program", PROGRAMS if LONG else PROGRAMS[::3], ids=lambda program: program.__name__)
def test_on_postgresql(program: Callable[[], Any], postgres_database: str) -> None:
    """What holds on SQLite holds on PostgreSQL."""
    report = crash_test(program, database=postgres_database, only=None if LONG else [1, 4, 5])
    assert report.kills == report.cases >= 6


@pytest.mark.parametrize("program", GALLERY, ids=lambda program: program.__name__)
def test_the_gallery(program: Callable[[], Any]) -> None:
    """The examples that the offline model answers survive a kill before and after their boundaries, too."""
    report = crash_test(program, only=None if LONG else [3, 5])
    assert report.kills == report.cases >= 2


def test_every_example_is_tested() -> None:
    """No example is left out.

    Those with servers of their own are used, and providers and MCP servers are killed, in other tests.
    """
    tested = {program.__name__ for program in [*PROGRAMS, *GALLERY]} | {
        "providers",
        "queue_desk",
        "order_desk",
        "mcp_library",
    }
    assert {path.parent.name for path in EXAMPLES.glob("*/main.py")} <= tested
