"""Transactional tools: what they write is there exactly once, whenever their process is killed."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from durable_swarm import Agent, DurableSwarm, ToolError, current_call, errors, tool
from durable_swarm.engine.database.connection import connect, drop
from durable_swarm.engine.database.urls import choose
from durable_swarm.testing import ScriptedModel
from durable_swarm.testing.crash.boundaries import KillPoint
from tests.crash.lives import Lives, say
from tests.crash.matrix import LONG
from tests.engine.helpers import change, unique
from tests.support.patience import PATIENCE

RUN = "run-1"
QUESTION = [{"role": "user", "content": "Please."}]
KILLS = 100 if LONG else 2


def rows(url: str) -> list[tuple[str, int]]:
    """Give what the tool has written."""
    engine = sqlalchemy.create_engine(choose(url), poolclass=sqlalchemy.NullPool)
    if not sqlalchemy.inspect(engine).has_table("payments"):
        return []
    with engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT card, amount FROM payments ORDER BY amount").all()
    return [(str(row[0]), int(row[1])) for row in found]


def table_in(url: str) -> None:
    engine = sqlalchemy.create_engine(choose(url), poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS payments (card TEXT, amount INTEGER)")


def paying(url: str, other: str | None) -> list[str]:
    """Run an agent that pays three times, one payment after the other."""

    @tool(effect="transactional")
    def pay(card: str, amount: int, connection: sqlalchemy.Connection, context_variables: dict[str, Any]) -> str:
        connection.execute(
            sqlalchemy.text("INSERT INTO payments VALUES (:card, :amount)"), {"card": card, "amount": amount}
        )
        context_variables["paid"] = context_variables.get("paid", 0) + amount
        return f"paid {amount}"

    script = [[("pay", {"card": "c", "amount": amount})] for amount in (1, 2, 3)]
    with DurableSwarm(ScriptedModel([*script, "Done."]), database=url, tool_database=other) as swarm:
        response = swarm.run(Agent(functions=[pay]), QUESTION, run_id=RUN)
    assert response.context_variables == {"paid": 6}
    return [message["content"] for message in response.messages if message["role"] == "tool"]


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same database", "another"])
def test_rows_are_there_exactly_once(elsewhere: bool, database_url: str, lives: Lives, tmp_path: Path) -> None:
    """Killed before and after each commit, and at random instants: each row is there once, and so is each result."""
    other = f"sqlite:///{tmp_path}/other.sqlite" if elsewhere else None
    chance, ledger = random.Random(1), tmp_path / "ledger"
    numbers = count(1)

    def one(at: Any) -> None:
        url, target = fresh(database_url, tmp_path, next(numbers), other)
        kept = target or url
        table_in(kept)
        lives.live(paying, url, target, ledger=ledger, at=at)
        for _ in range(chance.randint(0, 1)):
            lives.live(paying, url, target, ledger=ledger, at=chance.uniform(0.2, 0.5))
        end = lives.live(paying, url, target, ledger=ledger)
        assert end.value == ["paid 1", "paid 2", "paid 3"]
        assert rows(kept) == [("c", 1), ("c", 2), ("c", 3)]
        if not url.startswith("sqlite"):
            drop(choose(url))

    url, target = fresh(database_url, tmp_path, 0, other)
    table_in(target or url)
    passed = len(lives.live(paying, url, target, ledger=ledger).passed)
    places: list[Any] = [KillPoint(number, side) for number in range(1, passed + 1) for side in ("before", "after")]
    some = places if LONG else places[:: 9 if elsewhere else 5]
    random_ones = [chance.uniform(0.2, 0.6) for _ in range(KILLS if not elsewhere else 0)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, [*some, *random_ones]))


def fresh(url: str, folder: Path, number: int, other: str | None) -> tuple[str, str | None]:
    """Give a database of its own to a case, and one for its tools."""
    target = None if other is None else f"sqlite:///{folder}/other-{number}.sqlite"
    if target is not None:
        Path(f"{folder}/other-{number}.sqlite").touch()
    if url.startswith("sqlite"):
        return f"sqlite:///{folder}/runs-{number}.sqlite", target
    connect(choose(f"{url}_{number}"), create=True).dispose()
    return f"{url}_{number}", target


def test_what_a_tool_raises_undoes_what_it_wrote(database_url: str) -> None:
    """An exception and a `ToolError` leave no row; the call is made again by `resume`."""
    broken = [True]

    @tool(effect="transactional")
    def pay(connection: sqlalchemy.Connection) -> str:
        connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS payments (card TEXT, amount INTEGER)")
        connection.exec_driver_sql("INSERT INTO payments VALUES ('c', 1)")
        if broken[0]:
            raise OSError("the bank is closed")
        return "paid"

    @tool(effect="transactional")
    def refuse(connection: sqlalchemy.Connection) -> str:
        connection.exec_driver_sql("INSERT INTO payments VALUES ('c', 2)")
        raise ToolError("no credit")

    agent = Agent(name=unique(), functions=[pay, refuse])
    with DurableSwarm(ScriptedModel([["pay"], ["refuse"], "Done."]), database=database_url) as swarm:
        with pytest.raises(OSError, match="closed"):
            swarm.run(agent, QUESTION, run_id=RUN)
        assert rows(database_url) == []
        broken[0] = False
        run = swarm.get(RUN)
        run.resume()
        messages = run.result(PATIENCE).messages
    assert [message["content"] for message in messages if message["role"] == "tool"] == ["paid", "Error: no credit"]
    assert rows(database_url) == [("c", 1)]


@pytest.mark.alternates  # What is killed is the same; that it survives is seen on both.
@pytest.mark.parametrize("looks", [False, True], ids=["alone", "looking at runs"])
def test_transactions_that_conflict_are_repeated(looks: bool, database_url: str) -> None:
    """Tools of several runs that change one row at once lose no change, and may look at runs meanwhile."""
    table_in(database_url)
    engine = sqlalchemy.create_engine(choose(database_url), poolclass=sqlalchemy.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO payments VALUES ('sum', 0)")

    @tool(effect="transactional")
    def add(connection: sqlalchemy.Connection) -> str:
        known = connection.exec_driver_sql("SELECT amount FROM payments").scalar_one()
        time.sleep(0.01)
        if looks:
            assert swarm.get(current_call().run_id).status in ("running", "waiting")
        connection.execute(sqlalchemy.text("UPDATE payments SET amount = :amount"), {"amount": known + 1})
        return str(known)

    def asked(request: dict[str, Any]) -> Any:
        return "Done." if request["messages"][-1]["role"] == "tool" else ["add"]

    agent = Agent(name=unique(), functions=[add])
    with DurableSwarm(ScriptedModel([asked] * 40), database=database_url) as swarm:
        for run in [swarm.start(agent, QUESTION) for _ in range(12)]:
            run.result(PATIENCE)
    assert rows(database_url) == [("sum", 12)]


def overtaken(url: str) -> None:
    """Begin a payment, and stop with the transaction open."""

    @tool(effect="transactional")
    def pay(connection: sqlalchemy.Connection) -> str:
        say("in the transaction")
        os.kill(os.getpid(), signal.SIGSTOP)
        connection.exec_driver_sql("INSERT INTO payments VALUES ('zombie', 1)")
        return "paid"

    with DurableSwarm(ScriptedModel([["pay"], "Done."]), database=url) as swarm:
        try:
            swarm.start(Agent(functions=[pay]), QUESTION, run_id=RUN).result(5)
        except (TimeoutError, errors.DurableSwarmError):
            return


@pytest.mark.postgres
def test_who_has_lost_the_run_writes_nothing(postgres_database: str, lives: Lives, tmp_path: Path) -> None:
    """An execution whose run another has taken meanwhile rolls its transaction back."""
    table_in(postgres_database)
    life = lives.start(overtaken, postgres_database, ledger=tmp_path / "ledger")
    assert life.hear() == "in the transaction"
    change(
        postgres_database, "UPDATE {schema}workflow_status SET owner_xid = 'another' WHERE workflow_uuid = 'run-1/0.0'"
    )
    threading.Timer(0.2, life.send, (signal.SIGCONT,)).start()
    time.sleep(2)
    life.kill()
    assert rows(postgres_database) == []
