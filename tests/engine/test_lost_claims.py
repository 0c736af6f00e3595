"""A run that was claimed for a process, which never heard of it."""

from __future__ import annotations

import contextvars
import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from dbos import _core
from sqlalchemy.exc import OperationalError

from durable_swarm import Agent, tool
from durable_swarm.engine.backend import awaited_calls
from durable_swarm.engine.processes import here, lost_claims, maintenance
from durable_swarm.engine.records import names
from durable_swarm.engine.storage.ownership import Claims
from durable_swarm.testing import ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, change, rows, unique, user, wait_until

CLAIM = "UPDATE {schema}workflow_status SET status = 'PENDING', executor_id = :name, owner_xid = 'lost' "


@pytest.mark.slow
def test_a_claim_whose_answer_was_lost_is_made_again(
    make_anywhere: Make, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that stands as under way in a process, and is not executed, goes on there, if need be at the second try."""
    monkeypatch.setattr(maintenance, "KEEP", 0.1)
    failures = iter([OperationalError("", (), Exception("cut"))])

    def transfer(self: Claims, rows: Any, queue: str, **more: Any) -> set[str]:
        for failure in failures:
            raise failure
        return handed(self, rows, queue, **more)

    handed = Claims.transfer
    monkeypatch.setattr(Claims, "transfer", transfer)
    swarm = make_anywhere(ScriptedModel(["Done."]), database=database_url)
    agent = Agent(name=unique())
    run = swarm.start(agent, user(), run_id="r", queue=True)  # No worker serves the queue.
    assert run.status == "queued"
    change(database_url, CLAIM + "WHERE workflow_uuid = 'r'", name=here.current().identity.name)
    wait_until(lambda: [row.status for row in rows(database_url, "status")] == ["SUCCESS"])
    assert next(failures, None) is None
    assert run.result(PATIENCE).messages[-1]["content"] == "Done."


@pytest.mark.slow
def test_what_is_executed_is_left_alone(make_anywhere: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is executed for many looks, in its caller's thread or another, is not begun again."""
    monkeypatch.setattr(maintenance, "KEEP", 0.02)
    made: list[str] = []
    looks: list[None] = []

    def work(where: str) -> str:
        made.append(where)
        wait_until(lambda: len(made) == 2)
        before = len(looks)

        def enough() -> bool:
            here.current().changes.touch()  # Without changes there are no looks.
            return len(looks) > before + 2 * awaited_calls.LOOKS

        wait_until(enough)
        return "did"

    def look(self: lost_claims.LostClaims) -> None:
        looked(self)
        looks.append(None)

    def reply(request: dict[str, Any]) -> Any:
        said = request["messages"]
        return "Done." if said[-1]["content"] == "did" else [("work", {"where": said[-1]["content"]})]

    looked = lost_claims.LostClaims.look
    monkeypatch.setattr(lost_claims.LostClaims, "look", look)
    swarm = make_anywhere(ScriptedModel(reply))
    agent = Agent(name=unique(), functions=[work])
    other = swarm.start(agent, user("There"))
    assert swarm.run(agent, user("Here")).messages[-1]["content"] == "Done."
    assert other.result(PATIENCE).messages[-1]["content"] == "Done."
    assert sorted(made) == ["Here", "There"]


@pytest.mark.slow
def test_a_dispatch_that_comes_late_begins_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who claimed a run and comes to it when it was taken over lets go of it, and the one that has it goes on."""
    monkeypatch.setattr(maintenance, "KEEP", 0.1)
    late: list[Callable[[], Any]] = []
    asked, answer = list[int](), threading.Event()

    def execute(*claimed: Any) -> Any:
        if late:
            return executed(*claimed)
        late.append(functools.partial(contextvars.copy_context().run, executed, *claimed))
        return None

    def reply(_: Any) -> str:
        asked.append(1)
        assert answer.wait(PATIENCE)
        return "Done."

    executed = _core.execute_dequeued_workflow
    monkeypatch.setattr(_core, "execute_dequeued_workflow", execute)
    swarm, agent = make(ScriptedModel(reply)), Agent(name=unique())
    swarm.serve()
    run = swarm.start(agent, user(), run_id="r", queue=True)
    wait_until(lambda: asked)
    live = here.current().local.executions["r"]
    late[0]()
    time.sleep(0.5)
    assert here.current().local.executions["r"] is live
    assert here.current().local.of("r").state == "running"
    answer.set()
    assert run.result(PATIENCE).messages[-1]["content"] == "Done."
    assert len(asked) == 1


@pytest.mark.slow
def test_a_stray_without_its_agent_is_left_to_others(make: Make, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was claimed here in vain, and cannot go on here, is any process's."""
    monkeypatch.setattr(maintenance, "KEEP", 0.1)
    swarm = make(ScriptedModel([]))
    swarm.enqueue(unique("Nobody"), user(), run_id="r")
    change(url, CLAIM + "WHERE workflow_uuid = 'r'", name=here.current().identity.name)
    wait_until(lambda: rows(url, "status, queue_name") == [("ENQUEUED", names.UNCLAIMED)])


def test_a_run_that_is_being_suspended_is_not_lost(make: Make, url: str) -> None:
    """A run whose suspension is recorded, and that has not left memory yet, is not said to continue elsewhere."""

    @tool(approval=True)
    def work() -> str:
        """Wait for an approval."""
        return "worked"

    swarm, agent = make(ScriptedModel([["work"], "Done."])), Agent(name=unique(), functions=[work])
    run = swarm.start(agent, user(), run_id="r")
    wait_until(lambda: run.status == "waiting")
    here.current().maintenance.close()
    live = here.current().local.executions["r"]
    live.released = True
    change(url, "UPDATE workflow_status SET status = 'DELAYED', owner_xid = NULL WHERE workflow_uuid = 'r'")
    here.current().lost_claims.look()
    assert not live.lost
    live.released = False
    here.current().lost_claims.look()
    assert live.lost
