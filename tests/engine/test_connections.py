"""Connections to PostgreSQL that break: who waits goes on waiting, who asks is not told of what was idle."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy
from sqlalchemy import exc

from durable_swarm import Agent, ConfigurationError, DurableSwarm, Run, ask_human
from durable_swarm.engine.database import connection as database_connection
from durable_swarm.engine.database import reconnecting
from durable_swarm.testing import ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, connected, cut, unique, user, wait_until


def by_result(run: Run) -> str:
    return str(run.result(PATIENCE).messages[-1]["content"])


def by_await(run: Run) -> str:
    async def main() -> str:
        return str((await run.result_async(PATIENCE)).messages[-1]["content"])

    return asyncio.run(main())


def by_events(run: Run) -> str:
    assert [event.type for event in run.events()][-1] == "run.finished"
    return by_result(run)


@pytest.mark.parametrize("wait", [by_result, by_await, by_events])
def test_who_waits_rides_a_storm_of_cuts_out(wait: Callable[[Run], str], make: Make, postgres_database: str) -> None:
    """A run that asks, its answer and its reader all go on, though every session is ended again and again."""

    def ask() -> str:
        return str(ask_human("Go?"))

    swarm = make(ScriptedModel([["ask"], "Done."]), database=postgres_database)
    run = swarm.start(Agent(name=unique(), functions=[ask]), user())
    wait_until(run.requests)
    over = threading.Event()

    def storm() -> None:
        for number in range(20):
            cut(postgres_database)
            if over.wait(0.15):
                return
            if number == 10:
                answered.set()

    answered = threading.Event()
    storming = threading.Thread(target=storm)
    storming.start()

    def answer() -> None:
        assert answered.wait(PATIENCE)
        storming.join()
        run.answer("yes")

    answering = threading.Thread(target=answer)
    answering.start()
    try:
        assert wait(run) == "Done."
    finally:
        over.set()
        answering.join(PATIENCE)
        storming.join(PATIENCE)


@pytest.mark.parametrize(
    "ask", [lambda swarm: swarm.requests(), lambda swarm: swarm.runs(), lambda swarm: swarm.get("r").status,
            lambda swarm: swarm.get("r").requests(), lambda swarm: swarm.recover()]
)  # fmt: skip
def test_what_was_lost_while_idle_is_not_told(
    ask: Callable[[DurableSwarm], Any], make: Make, postgres_database: str
) -> None:
    """Connections that the server has ended while nobody used them are renewed before they are used."""
    swarm = make(ScriptedModel(["Done."]), database=postgres_database)
    swarm.run(Agent(name=unique()), user(), run_id="r")
    time.sleep(2 * database_connection.IDLE)
    cut(postgres_database)
    ask(swarm)


@contextlib.contextmanager
def away(url: str) -> Iterator[None]:
    """Have the server let nobody into the database for a while."""
    name = str(sqlalchemy.make_url(url).database)
    server = sqlalchemy.make_url(url).set(database="postgres").render_as_string(hide_password=False)
    try:
        with connected(server) as connection:
            connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            connection.exec_driver_sql(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
            )
        yield
    finally:
        with connected(server) as connection:
            connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


@pytest.mark.parametrize(
    "wait", [lambda run: run.result(timeout=1), lambda run: asyncio.run(run.result_async(timeout=1))]
)
def test_a_wait_is_bounded_by_its_own_time(wait: Callable[[Run], Any], make: Make, postgres_database: str) -> None:
    """While the server is away, who waits with a timeout waits that long, and is told nothing of the server."""
    swarm = make(ScriptedModel(["Done."]), database=postgres_database)
    run = swarm.enqueue("Nobody", user())
    assert run.status == "queued"
    with away(postgres_database), pytest.raises(TimeoutError):
        wait(run)
    with pytest.raises(TimeoutError):
        wait(run)


def psycopgs(kind: type[psycopg.Error], state: str | None, text: str = "", *, broken: bool = False) -> exc.DBAPIError:
    error = kind(text)
    vars(error)["sqlstate"] = state
    return exc.OperationalError("", (), error, connection_invalidated=broken)


LOST: list[tuple[BaseException, bool]] = [
    (psycopgs(psycopg.OperationalError, None, "connection refused"), True),
    (psycopgs(psycopg.OperationalError, None, "the database system is starting up"), True),
    (psycopgs(psycopg.OperationalError, "57P01", "terminating connection"), True),
    (psycopgs(psycopg.OperationalError, "08006", "connection failure"), True),
    (psycopgs(psycopg.OperationalError, "53300", "too many clients"), True),
    (psycopgs(psycopg.OperationalError, "XX000", "gone", broken=True), True),
    (exc.PendingRollbackError("invalid transaction"), True),
    (exc.TimeoutError("the pool is exhausted"), True),
    (psycopgs(psycopg.OperationalError, None, "password authentication failed for user"), False),
    (psycopgs(psycopg.OperationalError, None, 'database "x" does not exist'), False),
    (psycopgs(psycopg.ProgrammingError, "42P01", "relation does not exist"), False),
    (psycopgs(psycopg.OperationalError, "42501", "permission denied"), False),
    (exc.OperationalError("", (), sqlite3.OperationalError("unable to open database file")), False),
    (ConfigurationError("no model client"), False),
    (ValueError("a tool's own"), False),
]


@pytest.mark.parametrize(("error", "is_lost"), LOST, ids=[str(error)[:40] for error, _ in LOST])
def test_what_comes_back_by_itself(error: BaseException, is_lost: bool) -> None:
    """A server that is away, and a connection that broke, are waited for; what no waiting mends is not."""
    assert reconnecting.is_lost(error) is is_lost
    wrapped = ConfigurationError("the database cannot be used")
    wrapped.__cause__ = error
    assert reconnecting.is_lost(wrapped) is is_lost
