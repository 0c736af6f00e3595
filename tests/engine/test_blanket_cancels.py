"""Code of a tool that cancels every task of its event loop: its own failure, once, and nobody else's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, RunFailed, Swarm, step
from durable_swarm.background import background_loop
from durable_swarm.testing import ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, unique, user, wait_until


def cancel_everything() -> None:
    """Cancel all tasks of the running loop, as programs do to end."""
    for task in asyncio.all_tasks():
        task.cancel()


class Vandal:
    """An agent whose tool, called `times` times in one reply, cancels every task; `entered` counts."""

    def __init__(self, *, is_step: bool = False, times: int = 1) -> None:
        self.entered = 0

        async def vandalise() -> str:
            """Cancel everything."""
            self.entered += 1
            cancel_everything()
            await asyncio.sleep(0)
            return "not reached"

        self.agent = Agent(name=unique("Vandal"), functions=[step(vandalise) if is_step else vandalise])
        self.model = ScriptedModel(lambda request: "Done." if len(request["messages"]) > 2 else ["vandalise"] * times)


def by_run(swarm: DurableSwarm, agent: Agent) -> None:
    swarm.run(agent, user(), run_id="vandal")


def by_stream(swarm: DurableSwarm, agent: Agent) -> None:
    for _ in swarm.run(agent, user(), run_id="vandal", stream=True):
        pass


def by_start(swarm: DurableSwarm, agent: Agent) -> None:
    swarm.start(agent, user(), run_id="vandal").result(PATIENCE)


def by_queue(swarm: DurableSwarm, agent: Agent) -> None:
    swarm.serve()
    swarm.start(agent, user(), run_id="vandal", queue=True).result(PATIENCE)


@pytest.mark.parametrize("is_step", [True, False])
@pytest.mark.parametrize("face", [by_run, by_stream, by_start, by_queue], ids=lambda face: face.__name__)
def test_it_fails_once(make: Make, face: Callable[[DurableSwarm, Agent], None], is_step: bool) -> None:
    """On a loop of ours the run fails with the tool's CancelledError; the tool is not entered again."""
    vandal = Vandal(is_step=is_step)
    swarm = make(vandal.model)
    with pytest.raises((asyncio.CancelledError, RunFailed), match=r"^$|CancelledError"):
        face(swarm, vandal.agent)
    assert (swarm.get("vandal").status, vandal.entered) == ("failed", 1)


def test_all_calls_of_a_batch(make: Make) -> None:
    """Calls made together that all cancel everything fail the run, each entered once."""
    vandal = Vandal(times=3)
    swarm = make(vandal.model)
    with pytest.raises(asyncio.CancelledError):
        by_start(swarm, vandal.agent)
    assert (swarm.get("vandal").status, vandal.entered) == ("failed", 3)


def test_other_runs_on_the_loop_are_not_disturbed(make: Make) -> None:
    """Tools and model calls of other runs continue, and are not entered again."""
    begun, go_on = threading.Semaphore(0), threading.Event()
    entered: list[str] = []

    async def wait_here() -> str:
        """Wait."""
        entered.append("tool")
        begun.release()
        await asyncio.to_thread(go_on.wait, PATIENCE)
        return "undisturbed"

    def reply(request: dict[str, Any]) -> Any:
        if request["messages"][-1]["content"] == "slow":
            entered.append("model")
            begun.release()
            go_on.wait(PATIENCE)
            return "undisturbed"
        return "Done." if request["messages"][-1]["role"] == "tool" else [request["tools"][0]["function"]["name"]]

    vandal, other = Vandal(), Agent(name=unique("Other"), functions=[wait_here])
    swarm = make(ScriptedModel(reply))
    runs = [swarm.start(other, user()), swarm.start(other, user("slow"))]
    assert begun.acquire(timeout=PATIENCE)
    assert begun.acquire(timeout=PATIENCE)
    with pytest.raises(asyncio.CancelledError):
        by_start(swarm, vandal.agent)
    go_on.set()
    ends = [[message["content"] for message in run.result(PATIENCE).messages[-2:]] for run in runs]
    assert ends == [["undisturbed", "Done."], ["undisturbed"]]
    assert sorted(entered) == ["model", "tool"]


def test_a_plain_tool_that_reaches_for_the_loop(make: Make) -> None:
    """What a tool in a thread schedules on the loop of ours is the tool's code as well, and cancels no run."""

    def reach() -> str:
        """Cancel everything from a thread."""
        done = threading.Event()
        background_loop().call_soon_threadsafe(lambda: (cancel_tasks_of(background_loop()), done.set()))
        return str(done.wait(PATIENCE))

    agent = Agent(name=unique("Reacher"), functions=[reach])
    run = make(ScriptedModel([["reach"], "Done."])).start(agent, user())
    assert [message["content"] for message in run.result(PATIENCE).messages][1:] == ["True", "Done."]


def cancel_tasks_of(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()


def test_a_task_may_be_cancelled_by_another_call(make: Make) -> None:
    """A task that one tool has begun can be cancelled by a later one: only runs and calls are protected."""
    tasks: list[asyncio.Task[None]] = []

    async def begin() -> str:
        """Begin a task."""
        tasks.append(asyncio.create_task(asyncio.sleep(PATIENCE)))
        return "begun"

    async def end() -> str:
        """End the task."""
        tasks[0].cancel()
        await asyncio.wait(tasks)
        return str(tasks[0].cancelled())

    agent = Agent(name=unique("Stopper"), functions=[begin, end])
    run = make(ScriptedModel([["begin"], ["end"], "Done."])).start(agent, user())
    assert run.result(PATIENCE).messages[-2]["content"] == "True"


@pytest.mark.parametrize("times", [1, 2])
def test_on_a_loop_of_the_program_it_is_bounded(make: Make, times: int) -> None:
    """There it cancels the program's own task, so the failure may not be recorded: the crash guard counts it."""
    vandal = Vandal(times=times)

    def program() -> str:
        with make(vandal.model) as swarm:
            try:
                asyncio.run(swarm.run_async(vandal.agent, user(), run_id="vandal"))
            except asyncio.CancelledError:
                return "cancelled"
            except RunFailed:
                return "failed"
        return "done"

    assert wait_until(lambda: program() == "failed")
    assert vandal.entered <= 3 * times


def test_a_cancelled_program_loses_nothing(make: Make) -> None:
    """A real cancellation of `run_async` leaves the run unfinished, also if the tool had cancelled itself before."""
    begun = threading.Semaphore(0)
    slow = [True]

    async def patient() -> str:
        """Take long."""
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.sleep(PATIENCE)
        begun.release()
        await asyncio.sleep(PATIENCE if slow[0] else 0)
        return "there"

    agent = Agent(name=unique("Patient"), functions=[patient])
    swarm = make(ScriptedModel([["patient"], "Done."]))

    async def program() -> None:
        running = asyncio.create_task(swarm.run_async(agent, user(), run_id="patient"))
        assert await asyncio.to_thread(begun.acquire, True, PATIENCE)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(program())
    assert swarm.get("patient").status == "running"
    slow[0] = False
    assert swarm.run(agent, user(), run_id="patient").messages[-2]["content"] == "there"


def test_in_memory(make: Make) -> None:
    """In memory it ends the run with the tool's CancelledError, which was entered once."""
    vandal = Vandal()
    with pytest.raises(asyncio.CancelledError):
        list(Swarm(vandal.model).run(vandal.agent, user(), stream=True))
    assert vandal.entered == 1
