"""Agents of OpenAI's Agents SDK: adopted, they answer as under their own runner, and survive a kill."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import agents
import pytest
from pydantic import BaseModel

from durable_swarm import Agent, Blocked, ConfigurationError, DurableSwarm, Swarm
from durable_swarm.bridges.openai_agents import adopt
from durable_swarm.testing import ScriptedModel, ScriptedServer, call, serve_scripted
from tests.contract.conftest import make_swarm
from tests.contract.helpers import MakeSwarm, tool_contents, user
from tests.crash.conftest import lives
from tests.crash.lives import Lives
from tests.crash.test_requests import soon
from tests.support.patience import PATIENCE

__all__ = ["lives", "make_swarm"]


@agents.function_tool
def weather(city: str, days: int = 1) -> str:
    """Report the weather.

    Args:
        city: Where.
        days: For how long.
    """
    return f"sunny in {city} for {days}"


@agents.function_tool
def remember(wrapper: agents.RunContextWrapper[dict[str, Any]], fact: str) -> str:
    """Remember a fact."""
    wrapper.context["fact"] = fact
    return "remembered"


def triage() -> Any:
    """Make two agents with tools and handoffs in a circle."""
    expert: Any = agents.Agent(name="Expert", instructions="Answer.", tools=[weather, remember])
    first: Any = agents.Agent(name="Triage", instructions=lambda wrapper, agent: f"You are {agent.name}.")
    first.handoffs = [expert]
    expert.handoffs = [agents.handoff(first)]
    return first


SCRIPT: list[Any] = [
    [call("transfer_to_expert")],
    [call("weather", city="Oslo", days=2), call("remember", fact="rain")],
    "It is sunny.",
]


def test_an_adopted_agent_does_what_it_did(make_swarm: MakeSwarm) -> None:
    """Handoff, schema, tools and context: the requests have the same tools, and the answer is the same."""
    model = ScriptedModel(SCRIPT)
    response = make_swarm(model).run(adopt(triage()), user("Weather?"))
    assert response.messages[-1]["content"] == "It is sunny."
    assert response.agent.name == "Expert"
    assert tool_contents(response)[1:] == ["sunny in Oslo for 2", "remembered"]
    assert response.context_variables["fact"] == "rain"
    assert model.calls[0]["messages"][0]["content"] == "You are Triage."


def test_it_answers_as_under_its_own_runner() -> None:
    """The SDK's runner, with the same script as a server, ends with the same answer."""

    async def run(server: ScriptedServer) -> Any:
        async with server.async_client() as client:
            theirs: Any = triage()
            theirs.model = theirs.handoffs[0].model = agents.OpenAIChatCompletionsModel("gpt-4o", client)
            config = agents.RunConfig(tracing_disabled=True)
            return (await agents.Runner.run(theirs, "Weather?", context={}, run_config=config)).final_output

    with serve_scripted(SCRIPT) as server:
        answer = asyncio.run(run(server))
    assert answer == Swarm(ScriptedModel(SCRIPT)).run(adopt(triage()), user()).messages[-1]["content"]


def test_schemas_are_kept() -> None:
    """The model gets the tool as the SDK describes it."""
    adopted = adopt(triage())
    model = ScriptedModel([[call("transfer_to_expert")], "Done"])
    Swarm(model).run(adopted, user())
    sent = {tool["function"]["name"]: tool["function"] for tool in model.calls[1]["tools"]}
    assert list(sent) == ["weather", "remember", "transfer_to_triage"]
    assert sent["weather"]["parameters"] == weather.params_json_schema


def test_approvals_output_types_and_guardrails(make_swarm: MakeSwarm) -> None:
    """A tool that needs approval asks; the answer has its type; a tripwire stops the run."""

    class Report(BaseModel):
        text: str

    @agents.function_tool(needs_approval=True)
    def pay(amount: int) -> str:
        """Pay."""
        return f"paid {amount}"

    @agents.input_guardrail
    def no_secrets(_: Any, __: Any, given: Any) -> agents.GuardrailFunctionOutput:
        return agents.GuardrailFunctionOutput(output_info="secret", tripwire_triggered="secret" in str(given))

    theirs: Any = agents.Agent(name="Payer", tools=[pay], output_type=Report, input_guardrails=[no_secrets])
    adopted: Agent = adopt(theirs)
    swarm = make_swarm(ScriptedModel([[call("pay", amount=5)], '{"text": "paid"}', "Never"]))
    if isinstance(swarm, DurableSwarm):
        run = swarm.start(adopted, user(), run_id="r1")
        [request] = soon(run.requests)
        assert request.kind == "approval"
        run.approve()
        assert run.result(PATIENCE).output == Report(text="paid")
    with pytest.raises(Blocked):
        swarm.run(adopted, user("a secret"))


@agents.tool_input_guardrail
def no_refunds(_: Any) -> agents.ToolGuardrailFunctionOutput:
    """Stops the agent."""
    return agents.ToolGuardrailFunctionOutput.raise_exception()


guarded = dataclasses.replace(weather, name="guarded", tool_input_guardrails=[no_refunds])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tools": [agents.WebSearchTool()]}, "WebSearchTool"),
        ({"tools": [agents.Agent(name="Inner").as_tool("inner", "Ask.")]}, "as a tool"),
        ({"tools": [agents.CustomTool("grep", "Search.", lambda _, text: text)]}, "CustomTool without a JSON schema"),
        ({"tools": [guarded]}, "guardrails of its own"),
        ({"hooks": agents.AgentHooks()}, "hooks"),
        ({"tool_use_behavior": "stop_on_first_tool"}, "run_llm_again"),
    ],
)
def test_what_cannot_be_adopted_is_named(options: dict[str, Any], named: str) -> None:
    """Each has one sentence that says what to do instead."""
    with pytest.raises(ConfigurationError, match=named):
        adopt(agents.Agent(name="Odd", **options))


def life(url: str, ledger: Path) -> str:
    """Run an adopted agent whose tool kills the process the first time."""

    @agents.function_tool
    def work() -> str:
        """Work."""
        with ledger.open("a") as file:
            file.write("worked\n")
        if ledger.read_text().count("worked") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return "done"

    expert: Any = agents.Agent(name="Worker", tools=[work])
    first: Any = agents.Agent(name="Boss", handoffs=[expert])
    with DurableSwarm(ScriptedModel([[call("transfer_to_worker")], [call("work")], "Done"]), database=url) as swarm:
        return str(swarm.run(adopt(first), user(), run_id="r1").messages[-1]["content"])


def test_an_adopted_agent_survives(lives: Lives, fresh_sqlite: Any, tmp_path: Path) -> None:
    """Killed inside a tool of the second agent, the run is finished by the next process."""
    url, ledger = fresh_sqlite(tmp_path / "runs.sqlite"), tmp_path / "ledger"
    assert lives.live(life, url, ledger, ledger=tmp_path / "l").killed
    assert lives.live(life, url, ledger, ledger=tmp_path / "l").value == "Done"
