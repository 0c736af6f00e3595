"""A server of a scripted swarm, asked without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from durable_swarm import DurableSwarm, tool
from durable_swarm.server import app
from durable_swarm.testing import ScriptedModel
from tests.crash.conftest import lives

__all__ = ["lives"]

Serve = Callable[..., tuple[DurableSwarm, TestClient]]
"""Serves a swarm whose model gives these replies; more arguments are those of `app`."""


@tool(approval=True)
def pay(amount: int) -> str:
    """Pay an amount."""
    return f"paid {amount}"


@pytest.fixture
def url(fresh_sqlite: Any, tmp_path: Path) -> str:
    """The URL of a fresh SQLite file."""
    made: str = fresh_sqlite(tmp_path / "runs.sqlite")
    return made


@pytest.fixture
def serve(url: str) -> Iterator[Serve]:
    """Make servers, and close them after the test."""
    with ExitStack() as stack:

        def make(replies: list[Any], **options: Any) -> tuple[DurableSwarm, TestClient]:
            swarm = stack.enter_context(DurableSwarm(ScriptedModel(replies), database=url))
            served = app(swarm, **options)
            stack.callback(served.close)
            return swarm, TestClient(served, raise_server_exceptions=True)

        yield make
