"""Threads and loops: tools that wait starve nobody, the program's own stay as they are, and closing gives back all."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, Swarm, ask_human, tool
from durable_swarm.background import CROWD
from durable_swarm.engine.processes import here
from durable_swarm.testing import AsyncScriptedModel, ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, unique, user, wait_until

MANY = CROWD + 8
"""How many tools wait at once: more than any pool of threads here keeps."""
CROWDED = 4 * PATIENCE
"""Seconds for twice as many threads to meet: under load they took longer than others wait."""


def leaf() -> str:
    """Do the work."""
    return "leaf"


def calls_once(name: str) -> Callable[[dict[str, Any]], Any]:
    """Script a model that calls the tool `name`, or `leaf` where it is a helper's, and then ends."""

    def reply(request: dict[str, Any]) -> Any:
        if request["messages"][-1]["role"] == "tool":
            return "Done."
        return ["leaf" if request["messages"][-1]["content"] == "sub" else name]

    return reply


class Crowd:
    """Runs whose tools wait, each for a run of its own, once all of them are there."""

    def __init__(self, make: Make, wait: Callable[[DurableSwarm, Agent], Any]) -> None:
        self.helper = Agent(name=unique("Helper"), functions=[leaf])
        self.swarm = make(ScriptedModel(calls_once("delegate")))
        self.barrier = threading.Barrier(MANY)
        self.wait = wait

        def delegate() -> str:
            """Have a helper do it."""
            self.barrier.wait(PATIENCE)
            return str(self.wait(self.swarm, self.helper))

        self.boss = Agent(name=unique("Boss"), functions=[delegate])

    def ended(self) -> list[str]:
        """Start all runs and give how their tools fared."""
        runs = [self.swarm.start(self.boss, user()) for _ in range(MANY)]
        return [run.result(PATIENCE).messages[-2]["content"] for run in runs]


def by_polling(swarm: DurableSwarm, helper: Agent) -> str:
    run = swarm.start(helper, user("sub"))
    while run.status != "done":
        time.sleep(0.25)
    return "leaf"


def in_own_threads(swarm: DurableSwarm, helper: Agent) -> str:
    with ThreadPoolExecutor(1) as pool:
        return last_tool(pool.submit(lambda: swarm.start(helper, user("sub")).result(PATIENCE)).result())


def on_own_loop(swarm: DurableSwarm, helper: Agent) -> str:
    return last_tool(asyncio.run(swarm.run_async(helper, user("sub"))))


def by_reading_a_stream(swarm: DurableSwarm, helper: Agent) -> str:
    return last_tool(list(swarm.run(helper, user("sub"), stream=True))[-1]["response"])


def on_the_loop_of_runs(swarm: DurableSwarm, helper: Agent) -> str:
    """Wait in a thread of the loop on which runs are executed, as an async tool does with `asyncio.to_thread`."""
    return last_tool(swarm.start(helper, user("sub")).result())


def last_tool(response: Any) -> str:
    return str(next(message["content"] for message in response.messages if message["role"] == "tool"))


@pytest.mark.parametrize(
    "wait", [by_polling, in_own_threads, on_own_loop, by_reading_a_stream], ids=lambda wait: wait.__name__
)
def test_tools_that_wait_for_runs_starve_nobody(make: Make, wait: Callable[..., Any]) -> None:
    """However many tools hold a thread while they wait for runs, in whatever way, these runs get their turn."""
    assert Crowd(make, wait).ended() == ["leaf"] * MANY


def test_async_tools_that_send_waits_to_threads_starve_nobody(make: Make) -> None:
    """On a loop of ours `asyncio.to_thread` has a thread for each call, also where the calls wait for such runs."""
    helper = Agent(name=unique("Helper"), functions=[leaf])
    reply = calls_once("delegate")

    def deep(request: dict[str, Any]) -> Any:
        return ["middle"] if request["messages"][-1]["content"] == "middle" else reply(request)

    swarm, waiting = make(ScriptedModel(deep)), threading.Barrier(CROWD)

    async def middle() -> str:
        """Have the helper do it."""
        return await asyncio.to_thread(on_the_loop_of_runs, swarm, helper)

    broker = Agent(name=unique("Broker"), functions=[middle])

    async def delegate() -> str:
        """Have a broker do it, when all are there."""
        await asyncio.to_thread(waiting.wait, PATIENCE)
        run = await swarm.start_async(broker, user("middle"))
        return last_tool(await asyncio.to_thread(run.result))

    boss = Agent(name=unique("Boss"), functions=[delegate])
    runs = [swarm.start(boss, user()) for _ in range(CROWD)]
    assert [last_tool(run.result(PATIENCE)) for run in runs] == ["leaf"] * CROWD


def test_tools_of_queued_runs_that_wait_starve_nobody(make: Make) -> None:
    """Two swarms of a worker that execute as many runs in threads as they may leave threads to what these wait for."""
    helper, hurdle = Agent(name=unique("Helper"), functions=[leaf]), threading.Barrier(2 * CROWD)
    model = ScriptedModel(calls_once("delegate"))
    swarms = [make(model, name=f"{unique('s')}-{number}") for number in range(2)]

    def delegate() -> str:
        """Have a helper do it, when all are there."""
        hurdle.wait(CROWDED)
        return last_tool(swarms[0].start(helper, user("sub")).result(CROWDED))

    boss = Agent(name=unique("Boss"), functions=[delegate])
    for swarm in swarms:
        swarm.serve(CROWD)
    runs = [swarm.start(boss, user(), queue=True) for swarm in swarms for _ in range(CROWD)]
    assert [last_tool(run.result(CROWDED)) for run in runs] == ["leaf"] * 2 * CROWD


def test_a_swarm_that_is_full_leaves_the_others_their_places(make: Make) -> None:
    """Of two swarms that a process serves, each executes as many runs as it may, however many the other executes."""
    full, other, gate = unique("s"), unique("s"), threading.Event()

    def wait() -> str:
        """Wait."""
        assert gate.wait(PATIENCE)
        return "waited"

    agent = Agent(name=unique(), functions=[wait])
    swarms = [make(ScriptedModel([["wait"], "Done."]), name=name) for name in (full, other)]
    for swarm in swarms:
        swarm.serve(1)
    busy = swarms[0].start(agent, user(), queue=True)
    wait_until(lambda: busy.id in here.current().local.executions)
    here.current().worker.look()
    second = swarms[1].start(agent, user(), queue=True)
    wait_until(lambda: second.id in here.current().local.executions)
    gate.set()
    assert [run.result(PATIENCE).messages[-1]["content"] for run in (busy, second)] == ["Done."] * 2


def asks() -> str:
    """Ask."""
    return ask_human("Well?")


@tool(approval=True)
def needs_approval() -> str:
    """Wait for an approval."""
    return "approved"


@pytest.mark.parametrize("waiting", [asks, needs_approval], ids=lambda waiting: waiting.__name__)
def test_tools_that_wait_for_people_starve_nobody(make: Make, waiting: Callable[..., Any]) -> None:
    """However many plain tools wait for a question or an approval, a tool that works gets its thread at once."""
    name = str(waiting.__name__)
    asker, worker = Agent(name=unique("Asker"), functions=[waiting]), Agent(name=unique("Worker"), functions=[leaf])
    swarm = make(ScriptedModel(calls_once(name)))
    runs = [swarm.start(asker, user()) for _ in range(MANY)]
    assert wait_until(lambda: len(swarm.requests()) == MANY)
    assert [last_tool(swarm.start(worker, user("sub")).result(PATIENCE)) for _ in range(3)] == ["leaf"] * 3
    assert len(swarm.requests()) == MANY
    for run in runs:
        run.answer("yes") if waiting is asks else run.approve()
    assert {last_tool(run.result(PATIENCE)) for run in runs} == {"yes" if waiting is asks else "approved"}


def test_the_threads_of_a_crowd_are_given_back(make: Make) -> None:
    """When many plain functions have run at once and most have ended, their threads end, too."""
    assert Crowd(make, by_polling).ended()
    assert wait_until(lambda: len(named("durable-swarm-tool")) <= CROWD)


def named(prefix: str) -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith(prefix)}


# The program's own loop


@pytest.mark.parametrize("use", ["run_async", "start_async", "stream", "events", "runs_async"])
def test_the_executor_of_a_loop_stays_the_programs(make: Make, use: str) -> None:
    """What a program sends to threads on its own loop runs in its own: while it uses a swarm, after, once closed."""
    agent = Agent(name=unique(), functions=[leaf])
    swarm = make(ScriptedModel(calls_once("leaf")))

    async def used() -> None:
        if use == "run_async":
            await swarm.run_async(agent, user())
        elif use == "stream":
            assert [item async for item in swarm.run_async(agent, user(), stream=True)]
        elif use == "runs_async":
            await swarm.runs_async()
        else:
            run = await swarm.start_async(agent, user())
            await run.result_async()
            assert use != "events" or [event async for event in run.events_async()]

    async def main() -> list[str]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, thread_name_prefix="mine"))
        using = asyncio.create_task(used())
        found = []
        while not using.done():
            found.append(await asyncio.to_thread(lambda: threading.current_thread().name))
            await asyncio.sleep(0.002)
        await using
        found.append(await asyncio.to_thread(lambda: threading.current_thread().name))
        swarm.close()
        return [*found, await asyncio.to_thread(lambda: threading.current_thread().name)]

    assert {name.partition("_")[0] for name in asyncio.run(main())} == {"mine"}


def test_a_program_may_block_its_executor_with_waits(make: Make) -> None:
    """A program whose only thread waits for a run that its loop executes gets the run's end."""
    agent = Agent(name=unique(), functions=[leaf])
    swarm = make(ScriptedModel(calls_once("leaf")))

    async def main() -> str:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, thread_name_prefix="mine"))
        run = await swarm.start_async(agent, user())
        return last_tool(await asyncio.to_thread(run.result, PATIENCE))

    assert asyncio.run(main()) == "leaf"


# What closing gives back


def held() -> tuple[list[str], int]:
    """Give the threads of this process that are not pytest's, and how many files it has open."""
    return sorted(thread.name for thread in threading.enumerate()), len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def before() -> Iterator[tuple[list[str], int]]:
    """What this process holds before the test."""
    return held()


@pytest.mark.parametrize("kind", [ScriptedModel, AsyncScriptedModel])
@pytest.mark.parametrize("swarm_kind", [Swarm, DurableSwarm])
def test_closing_gives_back_threads_loops_and_files(
    swarm_kind: Any, kind: Any, url: str, before: tuple[list[str], int]
) -> None:
    """After the last swarm is closed the process has the threads and the open files that it had before."""

    async def work() -> str:
        """Work in a thread."""
        return await asyncio.to_thread(leaf)

    agent = Agent(name=unique(), functions=[leaf, work])
    model = kind(lambda request: "Done." if request["messages"][-1]["role"] == "tool" else ["leaf", "work"])
    swarm = Swarm(model) if swarm_kind is Swarm else DurableSwarm(model, database=url)
    swarm.run(agent, user())
    list(swarm.run(agent, user(), stream=True))
    asyncio.run(swarm.run_async(agent, user()))
    if isinstance(swarm, DurableSwarm):
        for run in [swarm.start(agent, user()) for _ in range(MANY)]:
            run.result(PATIENCE)
    assert len(named("durable-swarm")) > 0
    swarm.close()
    assert wait_until(lambda: held() == before), (held(), before)


def test_a_tool_that_outlives_its_swarm_keeps_no_loop(make: Make) -> None:
    """What still works when the swarm is closed ends by itself, and the loop and its thread end behind it."""
    entered, opened, others = threading.Event(), threading.Event(), named("durable-swarm")

    def hold() -> str:
        """Wait for the test."""
        entered.set()
        opened.wait(PATIENCE)
        return "held"

    swarm = make(ScriptedModel([["hold"]]))
    swarm.start(Agent(name=unique(), functions=[hold]), user())
    assert entered.wait(PATIENCE)
    swarm.close()
    assert named("durable-swarm-tool")
    opened.set()
    assert wait_until(lambda: others >= named("durable-swarm"))
