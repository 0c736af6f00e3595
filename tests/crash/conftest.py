"""The server of lives: processes that tests start and kill."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import pytest

from faults.shim import NoShim, build
from tests.crash.lives import Lives, fork_server


@pytest.fixture(scope="session")
def _shim(tmp_path_factory: pytest.TempPathFactory) -> Path | NoShim:
    """The shim that lets the disk fail under a life, or why there is none."""
    try:
        return build(tmp_path_factory.mktemp("shim"))
    except NoShim as reason:
        return reason


@pytest.fixture(scope="session")
def _server(_shim: Path | NoShim) -> ForkServerContext:
    """The server whose forks are lives; it finds modules where this process does."""
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    context = fork_server()
    with pytest.MonkeyPatch.context() as environment:
        if isinstance(_shim, Path):
            environment.setenv("LD_PRELOAD", str(_shim))
        ensure_running()
    return context


@pytest.fixture
def failing_disk(_shim: Path | NoShim) -> None:
    """Lives can be given faults of the disk; where that is impossible the test is skipped, on a CI machine it fails."""
    if isinstance(_shim, NoShim):
        if os.environ.get("CI", "").lower() in ("", "0", "false"):
            pytest.skip(str(_shim))
        pytest.fail(str(_shim))


@pytest.fixture
def lives(_server: ForkServerContext, tmp_path: Path) -> Iterator[Lives]:
    """Starts processes for one test, and kills those that are left."""
    started = Lives(_server, tmp_path)
    yield started
    started.close()
