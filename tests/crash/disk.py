"""Lives whose disk fails, as the shim of `faults/` has it."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path

from durable_swarm import ConfigurationError
from durable_swarm.testing.crash.boundaries import PROBE
from faults.shim import Armed, Fault
from tests.crash import scenarios


def file_of(url: str) -> Path:
    """Give the file of a SQLite database."""
    return Path(url.removeprefix("sqlite:///"))


def live(fault: Fault, name: str, url: str, run_id: str, colour: str, way: str) -> scenarios.Answer:
    """One life of a scenario on a disk that fails.

    A run that could not be started is started again, as a user would once the cause is mended; a run that has begun
    must go on by itself.
    """
    armed = Armed(file_of(url), fault)
    while True:
        try:
            answer = scenarios.live(name, url, run_id, colour, way)
        except ConfigurationError as error:
            if any(label.startswith("effect") for label in PROBE.passed) or "cannot be used" not in str(error):
                raise
            with beside(url, ".refused").open("a") as refused:
                refused.write(f"{error}\n")
            time.sleep(0.2)
            continue
        if armed.mended_at is not None:
            beside(url, ".waited").write_text(f"{time.monotonic() - armed.mended_at:.2f}")
        return answer


def beside(url: str, suffix: str) -> Path:
    """Give a file of the test beside the database's."""
    file = file_of(url)
    return file.with_name(file.name + suffix)


def damages(file: Path) -> list[str]:
    """Say what is wrong with a SQLite file and its journals as they lie there, without touching them."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy.sqlite"
        for suffix in ("", "-wal", "-journal"):
            if (source := file.with_name(file.name + suffix)).exists():
                shutil.copyfile(source, copy.with_name(copy.name + suffix))
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            try:
                found = [row[0] for row in connection.execute("PRAGMA integrity_check")]
            except sqlite3.DatabaseError as error:
                found = [str(error)]
    return [] if found == ["ok"] else [f"the file is damaged: {found[:3]}"]
