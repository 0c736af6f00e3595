"""The examples of Swarm's documentation and of its own tests, as programs were taught to write them.

Tools here are untyped on purpose: so are those of the documentation.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import json
from typing import Any
from unittest.mock import Mock

import pytest

from durable_swarm import Agent, Result
from durable_swarm.testing import ScriptedModel, call
from tests.contract.helpers import MakeSwarm, Run, completion, mock_client, system_prompts, tool_contents, user


def test_the_first_example(make_swarm: MakeSwarm, run: Run) -> None:
    """Asking for agent B gives the words of agent B."""

    def transfer_to_agent_b():
        return agent_b

    agent_a = Agent(name="Agent A", instructions="You are a helpful agent.", functions=[transfer_to_agent_b])
    agent_b = Agent(name="Agent B", instructions="Only speak in Haikus.")
    model = ScriptedModel([["transfer_to_agent_b"], "Hope glimmers brightly"])
    messages = [{"role": "user", "content": "I want to talk to agent B."}]
    response = run(make_swarm(model), agent=agent_a, messages=messages)
    assert response.messages[-1]["content"] == "Hope glimmers brightly"
    assert system_prompts(model.calls) == ["You are a helpful agent.", "Only speak in Haikus."]


def test_callable_instructions(make_swarm: MakeSwarm) -> None:
    """Instructions read the context variables of the run."""

    def instructions(context_variables):
        user_name = context_variables["user_name"]
        return f"Help the user, {user_name}, do whatever they want."

    model = ScriptedModel(["Hi John, how can I assist you today?"])
    make_swarm(model).run(
        agent=Agent(instructions=instructions), messages=user("Hi!"), context_variables={"user_name": "John"}
    )
    assert system_prompts(model.calls) == ["Help the user, John, do whatever they want."]


def test_a_tool_that_prints(make_swarm: MakeSwarm, capsys: pytest.CaptureFixture[str]) -> None:
    """A tool runs in the program itself: what it prints is printed, in the order of the calls."""

    def greet(context_variables, language):
        user_name = context_variables["user_name"]
        greeting = "Hola" if language.lower() == "spanish" else "Hello"
        print(f"{greeting}, {user_name}!")
        return "Done"

    model = ScriptedModel([[call("greet", language="Spanish"), call("greet", language="English")], "Hecho"])
    make_swarm(model).run(
        agent=Agent(functions=[greet]), messages=user("Usa greet() por favor."), context_variables={"user_name": "John"}
    )
    assert capsys.readouterr().out == "Hola, John!\nHello, John!\n"


def test_handoff_to_sales(make_swarm: MakeSwarm) -> None:
    """The default agent hands off to a named one."""
    sales_agent = Agent(name="Sales Agent")

    def transfer_to_sales():
        return sales_agent

    agent = Agent(functions=[transfer_to_sales])
    swarm = make_swarm(ScriptedModel([["transfer_to_sales"], "Hello"]))
    response = swarm.run(agent, [{"role": "user", "content": "Transfer me to sales."}])
    assert response.agent.name == "Sales Agent"


def test_result_does_all_three(make_swarm: MakeSwarm) -> None:
    """One Result returns a value, hands off, and updates the context."""
    sales_agent = Agent(name="Sales Agent")

    def talk_to_sales():
        return Result(value="Done", agent=sales_agent, context_variables={"department": "sales"})

    swarm = make_swarm(ScriptedModel([["talk_to_sales"], "Hello"]))
    response = swarm.run(
        agent=Agent(functions=[talk_to_sales]),
        messages=[{"role": "user", "content": "Transfer me to sales"}],
        context_variables={"user_name": "John"},
    )
    assert response.agent.name == "Sales Agent"
    assert response.context_variables == {"department": "sales", "user_name": "John"}


def test_function_schema(make_swarm: MakeSwarm) -> None:
    """Untyped parameters are strings, those without a default are required."""

    def greet(name, age: int, location: str = "New York"):
        """Greets the user. Make sure to get their name and age before calling."""
        return f"Hello {name}, glad you are {age} in {location}!"

    model = ScriptedModel([[call("greet", name="Ada", age=36)], "Done"])
    response = make_swarm(model).run(Agent(functions=[greet]), user())
    assert model.calls[0]["tools"][0] == {
        "type": "function",
        "function": {
            "name": "greet",
            "description": "Greets the user. Make sure to get their name and age before calling.",
            "parameters": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "age": {"type": "integer"},
                    "location": {"type": "string"},
                },
                "required": ["name", "age"],
            },
        },
    }
    assert tool_contents(response) == ["Hello Ada, glad you are 36 in New York!"]


def test_triage(make_swarm: MakeSwarm) -> None:
    """The triage example: out to refunds, a refund with defaults, and back to triage."""

    def process_refund(item_id, reason="NOT SPECIFIED"):
        """Refund an item. Refund an item. Make sure you have the item_id of the form item_..."""
        return f"Refunded {item_id}: {reason}"

    def transfer_back_to_triage():
        """Call this function if a user is asking about a topic that is not handled by the current agent."""
        return triage_agent

    def transfer_to_refunds():
        return refunds_agent

    triage_agent = Agent(name="Triage Agent", instructions="Determine which agent is best suited.")
    refunds_agent = Agent(name="Refunds Agent", functions=[process_refund])
    triage_agent.functions = [transfer_to_refunds]
    refunds_agent.functions.append(transfer_back_to_triage)
    model = ScriptedModel(
        [["transfer_to_refunds"], [call("process_refund", item_id="item_99")], ["transfer_back_to_triage"], "Else?"]
    )
    response = make_swarm(model).run(triage_agent, user("I want to make a refund!"))
    assert tool_contents(response) == [
        '{"assistant": "Refunds Agent"}',
        "Refunded item_99: NOT SPECIFIED",
        '{"assistant": "Triage Agent"}',
    ]
    assert response.agent is triage_agent


def test_tool_call_evaluation(make_swarm: MakeSwarm) -> None:
    """The way Swarm's examples are evaluated: stop at the tool call and look at its name and arguments."""
    get_weather_mock = Mock()

    def get_weather(location, time="now"):
        get_weather_mock(location=location, time=time)
        return json.dumps({"location": location, "temperature": "65", "time": time})

    client = mock_client(completion("", [("get_weather", {"location": "NYC"})]))
    response = make_swarm(client).run(
        agent=Agent(functions=[get_weather]), messages=user("What's the weather in NYC?"), execute_tools=False
    )
    tool_calls = response.messages[-1].get("tool_calls")
    assert tool_calls is not None
    assert [made["function"]["name"] for made in tool_calls] == ["get_weather"]
    assert json.loads(tool_calls[0]["function"]["arguments"]) == {"location": "NYC"}
    get_weather_mock.assert_not_called()


def test_a_chat_over_several_runs(make_swarm: MakeSwarm, run: Run) -> None:
    """A loop over user messages that carries messages, agent and context from run to run, as the demo loop does."""

    def to_sales():
        return sales

    def count(context_variables: dict[str, Any]):
        context_variables["orders"] = context_variables.get("orders", 0) + 1
        return context_variables["orders"]

    sales = Agent(name="Sales", functions=[count])
    agent: Any = Agent(name="Triage", functions=[to_sales])
    swarm = make_swarm(ScriptedModel([["to_sales"], "Sales here.", ["count"], "One.", ["count"], "Two."]))
    messages: list[dict[str, Any]] = []
    context: dict[str, Any] = {}
    for text in ("Sales please", "An order", "Another"):
        messages.append({"role": "user", "content": text})
        response = run(swarm, agent=agent, messages=messages, context_variables=context)
        messages.extend(response.messages)
        agent, context = response.agent, response.context_variables
    assert agent is sales
    assert context == {"orders": 2}
    assert [message["content"] for message in messages if message["role"] == "tool"] == [
        '{"assistant": "Sales"}',
        "1",
        "2",
    ]
