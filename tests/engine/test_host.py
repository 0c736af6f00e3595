"""Inside a program that launched DBOS itself: its DBOS is used, never closed, and everything of it goes on working."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from tests.engine.helpers import Program, rows

pytestmark = pytest.mark.slow

HOST = """
    import json, os, sys, threading, time
    from dbos import DBOS

    url, life, order = sys.argv[1:4]
    config = {"name": "host", "system_database_url": url}

    @DBOS.workflow()
    def own(value):
        return {"own": value, "kinds": {1, 2}}

    if order == "after":
        DBOS(config=config)
        DBOS.launch()

    from durable_swarm import Agent, ConfigurationError, DurableSwarm, RunFailed, step
    from durable_swarm.testing import ScriptedModel

    if order == "before":
        DBOS(config=config)
        DBOS.launch()

    made = []

    @step
    def double(number: int) -> int:
        made.append(number)
        return 2 * number

    def compute(number: int) -> str:
        return str(double(number))

    async def slow(number: int) -> str:
        return str(number)

    def hold() -> str:
        double(1)  # It makes the call a workflow.
        if life == "killed":
            threading.Event().wait(60)
        return "held"

    def fail() -> str:
        raise ValueError("broken")

    user = [{"role": "user", "content": "Hi"}]
    agent = Agent(name="Clerk", functions=[compute, double, slow, hold, fail])
    found = {}
"""

WORK = """
    replies = [[("compute", {"number": 2}), ("double", {"number": 5}), ("slow", {"number": 7})], "Done"]
    with DurableSwarm(ScriptedModel(replies * 2 + [["fail"]])) as swarm:
        response = swarm.run(agent, user, run_id="r")
        found["texts"] = [message["content"] for message in response.messages]
        found["started"] = swarm.start(agent, user).result(10).messages[-1]["content"]
        try:
            swarm.run(agent, user, run_id="failing")
        except ValueError as error:
            found["error"] = str(error)
        found["steps"] = [info.name for info in swarm.get("r").steps()]
    assert own((1, 2)) == {"own": (1, 2), "kinds": {1, 2}}
    with DurableSwarm(ScriptedModel([])) as again:
        found["listed"] = sorted(run.status for run in again.runs())
        found["again"] = again.run(agent, user, run_id="r").messages[-1]["content"]
    found["alive"] = own((3,))["own"] == (3,)
    DBOS.destroy()
    print(json.dumps(found))
"""

CRASH = """
    replies = [[("compute", {"number": 2}), ("double", {"number": 5})], ["hold"], "Done"]
    swarm = DurableSwarm(ScriptedModel(replies))
    if life == "killed":
        swarm.run(agent, user, run_id="r")
    run = swarm.get("r") if life == "recovered" else None
    response = run.result(20) if run else swarm.run(agent, user, run_id="r")
    found = {"texts": [message["content"] for message in response.messages], "made": made}
    found["own"] = own((4,))["own"] == (4,)
    DBOS.destroy()
    print(json.dumps(found))
"""

OTHER = """
    for database in (sys.argv[4], url, None):
        try:
            with DurableSwarm(ScriptedModel(["Hello"]), database=database) as swarm:
                found[str(database == url)] = swarm.run(agent, user).messages[-1]["content"]
        except ConfigurationError as error:
            found["refused"] = str(error)
    found["created"] = os.path.exists(sys.argv[4].removeprefix("sqlite:///"))
    found["runs"] = len(DBOS.list_workflows(name="durable_swarm.run"))
    DBOS.destroy()
    print(json.dumps(found))
"""


def check_work(found: dict[str, Any]) -> None:
    """Check what a host found out about its runs."""
    assert found["texts"] == [None, "4", "10", "7", "Done"]
    assert (found["started"], found["error"], found["again"]) == ("Done", "broken", "Done")
    assert found["listed"] == ["done", "done", "failed"]
    assert found["steps"][:4] == ["model:Clerk", "tool:compute", "double", "tool:double"]
    assert found["alive"] is True


def test_runs_in_a_host(url: str) -> None:
    """Runs of every kind work beside the program's own workflows; our rows are JSON, the program's what they were."""
    check_work(Program(HOST + WORK, anew=True).run(url, "whole", "before"))
    mine, others = _texts_of(url, mine=True), _texts_of(url, mine=False)
    assert len(mine) > 10
    assert [text for text in mine if not text.startswith(("{", "["))] == []
    assert others
    assert all(text.startswith("gA") for text in others)


def test_runs_in_a_host_on_postgres(postgres_database: str) -> None:
    """The same on PostgreSQL, in a program that imports the package when its DBOS is launched already."""
    check_work(Program(HOST + WORK, anew=True).run(postgres_database, "whole", "after"))


def _texts_of(url: str, mine: bool) -> list[str]:
    """Give the stored texts of our runs, or of the program's own workflows."""
    ours = {row[0] for row in rows(url, "workflow_uuid, name") if row[1].startswith("durable_swarm.")}
    tables: dict[str, tuple[str, ...]] = {"workflow_input": ("inputs",), "workflow_output": ("output", "error")}
    tables["operation_outputs"] = ("output", "error")
    return [
        text
        for table, columns in tables.items()
        for run_id, *texts in rows(url, f"workflow_uuid, {', '.join(columns)}", table)
        for text in texts
        if text is not None and (run_id in ours) is mine
    ]


def _holds(url: str) -> bool:
    with contextlib.suppress(Exception):
        return [row for row in rows(url, "workflow_uuid, status") if tuple(row) == ("r/1.0", "PENDING")] != []
    return False


@pytest.mark.parametrize(("order", "life"), [("before", "recovered"), ("after", "repeated")])
def test_a_killed_host(url: str, order: str, life: str) -> None:
    """After SIGKILL the program, started again, finishes its runs, and no finished tool is called again."""
    program = Program(HOST + CRASH, anew=True)
    program.run_and_kill(lambda: _holds(url), url, "killed", order)
    found = program.run(url, life, order)
    assert found["texts"] == [None, "4", "10", None, "held", "Done"]
    assert found["made"] == []
    assert found["own"] is True


def test_the_database_is_the_hosts(url: str, tmp_path: Path) -> None:
    """A program's DBOS says which database is used: another one is refused by name, the same or none is fine."""
    found: dict[str, Any] = Program(HOST + OTHER, anew=True).run(
        url, "whole", "before", f"sqlite:///{tmp_path}/other.sqlite"
    )
    assert "other.sqlite" in found["refused"]
    assert "runs.sqlite" in found["refused"]
    assert (found["True"], found["False"]) == ("Hello", "Hello")
    assert found["created"] is False
    assert found["runs"] == 2
