"""The PostgreSQL that tests run on: fresh for each test, gone with its owner."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from durable_swarm.postgres import NoPostgres, choose
from tests.support.patience import PATIENCE
from tests.support.postgres import fresh_database

ROOT = Path(__file__).parents[2]

OWNER = """
import time
from tests.support.postgres import running_server

with running_server() as url:
    print(url, flush=True)
    time.sleep(60)
"""


def test_a_test_database_is_empty_and_gone_afterwards(postgres_url: str) -> None:
    """A fresh database holds no tables, and both it and its namesakes are dropped, even while in use."""
    with fresh_database(postgres_url) as url:
        left_open = psycopg.connect(url, autocommit=True)
        assert left_open.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
        name = left_open.info.dbname
        left_open.execute(f'CREATE DATABASE "{name}_beside"'.encode())
    left_open.close()
    with psycopg.connect(postgres_url) as server:
        remaining = server.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [name])
        assert remaining.fetchall() == []


def test_database_url_gives_sqlite_and_postgres(database_url: str) -> None:
    """A test that asks for `database_url` runs on both kinds of database."""
    assert database_url.startswith(("sqlite:///", "postgresql://"))


@pytest.mark.slow
def test_the_server_ends_when_its_owner_is_killed() -> None:
    """A test run that is killed with SIGKILL leaves neither a server nor its data behind."""
    try:
        choose()
    except NoPostgres as reason:
        pytest.skip(str(reason))
    owner = subprocess.Popen([sys.executable, "-c", OWNER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with owner:
        assert owner.stdout is not None
        url = owner.stdout.readline().strip()
        assert url, "the server did not start"
        with psycopg.connect(url) as connection:
            data = connection.execute("SHOW data_directory").fetchone()
        owner.send_signal(signal.SIGKILL)
    assert data is not None
    _wait_until_gone(Path(data[0]).parent)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url, connect_timeout=5)


def _wait_until_gone(folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while folder.exists():
        assert time.monotonic() < deadline, f"{folder} is still there"
        time.sleep(0.05)
