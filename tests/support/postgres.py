"""A real PostgreSQL server for tests, and a fresh database in it for each test.

It is the server that `durable-swarm postgres` starts, in a folder that goes with its owner.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

from durable_swarm.postgres import Server

# The shell holds the other end of its owner's pipe: when the owner stops, or is killed, the pipe closes, the server is
# told to shut down at once and its folder goes.
_KEEPER = """
read -r _
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null) && kill -INT "$pid" 2>/dev/null
while [ -e "$1/data/postmaster.pid" ] && kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
rm -rf "$1"
"""

# Nothing in a test database outlives the test run, so it need not reach the disk.
SETTINGS = {"max_connections": "200", "fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@contextlib.contextmanager
def running_server() -> Iterator[str]:
    """Start a server and give its URL; stop it and delete its data at the end, also when this process is killed.

    Raises `NoPostgres` when there are no binaries or the server does not start.
    """
    with temporary_folder() as folder:
        yield Server(folder, settings=SETTINGS, use_docker=False).start()


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder for a server, which also another user may enter; it goes at the end, and its server with it."""
    folder = Path(tempfile.mkdtemp(prefix="durable-swarm-postgres-"))
    with kept(folder):
        yield folder


@contextlib.contextmanager
def kept(folder: Path) -> Iterator[None]:
    """See that the server of the folder, and the folder, go when the block ends or this process dies."""
    command = ["/bin/sh", "-c", _KEEPER, "postgres-keeper", str(folder)]
    # A session of its own, so that Ctrl+C stops the tests first and the server after them.
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE, cwd="/", start_new_session=True):
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def fresh_database(server_url: str, template: str | None = None) -> Iterator[str]:
    """Create a database in the server and give its URL; drop it, and every one named after it, at the end.

    It is empty, or a copy of the database with the URL `template`.
    """
    name = f"test_{secrets.token_hex(8)}"
    like = "" if template is None else f' TEMPLATE "{urlsplit(template).path[1:]}"'
    _execute(server_url, f'CREATE DATABASE "{name}"{like}')
    try:
        yield urlunsplit(urlsplit(_plain(server_url))._replace(path=f"/{name}"))
    finally:
        for (found,) in _execute(server_url, f"SELECT datname FROM pg_database WHERE datname LIKE '{name}%'"):
            _execute(server_url, f'DROP DATABASE "{found}" WITH (FORCE)')


def _execute(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Run one statement made of our own names, outside a transaction, and give its rows."""
    with psycopg.connect(_plain(url), autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def _plain(url: str) -> str:
    """Give the URL without SQLAlchemy's driver name, which libpq does not know."""
    scheme, rest = url.split("://", 1)
    return f"{scheme.split('+')[0]}://{rest}"
