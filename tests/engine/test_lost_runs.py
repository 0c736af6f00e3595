"""An execution that has lost its run, or whose run was cancelled, begins nothing more, however long that waited."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from durable_swarm import Agent, Run, ask_human, step, tool
from durable_swarm.engine.backend import ownership, queues
from durable_swarm.engine.execution import execution
from durable_swarm.engine.processes import here
from durable_swarm.requests import Decision, RequestSpec
from durable_swarm.testing import ScriptedModel, call
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, unique, user, wait_until

LATE = 2 * execution.SURE
"""Seconds after which it is asked again whose the run is."""


class Desk:
    """What tools have done, and a gate at which they wait."""

    def __init__(self) -> None:
        self.done: list[Any] = []
        self.came = 0
        self.gate = threading.Event()

    def wait(self) -> None:
        self.came += 1
        assert self.gate.wait(PATIENCE)


def over(run: Run) -> bool:
    """Whether no execution of the run is under way here."""
    return run.id not in here.current().local.executions and run.id not in queues.executing()


def cancel_and_resume(run: Run) -> None:
    """Have another execution of the run begin beside the one that is under way."""
    before = here.current().local.executions[run.id]
    run.cancel()
    run.resume()
    wait_until(lambda: here.current().local.executions.get(run.id, before) is not before)


def approved(desk: Desk) -> Callable[..., str]:
    @tool(approval=True)
    def refund() -> str:
        desk.done.append("refund")
        return "refunded"

    return refund


def asking(desk: Desk) -> Callable[..., str]:
    def refund() -> str:
        told = ask_human("Sure?")
        desk.done.append("refund")
        return told

    return refund


@pytest.mark.parametrize("kind", [approved, asking])
def test_what_waited_for_a_person_is_made_once(kind: Callable[[Desk], Any], make_anywhere: Make) -> None:
    """A run that is cancelled and resumed while it waits has one execution that goes on with the answer."""
    desk = Desk()
    swarm = make_anywhere(ScriptedModel(lambda request: _reply(request, [("refund", {})])))
    clerk = Agent(name=unique(), functions=[kind(desk)])
    run = swarm.start(clerk, user())
    wait_until(run.requests)
    cancel_and_resume(run)
    wait_until(run.requests)
    time.sleep(LATE)
    if kind is asking:
        run.answer("yes")
    else:
        run.approve()
    assert run.result(PATIENCE).messages[-1]["content"] == "Done."
    wait_until(lambda: over(run))
    assert desk.done == ["refund"]


@pytest.mark.parametrize("decorated", [True, False])
def test_what_has_not_had_its_turn_is_not_made(decorated: bool, make: Make) -> None:
    """Of a batch of which only two run at once, a cancelled run makes no call that had not begun."""
    desk = Desk()

    def work(number: int) -> str:
        desk.done.append(number)
        desk.wait()
        return "worked"

    batch = [call("work", number=number) for number in range(5)]
    swarm = make(ScriptedModel([batch]), tool_concurrency=2)
    run = swarm.start(Agent(name=unique(), functions=[step(work) if decorated else work]), user())
    wait_until(lambda: desk.came == 2)
    run.cancel()
    time.sleep(LATE)
    desk.gate.set()
    wait_until(lambda: over(run))
    assert len(desk.done) == 2


def test_a_cancelled_run_tries_nothing_again(make: Make) -> None:
    """A call that raised is not tried again once its run was cancelled."""
    desk = Desk()

    @step(retries=4, backoff=LATE)
    def work() -> str:
        desk.done.append("work")
        run.cancel()
        raise ValueError("lost")

    run = make(ScriptedModel([["work"]])).start(Agent(name=unique(), functions=[work]), user(), run_id="r")
    wait_until(lambda: desk.done and over(run))
    assert desk.done == ["work"]


def test_a_step_of_a_tool_is_made_by_one(make: Make) -> None:
    """The steps inside a tool are made by the execution that has the run, though another is in the same tool."""
    desk = Desk()

    @step
    def pay() -> str:
        desk.done.append("pay")
        return "paid"

    def work() -> str:
        desk.wait()
        return pay()

    clerk, swarm = (
        Agent(name=unique(), functions=[work]),
        make(ScriptedModel(lambda request: _reply(request, [("work", {})]))),
    )
    run = swarm.start(clerk, user(), run_id="r")
    wait_until(lambda: desk.came == 1)
    cancel_and_resume(run)
    wait_until(lambda: desk.came == 2)
    time.sleep(LATE)
    desk.gate.set()
    assert run.result(PATIENCE).messages[-1]["content"] == "Done."
    wait_until(lambda: over(run))
    assert desk.done == ["pay"]


def test_who_has_lost_a_run_asks_nobody(make: Make) -> None:
    """A request is opened, and opened again, by the execution that has the run: nobody else's words replace it."""
    desk = Desk()
    swarm = make(ScriptedModel(lambda request: _reply(request, [("refund", {})])))
    run = swarm.start(Agent(name=unique(), functions=[asking(desk)]), user(), run_id="r")
    [request] = wait_until(run.requests)
    inbox = here.current().store.inbox
    asked = RequestSpec(request.id, "r", "r/0.0", "question", "Clerk", "refund", question="Other words?")
    for change in (lambda: inbox.open(asked, "", None, "another"), lambda: inbox.reopen(asked, "", "no", "another")):
        with pytest.raises(ownership.OwnershipLost):
            change()
    inbox.decide(request.id, Decision("answered", value="yes"), "boss")
    owner = here.current().local.executions["r"].owner
    assert run.result(PATIENCE).messages[-1]["content"] == "Done."
    with pytest.raises(ownership.OwnershipLost):
        inbox.open(asked, "", None, owner)
    assert run.requests(all=True)[0].answered_by == "boss"


def _reply(request: dict[str, Any], calls: list[Any]) -> Any:
    return "Done." if request["messages"][-1]["role"] == "tool" else calls
