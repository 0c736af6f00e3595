"""Lives: processes that tests start and kill."""

from __future__ import annotations

import os
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from faults.shim import NoShim
from tests.crash.lives import Lives


@pytest.fixture
def failing_disk(shim: Path | NoShim) -> None:
    """Lives can be given faults of the disk; where that is impossible the test is skipped, on a CI machine it fails."""
    if isinstance(shim, NoShim):
        if os.environ.get("CI", "").lower() in ("", "0", "false"):
            pytest.skip(str(shim))
        pytest.fail(str(shim))


@pytest.fixture
def lives(life_server: ForkServerContext, tmp_path: Path) -> Iterator[Lives]:
    """Starts processes for one test, and kills those that are left."""
    started = Lives(life_server, tmp_path)
    yield started
    started.close()
