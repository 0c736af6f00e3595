"""What a process remembers of an interrupted run ends when the run ends, or continues in another process."""

from __future__ import annotations

from typing import Any

import pytest

from durable_swarm import Agent, AgentChanged
from durable_swarm.engine.execution.execution import Execution
from durable_swarm.engine.processes import here, maintenance
from durable_swarm.engine.processes.local_runs import INTERRUPTED, LocalRuns
from durable_swarm.engine.records import names
from durable_swarm.loop import Start
from durable_swarm.testing import ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import change, unique, user, wait_until

CHANGED = AgentChanged("an agent has changed")
SET = "UPDATE {schema}workflow_status SET status = :status, executor_id = :process, queue_name = :queue"


@pytest.mark.parametrize(
    ("status", "process", "queue", "gone"),
    [
        ("PENDING", "me", None, None),
        ("PENDING", "another", None, False),
        ("ENQUEUED", "another", names.QUEUE + "me", None),
        ("ENQUEUED", "me", names.QUEUE + "another", False),
        ("ENQUEUED", "another", names.UNCLAIMED, None),
        ("ENQUEUED", "another", names.work_queue("shop"), None),
        ("DELAYED", "another", None, None),
        ("DELAYED", "another", names.TURNS, None),
        ("SUCCESS", "me", None, True),
        ("ERROR", "me", None, True),
        ("CANCELLED", "another", None, True),
    ],
)
def test_where_a_run_is(
    status: str, process: str, queue: str | None, gone: bool | None, make_anywhere: Make, database_url: str
) -> None:
    """Only a run that has ended, or that another process has or is about to get, is elsewhere."""
    make_anywhere(ScriptedModel(["Done."])).run(Agent(name=unique()), user(), run_id="r")
    change(database_url, SET, status=status, process=process, queue=queue)
    found = here.current().store.claims.elsewhere({"r", "deleted"}, "me")
    assert found == {"deleted": True} | ({} if gone is None else {"r": gone})


@pytest.mark.parametrize("ended", [False, True])
def test_a_run_that_another_process_has_is_not_held_here(
    ended: bool, make_anywhere: Make, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told that it waits, or why, and nobody looks for it any more."""
    monkeypatch.setattr(maintenance, "KEEP", 0.05)
    swarm = make_anywhere(ScriptedModel(["Done."]))
    agent = Agent(name=unique())
    swarm.run(agent, user(), run_id="r")
    local, run = here.current().local, swarm.get("r")
    if not ended:
        change(database_url, SET, status="PENDING", process="another", queue=None)
    local.hold("r", CHANGED, None)
    local.retry("s", "the database is away")
    wait_until(lambda: not local.in_state(*INTERRUPTED))
    assert run.waits_for is None
    assert local.of("r").is_declined is not ended


def test_what_was_lent_to_a_suspended_run_stays_until_its_end() -> None:
    """Another process may have it and die: then the run continues here with the same agents, if it has not ended."""
    runs, swarm = LocalRuns(), Any
    run = Execution("r", Start("", [], {}), swarm, "r")
    runs.begin(run)
    runs.lend("r", {"A": Agent(name="A")})
    runs.leave(run, "suspended")
    runs.forget("r", ended=False)
    assert (runs.of("r").state, list(runs.of("r").cast)) == ("elsewhere", ["A"])


def test_a_run_that_is_executed_here_is_not_forgotten() -> None:
    """A look at the database that is late says nothing of a run that was taken over, or began, meanwhile."""
    runs, swarm = LocalRuns(), Any
    runs.take("r", None, was_paused=False)
    runs.forget("r", ended=True)
    assert runs.of("r").state == "taken"
    runs.begin(Execution("r", Start("", [], {}), swarm, "r"))
    runs.forget("r", ended=True)
    assert runs.of("r").state == "running"
