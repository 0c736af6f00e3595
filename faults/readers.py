"""Programs that read the folder of their SQLite database in every way, while others open, close and are killed.

    python -m faults.readers              a minute
    python -m faults.readers 600          ten

Reading and closing a file frees the POSIX locks that the process holds on it, SQLite's own included. Prints a line of
figures, and ends with 1 if an acknowledged row is missing, two writers worked at once, a reader saw half a transaction,
or the file is damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import sqlalchemy

from durable_swarm.engine.database import connection as database_connection
from durable_swarm.engine.database import urls

FILE = "runs.sqlite"
ROLES = ("writer", "writer", "writer", "visitor", "stranger")
"""Programs that work on the file, one that opens it for one look again and again, and one that is not of ours."""


PATIENCE = 120.0
"""Seconds more that a trial takes at most, where all is slow."""
SLOW = 5.0
"""Seconds that a kill waits at most for a row."""


@dataclass
class Figures:
    """What came of a time of reading and killing."""

    kills: int = 0
    acknowledged: int = 0
    looks: int = 0
    checkpoints: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.acknowledged} acknowledged rows, {self.looks} reads of the folder, "
            f"{self.checkpoints} pages in the file, {len(self.wrong)} wrong"
        )


def _read(folder: Path) -> None:
    for path in folder.iterdir():
        path.read_bytes()


def _copy(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as away:
        shutil.copytree(folder, Path(away) / "copy")


def _zip(folder: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(), "w") as archive:
        for path in folder.iterdir():
            archive.write(path)


def _hash(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")


def _touch(folder: Path) -> None:
    for path in folder.iterdir():
        os.close(os.open(path, os.O_RDONLY))


WAYS: tuple[Callable[[Path], None], ...] = (_read, _copy, _zip, _hash, _touch)
"""How tools read a folder."""


def _meddle(folder: Path, log: Path) -> None:
    """Read the folder again and again, in all ways."""
    with log.open("ab", buffering=0) as done:
        while True:
            with contextlib.suppress(OSError, shutil.Error):  # A journal that is deleted meanwhile by its last user.
                random.choice((*WAYS, _touch, _touch))(folder)
            done.write(b".")
            time.sleep(random.random() * 0.01)


def _work(kind: str, folder: Path, notes: Path) -> None:
    """Be one of the programs until killed."""
    name = uuid.uuid4().hex
    url = urls.choose(f"sqlite:///{folder / FILE}")
    threading.Thread(target=_meddle, args=(folder, notes / f"{name}.looks"), daemon=True).start()
    try:
        if kind == "writer":
            _write(database_connection.connect(url, create=False), notes / f"{name}.rows")
        while kind == "visitor":
            engine = database_connection.connect(url, create=False)
            _look(engine)
            engine.dispose()
        while True:
            with contextlib.closing(sqlite3.connect(folder / FILE, timeout=30)) as stranger:
                stranger.execute("SELECT count(*) FROM kept").fetchone()
    except Exception as error:
        (notes / f"{name}.wrong").write_text(f"{kind}: {type(error).__name__}: {error}")


def _write(engine: sqlalchemy.Engine, acknowledged: Path) -> None:
    with acknowledged.open("ab", buffering=0) as file:
        while True:
            key = uuid.uuid4().hex
            with engine.begin() as connection:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                count = connection.exec_driver_sql("SELECT n FROM counted").scalar_one()
                time.sleep(random.choice((0, 0, 0.001, 0.01)))
                connection.exec_driver_sql("UPDATE counted SET n = ?", (count + 1,))
                text = key * random.randrange(1, 600)
                connection.exec_driver_sql("INSERT INTO kept VALUES (?, ?, ?)", (key, count + 1, text))
            file.write(f"{key}\n".encode())
            _look(engine)


def _look(engine: sqlalchemy.Engine) -> None:
    """Check that a reader sees as many rows as were counted, and none of them damaged."""
    with engine.connect() as connection:
        rows = "SELECT n, (SELECT count(*) FROM kept), (SELECT max(number) FROM kept) FROM counted"
        counted, kept, last = connection.exec_driver_sql(rows).one()
        if not counted == kept == (last or 0):
            raise AssertionError(f"counted {counted}, kept {kept}, last {last}")


def trial(folder: Path, seconds: float, kills: int = 10, rows: int = 50) -> Figures:
    """Let the programs work for a while, and until so many kills and rows, killing one after another."""
    files, notes = folder / "files", folder / "notes"
    for made in (files, notes):
        made.mkdir()
    engine = database_connection.connect(urls.choose(f"sqlite:///{files / FILE}"), create=True)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE kept (key TEXT PRIMARY KEY, number INTEGER, text TEXT)")
        connection.exec_driver_sql("CREATE TABLE counted (n INTEGER)")
        connection.exec_driver_sql("INSERT INTO counted VALUES (0)")
    engine.dispose()
    figures = Figures()
    context = get_context("forkserver")
    context.set_forkserver_preload(["durable_swarm.engine.database"])

    def begin(kind: str) -> BaseProcess:
        process = context.Process(target=_work, args=(kind, files, notes))
        process.start()
        return process

    living = {number: begin(kind) for number, kind in enumerate(ROLES)}
    end = time.monotonic() + seconds
    while time.monotonic() < end or (time.monotonic() < end + PATIENCE and not _enough(notes, figures, kills, rows)):
        before = _written(notes)
        time.sleep(random.uniform(0.1, 0.4))
        slow = time.monotonic() + SLOW
        while _written(notes) == before and time.monotonic() < slow:
            time.sleep(0.02)  # Where all is slow, programs would be killed before they have begun to work.
        if list(notes.glob("*.wrong")):
            break
        number = random.randrange(len(ROLES))
        living[number].kill()
        living[number].join()
        figures.kills += living[number].exitcode == -signal.SIGKILL
        living[number] = begin(ROLES[number])
    for process in living.values():
        process.kill()
        process.join()
    _judge(files, notes, figures)
    return figures


def _enough(notes: Path, figures: Figures, kills: int, rows: int) -> bool:
    return figures.kills >= kills and _written(notes) >= rows


def _written(notes: Path) -> int:
    """Return how many rows were acknowledged."""
    return sum(path.stat().st_size for path in notes.glob("*.rows")) // 33


def _judge(files: Path, notes: Path, figures: Figures) -> None:
    figures.wrong += [path.read_text() for path in notes.glob("*.wrong")]
    figures.looks = sum(path.stat().st_size for path in notes.glob("*.looks"))
    acknowledged = {line for path in notes.glob("*.rows") for line in path.read_text().split("\n")[:-1]}
    figures.acknowledged = len(acknowledged)
    figures.checkpoints = (files / FILE).stat().st_size // 4096
    with contextlib.closing(sqlite3.connect(files / FILE)) as connection:
        sound = connection.execute("PRAGMA integrity_check").fetchone()[0]
        kept = {key for (key,) in connection.execute("SELECT key FROM kept")}
        counted = connection.execute("SELECT n FROM counted").fetchone()[0]
    if sound != "ok":
        figures.wrong.append(f"the file is damaged: {sound}")
    if lost := acknowledged - kept:
        figures.wrong.append(f"{len(lost)} acknowledged rows are missing")
    if counted != len(kept):
        figures.wrong.append(f"{len(kept)} rows, {counted} counted: two wrote at once")


def main() -> None:
    """Run the trial for as many seconds as the command line says."""
    with tempfile.TemporaryDirectory() as folder:
        figures = trial(Path(folder), float(sys.argv[1]) if len(sys.argv) > 1 else 60)
    print(figures)
    print(*figures.wrong, sep="\n")
    sys.exit(bool(figures.wrong))


if __name__ == "__main__":
    main()
