"""The transaction of a call: its rows and its record together, in every kind of thread, and what a tool may not do."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy
from dbos import SetWorkflowID

from durable_swarm import Agent, DurableSwarm, errors, tool
from durable_swarm.engine.backend import steps
from durable_swarm.engine.execution.transactions import Body
from durable_swarm.engine.processes.here import current
from durable_swarm.testing import ScriptedModel
from tests.engine.helpers import connected, rows, unique, user
from tests.support import programs
from tests.support.patience import PATIENCE

Tool = Callable[[sqlalchemy.Connection], str]
Record = dict[str, Any]

KILLS = 100 if os.environ.get("DURABLE_SWARM_LONG") else 3
bodies: dict[str, tuple[Body, str | None]] = {}
"""What the workflows below run, by their ids."""


def transact(key: str) -> Record:
    """Run the transaction of a call; what ends an execution is a result, so that DBOS does not wait for its owner."""
    try:
        return current().transactions.run(key, *bodies[key])
    except BaseException as error:
        return {"ended": type(error).__name__}


@steps.workflow("test-transaction-in-thread", recovers=True)
def in_thread(key: str) -> Record:
    """Run the transaction in the workflow's own thread."""
    return transact(key)


@steps.workflow("test-transaction-in-pool", recovers=True)
async def in_pool(key: str) -> Record:
    """Run the transaction in a thread of a pool, with the workflow's context."""
    context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as pool:
        return await asyncio.wrap_future(pool.submit(context.run, transact, key))


@steps.workflow("test-transaction-on-loop", recovers=True)
async def on_loop(key: str) -> Record:
    """Run the transaction in a thread whose event loop runs."""
    return transact(key)


WORKFLOWS = [in_thread, in_pool, on_loop]


def called(workflow: Any, key: str, body: Body, other: str | None = None) -> Record:
    bodies[key] = (body, other)
    with SetWorkflowID(key):
        made = workflow(key)
        return asyncio.run(made) if asyncio.iscoroutine(made) else made


def opened(url: str) -> DurableSwarm:
    """Give a swarm whose database is open, with a table for what is paid."""
    swarm = DurableSwarm(ScriptedModel(["Hello."]), database=url)
    swarm.run(Agent(), user())
    with connected(url) as connection:
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS payments (amount INTEGER)")
    return swarm


def insert(connection: sqlalchemy.Connection, amount: int = 1) -> None:
    connection.execute(sqlalchemy.text("INSERT INTO payments VALUES (:amount)"), {"amount": amount})


def paid(url: str) -> list[int]:
    with connected(url) as connection:
        return [row[0] for row in connection.exec_driver_sql("SELECT amount FROM payments ORDER BY amount")]


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_a_call_is_made_once_ever(workflow: Any, database_url: str) -> None:
    """Whoever makes a call again gets the record of the first time, and its body is not entered."""

    def body(connection: sqlalchemy.Connection) -> Record:
        insert(connection)
        return {"text": "paid"}

    def again(_: sqlalchemy.Connection) -> Record:
        raise AssertionError("entered twice")

    with opened(database_url):
        assert called(workflow, "call", body) == {"text": "paid"}
        assert current().transactions.run("call", again, None) == {"text": "paid"}
    assert paid(database_url) == [1]


def commits(connection: sqlalchemy.Connection) -> str:
    insert(connection)
    connection.commit()
    return "paid"


def commits_and_swallows(connection: sqlalchemy.Connection) -> str:
    insert(connection)
    with contextlib.suppress(errors.ConfigurationError):
        connection.commit()
    return "paid"


def rolls_back(connection: sqlalchemy.Connection) -> str:
    insert(connection)
    connection.rollback()
    return "paid"


def closes(connection: sqlalchemy.Connection) -> str:
    insert(connection)
    connection.close()
    return "paid"


def commits_by_word(connection: sqlalchemy.Connection) -> str:
    insert(connection)
    with connection.begin_nested() as inner:
        insert(connection)
        inner.rollback()
    connection.exec_driver_sql(" Commit")
    return "paid"


@pytest.mark.parametrize("ends", [commits, commits_and_swallows, rolls_back, closes, commits_by_word])
def test_a_tool_cannot_end_its_transaction(ends: Tool, database_url: str) -> None:
    """A tool that commits by itself fails with nothing written; mended and resumed, it writes once."""
    now = [ends]

    @tool(effect="transactional")
    def pay(connection: sqlalchemy.Connection) -> str:
        return now[0](connection)

    def mended(connection: sqlalchemy.Connection) -> str:
        insert(connection)
        return "paid"

    agent = Agent(name=unique(), functions=[pay])
    with (
        opened(database_url),
        DurableSwarm(ScriptedModel([["pay"], "Done."]), database=database_url, name="b") as swarm,
    ):
        run = swarm.start(agent, user())
        with pytest.raises(errors.ConfigurationError, match="ended its transaction"):
            run.result(PATIENCE)
        assert paid(database_url) == []
        now[0] = mended
        run.resume()
        run.result(PATIENCE)
    assert paid(database_url) == [1]


@pytest.mark.postgres
def test_a_swallowed_error_fails_the_call(postgres_database: str) -> None:
    """A tool that goes on after a statement failed is told so, where PostgreSQL takes no other statement."""

    @tool(effect="transactional")
    def pay(connection: sqlalchemy.Connection) -> str:
        try:
            connection.exec_driver_sql("INSERT INTO nowhere VALUES (1)")
        except sqlalchemy.exc.DBAPIError:
            return "no such table"
        return "paid"

    model, agent = ScriptedModel([["pay"], "Done."]), Agent(name=unique(), functions=[pay])
    with DurableSwarm(model, database=postgres_database) as swarm:
        run = swarm.start(agent, user())
        with pytest.raises(errors.ConfigurationError, match="begin_nested"):
            run.result(PATIENCE)


def test_a_savepoint_is_the_tools_own(database_url: str) -> None:
    """What fails in `begin_nested()` is undone alone, and the tool goes on."""

    def body(connection: sqlalchemy.Connection) -> Record:
        insert(connection, 1)
        try:
            with connection.begin_nested():
                insert(connection, 2)
                connection.exec_driver_sql("INSERT INTO nowhere VALUES (1)")
        except sqlalchemy.exc.DBAPIError:
            insert(connection, 3)
        return {"text": "paid"}

    with opened(database_url):
        assert called(in_thread, "call", body) == {"text": "paid"}
    assert paid(database_url) == [1, 3]


@pytest.mark.postgres
def test_a_swallowed_conflict_is_repeated(postgres_database: str) -> None:
    """A conflict has the body run again, also if the tool swallows it."""
    entered = []

    def body(connection: sqlalchemy.Connection) -> Record:
        entered.append(1)
        connection.exec_driver_sql("SELECT sum(amount) FROM payments").all()
        if len(entered) == 1:
            with connected(postgres_database) as outside:
                outside.exec_driver_sql("UPDATE payments SET amount = amount + 1")
        try:
            connection.exec_driver_sql("UPDATE payments SET amount = amount + 10")
        except sqlalchemy.exc.DBAPIError:
            return {"text": "swallowed"}
        return {"text": "paid"}

    with opened(postgres_database):
        with connected(postgres_database) as connection:
            insert(connection, 0)
        assert called(in_thread, "call", body) == {"text": "paid"}
    assert (len(entered), paid(postgres_database)) == (2, [11])


def test_others_write_meanwhile(database_url: str) -> None:
    """While a transaction is open, checkpoints of other runs wait or pass, and all come to their end."""

    def slow(connection: sqlalchemy.Connection) -> Record:
        insert(connection)
        time.sleep(1)
        return {"text": "paid"}

    with opened(database_url), ThreadPoolExecutor(1) as pool:
        open_one = pool.submit(called, in_thread, "call", slow)
        with DurableSwarm(ScriptedModel(["Hi."] * 5), database=database_url, name="b") as swarm:
            for run in [swarm.start(Agent(), user()) for _ in range(5)]:
                run.result(PATIENCE)
        assert open_one.result(PATIENCE) == {"text": "paid"}
    assert paid(database_url) == [1]


PROGRAM = """
import sys, sqlalchemy
from durable_swarm import Agent, DurableSwarm, tool
from durable_swarm.testing import ScriptedModel

@tool(effect="transactional")
def pay(amount: int, connection: sqlalchemy.Connection) -> str:
    print(amount, flush=True)
    connection.exec_driver_sql(f"INSERT INTO payments VALUES ({amount})")
    return "paid"

script = [[("pay", {"amount": number})] for number in range(20)]
with DurableSwarm(ScriptedModel([*script, "Done."]), database=sys.argv[1]) as swarm:
    print("begin", flush=True)
    swarm.run(Agent(functions=[pay]), [{"role": "user", "content": "Hi"}], run_id="run", max_turns=100)
"""


def test_killed_at_any_instant_the_rows_are_there_once(database_url: str) -> None:
    """A program that is killed again and again, whenever, leaves each of its twenty rows exactly once."""
    chance = random.Random(3)
    landed = 0
    with opened(database_url):
        pass
    for _ in range(KILLS):
        life = programs.Program([sys.executable, "-c", PROGRAM, database_url], stdout=subprocess.PIPE)
        assert life.stdout is not None
        # At the second payment it enters, the first one is recorded: no call is in flight at three deaths in a row,
        # after which it would be given up.
        for _ in ("begin", "first payment", "second payment"):
            life.stdout.readline()
        time.sleep(chance.uniform(0, 0.2))
        life.kill()
        landed += life.wait() < 0
        life.stdout.close()
        with connected(database_url) as connection:
            amounts = [row[0] for row in connection.exec_driver_sql("SELECT amount FROM payments")]
        assert len(amounts) == len(set(amounts))
    programs.run([sys.executable, "-c", PROGRAM, database_url], check=True, stdout=subprocess.PIPE)
    assert landed, "no kill came before the end"
    assert paid(database_url) == list(range(20))
    assert len(rows(database_url, "workflow_uuid")) > 20
