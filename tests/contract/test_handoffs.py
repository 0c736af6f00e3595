"""Handoffs: a tool returns an agent, or a Result that names one."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from durable_swarm import Agent, Result
from durable_swarm.testing import ScriptedModel
from tests.contract.helpers import MakeSwarm, Run, system_prompts, tool_contents, tool_messages, user


def handoff(target: Any, name: str) -> Callable[[], Any]:
    """Make a tool called `name` that hands off to `target`."""

    def transfer() -> Any:
        return target

    transfer.__name__ = name
    return transfer


def senders(messages: list[dict[str, Any]]) -> list[str]:
    return [message["sender"] for message in messages if message["role"] == "assistant"]


def test_handoff_by_function(make_swarm: MakeSwarm, run: Run) -> None:
    """A tool that returns an agent makes it the speaker; the model reads the agent's name as JSON."""
    second = Agent(name="Second", instructions="You are second.")
    first = Agent(name="First", instructions="You are first.", functions=[handoff(second, "to_second")])
    model = ScriptedModel([["to_second"], "Hello from second"])
    response = run(make_swarm(model), first, user())
    assert response.agent is second
    assert tool_contents(response) == [json.dumps({"assistant": "Second"})]
    assert senders(response.messages) == ["First", "Second"]
    assert system_prompts(model.calls) == ["You are first.", "You are second."]


def test_handoff_by_result(make_swarm: MakeSwarm, run: Run) -> None:
    """A Result hands off, tells the model its value and updates the context, all at once."""
    sales = Agent(name="Sales", instructions=lambda context: f"Department {context['department']}")

    def talk_to_sales() -> Result:
        return Result(value="Done", agent=sales, context_variables={"department": "sales"})

    model = ScriptedModel([["talk_to_sales"], "Hello"])
    response = run(make_swarm(model), Agent(functions=[talk_to_sales]), user(), {"user_name": "John"})
    assert response.agent is sales
    assert response.context_variables == {"department": "sales", "user_name": "John"}
    assert tool_contents(response) == ["Done"]
    assert system_prompts(model.calls)[1] == "Department sales"


def test_result_without_agent_stays(make_swarm: MakeSwarm) -> None:
    """A Result without an agent leaves the speaker."""

    def note() -> Result:
        return Result(value="Noted")

    agent = Agent(name="Only", functions=[note])
    response = make_swarm(ScriptedModel([["note"], "Done"])).run(agent, user())
    assert response.agent is agent
    assert senders(response.messages) == ["Only", "Only"]


def test_tools_change_with_the_agent(make_swarm: MakeSwarm) -> None:
    """After a handoff the model is offered the new agent's tools only."""

    def sell() -> str:
        return "Sold"

    sales = Agent(name="Sales", functions=[sell])
    model = ScriptedModel([["to_sales"], ["sell"], "Done"])
    response = make_swarm(model).run(Agent(functions=[handoff(sales, "to_sales")]), user())
    offered = [[tool["function"]["name"] for tool in request["tools"]] for request in model.calls]
    assert offered == [["to_sales"], ["sell"], ["sell"]]
    assert tool_contents(response)[1] == "Sold"


def test_handoff_in_the_middle_of_a_batch(make_swarm: MakeSwarm, run: Run) -> None:
    """The remaining calls of the reply are still the old agent's, also where the new agent has a tool of that name."""

    def old_report() -> str:
        return "the old agent's"

    def new_report() -> str:
        return "the new agent's"

    new_report.__name__ = old_report.__name__ = "report"
    second = Agent(name="Second", functions=[new_report])
    first = Agent(name="First", functions=[handoff(second, "to_second"), old_report])
    response = run(make_swarm(ScriptedModel([["to_second", "report"], ["report"], "Done"])), first, user())
    assert tool_contents(response) == ['{"assistant": "Second"}', "the old agent's", "the new agent's"]
    assert senders(response.messages) == ["First", "Second", "Second"]
    assert response.agent is second


def test_last_handoff_wins(make_swarm: MakeSwarm, run: Run) -> None:
    """Of several handoffs in one reply only the last counts, and all are answered."""
    second, third = Agent(name="Second"), Agent(name="Third")
    first = Agent(name="First", functions=[handoff(second, "to_second"), handoff(third, "to_third")])
    response = run(make_swarm(ScriptedModel([["to_second", "to_third"], "Hello"])), first, user())
    assert response.agent is third
    assert tool_contents(response) == ['{"assistant": "Second"}', '{"assistant": "Third"}']
    assert senders(response.messages) == ["First", "Third"]


def test_plain_call_after_a_handoff_keeps_it(make_swarm: MakeSwarm) -> None:
    """A later call of the same reply that hands off to nobody does not undo the handoff."""

    def note() -> Result:
        return Result(value="Noted")

    second = Agent(name="Second")
    first = Agent(name="First", functions=[handoff(second, "to_second"), note])
    response = make_swarm(ScriptedModel([["to_second", "note"], "Hello"])).run(first, user())
    assert response.agent is second


def test_there_and_back(make_swarm: MakeSwarm, run: Run) -> None:
    """Agents may hand back and forth; each message names its speaker."""
    first, second = Agent(name="First"), Agent(name="Second")
    first.functions.append(handoff(second, "to_second"))
    second.functions.append(handoff(first, "to_first"))
    response = run(make_swarm(ScriptedModel([["to_second"], ["to_first"], "Hello"])), first, user())
    assert senders(response.messages) == ["First", "Second", "First"]
    assert response.agent is first


def test_handoff_as_the_last_message(make_swarm: MakeSwarm) -> None:
    """A run that `max_turns` ends after a handoff gives the new agent, so that the next run begins with it."""
    second = Agent(name="Second")
    first = Agent(name="First", functions=[handoff(second, "to_second")])
    response = make_swarm(ScriptedModel([["to_second"]])).run(first, user(), max_turns=2)
    assert response.agent is second
    assert tool_messages(response)[0]["tool_name"] == "to_second"


def test_agent_made_by_the_tool(make_swarm: MakeSwarm) -> None:
    """An agent that a tool makes on the spot, with a local function as its tool, takes over like any other."""

    def hire(skill: str) -> Agent:
        def work() -> str:
            return f"{skill} done"

        return Agent(name=f"Expert in {skill}", functions=[work])

    model = ScriptedModel([[("hire", {"skill": "law"})], ["work"], "Done"])
    response = make_swarm(model).run(Agent(functions=[hire]), user())
    assert response.agent.name == "Expert in law"
    assert tool_contents(response)[1] == "law done"


def test_agents_of_one_name(make_swarm: MakeSwarm) -> None:
    """Two live agents of one name are two agents: a handoff from one to the other changes the speaker."""
    second = Agent(instructions="You are second.")
    first = Agent(instructions="You are first.", functions=[handoff(second, "to_second")])
    model = ScriptedModel([["to_second"], "Hello"])
    response = make_swarm(model).run(first, user())
    assert response.agent is second
    assert system_prompts(model.calls) == ["You are first.", "You are second."]


def test_agents_of_one_name_within_a_batch(make_swarm: MakeSwarm) -> None:
    """A handoff to an agent of the same name does not lend its tools to the rest of the reply."""

    def report() -> str:
        return "the old agent's"

    second = Agent()
    first = Agent(functions=[handoff(second, "to_second"), report])
    response = make_swarm(ScriptedModel([["to_second", "report"], "Hello"])).run(first, user())
    assert response.agent is second
    assert tool_contents(response) == ['{"assistant": "Agent"}', "the old agent's"]


class ForeignAgent(BaseModel):
    """An agent class with the fields of the original package's, and nothing of ours."""

    name: str = "Agent"
    model: str = "gpt-4o"
    instructions: Any = "You are a helpful agent."
    functions: list[Any] = []
    tool_choice: Any = None
    parallel_tool_calls: bool = True


def namespace_agent(**fields: Any) -> SimpleNamespace:
    return SimpleNamespace(**ForeignAgent(**fields).__dict__)


@pytest.mark.parametrize("kind", [ForeignAgent, namespace_agent])
def test_foreign_agents(make_swarm: MakeSwarm, run: Run, kind: Callable[..., Any]) -> None:
    """Any object with an agent's attributes starts a run, offers tools and takes a handoff, plain or in a Result."""

    def to_third() -> Result:
        return Result(value="Moved", agent=third)

    third = kind(name="Third", instructions=lambda context: f"You serve {context['name']}.")
    second = kind(name="Second", functions=[to_third])
    first = kind(name="First", model="gpt-4o-mini", functions=[handoff(second, "to_second")])
    model = ScriptedModel([["to_second"], ["to_third"], "Hello"])
    response = run(make_swarm(model), first, user(), {"name": "Ada"})
    assert response.agent is third
    assert senders(response.messages) == ["First", "Second", "Third"]
    assert tool_contents(response) == ['{"assistant": "Second"}', "Moved"]
    assert [request["model"] for request in model.calls] == ["gpt-4o-mini", "gpt-4o", "gpt-4o"]
    assert system_prompts(model.calls)[2] == "You serve Ada."
