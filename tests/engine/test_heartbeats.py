"""Who is taken for dead where processes give signs of life: never one that lives and has lost its connections."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import pytest

from durable_swarm.engine.database import connection as database_connection
from durable_swarm.engine.database import locks, urls
from durable_swarm.engine.database.locks import PostgresLocks
from durable_swarm.engine.processes import identity
from durable_swarm.engine.processes.identity import Identity
from durable_swarm.engine.storage.heartbeats import LEASE, Leases
from tests.engine.helpers import change

GONE = [
    "DELETE FROM {schema}durable_swarm_processes WHERE name = 'other'",
    f"UPDATE {{schema}}durable_swarm_processes SET seen_at = seen_at - {LEASE + 1} WHERE name = 'other'",
]


@pytest.fixture
def new(postgres_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Identity]]:
    """Make identities that give signs of life, as processes do."""
    monkeypatch.setattr(locks, "RETURN", 0.0)
    url = urls.choose(postgres_database)
    with contextlib.ExitStack() as stack:
        engine = database_connection.connect(url, create=True)
        stack.callback(engine.dispose)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS dbos")

        def one(name: str) -> Identity:
            made = stack.enter_context(contextlib.closing(Identity(PostgresLocks(url), name)))
            made.leases = Leases(url, engine)
            made.keep()
            return made

        yield one


def dead(me: Identity, name: str, pauses: int = 0) -> bool:
    with me.alone():
        return me.is_dead(name, pauses)


def die(process: Identity) -> None:
    """End as a kill does: the locks are free, and the last sign of life stays."""
    process._locks.close()


def test_one_free_lock_tells_nothing(new: Callable[[str], Identity]) -> None:
    """A process that was heard of just now is dead when its lock is free at two looks, and not before."""
    me, other = new("me"), new("other")
    die(other)
    assert [dead(me, "other") for _ in range(3)] == [False] * 3
    assert me.suspects(["other", "somebody"]) is True
    time.sleep(identity.SURE)
    assert dead(me, "other") is True
    assert me.suspects(["other"]) is False


@pytest.mark.parametrize("give", [Identity.look, Identity.keep, lambda other: dead(other, "me")],
                         ids=["look", "keep", "alone"])  # fmt: skip
def test_who_takes_its_lock_back_gives_a_sign(
    give: Callable[[Identity], object], new: Callable[[str], Identity]
) -> None:
    """Who loses its session again and again, and is found so at two looks far apart, lives: it was heard of between."""
    me, other = new("me"), new("other")
    die(other)
    assert dead(me, "other") is False
    give(other)
    die(other)
    time.sleep(identity.SURE)
    assert dead(me, "other") is False
    time.sleep(identity.SURE)
    assert dead(me, "other") is True


@pytest.mark.parametrize("gone", GONE)
def test_who_was_not_heard_of_for_long_is_dead_at_once(
    gone: str, new: Callable[[str], Identity], postgres_database: str
) -> None:
    """A free lock is enough for a process that has closed, or that died longer ago than its lease."""
    me, other = new("me"), new("other")
    die(other)
    change(postgres_database, gone)
    assert dead(me, "other") is True


@pytest.mark.parametrize(("pauses", "silent"), [(0, 1.0), (1, 2.0), (3, 8.0), (99, 2.0**identity.DOUBLINGS)])
def test_who_stands_still_has_longer_each_time(
    pauses: int, silent: float, new: Callable[[str], Identity], postgres_database: str
) -> None:
    """A held lock counts for the lease, and twice as long each time that a run was taken over for it, up to a bound."""
    me, _ = new("me"), new("other")
    for seconds, is_over in ((silent * LEASE - 3, False), (silent * LEASE + 3, True)):
        change(
            postgres_database,
            "UPDATE {schema}durable_swarm_processes SET seen_at = extract(epoch FROM clock_timestamp()) - :seconds",
            seconds=seconds,
        )
        assert dead(me, "other", pauses) is is_over
        assert me.stands_still("other") is is_over
