"""Locks on files hold whatever this process reads, and SQLite's are backed by some that do."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import signal
import sqlite3
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from durable_swarm import ConfigurationError
from durable_swarm.engine.database import byte_locks, file_guard, urls
from durable_swarm.engine.database import connection as database_connection
from durable_swarm.engine.database.byte_locks import ByteLocks
from durable_swarm.engine.database.locks import FileLocks, _number
from faults import readers
from tests.engine.helpers import Program, wait_until


def archive(folder: Path) -> None:
    """Pack the folder, as a backup does."""
    with tarfile.open(folder.parent / "backup.tar", "w") as packed:
        packed.add(folder, arcname="files")


def search(folder: Path) -> None:
    """Look for a word in the files, as an agent's tool does."""
    for path in folder.rglob("*"):
        with path.open("rb") as file:
            for line in file:
                assert b"a word that is nowhere" not in line


def link(folder: Path) -> None:
    """Read the files by other names."""
    for path in list(folder.iterdir()):
        other = folder.parent / f"link-{path.name}"
        os.link(path, other)
        other.read_bytes()
        other.unlink()


READS = (*readers.WAYS, archive, search, link)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for the files, so that what reads it can write beside it."""
    made = tmp_path / "files"
    made.mkdir()
    return made


@pytest.fixture
def engine(folder: Path) -> Iterator[sqlalchemy.Engine]:
    """Connections to a fresh database with one table."""
    opened = database_connection.connect(urls.choose(f"sqlite:///{folder}/runs.sqlite"), create=True)
    with opened.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE kept (number INTEGER, text TEXT)")
        connection.exec_driver_sql("INSERT INTO kept VALUES (1, 'first')")
    yield opened
    opened.dispose()


@pytest.fixture(scope="module")
def other() -> Iterator[Executor]:
    """Another process, which calls functions for us."""
    context = get_context("forkserver")
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        yield executor


def take(path: Path) -> bool:
    """Try to take the name, as this release does."""
    with contextlib.closing(FileLocks(str(path))) as locks:
        return locks.take("worker")


def take_as_before(path: Path) -> bool:
    """Try to take the name, as earlier releases did."""
    with path.open("r+b") as file, contextlib.suppress(OSError):
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _number("worker"))
        return True
    return False


def count(path: Path) -> int:
    """Open the file as a program that is not ours does, count the rows, and close it."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        found: int = connection.execute("SELECT count(*) FROM kept").fetchone()[0]
        return found


def write(path: Path) -> str:
    """Try to write, and return what came of it."""
    file_guard.BUSY = 0.3
    try:
        engine = database_connection.connect(urls.choose(f"sqlite:///{path}"), create=False)
        engine.dispose()
    except ConfigurationError as error:
        return "locked" if "database is locked" in str(error) else str(error)
    return "written"


def write_plainly(path: Path) -> str:
    """Try to write, as a program that is not ours does."""
    with contextlib.closing(sqlite3.connect(path, timeout=0.3)) as connection:
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            return "locked" if "database is locked" in str(error) else str(error)
    return "written"


def fill(path: Path) -> int:
    """Write more than fits into a small journal, and return the size of the file then."""
    file_guard.PAGES = 10
    engine = database_connection.connect(urls.choose(f"sqlite:///{path}"), create=False)
    for _ in range(20):
        with engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO kept VALUES (2, ?)", ("x" * 40_000,))
    size = path.stat().st_size
    engine.dispose()
    return size


WAYS = (take, take_as_before)


@pytest.mark.parametrize("read", READS)
def test_reading_the_lock_file_frees_nothing(read: Callable[[Path], None], folder: Path, other: Executor) -> None:
    """Whatever reads and closes the lock file here, programs of this release and of earlier ones find it locked."""
    path = folder / "runs.sqlite.lock"
    with contextlib.closing(FileLocks(str(path))) as locks:
        assert locks.take("worker")
        read(folder)
        gc.collect()
        assert [other.submit(way, path).result() for way in WAYS] == [False, False]
    assert [other.submit(way, path).result() for way in WAYS] == [True, True]


def test_a_name_of_an_earlier_release_is_taken(tmp_path: Path) -> None:
    """The lock that a program of an earlier release holds is found held."""
    path = tmp_path / "lock"
    path.touch()
    code = f"""
        import fcntl, sys, threading
        file = open(sys.argv[1], "r+")
        fcntl.lockf(file, fcntl.LOCK_EX, 1, {_number("worker")})
        print("locked", flush=True)
        threading.Event().wait(60)
    """
    old = Program(code, str(tmp_path / "old.py"), anew=True).start(str(path))
    try:
        assert old.stdout is not None
        assert old.stdout.readline() == "locked\n"
        with contextlib.closing(FileLocks(str(path))) as locks:
            assert not locks.take("worker")
            old.kill()
            wait_until(lambda: locks.take("worker"))
    finally:
        old.kill()
        old.communicate()


CHILD = {
    "fork": "if os.fork() == 0: time.sleep(60); os._exit(0)",
    "multiprocessing": "multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,)).start()",
    "subprocess": "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], close_fds=False)",
}


@pytest.mark.parametrize("child", CHILD.values(), ids=CHILD)
def test_a_child_that_outlives_its_killed_parent_keeps_no_lock(child: str, tmp_path: Path) -> None:
    """A fork inherits descriptors and not the name: when the parent is killed the name is free."""
    path = tmp_path / "lock"
    code = f"""
        import multiprocessing, os, subprocess, sys, threading, time
        from durable_swarm.engine.database.locks import FileLocks
        os.setpgid(0, 0)
        locks = FileLocks(sys.argv[1])
        assert locks.take("worker")
        {child}
        print("ready", flush=True)
        threading.Event().wait(60)
    """
    parent = Program(code, str(tmp_path / "parent.py")).start(str(path))
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        assert take(path) is False
        parent.send_signal(signal.SIGKILL)
        parent.wait(20)
        os.killpg(parent.pid, 0)  # The child lives.
        wait_until(lambda: take(path))  # It gives the lock up when it first runs, which may be after the kill.
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate()


@pytest.mark.parametrize("read", READS)
def test_nobody_deletes_the_journal_under_us(
    read: Callable[[Path], None], folder: Path, engine: sqlalchemy.Engine, other: Executor
) -> None:
    """After any reading, another program that opens and closes the file leaves the journal and sees what we write."""
    journal = folder / "runs.sqlite-wal"
    before = journal.stat().st_ino
    for number in range(2, 4):
        read(folder)
        assert other.submit(count, folder / "runs.sqlite").result() == number - 1
        assert journal.stat().st_ino == before
        with engine.begin() as connection:
            connection.exec_driver_sql("INSERT INTO kept VALUES (?, 'more')", (number,))
    assert other.submit(count, folder / "runs.sqlite").result() == 3


STATEMENTS = (
    "UPDATE kept SET number = number + 1",
    "  -- a comment\n insert into kept values (2, '')",
    "WITH one AS (SELECT 1) INSERT INTO kept SELECT 2, 'x' FROM one",
)


@pytest.mark.parametrize(
    ("statement", "read"),
    [*[("BEGIN IMMEDIATE", read) for read in READS], *[(text, readers._touch) for text in STATEMENTS]],
)
def test_two_never_write_at_once(
    statement: str, read: Callable[[Path], None], folder: Path, engine: sqlalchemy.Engine, other: Executor
) -> None:
    """A transaction that writes keeps other processes from writing, also after its files were read."""
    with engine.begin() as connection:
        if "WITH" in statement:
            connection.exec_driver_sql("BEGIN")
        connection.exec_driver_sql(statement)
        read(folder)
        assert other.submit(write, folder / "runs.sqlite").result() == "locked"
    assert other.submit(write, folder / "runs.sqlite").result() == "written"


def test_who_writes_waits_for_nobody_that_waits_to_write(engine: sqlalchemy.Engine) -> None:
    """However many threads wait for the right to write, who has it still reads over another connection."""

    def add() -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql("UPDATE kept SET number = number + 1")

    def read() -> Any:
        with engine.connect() as connection:
            return connection.exec_driver_sql("SELECT number FROM kept").scalar_one()

    pool: Any = engine.pool
    with ThreadPoolExecutor(13) as threads:
        with engine.begin() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            added = [threads.submit(add) for _ in range(12)]
            wait_until(lambda: pool.checkedout() >= 4)
            assert threads.submit(read).result(file_guard.BUSY / 2) == 1
        for one in added:
            one.result()
    assert read() == 13


def test_no_checkpoint_changes_the_file_under_a_reader(
    folder: Path, engine: sqlalchemy.Engine, other: Executor
) -> None:
    """While a connection is in use no other process moves pages into the file, also after its files were read."""
    path = folder / "runs.sqlite"
    small = path.stat().st_size
    with engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT number FROM kept")
        readers._touch(folder)
        assert other.submit(fill, path).result() == small
        assert found.scalar_one() == 1
    assert other.submit(fill, path).result() > 20 * 40_000


def test_the_journal_stays_small(folder: Path, engine: sqlalchemy.Engine) -> None:
    """Threads that use the database all the time leave a checkpoint its turn."""

    def work() -> None:
        for number in range(150):
            with engine.begin() as connection:
                connection.exec_driver_sql("INSERT INTO kept VALUES (?, ?)", (number, "x" * 40_000))
                connection.exec_driver_sql("SELECT count(*) FROM kept").scalar()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (folder / "runs.sqlite").stat().st_size > 12_000_000  # Of 24 million bytes.
    assert (folder / "runs.sqlite-wal").stat().st_size < 12_000_000


def test_the_last_one_tidies_up(folder: Path, engine: sqlalchemy.Engine, other: Executor) -> None:
    """Once all connections of all processes are closed the file alone is left, with all rows, and no descriptor."""
    second = database_connection.connect(urls.choose(f"sqlite:///{folder}/runs.sqlite"), create=False)
    engine.dispose()
    assert (folder / "runs.sqlite-wal").exists()
    second.dispose()
    assert [path.name for path in folder.iterdir()] == ["runs.sqlite"]
    ours = [os.path.realpath(path) for path in Path("/dev/fd").iterdir()]
    assert not [path for path in ours if str(folder) in path]
    assert other.submit(count, folder / "runs.sqlite").result() == 1


def test_closing_frees_no_lock_of_the_programs_own_connections(
    folder: Path, engine: sqlalchemy.Engine, other: Executor
) -> None:
    """A program's own connection to the file keeps its transaction when ours are closed."""
    with contextlib.closing(sqlite3.connect(folder / "runs.sqlite", isolation_level=None)) as own:
        own.execute("BEGIN IMMEDIATE")
        own.execute("UPDATE kept SET number = 7")
        engine.dispose()
        assert other.submit(write_plainly, folder / "runs.sqlite").result() == "locked"
        own.execute("COMMIT")


def test_a_database_in_another_mode_is_switched(folder: Path, other: Executor) -> None:
    """A file with a rollback journal, made by others, is switched to WAL before it is guarded."""
    path = folder / "own.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as own:
        own.execute("CREATE TABLE kept (number INTEGER)")
    engine = database_connection.connect(urls.choose(f"sqlite:///{path}"), create=False)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO kept VALUES (1)")
    readers._touch(folder)
    assert other.submit(count, path).result() == 1
    assert (folder / "own.sqlite-wal").exists()
    engine.dispose()


def test_a_system_without_such_locks_is_warned_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, other: Executor
) -> None:
    """Where the system refuses the locks, those of the process are used, and one line says what to avoid."""
    before = set(file_guard._guards)
    monkeypatch.setattr(byte_locks, "_SETLK", 9999)
    with contextlib.closing(FileLocks(str(folder / "lock"))) as locks:
        assert locks.take("worker")
        assert [other.submit(way, folder / "lock").result() for way in WAYS] == [False, False]
    assert "no open-file-description locks" in caplog.text
    engine = database_connection.connect(urls.choose(f"sqlite:///{folder}/runs.sqlite"), create=True)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE kept (number INTEGER)")
    assert other.submit(count, folder / "runs.sqlite").result() == 0
    engine.dispose()
    assert set(file_guard._guards) <= before


def test_locks_are_what_the_system_says_they_are(tmp_path: Path) -> None:
    """Shared locks go together, exclusive ones with none, and closing another descriptor frees neither."""
    path = tmp_path / "file"
    path.touch()
    one, two = ByteLocks(str(path)), ByteLocks(str(path))
    with contextlib.closing(one), contextlib.closing(two):
        assert (one.shared(5), two.shared(5), two.exclusive(5), two.exclusive(6)) == (True, True, False, True)
        path.read_bytes()
        assert two.exclusive(5) is False
        one.free(5)
        assert two.exclusive(5) is True
        with path.open("r+b") as file, pytest.raises(OSError, match="unavailable"):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 5)


WINDOWS = """
    import os, signal, sys
    import dbos, openai, sqlalchemy, psycopg

    for name in ("fcntl", "pwd", "grp", "resource", "termios", "readline"):
        sys.modules[name] = None
    for name in ("register_at_fork", "fork", "geteuid", "getuid", "O_CLOEXEC", "O_NOFOLLOW", "O_DIRECTORY"):
        delattr(os, name)
    from durable_swarm import Agent, DurableSwarm, Swarm, tool
    from durable_swarm.errors import ConfigurationError
    from durable_swarm.testing import ScriptedModel, call

    @tool(effect="idempotent")
    def look() -> str:
        return "seen"

    agent, asked = Agent(functions=[look]), [{"role": "user", "content": "Hi"}]
    swarm = Swarm(ScriptedModel([[call("look")], "done"]))
    print(swarm.run(agent, asked).messages[-1]["content"])
    for url in (None, "postgresql://nobody@127.0.0.1:1/none"):
        try:
            DurableSwarm(ScriptedModel(["done"]), database=url).run(agent, asked)
        except ConfigurationError as error:
            print(error)
    from durable_swarm.cli import main
    sys.exit(main(["runs"]))
"""


def test_windows_has_the_half_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what Windows lacks `Swarm` works, and what is durable says in one line what it needs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "durable_swarm.sqlite").touch()
    process = Program(WINDOWS, anew=True).start()
    out, err = process.communicate(timeout=200)
    lines = out.splitlines()
    assert lines[0] == "done", err
    assert len(lines) == 3
    assert all("needs Linux or macOS" in line for line in lines[1:])
    assert process.returncode == 2
    assert "Traceback" not in err
    assert "needs Linux or macOS" in err
