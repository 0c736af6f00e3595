"""A database of its own for each test, and swarms on it that are closed afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import DurableSwarm

Make = Callable[..., DurableSwarm]
"""Makes a `DurableSwarm` with the given client and options."""


@pytest.fixture
def url(tmp_path: Path, fresh_sqlite: Callable[[Path], str]) -> str:
    """The URL of a fresh SQLite database."""
    return fresh_sqlite(tmp_path / "runs.sqlite")


@pytest.fixture
def make(url: str) -> Iterator[Make]:
    """Make swarms on the test's SQLite database, and close them after the test."""
    with ExitStack() as stack:

        def one(client: Any, **options: Any) -> DurableSwarm:
            return stack.enter_context(DurableSwarm(client, **{"database": url, **options}))

        yield one


@pytest.fixture
def make_anywhere(database_url: str) -> Iterator[Make]:
    """Make swarms on the test's database; the test runs once on SQLite and once on PostgreSQL."""
    with ExitStack() as stack:

        def one(client: Any, **options: Any) -> DurableSwarm:
            return stack.enter_context(DurableSwarm(client, **{"database": database_url, **options}))

        yield one
