"""A run and its open calls have one owner: they move together, or not at all, and who has lost them follows."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, Run, step
from durable_swarm.engine.execution import execution
from durable_swarm.engine.execution.child_calls import PendingCalls
from durable_swarm.engine.processes import here
from durable_swarm.engine.records import names
from durable_swarm.engine.signals import RunHeld
from durable_swarm.testing import ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, change, rows, unique, user, wait_until

STEAL = "UPDATE {schema}workflow_status SET owner_xid = 'another', executor_id = 'another' WHERE status = 'PENDING'"
"""What a process leaves that has taken everything over and has died then."""


class Gate:
    """A tool that waits until the test lets it go on."""

    def __init__(self) -> None:
        self.entered, self.open, self.calls = threading.Event(), threading.Event(), 0

    def hold(self) -> str:
        self.calls += 1
        self.entered.set()
        assert self.open.wait(PATIENCE)
        return "held"

    def hold_workflow(self) -> str:
        """Hold a call that has made a step, and so is a workflow."""
        noted()
        return self.hold()


@step
def noted() -> None:
    """Make a call a workflow."""


def statuses(url: str) -> dict[str, tuple[str, str | None]]:
    """Give the status and the queue of each run and call."""
    return {row[0]: (row[1], row[2]) for row in rows(url, "workflow_uuid, status, queue_name")}


def failing(swarm: DurableSwarm) -> Run:
    """Give a run that has failed in a call, with no process that takes it over by itself."""

    def fail() -> str:
        raise ValueError("not yet")

    run = swarm.start(Agent(name=unique(), functions=[fail]), user(), run_id="r")
    with pytest.raises(ValueError, match="not yet"):
        run.result(PATIENCE)
    return run


def resumed(url: str, row: Any) -> None:
    assert here.current().store.resume(row, "elsewhere") is True


def under_way(url: str, row: Any) -> None:
    resumed(url, row)
    change(url, "UPDATE {schema}workflow_status SET status = 'PENDING', executor_id = 'other', queue_name = NULL")


def cancelled(url: str, row: Any) -> None:
    resumed(url, row)
    here.current().store.cancel("r")


def ended(url: str, row: Any) -> None:
    resumed(url, row)
    change(url, "UPDATE {schema}workflow_status SET status = 'SUCCESS', completed_at = 1, queue_name = NULL")


@pytest.mark.parametrize("happened", [resumed, under_way, cancelled, ended])
def test_resuming_what_was_read_changes_nothing_that_is_new(
    happened: Callable[[str, Any], None], make_anywhere: Make, database_url: str
) -> None:
    """Who resumes a run by a row that is old finds it as somebody else has left it, and leaves it so."""
    failing(make_anywhere(ScriptedModel([["fail"]])))
    store = here.current().store
    row = store.found("r")
    happened(database_url, row)
    before = statuses(database_url)
    assert store.resume(row, "second") is False
    assert statuses(database_url) == before


def test_resuming_takes_the_failed_step_back_with_the_run(make_anywhere: Make, database_url: str) -> None:
    """A tool that ended with the error of a step of its own calls that step again after `resume`, and not before."""
    made: list[str] = []

    @step
    def pay() -> str:
        made.append("pay")
        if len(made) == 1:
            raise ValueError("declined")
        return "paid"

    def work() -> str:
        return pay()

    swarm = make_anywhere(ScriptedModel(lambda request: "Done." if len(request["messages"]) > 2 else ["work"]))
    agent = Agent(name=unique(), functions=[work])
    run = swarm.start(agent, user(), run_id="r")
    with pytest.raises(ValueError, match="declined"):
        run.result(PATIENCE)
    run.resume()
    assert run.result(PATIENCE).messages[-1]["content"] == "Done."
    assert (made, agent.functions) == (["pay", "pay"], [work])


OPEN = {
    "living": "status = 'PENDING', executor_id = 'living', owner_xid = 'theirs'",
    "queued": "status = 'ENQUEUED', executor_id = 'living', owner_xid = NULL, queue_name = 'durable_swarm:living'",
    "resting": "status = 'DELAYED', owner_xid = NULL, queue_name = 'durable_swarm:'",
    "nobody's": "status = 'PENDING', executor_id = NULL, owner_xid = NULL",
}


@pytest.mark.parametrize("call", OPEN.values(), ids=OPEN)
def test_open_calls_go_with_their_run(call: str, make_anywhere: Make, database_url: str) -> None:
    """Whoever has a run's open call, who takes the run over gets the call, too; a call that has ended stays."""
    gate = Gate()
    swarm = make_anywhere(ScriptedModel([["hold_workflow"], "Done."]))
    swarm.start(Agent(name=unique(), functions=[gate.hold_workflow]), user(), run_id="r")
    assert gate.entered.wait(PATIENCE)
    change(database_url, f"UPDATE {{schema}}workflow_status SET {call} WHERE workflow_uuid = 'r/0.0'")
    claims, row = here.current().store.claims, here.current().store.found("r")
    assert claims.transfer([row], "taker") == {"r"}
    assert statuses(database_url) == {"r": ("ENQUEUED", "taker"), "r/0.0": ("ENQUEUED", "taker")}
    assert claims.transfer([row], "late") == set()
    change(database_url, "UPDATE {schema}workflow_status SET status = 'SUCCESS' WHERE workflow_uuid = 'r/0.0'")
    assert claims.transfer([here.current().store.found("r")], "third") == {"r"}
    assert statuses(database_url) == {"r": ("ENQUEUED", "third"), "r/0.0": ("SUCCESS", "taker")}
    gate.open.set()


def test_cancelling_takes_the_run_with_its_calls_or_nothing(make_anywhere: Make, database_url: str) -> None:
    """Cancelling ends a run and what is open in it at once; of a run that has ended it leaves everything as it is."""
    gate = Gate()
    swarm = make_anywhere(ScriptedModel([["hold_workflow"], "Done."]))
    swarm.start(Agent(name=unique(), functions=[gate.hold_workflow]), user(), run_id="r")
    assert gate.entered.wait(PATIENCE)
    claims, family = here.current().store.claims, here.current().store.family
    assert claims.cancel("r", family.within) is True
    assert {status for status, _ in statuses(database_url).values()} == {"CANCELLED"}
    change(database_url, "UPDATE {schema}workflow_status SET status = 'PENDING' WHERE workflow_uuid = 'r/0.0'")
    assert claims.cancel("r", family.within) is False
    assert statuses(database_url)["r/0.0"][0] == "PENDING"
    gate.open.set()


def by_run(swarm: DurableSwarm, agent: Agent) -> str:
    return str(swarm.run(agent, user(), run_id="r").messages[-1]["content"])


def by_start(swarm: DurableSwarm, agent: Agent) -> str:
    return str(swarm.start(agent, user(), run_id="r").result(PATIENCE).messages[-1]["content"])


def by_await(swarm: DurableSwarm, agent: Agent) -> str:
    async def main() -> str:
        response = await swarm.run_async(agent, user(), run_id="r")
        return str(response.messages[-1]["content"])

    return asyncio.run(main())


def by_stream(swarm: DurableSwarm, agent: Agent) -> str:
    *_, last = swarm.run(agent, user(), run_id="r", stream=True)
    return str(last["response"].messages[-1]["content"])


def by_events(swarm: DurableSwarm, agent: Agent) -> str:
    run = swarm.start(agent, user(), run_id="r")
    assert [event.type for event in run.events()][-1] == "run.finished"
    return str(run.messages()[-1]["content"])


@pytest.mark.parametrize("wait", [by_run, by_start, by_await, by_stream, by_events])
@pytest.mark.parametrize("decorated", [True, False])
def test_who_has_lost_a_run_follows_it(
    decorated: bool, wait: Callable[[DurableSwarm, Agent], str], make: Make, url: str
) -> None:
    """Who waits for a run that another has taken, and that nobody has since, takes it back and comes to its end."""
    calls: list[int] = []

    def work() -> str:
        calls.append(1)
        if len(calls) == 1:
            change(url, STEAL)
        return "worked"

    swarm = make(ScriptedModel(lambda request: "Done." if request["messages"][-1]["role"] == "tool" else ["work"]))
    assert wait(swarm, Agent(name=unique(), functions=[step(work) if decorated else work])) == "Done."
    assert len(calls) == 2
    assert set(statuses(url).values()) == {("SUCCESS", here.current().queue)}


@pytest.mark.slow
def test_who_has_lost_a_run_is_told_while_its_tool_works(
    make: Make, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that goes on elsewhere is followed there at once, though the tool here takes long yet."""
    gate = Gate()
    swarm = make(ScriptedModel([["hold_workflow"]]))
    run = swarm.start(Agent(name=unique(), functions=[gate.hold_workflow]), user(), run_id="r")
    assert gate.entered.wait(PATIENCE)
    change(url, STEAL)
    change(url, "UPDATE {schema}workflow_status SET status = 'CANCELLED', owner_xid = NULL WHERE name = :tool",
           tool=names.TOOL)  # fmt: skip
    executed: execution.Execution = here.current().local.executions["r"]
    wait_until(executed.over.done)
    assert "continues elsewhere" in caplog.text
    assert executed.lost is True
    run.cancel()
    gate.open.set()


@pytest.mark.parametrize("passes", [True, False])
def test_an_execution_that_was_replaced_holds_nothing(passes: bool, make_anywhere: Make) -> None:
    """A run that is in progress in a process goes on there, whatever stops an earlier execution of it."""
    gate, agent = Gate(), Agent(name=unique())
    agent.functions.append(step(gate.hold))
    run = make_anywhere(ScriptedModel([["hold"], "Done."])).start(agent, user(), run_id="r")
    assert gate.entered.wait(PATIENCE)
    engine = here.current()
    earlier = dataclasses.replace(engine.local.executions["r"])
    engine.hold("r", RunHeld(ConfigurationError("the database is locked"), passes=passes), earlier)
    assert engine.take_over("r") == []
    assert run.waits_for is None
    gate.open.set()
    assert run.result(PATIENCE).messages[-1]["content"] == "Done."
    assert gate.calls == 1


def test_a_call_that_nobody_executes_is_fetched(make_anywhere: Make, database_url: str) -> None:
    """A call whose claim was lost goes to who has its run; never where the run is another's."""
    gate = Gate()
    swarm = make_anywhere(ScriptedModel([["hold_workflow"], "Done."]))
    swarm.start(Agent(name=unique(), functions=[gate.hold_workflow]), user(), run_id="r")
    assert gate.entered.wait(PATIENCE)
    claims, owner = here.current().store.claims, here.current().local.executions["r"].owner
    for call in OPEN.values():
        change(database_url, f"UPDATE {{schema}}workflow_status SET {call} WHERE workflow_uuid = 'r/0.0'")
        assert claims.fetch_call("r/0.0", "r", "another", "mine") is False
        assert claims.fetch_call("r/0.0", "r", owner, "mine") is True
        assert statuses(database_url)["r/0.0"] == ("ENQUEUED", "mine")
        assert claims.fetch_call("r/0.0", "r", owner, "mine") is False
    gate.open.set()


def test_a_place_at_the_desk_knows_who_came_last() -> None:
    """The desk tells the token of who came last for each call, and sends away who waits for what is void."""
    desk = PendingCalls()
    first = desk.place("r/0.0", "one")
    assert desk.owners() == {"r/0.0": "one"}
    assert desk.place("r/0.0", "two") is first
    assert desk.owners() == {"r/0.0": "two"}
    desk.void("r/0.0")
    assert isinstance(first.exception(), BaseException)
    assert desk.owners() == {}
    assert desk.place("r/0.0", "three") is not first
