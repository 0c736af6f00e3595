"""Tool calls that go wrong: what the model is told, and what ends the run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from durable_swarm import Agent, Swarm, ToolError
from durable_swarm.testing import ScriptedModel, call
from tests.contract.helpers import MakeSwarm, Run, roles, tool_contents, tool_messages, user

called: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_called() -> None:
    called.clear()


def refund(order: str, amount: int = 1) -> str:
    """Pays money back."""
    called.append((order, amount))
    return f"Refunded {order}"


def test_unknown_tool(make_swarm: MakeSwarm, run: Run) -> None:
    """A tool the agent does not have is answered in Swarm's words, with the agent's tools; the other calls are made."""
    calls = [("teleport", {"to": "Mars"}), ("refund", {"order": "A1"})]
    model = ScriptedModel([calls, "Sorry."])
    response = run(make_swarm(model), Agent(functions=[refund]), user())
    assert roles(response) == ["assistant", "tool", "tool", "assistant"]
    unknown, known = tool_messages(response)
    assert unknown == {
        "role": "tool",
        "tool_call_id": response.messages[0]["tool_calls"][0]["id"],
        "tool_name": "teleport",
        "content": "Error: Tool teleport not found. Your tools are: refund.",
    }
    assert known["content"] == "Refunded A1"
    assert response.messages[-1]["content"] == "Sorry."


@pytest.mark.parametrize("name", ["Refund", "REFUND", "refund_", "functions.refund"])
def test_a_tool_is_called_by_its_exact_name(make_swarm: MakeSwarm, name: str) -> None:
    """A name that is almost a tool's is unknown, and nothing is called."""
    response = make_swarm(ScriptedModel([[(name, {"order": "A1"})], "Sorry."])).run(Agent(functions=[refund]), user())
    assert tool_contents(response) == [f"Error: Tool {name} not found. Your tools are: refund."]
    assert called == []


def test_tool_of_another_agent(make_swarm: MakeSwarm) -> None:
    """A tool that only another agent has is unknown: no agent borrows the rights of another."""
    Agent(name="Cashier", functions=[refund])
    response = make_swarm(ScriptedModel([[("refund", {"order": "A1"})], "Sorry."])).run(Agent(name="Clerk"), user())
    assert tool_contents(response) == ["Error: Tool refund not found. You have no tools."]
    assert called == []


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param('{"order": "A1"', id="cut off"),
        pytest.param("order A1", id="no JSON"),
        pytest.param('["A1"]', id="an array"),
        pytest.param('"A1"', id="a string"),
        pytest.param("null", id="null"),
        pytest.param("{}", id="one missing"),
        pytest.param('{"order": "A1", "reason": "old"}', id="one too many"),
        pytest.param('{"amount": 2}', id="the required one missing"),
    ],
)
def test_bad_arguments(make_swarm: MakeSwarm, run: Run, arguments: str) -> None:
    """Arguments that are not JSON, or do not fit, are answered with an error and no call; the run goes on."""
    model = ScriptedModel([[("refund", arguments)], [call("refund", order="A1")], "Done"])
    response = run(make_swarm(model), Agent(functions=[refund]), user())
    bad, good = tool_messages(response)
    assert bad["content"].startswith("Error:")
    assert (bad["tool_name"], bad["tool_call_id"]) == ("refund", response.messages[0]["tool_calls"][0]["id"])
    assert good["content"] == "Refunded A1"
    assert called == [("A1", 1)]


def test_bad_arguments_among_good_ones(make_swarm: MakeSwarm) -> None:
    """A call with bad arguments leaves the others of its reply alone, and the answers keep the model's order."""
    calls = [("refund", {"order": "A1"}), ("refund", "{"), ("refund", {"order": "A2"})]
    response = make_swarm(ScriptedModel([calls, "Done"])).run(Agent(functions=[refund]), user())
    first, second, third = tool_contents(response)
    assert (first, third) == ("Refunded A1", "Refunded A2")
    assert second.startswith("Error:")


def test_bad_arguments_stay_in_the_response(make_swarm: MakeSwarm) -> None:
    """The response shows what the model really wrote; only the request to the provider is mended."""
    model = ScriptedModel([[("refund", '{"order"')], "Done"])
    response = make_swarm(model).run(Agent(functions=[refund]), user())
    assert response.messages[0]["tool_calls"][0]["function"]["arguments"] == '{"order"'
    sent = model.calls[1]["messages"][2]["tool_calls"][0]["function"]["arguments"]
    assert isinstance(json.loads(sent), dict)


class Refused(Exception):
    """An exception that cannot be rebuilt from its text alone."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code


def test_exception_ends_the_run(make_swarm: MakeSwarm, run: Run) -> None:
    """What a tool raises reaches the caller of the run as it is, with its type and attributes."""

    def pay() -> str:
        raise Refused(7, "no funds")

    model = ScriptedModel([["pay"]])
    with pytest.raises(Refused, match="7: no funds") as caught:
        run(make_swarm(model), Agent(functions=[pay]), user())
    assert caught.value.code == 7
    assert len(model.calls) == 1


def test_exception_of_an_async_tool_ends_the_run(make_swarm: MakeSwarm, run: Run) -> None:
    """What an async tool raises reaches the caller too, also when it ran beside others."""

    async def pay(code: int) -> str:
        if code:
            raise Refused(code, "no funds")
        return "Paid"

    calls = [call("pay", code=0), call("pay", code=7)]
    with pytest.raises(Refused) as caught:
        run(make_swarm(ScriptedModel([calls])), Agent(functions=[pay]), user())
    assert caught.value.code == 7


def test_type_error_of_the_tool_itself(make_swarm: MakeSwarm) -> None:
    """A TypeError raised within a tool is the tool's exception, not a misfit of the arguments."""

    def pay(amount: int) -> str:
        raise TypeError(f"pay() got an unexpected amount {amount}")

    with pytest.raises(TypeError, match="unexpected amount 1"):
        make_swarm(ScriptedModel([[call("pay", amount=1)]])).run(Agent(functions=[pay]), user())


def test_swarm_is_usable_after_an_exception(make_swarm: MakeSwarm, run: Run) -> None:
    """A failed run does not hinder the next one on the same swarm."""

    def pay() -> str:
        raise Refused(7, "no funds")

    swarm = make_swarm(ScriptedModel([["pay"], "Hello"]))
    agent = Agent(functions=[pay])
    with pytest.raises(Refused):
        run(swarm, agent, user())
    assert run(swarm, agent, user()).messages[-1]["content"] == "Hello"


def test_tool_error_tells_the_model(make_swarm: MakeSwarm, run: Run) -> None:
    """`ToolError` becomes the tool's message, and the run goes on."""

    def pay() -> str:
        raise ToolError("The till is shut.")

    response = run(make_swarm(ScriptedModel([["pay"], "Later then."])), Agent(functions=[pay]), user())
    assert tool_contents(response) == ["Error: The till is shut."]
    assert response.messages[-1]["content"] == "Later then."


def test_tool_error_of_an_async_tool(make_swarm: MakeSwarm, run: Run) -> None:
    """`ToolError` of one async tool leaves those beside it alone."""

    async def pay(amount: int) -> str:
        if amount > 1:
            raise ToolError("Too much.")
        return "Paid"

    calls = [call("pay", amount=2), call("pay", amount=1)]
    response = run(make_swarm(ScriptedModel([calls, "Done"])), Agent(functions=[pay]), user())
    assert tool_contents(response) == ["Error: Too much.", "Paid"]


def test_tool_errors_tell(make_swarm: MakeSwarm, run: Run) -> None:
    """With `tool_errors="tell"` every exception of a tool becomes its message, with type and text."""

    def pay() -> str:
        raise Refused(7, "no funds")

    swarm = make_swarm(ScriptedModel([["pay"], "Later then."]), tool_errors="tell")
    response = run(swarm, Agent(functions=[pay]), user())
    assert tool_contents(response) == ["Error: Refused: 7: no funds"]
    assert response.messages[-1]["content"] == "Later then."


def test_change_before_a_told_error_is_kept(make_swarm: MakeSwarm) -> None:
    """What a tool changed in place before `ToolError` is kept, as the change has happened."""

    def pay(context_variables: dict[str, Any]) -> str:
        context_variables["tries"] = context_variables.get("tries", 0) + 1
        raise ToolError("The till is shut.")

    response = make_swarm(ScriptedModel([["pay"], ["pay"], "Done"])).run(Agent(functions=[pay]), user())
    assert response.context_variables == {"tries": 2}


def test_a_tool_that_is_taken_away_before_its_call() -> None:
    """In memory a call whose tool an earlier call of the reply took away is answered as that of an unknown tool."""
    agent = Agent(name="Fired", functions=[refund])

    def dismiss() -> str:
        agent.functions.remove(refund)
        return "dismissed"

    agent.functions.append(dismiss)
    model = ScriptedModel([[("dismiss", {}), ("refund", {"order": "A1"})], "Sorry."])
    response = Swarm(model).run(agent, user())
    assert tool_contents(response) == ["dismissed", "Error: Tool refund not found. Your tools are: dismiss."]
    assert called == []
