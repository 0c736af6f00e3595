"""Names of processes: held while the process lives, free when it is dead, on SQLite and on PostgreSQL."""

from __future__ import annotations

import contextlib
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy

from durable_swarm import ConfigurationError
from durable_swarm.engine.database import urls
from durable_swarm.engine.database.locks import FileLocks, Locks, PostgresLocks
from durable_swarm.engine.processes.identity import Identity
from tests.engine.helpers import PATIENCE, Program, connected, wait_until

OTHER = """
    import sys, threading
    from durable_swarm.engine.database import connection
    from durable_swarm.engine.database.locks import FileLocks, PostgresLocks
    from durable_swarm.engine.processes.identity import Identity
    from durable_swarm.engine.database import urls

    url = urls.choose(sys.argv[1])
    locks = FileLocks(f"{url.database}.lock") if urls.is_sqlite(url) else PostgresLocks(url)
    identity = Identity(locks, "other")
    open("ready", "w").close()
    threading.Event().wait(60)
"""


def locks_of(url: str) -> Locks:
    """Give the locks of a database."""
    chosen = urls.choose(url)
    return FileLocks(f"{chosen.database}.lock") if urls.is_sqlite(chosen) else PostgresLocks(chosen)


@pytest.fixture
def me(database_url: str) -> Iterator[Identity]:
    """This process's identity on a fresh database."""
    with contextlib.closing(Identity(locks_of(database_url), "me")) as identity:
        yield identity


def test_a_process_lives_until_it_is_killed(me: Identity, database_url: str) -> None:
    """A living process's name is taken, for everybody; once it is killed the name is free at once."""
    process = Program(OTHER).start(database_url)
    try:
        wait_until(lambda: Path("ready").exists())
        with me.alone():
            assert me.is_dead("other") is False
        with contextlib.closing(locks_of(database_url)) as locks, pytest.raises(ConfigurationError, match="'other'"):
            Identity(locks, "other")
    finally:
        process.kill()
        process.communicate()
    deadline = time.monotonic() + PATIENCE
    while True:
        with me.alone():
            if me.is_dead("other"):
                break
        assert time.monotonic() < deadline


def test_names_nobody_has(me: Identity) -> None:
    """A name that nobody holds is dead, however often one asks, and one's own never is."""
    with me.alone():
        assert [me.is_dead("somebody") for _ in range(3)] == [True] * 3
        assert me.is_dead("me") is False
    me.keep()
    with me.alone():
        assert me.is_dead("me") is False


def test_only_one_thread_at_a_time(me: Identity) -> None:
    """Inside `alone` no other thread of this process is inside too."""
    inside, most = [], []

    def enter() -> None:
        for _ in range(5):
            with me.alone():
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert max(most) == 1
    assert len(most) == 20


def test_names_are_made_where_none_is_given(tmp_path: Path) -> None:
    """A process without a name of its own gets one that no other has."""
    names = set()
    for _ in range(3):
        with contextlib.closing(Identity(FileLocks(str(tmp_path / "lock")), None)) as identity:
            names.add(identity.name)
    assert len(names) == 3


def fail_to_give(identity: Identity) -> None:
    """Have the loss be noticed where a lock is given back, which is not what anybody waits for."""
    identity._locks.give("another")
    identity.keep()


@pytest.mark.parametrize("look", [Identity.look, Identity.keep, fail_to_give], ids=["look", "keep", "give"])
def test_a_lost_session_takes_its_names_back(look: Callable[[Identity], None], postgres_database: str) -> None:
    """When PostgreSQL ends the session that holds the name, the next look takes it back."""
    with contextlib.closing(Identity(locks_of(postgres_database), "me")) as identity:
        with connected(postgres_database) as connection:
            ended = connection.execute(
                sqlalchemy.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks "
                    "WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
                )
            )
            assert ended.fetchall()
        wait_until(identity._locks.lost)
        look(identity)
        assert not identity._locks.lost()
        with contextlib.closing(locks_of(postgres_database)) as others:
            assert others.take("me") is False


def test_the_lock_file_is_private(tmp_path: Path) -> None:
    """The file of the locks has mode 0600 and stays empty."""
    path = tmp_path / "lock"
    with contextlib.closing(Identity(FileLocks(str(path)), None)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_size == 0
