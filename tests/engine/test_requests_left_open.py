"""A request is closed when its call ends without it, also if the call has no workflow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from durable_swarm import Agent, Limits, step, tool
from durable_swarm.requests import Request
from durable_swarm.testing import ScriptedModel, call
from tests.engine.conftest import Make
from tests.engine.helpers import unique, user, wait_until


def look() -> str:
    """Use up the limit."""
    return "1"


@tool(approval=True)
def pay() -> str:
    """Need an approval."""
    return "2"


@tool(approval=True)
@step
def pay_in_a_step() -> str:
    """Need an approval, in a call that is never a workflow."""
    return "2"


@pytest.mark.parametrize("asks", [pay, pay_in_a_step], ids=lambda asks: asks.__name__)
def test_the_approval_of_a_call_that_a_limit_refuses_is_closed(asks: Callable[..., Any], make_anywhere: Make) -> None:
    """It was opened with its batch, before the limit was reached; nobody is asked about a call that is not made."""
    left: list[Request] = []

    def reply(request: dict[str, Any]) -> object:
        if request["messages"][-1]["role"] == "user":
            return [call("look"), call(asks.__name__)]
        left.extend(swarm.requests())
        return "Done"

    swarm = make_anywhere(ScriptedModel(reply), limits=Limits(tool_calls=1, on_limit="finish"))
    agent = Agent(name=unique(), functions=[look, asks])
    assert swarm.run(agent, user(), run_id="r").messages[-1]["content"] == "Done"
    assert left == []
    assert [request.kind for request in swarm.get("r").requests(all=True)] == ["approval"]


def test_the_request_of_a_call_whose_limit_was_extended_otherwise_is_closed(make_anywhere: Make) -> None:
    """After a restart the call is permitted and asks no more."""
    left: list[Request] = []

    def reply(request: dict[str, Any]) -> object:
        if request["messages"][-1]["role"] == "user":
            return [call("look"), call("look")]
        left.extend(later.requests())
        return "Done"

    limits, agent = Limits(tool_calls=1, on_limit="ask"), Agent(name=unique(), functions=[look])
    first = make_anywhere(ScriptedModel(reply), limits=limits)
    first.start(agent, user(), run_id="r")
    wait_until(first.requests)
    first.get("r").extend(tool_calls=5)
    first.close()
    later = make_anywhere(ScriptedModel(reply), limits=limits)
    later.recover()
    assert later.get("r").result().messages[-1]["content"] == "Done"
    assert left == []
