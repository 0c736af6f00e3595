"""Which troubles of the database pass by themselves, and that runs wait for them."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import event

from durable_swarm import Agent
from durable_swarm.engine.database import outages
from durable_swarm.engine.processes import here
from durable_swarm.testing import ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import connected, cut, user
from tests.support.patience import PATIENCE


def write_read_only(path: Path) -> None:
    """Write a file that was opened for reading."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.execute("INSERT INTO t VALUES (2)")


def open_nothing(path: Path) -> None:
    """Open a file in a folder that is not there."""
    sqlite3.connect(path / "nowhere" / "runs.sqlite").close()


def write_twice(path: Path) -> None:
    """Write what is there already."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO t VALUES (1)")


def misspell(path: Path) -> None:
    """Ask for what is no SQL."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("SELCT 1")


@pytest.mark.parametrize(
    ("does", "passes"), [(write_read_only, True), (open_nothing, True), (write_twice, False), (misspell, False)]
)
def test_what_passes_by_itself(does: Callable[[Path], None], passes: bool, tmp_path: Path) -> None:
    """What a person can mend outside the program is waited for; a fault of the program is not."""
    path = tmp_path / "runs.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (a PRIMARY KEY)")
        connection.execute("INSERT INTO t VALUES (1)")
        connection.commit()
    with pytest.raises(sqlite3.Error) as error:
        does(path)
    assert outages.passes(error.value) == passes
    assert outages.passes(sqlalchemy.exc.DBAPIError("", (), error.value)) == passes


@pytest.mark.slow
def test_a_server_that_is_read_only_is_waited_for(
    make: Make, postgres_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """When PostgreSQL takes no writes for a while, as in a failover, the run waits and then goes on."""
    made: list[int] = []
    name = sqlalchemy.make_url(postgres_database).database

    def read_only(state: str) -> None:
        with connected(postgres_database) as server:
            server.exec_driver_sql(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {state}')

    def mend() -> None:
        with connected(postgres_database) as server:
            server.exec_driver_sql("SET default_transaction_read_only = off")
            server.exec_driver_sql("SET transaction_read_only = off")
            server.exec_driver_sql(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        end_sessions()

    def end_sessions() -> None:
        cut(postgres_database)

    def pay(number: int) -> str:
        made.append(number)
        if number == 1:
            read_only("on")
            end_sessions()
            threading.Timer(2, mend).start()
        return "paid"

    model = ScriptedModel([[("pay", {"number": number})] for number in range(3)] + ["Paid."])
    swarm = make(model, database=postgres_database)
    response = swarm.start(Agent(functions=[pay]), user(), run_id="r").result(timeout=PATIENCE)
    assert response.messages[-1]["content"] == "Paid."
    assert made == [0, 1, 2]
    told = [record.levelno for record in caplog.records if record.name == "durable_swarm"]
    assert told[0] == logging.ERROR
    assert told[-1] == logging.WARNING
    assert len(told) <= 4


@pytest.mark.slow
def test_a_connection_that_breaks_is_not_told(
    make: Make, postgres_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """When all connections break, and the server takes new ones, runs go on and nobody is told of an outage."""
    made: list[int] = []

    def pay(number: int) -> str:
        made.append(number)
        cut(postgres_database)
        return "paid"

    model = ScriptedModel([[("pay", {"number": number})] for number in range(2)] + ["Paid."])
    swarm = make(model, database=postgres_database)
    response = swarm.start(Agent(functions=[pay]), user(), run_id="r").result(timeout=PATIENCE)
    assert response.messages[-1]["content"] == "Paid."
    assert made == [0, 1]
    assert not [record.message for record in caplog.records if "cannot be used" in record.message]


def test_a_connection_that_breaks_while_it_is_set_up_is_not_told(
    make: Make, postgres_database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A new connection that is cut before its first statement is a broken one: the server is not away."""
    swarm = make(ScriptedModel(["Hello.", "Hello again."]), database=postgres_database)
    agent = Agent()
    swarm.run(agent, user())
    engine, killed = here.current().store.engine, list[int]()

    def meet(connection: Any, _record: object) -> None:
        if not killed:
            killed.append(connection.info.backend_pid)
            with connected(postgres_database) as server:
                server.exec_driver_sql(f"SELECT pg_terminate_backend({killed[0]}, 5000)")
        try:
            connection.execute("SELECT 1")
        except BaseException:
            connection.close()
            raise

    event.listen(engine, "connect", meet)
    cut(postgres_database)
    assert swarm.start(agent, user()).result(timeout=PATIENCE).messages[-1]["content"] == "Hello again."
    assert killed
    assert not [record.message for record in caplog.records if "cannot be used" in record.message]
