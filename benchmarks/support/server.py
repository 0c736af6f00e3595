"""A PostgreSQL of one's own for a benchmark, and what a PostgreSQL does: its CPU, connections, sizes, statements."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg

from durable_swarm.postgres import Server

SETTINGS = {"max_connections": "400", "shared_preload_libraries": "pg_stat_statements"}


@contextlib.contextmanager
def serving(url: str | None) -> Iterator[str]:
    """Give the URL, or that of a server that is started for it, with its data on disk, and goes at the end."""
    if url is not None:
        yield url
        return
    folder = Path(tempfile.mkdtemp(prefix="durable-swarm-benchmark-"))
    server = Server(folder, settings=SETTINGS, use_docker=False)
    try:
        yield server.start()
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def asked(url: str, statement: str) -> list[tuple[object, ...]]:
    """Give the rows of a statement."""
    with psycopg.connect(url, autocommit=True) as connection:
        done = connection.execute(statement.encode())
        return done.fetchall() if done.description else []


class Load:
    """The CPU that a PostgreSQL on this machine and some other processes take, in seconds since this was made."""

    def __init__(self, url: str, pids: list[int]) -> None:
        self._server = _postmaster(url)
        self._others = [psutil.Process(pid) for pid in pids]
        self._before = self._now()

    def taken(self) -> tuple[float, float]:
        """Give the server's (0 if it is elsewhere), and that of the others together."""
        (server, others), now = self._before, self._now()
        return now[0] - server, now[1] - others

    def _now(self) -> tuple[float, float]:
        return _with_children(self._server) if self._server else 0.0, sum(map(_alone, self._others))


def _postmaster(url: str) -> psutil.Process | None:
    with psycopg.connect(url) as connection, contextlib.suppress(psutil.Error):
        parent = psutil.Process(connection.info.backend_pid).parent()
        return parent if parent is not None and parent.name() in ("postgres", "postmaster") else None
    return None


def _alone(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _with_children(process: psutil.Process) -> float:
    times = process.cpu_times()
    total = float(times.user + times.system + times.children_user + times.children_system)
    for child in process.children():
        with contextlib.suppress(psutil.Error):
            total += _alone(child)
    return total


def connections(url: str) -> int:
    """Give how many connections to the database there are beside this one."""
    here = "datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    return int(str(asked(url, f"SELECT count(*) FROM pg_stat_activity WHERE {here}")[0][0]))


def size(url: str) -> int:
    """Give the bytes of the database, indexes included."""
    return int(str(asked(url, "SELECT pg_database_size(current_database())")[0][0]))
