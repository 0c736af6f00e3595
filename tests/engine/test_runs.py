"""The handle of a run: what it is, what it says while the run goes on, and how runs are listed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, Run, RunNotFound, step
from durable_swarm.models.wire import to_wire
from durable_swarm.runs import StepInfo
from durable_swarm.testing import ScriptedModel, check_request
from durable_swarm.types import Usage
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, unique, user, wait_until


class Gate:
    """A tool that begins, and waits until it may end."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def hold(self) -> str:
        """Wait for the gate to open."""
        self.entered.set()
        assert self.opened.wait(PATIENCE)
        return "passed"


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate, opened after the test whatever happens."""
    made = Gate()
    yield made
    made.opened.set()


@step
def double(number: int) -> int:
    """Double a number, once."""
    return 2 * number


@step
def refuse() -> None:
    """Raise, once."""
    raise ValueError("no more")


def compute(number: int) -> str:
    """Use steps, one of which fails."""
    try:
        refuse()
    except ValueError:
        return str(double(double(number)))
    return "impossible"


def test_a_finished_run(make_anywhere: Make) -> None:
    """A run that is done tells its id, agent, status, times, usage, messages and steps, and its response again."""
    begin = datetime.now(UTC)
    swarm = make_anywhere(ScriptedModel([[("compute", {"number": 2})], ["double"], "It is 8"]))
    agent = Agent(name="Adder", functions=[compute, double])
    response = swarm.run(agent, user(), run_id="sum")
    run = swarm.get("sum")
    assert (run.id, run.agent, run.status, run.waits_for) == ("sum", "Adder", "done", None)
    assert begin - timedelta(seconds=1) <= run.created_at <= run.updated_at <= datetime.now(UTC) + timedelta(seconds=1)
    assert run.created_at.tzinfo is UTC
    assert run.updated_at.tzinfo is UTC
    assert run.messages() == response.messages
    assert run.usage == response.usage
    assert isinstance(run.usage, Usage)
    assert run.usage.requests == 3
    again = run.result()
    assert again.model_dump(exclude={"agent"}) == response.model_dump(exclude={"agent"})
    assert again.agent is agent


def test_steps(make_anywhere: Make) -> None:
    """The steps of a run are numbered as they were begun, those inside a tool after it, with what each gave."""
    swarm = make_anywhere(ScriptedModel([[("compute", {"number": 2}), ("double", {"number": 5})], "Done"]))
    swarm.run(Agent(name="Adder", functions=[compute, double]), user(), run_id="sum")
    steps = swarm.get("sum").steps()
    assert [(info.number, info.name, info.kind, info.status) for info in steps] == [
        (1, "model:Adder", "model", "done"),
        (2, "tool:compute", "tool", "done"),
        (3, "refuse", "step", "failed"),
        (4, "double", "step", "done"),
        (5, "double", "step", "done"),
        (6, "tool:double", "tool", "done"),
        (7, "model:Adder", "model", "done"),
    ]
    assert [info.output for info in steps[1:6]] == ["8", None, 4, 8, "10"]
    assert steps[2].error == "ValueError: no more"
    assert [bool(info.version) for info in steps] == [True, False, False, False, False, False, True]
    assert steps[0].version == steps[6].version
    for info in steps:
        assert info.started_at is not None
        assert info.finished_at is not None
        assert info.started_at <= info.finished_at
        assert info.started_at.tzinfo is UTC


def test_a_run_under_way(make_anywhere: Make, gate: Gate) -> None:
    """While a tool runs, status, messages, usage and steps tell how far the run has come, as a legal history."""
    swarm = make_anywhere(ScriptedModel([["hold"], "Done"]))
    run = swarm.start(Agent(name="A", functions=[gate.hold]), user(), run_id="r")
    assert gate.entered.wait(PATIENCE)
    seen = swarm.get("r")
    assert seen.status == "running"
    assert [message["role"] for message in seen.messages()] == ["assistant", "tool"]
    assert seen.messages()[1]["content"].startswith("Error: no result yet")
    check_request({"model": "m", "messages": [to_wire(message) for message in user() + seen.messages()]})
    assert seen.usage is not None
    assert seen.usage.requests == 1
    tool = seen.steps()[1]
    assert (tool.name, tool.kind, tool.status, tool.finished_at) == ("tool:hold", "tool", "running", None)
    before = seen.updated_at
    gate.opened.set()
    assert run.result(PATIENCE).messages[-1]["content"] == "Done"
    assert swarm.get("r").status == "done"
    assert seen.updated_at >= before


def test_start_returns_before_the_end(make: Make, gate: Gate) -> None:
    """`start` returns as soon as the run is recorded; a second process could already see it."""
    swarm = make(ScriptedModel([["hold"], "Done"]))
    run = swarm.start(Agent(functions=[gate.hold]), user())
    assert run.status == "running"
    assert [other.id for other in swarm.runs()] == [run.id]
    gate.opened.set()
    run.result(PATIENCE)


def test_a_timeout_leaves_the_run_alone(make: Make, gate: Gate) -> None:
    """`result(timeout)` raises TimeoutError, names the run, and the run goes on."""
    run = make(ScriptedModel([["hold"], "Done"])).start(Agent(functions=[gate.hold]), user(), run_id="slow")
    for timeout in (0, 0.05):
        with pytest.raises(TimeoutError, match="'slow'"):
            run.result(timeout)
    assert run.status == "running"
    gate.opened.set()
    assert run.result(PATIENCE).messages[-1]["content"] == "Done"


def test_a_timeout_on_the_event_loop_leaves_the_run_alone(make: Make, gate: Gate) -> None:
    """`result_async(timeout)` raises TimeoutError too, names the run, and the run goes on."""
    swarm = make(ScriptedModel([["hold"], "Done"]))

    async def main() -> str:
        run = await swarm.start_async(Agent(functions=[gate.hold]), user(), run_id="slow")
        with pytest.raises(TimeoutError, match="'slow'"):
            await run.result_async(0.05)
        gate.opened.set()
        return str((await run.result_async(PATIENCE)).messages[-1]["content"])

    assert asyncio.run(main()) == "Done"


def test_several_wait_for_one_run(make: Make, gate: Gate) -> None:
    """Any number of threads may wait for one run, and all get its response."""
    run = make(ScriptedModel([["hold"], "Done"])).start(Agent(functions=[gate.hold]), user())
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(run.result(PATIENCE))) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.opened.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert [response.messages[-1]["content"] for response in found] == ["Done"] * 4


def test_async_twins(make_anywhere: Make) -> None:
    """Everything that waits has a twin for event loops, with the same answers."""
    swarm = make_anywhere(ScriptedModel([["compute"], "Done", "Hello"]))

    async def main() -> None:
        response = await swarm.run_async(Agent(name="A", functions=[double]), user(), run_id="one")
        started = await swarm.start_async(Agent(name="A"), user(), run_id="two")
        assert (await started.result_async()).messages[-1]["content"] == "Hello"
        run = await swarm.get_async("one")
        assert await run.messages_async() == run.messages() == response.messages
        assert await run.steps_async() == run.steps()
        assert [found.id for found in await swarm.runs_async()] == ["two", "one"]
        assert await swarm.recover_async() == []
        await run.cancel_async()
        await run.resume_async()
        assert (await run.result_async()).messages == response.messages
        with pytest.raises(RunNotFound):
            await swarm.get_async("three")

    asyncio.run(main())


def test_a_run_that_is_not_there(make_anywhere: Make) -> None:
    """An unknown id raises RunNotFound, which carries the id."""
    with pytest.raises(RunNotFound, match="there is no run 'nowhere' in this database") as caught:
        make_anywhere(ScriptedModel([])).get("nowhere")
    assert caught.value.run_id == "nowhere"


def test_a_tool_call_is_no_run(make: Make) -> None:
    """The id of a tool call is not the id of a run, and tool calls are not listed as runs."""
    swarm = make(ScriptedModel([["compute"], [("compute", {"number": 1})], "Done"]))
    swarm.run(Agent(functions=[compute]), user(), run_id="r")
    assert [run.id for run in swarm.runs()] == ["r"]
    with pytest.raises(RunNotFound):
        swarm.get("r/1.0")


def fill(swarm: DurableSwarm, gate: Gate) -> Run:
    """Make runs of several agents and states: done, failed, cancelled, and one under way."""

    def broken() -> str:
        raise ValueError("broken")

    for number in range(3):
        swarm.run(Agent(name="A"), user(), run_id=f"done-{number}")
    with pytest.raises(ValueError, match="broken"):
        swarm.run(Agent(name="B", functions=[broken]), user(), run_id="failed")
    running = swarm.start(Agent(name="B", functions=[gate.hold]), user(), run_id="running")
    assert gate.entered.wait(PATIENCE)
    return running


def test_listing_runs(make_anywhere: Make, gate: Gate) -> None:
    """Runs are listed newest first: all, of one status, of one agent, and no more than asked for."""
    swarm = make_anywhere(ScriptedModel(["x", "y", "z", ["broken"], ["hold"], "Done"]))
    running = fill(swarm, gate)
    ids = ["running", "failed", "done-2", "done-1", "done-0"]
    assert [run.id for run in swarm.runs()] == ids
    assert [run.id for run in swarm.runs(limit=2)] == ids[:2]
    assert [run.id for run in swarm.runs(agent="A")] == ids[2:]
    assert [run.id for run in swarm.runs(agent="A", limit=1)] == ["done-2"]
    assert [run.id for run in swarm.runs(agent="nobody")] == []
    by_status = {status: [run.id for run in swarm.runs(status=status)] for status in ("done", "failed", "running")}
    assert by_status == {"done": ids[2:], "failed": ["failed"], "running": ["running"]}
    assert [run.id for run in swarm.runs(status="done", agent="A", limit=2)] == ["done-2", "done-1"]
    assert swarm.runs(status="failed", agent="A") == []
    assert all(swarm.runs(status=status) == [] for status in ("queued", "waiting", "cancelled"))
    running.cancel()
    assert [run.id for run in swarm.runs(status="cancelled")] == ["running"]
    gate.opened.set()


def test_steps_are_values() -> None:
    """Two looks at one step are equal, and what was looked at does not change."""
    one = StepInfo(1, "model:A", "model", "done")
    assert one == StepInfo(1, "model:A", "model", "done")
    with pytest.raises(AttributeError):
        one.status = "failed"  # type: ignore[misc]


def test_messages_grow(make: Make) -> None:
    """The messages of a run under way are a beginning of its messages at the end."""
    gates = [Gate(), Gate()]
    swarm = make(ScriptedModel([["first"], ["second"], "Done"]))

    def first() -> str:
        return gates[0].hold()

    def second() -> str:
        return gates[1].hold()

    run = swarm.start(Agent(functions=[first, second]), user())
    lengths = []
    for passing in gates:
        assert passing.entered.wait(PATIENCE)
        lengths.append(len(run.messages()))
        passing.opened.set()
    response = run.result(PATIENCE)
    assert lengths == [2, 4]
    wait_until(lambda: len(run.messages()) == 5)
    assert run.messages() == response.messages


def test_calls_together_see_the_context_as_it_was(make: Make) -> None:
    """Calls that run together each have a context of their own: what one changes in place, no sibling sees."""

    async def write(context_variables: dict[str, Any]) -> str:
        context_variables["written"] = True
        await asyncio.sleep(0.02)
        return "written"

    async def look(context_variables: dict[str, Any]) -> str:
        await asyncio.sleep(0.01)
        return str(sorted(context_variables))

    response = make(ScriptedModel([["write", "look"], "Done"])).run(Agent(functions=[write, look]), user())
    assert [message["content"] for message in response.messages[1:3]] == ["written", "[]"]
    assert response.context_variables == {"written": True}


def test_a_start_knows_whether_it_recorded_the_run(make: Make) -> None:
    """The first start of an id is new, the next ones and a handle by id are not, in whichever way it is started."""
    swarm, agent = make(ScriptedModel(lambda _: "Hi.")), Agent(name=unique())
    ways: dict[str, Callable[[str], Run]] = {
        "start": lambda run_id: swarm.start(agent, user(), run_id=run_id),
        "queue": lambda run_id: swarm.start(agent, user(), run_id=run_id, queue=True),
        "enqueue": lambda run_id: swarm.enqueue(agent.name, user(), run_id=run_id),
        "session": lambda run_id: swarm.session("talk", agent).start("Hi", run_id=run_id),
        "waits in the session": lambda run_id: swarm.session("talk", agent).start("Hi", run_id=run_id, queue=True),
    }
    for name, start in ways.items():
        assert [start(name).is_new for _ in range(3)] == [True, False, False], name
        assert not swarm.get(name).is_new
    assert swarm.start(agent, user()).is_new
