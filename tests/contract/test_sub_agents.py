"""Agents as tools: child runs, in memory and durably alike."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from pydantic import BaseModel

from durable_swarm import Agent, ConfigurationError, NotInRun, Result, RunFailed, ToolError, ask_human_async, tool
from durable_swarm.schema import tool_schema
from durable_swarm.testing import ScriptedModel, call, when
from tests.contract.helpers import MakeSwarm, Meeting, Run, tool_contents, user
from tests.contract.test_asking import answered, says

BOSS, SCOUT = "You lead.", "You look things up."


def scout(name: str, *functions: Any) -> Agent:
    return Agent(name=name, instructions=SCOUT, functions=list(functions))


def boss(name: str, *functions: Any) -> Agent:
    return Agent(name=name, instructions=BOSS, functions=list(functions))


def led(*calls: Any, scouts: Any) -> ScriptedModel:
    """Return a model with which the boss makes the calls, then ends; `scouts` are the rules of the other agents."""
    model = [when(system=BOSS, where=_has_results, reply="Done."), when(system=BOSS, reply=list(calls))]
    return ScriptedModel([*model, *scouts])


def _has_results(request: dict[str, Any]) -> bool:
    return request["messages"][-1]["role"] == "tool"


def test_the_tool_gives_the_answer_of_the_agent(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """The agent gets the message alone, and its last text is the tool's result; only the tool call is the parent's."""
    model = led(
        call("looker_scout", message="Where is it?"), scouts=[when(system=SCOUT, said="Where", reply="In the attic.")]
    )
    response = plain_run(make_swarm(model), boss("Led-1", scout("Looker Scout").as_tool()), user())
    assert tool_contents(response) == ["In the attic."]
    assert [message["role"] for message in response.messages] == ["assistant", "tool", "assistant"]
    asked = next(request for request in model.calls if request["messages"][0]["content"] == SCOUT)
    assert asked["messages"][1:] == user("Where is it?")


def test_several_agents_are_asked_together(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """Agents that one reply asks work at the same time, also where plain tools are called one by one."""
    meeting = Meeting(3)

    async def meet() -> str:
        await meeting.wait_async()
        return "met"

    tools = [scout(f"Together {name}", meet).as_tool() for name in "abc"]
    rules = [when(system=SCOUT, where=_has_results, reply="Met."), when(system=SCOUT, reply=[call("meet")])]
    model = led(*(call(f"together_{name}", message="Go") for name in "abc"), scouts=rules)
    response = plain_run(make_swarm(model), boss("Led-3", *tools), user())
    assert tool_contents(response) == ["Met."] * 3


def test_the_child_has_a_copy_of_the_context(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """A child run sees the parent's context variables, and its own changes of them stay with it."""
    seen: list[Any] = []

    def mark(context_variables: dict[str, Any]) -> Result:
        seen.append(context_variables["notes"])
        context_variables["notes"].append("child")
        return Result(value="marked", context_variables={"by": "child"})

    rules = [when(system=SCOUT, where=_has_results, reply="Marked."), when(system=SCOUT, reply=[call("mark")])]
    model = led(call("marker_scout", message="Go"), scouts=rules)
    given = {"notes": ["top"]}
    response = plain_run(make_swarm(model), boss("Led-copy", scout("Marker Scout", mark).as_tool()), user(), given)
    assert [note[0] for note in seen] == ["top"]
    assert response.context_variables == given == {"notes": ["top"]}


def test_a_child_that_fails_ends_the_tool_with_its_error(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """The tool raises `RunFailed` with the id and the error of the child; the parent fails with it."""
    agent = scout("Failing Scout", _broken)
    swarm = make_swarm(led(call("failing_scout", message="Go"), scouts=[when(system=SCOUT, reply=[call("broken")])]))
    with pytest.raises(RunFailed, match="agent 'Failing Scout' failed: ValueError: no such shelf") as caught:
        plain_run(swarm, boss("Led-failing", agent.as_tool()), user(), run_id="shelf")
    assert (caught.value.run_id, caught.value.error_type) == ("shelf/0.0/0", "ValueError")
    assert caught.value.error_message == "no such shelf"


def _broken() -> str:
    raise ValueError("no such shelf")


_broken.__name__ = "broken"


def test_a_failed_child_is_told_to_the_model(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """With `tool_errors="tell"` the parent's model gets the child's error, as that of any tool."""
    rules = [when(system=SCOUT, reply=RuntimeError("no provider"))]
    swarm = make_swarm(led(call("sorry_scout", message="Go"), scouts=rules), tool_errors="tell")
    response = plain_run(swarm, boss("Led-told", scout("Sorry Scout").as_tool()), user())
    assert tool_contents(response)[0].startswith("Error: RunFailed: child run ")
    assert response.messages[-1]["content"] == "Done."


def test_agents_ask_agents_that_ask_agents(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """An agent that is a tool may have agents as tools itself."""
    low = Agent(name="Lowest Scout", instructions="You are the last.")
    middle = scout("Middle Scout", low.as_tool("down"))
    rules = [
        when(system="the last", reply="Bottom."),
        when(system=SCOUT, where=_has_results, reply="Heard: Bottom."),
        when(system=SCOUT, reply=[call("down", message="Go on")]),
    ]
    swarm = make_swarm(led(call("middle_scout", message="Go"), scouts=rules))
    assert tool_contents(plain_run(swarm, boss("Led-deep", middle.as_tool()), user())) == ["Heard: Bottom."]


def test_a_child_asks_a_person(make_swarm: MakeSwarm, run: Run) -> None:
    """A question of a child run is among the requests, and its answer lets both runs continue."""

    async def ask() -> str:
        return await ask_human_async("Which one?")

    rules = [when(system=SCOUT, where=_has_results, reply="The red one."), when(system=SCOUT, reply=[call("ask")])]
    swarm = make_swarm(led(call("asker_scout", message="Go"), scouts=rules))
    assert tool_contents(
        answered(run, swarm, boss("Led-asking", scout("Asker Scout", ask).as_tool()), says("red"))
    ) == ["The red one."]


def test_an_agent_is_asked_within_a_tool(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """The tool of an agent can be awaited by any async tool, which gets its errors, too."""
    good, bad = scout("Good Scout").as_tool(), Agent(name="Bad Scout", instructions="You fail.").as_tool()

    async def both(context_variables: dict[str, Any]) -> str:
        found = await good(message="Go", context_variables=context_variables)
        try:
            await bad(message="Go", context_variables=context_variables)
        except RunFailed as error:
            raise ToolError(f"{found} But {error.run_id} failed.") from None
        return "both"

    rules = [when(system=SCOUT, reply="One."), when(system="You fail", reply=KeyError("away"))]
    swarm = make_swarm(led(call("both"), scouts=rules))
    response = plain_run(swarm, boss("Led-both", both), user(), run_id="pair")
    assert tool_contents(response) == ["Error: One. But pair/0.0/1 failed."]


def test_waiting_for_agents_costs_no_thread(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """Twenty agents that work at once, each for an async tool, need no thread each."""
    meeting, threads = Meeting(20), set[int]()

    async def meet() -> str:
        threads.add(threading.get_ident())
        await meeting.wait_async()
        return "met"

    rules = [when(system=SCOUT, where=_has_results, reply="Met."), when(system=SCOUT, reply=[call("meet")])]
    model = led(*(call("crowd_scout", message=f"Go {number}") for number in range(20)), scouts=rules)
    response = plain_run(make_swarm(model), boss("Led-20", scout("Crowd Scout", meet).as_tool()), user())
    assert tool_contents(response) == ["Met."] * 20
    assert len(threads) == 1


def test_options_of_tools_apply(make_swarm: MakeSwarm, run: Run) -> None:
    """An agent as a tool takes the options of `@tool`: here it is asked only after a person's approval."""
    ask = tool(approval=True)(scout("Approved Scout").as_tool())
    swarm = make_swarm(led(call("approved_scout", message="Go"), scouts=[when(system=SCOUT, reply="Went.")]))
    approves = [lambda swarm, request: swarm.approve(request.id)]
    assert tool_contents(answered(run, swarm, boss("Led-approved", ask), *approves)) == ["Went."]


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        ("Research Agent", "research_agent"),
        ("WebSearch", "web_search"),
        ("HTTPProbe2", "http_probe2"),
        ("Café  (Berlin)", "cafe_berlin"),
    ],
)
def test_the_name_is_the_agents_in_snake_case(agent: str, name: str) -> None:
    """The tool is named after its agent, and takes one text."""
    schema = tool_schema(Agent(name=agent).as_tool())["function"]
    assert schema["name"] == name
    assert schema["parameters"] == {
        "type": "object",
        "properties": {"message": {"type": "string"}},
        "required": ["message"],
    }


def test_name_and_description_can_be_given() -> None:
    """A name and a description replace those made from the agent's name."""
    schema = tool_schema(Agent(name="Given Scout").as_tool("look_up", "Finds books."))["function"]
    assert (schema["name"], schema["description"]) == ("look_up", "Finds books.")


@pytest.mark.parametrize(
    ("name", "given"), [("图书", None), ("Refused Scout", "look up"), ("Refused Scout", ""), ("x" * 65, None)]
)
def test_a_name_that_providers_refuse_is_refused(name: str, given: str | None) -> None:
    """A tool without a usable name is refused at once, with what to do."""
    with pytest.raises(ConfigurationError, match="give another name="):
        Agent(name=name).as_tool(given)


def test_asked_outside_a_run_it_says_so() -> None:
    """Outside a run there is no swarm to run the agent."""
    with pytest.raises(NotInRun, match="give the tool to an agent"):
        _sent(Agent(name="Outside Scout").as_tool()(message="Go", context_variables={}))


def _sent(coroutine: Any) -> Any:
    return coroutine.send(None)


def test_an_unfinished_answer_is_told_as_an_error(make_swarm: MakeSwarm, plain_run: Run) -> None:
    """A child run that ends without a text is an error for the model, not an empty result."""
    swarm = make_swarm(led(call("mute_scout", message="Go"), scouts=[when(system=SCOUT, reply="")]))
    told = tool_contents(plain_run(swarm, boss("Led-mute", scout("Mute Scout").as_tool()), user()))
    assert told == ["Error: agent 'Mute Scout' ended without an answer: its last reply is empty."]


class Found(BaseModel):
    """What the typed scout answers with."""

    shelf: int
    sure: bool = True


@pytest.mark.parametrize(
    ("kind", "reply", "told"),
    [(Found, '{"shelf": 4}', '{"shelf":4,"sure":true}'), (list[int], '{"value": [1]}', "[1]")],
)
def test_a_typed_answer_is_json(make_swarm: MakeSwarm, plain_run: Run, kind: Any, reply: str, told: str) -> None:
    """An agent with an `output_type` answers with the value as JSON, defaults included and not wrapped."""
    agent = Agent(name="Typed Scout", instructions=SCOUT, output_type=kind)
    swarm = make_swarm(led(call("typed_scout", message="Go"), scouts=[when(system=SCOUT, reply=reply)]))
    assert tool_contents(plain_run(swarm, boss("Led-typed", agent.as_tool()), user())) == [told]
