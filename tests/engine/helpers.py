"""What the tests of the engine share: databases looked into from outside, and programs run as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy

import durable_swarm
from tests.support import programs
from tests.support.patience import PATIENCE

ROOT = Path(__file__).parents[2]

TEXT_COLUMNS = {
    "workflow_input": ("inputs",),
    "workflow_output": ("output", "error"),
    "operation_outputs": ("output", "error"),
}
"""The columns of DBOS in which values of ours stand."""


def user(text: str = "Hi") -> list[dict[str, Any]]:
    """Give a conversation of one user message."""
    return [{"role": "user", "content": text}]


def unique(name: str = "Clerk") -> str:
    """Give a name that no other agent of this process has, so that a run goes on with the right one."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


@contextmanager
def connected(url: str) -> Iterator[sqlalchemy.Connection]:
    """Connect to the database beside everything else, and commit at the end."""
    plain = sqlalchemy.make_url(url)
    if plain.get_backend_name() == "postgresql":
        plain = plain.set(drivername="postgresql+psycopg")
    engine = sqlalchemy.create_engine(plain, poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def cut(url: str) -> None:
    """End all sessions of a PostgreSQL database."""
    with connected(url) as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def schema(url: str) -> str:
    """Give the prefix of DBOS's tables."""
    return "" if url.startswith("sqlite") else "dbos."


def rows(url: str, columns: str, table: str = "workflow_status") -> list[Any]:
    """Give columns of one of DBOS's tables."""
    with connected(url) as connection:
        return list(connection.execute(sqlalchemy.text(f"SELECT {columns} FROM {schema(url)}{table}")))


def change(url: str, statement: str, **values: Any) -> None:
    """Change rows; `{schema}` in the statement stands for the prefix of the tables."""
    with connected(url) as connection:
        done = connection.execute(sqlalchemy.text(statement.format(schema=schema(url))), values)
        assert done.rowcount > 0, "the statement met no row"


def stored_texts(url: str) -> list[str]:
    """Give every text of ours that stands in the database."""
    return [
        text
        for table, columns in TEXT_COLUMNS.items()
        for row in rows(url, ", ".join(columns), table)
        for text in row
        if text is not None
    ]


def stored_runs(url: str) -> int:
    """Give how many workflows the database holds; one that was never opened holds none."""
    if url.startswith("sqlite") and not Path(url.removeprefix("sqlite:///")).exists():
        return 0
    return len(rows(url, "workflow_uuid"))


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """Wait until the condition holds, and give what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)
    return found


class Program:
    """A Python program in a file, run as real processes in the current directory.

    With `anew`, new interpreters execute it, because the order of imports, or what cannot be imported, is tried.
    """

    def __init__(self, source: str, name: str = "program.py", *, anew: bool = False) -> None:
        self.path = Path(name).resolve()
        self._process: Callable[..., subprocess.Popen[str]] = subprocess.Popen if anew else programs.Program
        self.path.write_text(textwrap.dedent(source), encoding="utf-8")

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start the program; what it prints is kept."""
        paths = f"{Path(durable_swarm.__file__).parents[1]}:{ROOT}"
        return self._process(
            [sys.executable, "-W", "error::ResourceWarning", str(self.path), *arguments],
            env={**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, seconds: float = 60, **environment: str) -> dict[str, Any]:
        """Run the program to its end and give the JSON object of its last printed line."""
        process = self.start(*arguments, **environment)
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"the program hangs\n{out}\n{err}") from None
        assert process.returncode == 0, f"exit code {process.returncode}\n{out}\n{err}"
        found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        return found | {"stderr": err}

    def run_and_kill(self, when: Callable[[], Any], *arguments: str, **environment: str) -> None:
        """Start the program and kill it, as only SIGKILL can, once `when` holds."""
        process = self.start(*arguments, **environment)

        def now() -> bool:
            assert process.poll() is None, f"it ended by itself: {process.communicate()}"
            return bool(when())

        try:
            wait_until(now, 60)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
