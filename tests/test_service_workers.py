"""Who works on a database, what waits, and who changed which run."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from pathlib import Path

import pytest

from durable_swarm import Agent, DurableSwarm, RunNotFound
from durable_swarm.cli import main
from durable_swarm.service import checkup, open_runs
from durable_swarm.testing import ScriptedModel
from tests.engine.helpers import connected, user, wait_until
from tests.support.patience import PATIENCE


def test_the_processes_and_queues_of_a_database(database_url: str) -> None:
    """A worker tells where it runs, what it serves and owns; its queue how many wait, since when, and its limits."""
    gate = threading.Event()
    entered = threading.Event()

    def reply(_: object) -> str:
        entered.set()
        gate.wait(60)
        return "Done"

    agent = Agent(name="Packer")
    with DurableSwarm(database=database_url, name="shop") as swarm:
        for number in range(3):
            swarm.enqueue(agent.name, user(), run_id=f"order-{number}")
    with open_runs(database_url) as runs:
        [queue] = runs.workers().queues
        assert (queue.swarm, queue.waiting, queue.places) == ("shop", 3, 0)
        assert queue.oldest_at is not None
    with DurableSwarm(ScriptedModel(reply), database=database_url, name="shop") as swarm:
        swarm.serve(1, queue_concurrency=7, rate=(90, 60))
        assert entered.wait(PATIENCE)
        with open_runs(database_url) as runs:
            [process] = wait_until(lambda: [one for one in runs.workers().processes if one.serves])
            [queue] = runs.workers().queues
        gate.set()
        wait_until(lambda: all(run.status == "done" for run in swarm.runs()))
    assert (process.alive, process.pid, process.swarms, process.serves) == (True, os.getpid(), ["shop"], ["shop"])
    assert (process.places, process.runs, process.host) == (1, 1, socket.gethostname())
    assert process.seen_at is not None
    assert (queue.waiting, queue.places, queue.everywhere, queue.rate) == (2, 1, 7, (90, 60))
    with open_runs(database_url) as runs:
        assert (runs.workers().processes, runs.workers().queues) == ([], [])


def test_who_changed_a_run(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Cancelling, resuming, extending, forking and saying are recorded with the person; what changed nothing is not."""
    with DurableSwarm(ScriptedModel(lambda _: "Hello"), database=database_url) as swarm:
        clerk = Agent(name="Clerk")
        swarm.run(clerk, user(), run_id="done")
        swarm.enqueue("Clerk", user(), run_id="queued")
    with open_runs(database_url) as runs:
        runs.cancel("done", "ana")
        runs.inbox.say("queued", "Hurry", "ana")
        runs.extend("queued", {"requests": 5}, "ben")
        runs.cancel("queued", "ana")
        runs.resume("queued", "cho")
        runs.fork("done", 0, new_id="fork", by="ana")
        assert runs.show("done").actions == []
        assert [(one.action, one.by) for one in runs.show("queued").actions] == [
            ("said something", "ana"),
            ("extended (requests +5)", "ben"),
            ("cancelled", "ana"),
            ("resumed", "cho"),
        ]
        assert [(one.action, one.by) for one in runs.page("fork").actions] == [("forked from turn 0 of done", "ana")]
        with pytest.raises(RunNotFound):
            runs.cancel("none", "ana")
    main(["cancel", "queued", "--by", "dee", "--database", database_url])
    main(["show", "queued", "--database", database_url])
    assert "cancelled by dee" in capsys.readouterr().out
    main(["show", "queued", "--json", "--database", database_url])
    assert json.loads(capsys.readouterr().out)["actions"][-1]["by"] == "dee"


def statement(url: str, text: str) -> None:
    """Execute a statement."""
    with connected(url) as connection:
        connection.exec_driver_sql(text)


def test_maintenance_that_fails_is_told(tmp_path: Path) -> None:
    """A job that fails stops no other, is tried again, and is shown by the check-up until it succeeds."""
    url = f"sqlite:///{tmp_path}/runs.sqlite"

    def told() -> list[str]:
        return [check.text for check in checkup(url) if check.name == "maintenance"]

    with DurableSwarm(ScriptedModel(["Hi"]), database=url) as swarm:
        swarm.run(Agent(name="Clerk"), user(), run_id="old")
    statement(url, "CREATE TRIGGER kept BEFORE DELETE ON workflow_status BEGIN SELECT RAISE(ABORT, 'kept by law'); END")
    with DurableSwarm(database=url, keep_for=0) as swarm:
        assert [run.id for run in swarm.runs()] == ["old"]
        [text] = wait_until(told)
        assert re.fullmatch(rf"process {os.getpid()} on .*: deletion failed, and is tried again: .*kept by law.*", text)
        statement(url, "DROP TRIGGER kept")
        wait_until(lambda: not told())
        assert swarm.runs() == []
