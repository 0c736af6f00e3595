"""The server of lives: processes that tests start and kill."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.crash.lives import Lives, fork_server


@pytest.fixture(scope="session")
def _server() -> ForkServerContext:
    """The server whose forks are lives; it finds modules where this process does."""
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return fork_server()


@pytest.fixture
def lives(_server: ForkServerContext, tmp_path: Path) -> Iterator[Lives]:
    """Starts processes for one test, and kills those that are left."""
    started = Lives(_server, tmp_path)
    yield started
    started.close()
