"""Fixtures for all tests: no way to a real model, an own working directory, real databases."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import pytest

from durable_swarm.engine.database.urls import choose
from durable_swarm.postgres import NoPostgres
from durable_swarm.testing.crash.templates import copy_template, open_once
from faults.shim import NoShim, build
from tests.crash.lives import server
from tests.crash.matrix import LONG
from tests.support import programs
from tests.support.postgres import fresh_database, running_server

# The tests start more than a thousand processes; what they import is compiled once, not in each.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

MEMORY = Path("/dev/shm")
# A database syncs its file at each commit, and five processes of tests wait for one disk. A file in memory survives a
# killed process as one on a disk does; the loss of power is tried with a disk of the tests' own (`faults`).
if "TMPDIR" not in os.environ and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > 4 << 30:
    os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)

# Port 9 (discard) of loopback: nothing listens there, so a call to a real model fails at once.
NOWHERE = "http://127.0.0.1:9/v1"


UNIT = (
    *("test_client_loops", "test_codec", "test_compat", "test_deltas", "test_display", "test_loop", "test_models"),
    *("test_models_http", "test_output_type", "test_postgres_links", "test_schema", "test_streaming"),
    *("test_schema_arguments", "test_schema_fields", "test_scripted_responses", "test_wire"),
)
"""Files of tests that, but for a few, need neither a database nor a process of their own."""

NO_UNIT = ("fresh_sqlite", "postgres_url", "life_server")
"""What a unit test does not ask for."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they need, and leave out of the short form what others say nearly."""
    for item in items:
        needs = getattr(item, "fixturenames", ())
        if "postgres_url" in needs:
            item.add_marker(pytest.mark.postgres)
        if (item.path.stem in UNIT or _params(item).get("make_swarm") == "memory") and not {*needs} & {*NO_UNIT}:
            item.add_marker(pytest.mark.unit)
    if not LONG:
        alternating = [item for item in items if item.get_closest_marker("alternates")]
        waiting = {item for item in alternating if not _has_its_turn(item, alternating)}
        items[:] = [item for item in items if item not in waiting]


def pytest_sessionfinish() -> None:
    """End what this process has started for all of its tests."""
    programs.stop()


def _params(item: pytest.Item) -> dict[str, object]:
    given = getattr(item, "callspec", None)
    return given.params if given is not None else {}


def _has_its_turn(item: pytest.Item, items: list[pytest.Item]) -> bool:
    """Each case runs on one database and its neighbours on the other: so do not all pairs, but all values on both."""
    cases = [_params(other) for other in items if other.nodeid.split("[")[0] == item.nodeid.split("[")[0]]
    values = {name: list(dict.fromkeys(str(case[name]) for case in cases)) for name in _params(item)}
    return sum(values[name].index(str(value)) for name, value in _params(item).items()) % 2 == 0


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep every test away from real models, the user's database and the checkout."""
    settings = ("OPENAI_", "DURABLE_SWARM_DATABASE_URL", "DURABLE_SWARM_ENCRYPTION_KEYS", "DURABLE_SWARM_MODEL")
    for name in [name for name in os.environ if name.startswith(settings)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_BASE_URL", NOWHERE)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a PostgreSQL server: $DURABLE_SWARM_TEST_POSTGRES, else one started for this session.

    Without any PostgreSQL the test is skipped, on a CI machine (CI=true) it fails.
    """
    if url := os.environ.get("DURABLE_SWARM_TEST_POSTGRES"):
        yield url
        return
    try:
        with running_server() as url:
            yield url
    except NoPostgres as reason:
        if os.environ.get("CI", "").lower() in ("", "0", "false"):
            pytest.skip(str(reason))
        pytest.fail(str(reason))


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str) -> Iterator[str]:
    """The URL of a PostgreSQL database that was opened once, and of which fresh ones are copies."""
    with fresh_database(postgres_url) as url:
        open_once(url)
        yield url


@pytest.fixture
def postgres_database(postgres_url: str, postgres_template: str) -> Iterator[str]:
    """The URL of a fresh PostgreSQL database with all tables, dropped after the test."""
    with fresh_database(postgres_url, postgres_template) as url:
        yield url


@pytest.fixture
def empty_postgres(postgres_url: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database, as programs find it at first; dropped after the test."""
    with fresh_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="session")
def fresh_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Makes fresh SQLite databases with all tables, and gives their URLs; they are copies of one that was opened once.

    What opens a database that is not there yet is tried in `tests/engine/test_database.py`.
    """
    template = f"sqlite:///{tmp_path_factory.mktemp('template')}/template.sqlite"
    open_once(template)

    def fresh(path: Path) -> str:
        copy_template(choose(template), choose(f"sqlite:///{path}"))
        return f"sqlite:///{path}"

    return fresh


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path, fresh_sqlite: Callable[[Path], str]) -> str:
    """The URL of a fresh database; the test runs once on SQLite and once on PostgreSQL."""
    if request.param == "sqlite":
        return fresh_sqlite(tmp_path / "runs.sqlite")
    url: str = request.getfixturevalue("postgres_database")
    return url


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path | NoShim:
    """The shim that lets the disk fail under a life, or why there is none."""
    try:
        return build(tmp_path_factory.mktemp("shim"))
    except NoShim as reason:
        return reason


@pytest.fixture(scope="session")
def life_server(shim: Path | NoShim) -> ForkServerContext:
    """The server whose forks are lives, one for all tests of a process; it finds modules where this process does.

    Started with the shim, whichever test comes first: a server that runs cannot be given one any more.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    context = server()
    with pytest.MonkeyPatch.context() as environment:
        if isinstance(shim, Path):
            environment.setenv("LD_PRELOAD", str(shim))
        ensure_running()
    return context
