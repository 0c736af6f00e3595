"""Threads, event loops and calls that run together."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from durable_swarm import Agent, current_call
from durable_swarm.testing import ScriptedModel, call
from tests.contract.helpers import PATIENCE, MakeSwarm, Meeting, Run, tool_contents, tool_messages, user


def test_async_tools_run_together(make_swarm: MakeSwarm, run: Run) -> None:
    """Async tools of one reply are under way at once: each waits until all have begun."""
    meeting = Meeting(3)

    async def attend(name: str) -> str:
        await meeting.wait_async()
        return f"{name} was there"

    calls = [call("attend", name=name) for name in ("a", "b", "c")]
    response = run(make_swarm(ScriptedModel([calls, "Done"])), Agent(functions=[attend]), user())
    assert tool_contents(response) == ["a was there", "b was there", "c was there"]


def test_results_keep_the_order_of_the_model(make_swarm: MakeSwarm, run: Run) -> None:
    """The tool messages stand in the model's order, although the first call ends last."""
    ended: list[str] = []
    second_ended = threading.Event()

    async def work(name: str) -> str:
        if name == "first":
            await asyncio.to_thread(second_ended.wait, PATIENCE)
        ended.append(name)
        second_ended.set()
        return name

    calls = [call("work", name="first"), call("work", name="second")]
    response = run(make_swarm(ScriptedModel([calls, "Done"])), Agent(functions=[work]), user())
    assert ended == ["second", "first"]
    assert tool_contents(response) == ["first", "second"]
    ids = [made["id"] for made in response.messages[0]["tool_calls"]]
    assert [message["tool_call_id"] for message in tool_messages(response)] == ids


def test_plain_and_async_tools_in_one_reply(make_swarm: MakeSwarm, run: Run) -> None:
    """Plain and async tools mix in one reply; the answers keep the model's order."""

    def plain(name: str) -> str:
        return f"plain {name}"

    async def modern(name: str) -> str:
        await asyncio.sleep(0.01)
        return f"modern {name}"

    calls = [call("modern", name="1"), call("plain", name="2"), call("modern", name="3"), call("plain", name="4")]
    response = run(make_swarm(ScriptedModel([calls, "Done"])), Agent(functions=[plain, modern]), user())
    assert tool_contents(response) == ["modern 1", "plain 2", "modern 3", "plain 4"]


def test_plain_functions_run_one_after_another(make_swarm: MakeSwarm, run: Run) -> None:
    """Without `tool_concurrency` plain functions of one reply never overlap and keep the model's order."""
    events: list[str] = []

    def work(name: str) -> str:
        events.append(f"{name} begins")
        threading.Event().wait(0.02)
        events.append(f"{name} ends")
        return name

    calls = [call("work", name="a"), call("work", name="b")]
    run(make_swarm(ScriptedModel([calls, "Done"])), Agent(functions=[work]), user())
    assert events == ["a begins", "a ends", "b begins", "b ends"]


def test_tool_concurrency(make_swarm: MakeSwarm, run: Run) -> None:
    """With `tool_concurrency` above 1 plain functions of one reply run together, and results keep their order."""
    meeting = Meeting(3)

    def attend(name: str) -> str:
        meeting.wait()
        return f"{name} was there"

    calls = [call("attend", name=name) for name in ("a", "b", "c")]
    swarm = make_swarm(ScriptedModel([calls, "Done"]), tool_concurrency=3)
    response = run(swarm, Agent(functions=[attend]), user())
    assert tool_contents(response) == ["a was there", "b was there", "c was there"]


def test_tool_concurrency_is_a_bound(make_swarm: MakeSwarm, run: Run) -> None:
    """No more plain functions run at once than `tool_concurrency` says."""
    lock, running, most = threading.Lock(), 0, 0

    def work(name: str) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.02)
        with lock:
            running -= 1
        return name

    names = ["a", "b", "c", "d", "e", "f"]
    swarm = make_swarm(ScriptedModel([[call("work", name=name) for name in names], "Done"]), tool_concurrency=2)
    response = run(swarm, Agent(functions=[work]), user())
    assert tool_contents(response) == names
    assert most <= 2


def test_plain_tools_run_in_the_calling_thread(make_swarm: MakeSwarm) -> None:
    """`run` calls plain tools in the thread it was called in, where they may use what belongs to that thread."""
    seen: list[int] = []

    def where() -> str:
        seen.append(threading.get_ident())
        return "here"

    swarm = make_swarm(ScriptedModel([["where", "where"], "Done"] * 2))
    agent = Agent(functions=[where])
    swarm.run(agent, user())
    assert set(seen) == {threading.get_ident()}
    seen.clear()
    caller = threading.Thread(target=swarm.run, args=(agent, user()))
    caller.start()
    caller.join(PATIENCE)
    assert seen == [caller.ident, caller.ident]


def test_plain_tools_leave_the_event_loop_free(make_swarm: MakeSwarm) -> None:
    """A plain tool under `run_async` that blocks does not stop the event loop."""
    released = threading.Event()

    def block() -> str:
        return str(released.wait(PATIENCE))

    async def main() -> Any:
        running = asyncio.create_task(swarm.run_async(Agent(functions=[block]), user()))
        await asyncio.sleep(0.05)
        released.set()
        return await running

    swarm = make_swarm(ScriptedModel([["block"], "Done"]))
    assert tool_contents(asyncio.run(main())) == ["True"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_run_inside_a_running_event_loop(make_swarm: MakeSwarm, asynchronous: bool) -> None:
    """`run` works where an event loop already runs, as in a notebook, with plain and with async tools."""

    def greet_plainly() -> str:
        return "Hello"

    async def greet_async() -> str:
        await asyncio.sleep(0)
        return "Hello"

    greet = greet_async if asynchronous else greet_plainly

    async def main() -> Any:
        return swarm.run(Agent(functions=[greet]), user())

    swarm = make_swarm(ScriptedModel([[greet.__name__], "Done"]))
    assert tool_contents(asyncio.run(main())) == ["Hello"]


def test_runs_side_by_side_on_one_loop(make_swarm: MakeSwarm) -> None:
    """Several `run_async` on one swarm are under way at once, and none sees anything of another."""
    meeting = Meeting(3)

    async def attend(context_variables: dict[str, Any]) -> str:
        await meeting.wait_async()
        context_variables["attended"] = True
        return str(context_variables["name"])

    def reply(request: dict[str, Any]) -> Any:
        return "Done" if request["messages"][-1]["role"] == "tool" else ["attend"]

    async def main() -> list[Any]:
        agent = Agent(functions=[attend])
        return await asyncio.gather(*(swarm.run_async(agent, user(), {"name": name}) for name in names))

    names = ["a", "b", "c"]
    swarm = make_swarm(ScriptedModel(reply))
    responses = asyncio.run(main())
    assert [tool_contents(response) for response in responses] == [["a"], ["b"], ["c"]]
    assert [response.context_variables for response in responses] == [
        {"name": name, "attended": True} for name in names
    ]


def test_runs_side_by_side_in_threads(make_swarm: MakeSwarm) -> None:
    """Several threads may call `run` on one swarm at once."""
    meeting = Meeting(3)
    answers: dict[str, list[str]] = {}

    def attend(context_variables: dict[str, Any]) -> str:
        meeting.wait()
        return str(context_variables["name"])

    def reply(request: dict[str, Any]) -> Any:
        return "Done" if request["messages"][-1]["role"] == "tool" else ["attend"]

    def one(name: str) -> None:
        answers[name] = tool_contents(swarm.run(Agent(functions=[attend]), user(), {"name": name}))

    swarm = make_swarm(ScriptedModel(reply))
    callers = [threading.Thread(target=one, args=(name,)) for name in ("a", "b", "c")]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(2 * PATIENCE)
    assert answers == {"a": ["a"], "b": ["b"], "c": ["c"]}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_agent_as_a_tool(make_swarm: MakeSwarm, run: Run, asynchronous: bool) -> None:
    """A tool may run another agent on the same swarm, and is itself again afterwards."""
    before_and_after: list[Any] = []
    expert = Agent(name="Expert", instructions="You know.")

    def consult(question: str) -> str:
        before_and_after.append(current_call())
        answer = swarm.run(expert, user(question)).messages[-1]["content"]
        before_and_after.append(current_call())
        return str(answer)

    async def consult_async(question: str) -> str:
        before_and_after.append(current_call())
        answer = (await swarm.run_async(expert, user(question))).messages[-1]["content"]
        before_and_after.append(current_call())
        return str(answer)

    consulting = consult_async if asynchronous else consult
    model = ScriptedModel([[call(consulting.__name__, question="How much?")], "Forty-two", "The expert says 42."])
    swarm = make_swarm(model)
    response = run(swarm, Agent(name="Host", functions=[consulting]), user())
    assert tool_contents(response) == ["Forty-two"]
    assert response.messages[-1]["content"] == "The expert says 42."
    assert response.agent.name == "Host"
    assert model.calls[1]["messages"][0]["content"] == "You know."
    before, after = before_and_after
    assert before == after


def test_agents_as_tools_side_by_side(make_swarm: MakeSwarm, run: Run) -> None:
    """Async tools of one reply may each run an agent, all at once."""
    expert = Agent(name="Expert")
    questions = ("one", "two", "three")

    async def consult(question: str) -> str:
        response = await swarm.run_async(expert, user(question))
        return str(response.messages[-1]["content"])

    def reply(request: dict[str, Any]) -> Any:
        last = request["messages"][-1]
        if last["role"] == "tool":
            return "Done"
        if last["content"] in questions:
            return f"re {last['content']}"
        return [call("consult", question=question) for question in questions]

    swarm = make_swarm(ScriptedModel(reply))
    response = run(swarm, Agent(name="Host", functions=[consult]), user())
    assert tool_contents(response) == ["re one", "re two", "re three"]
