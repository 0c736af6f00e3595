"""Functions that give something to await without being `async def`: the call is theirs until that has ended."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from durable_swarm import (
    Agent,
    ConfigurationError,
    DurableSwarm,
    ToolError,
    ask_human_async,
    current_call,
    sleep_async,
    step,
    tool,
)
from durable_swarm.testing import ScriptedModel, call
from tests.contract.helpers import MakeSwarm, Run, tool_contents, user

Body = Callable[[str], Any]


def delegating(body: Body) -> Body:
    """Wrap it as a decorator does that loses all marks."""

    def work(text: str) -> Any:
        return body(text)

    return work


def counted(body: Body) -> Body:
    """Wrap it as a decorator of metrics does."""

    @functools.wraps(body)
    def work(*args: Any, **kwargs: Any) -> Any:
        return body(*args, **kwargs)

    work.__name__ = "work"
    return work


def callable_object(body: Body) -> Any:
    """Give an object whose plain `__call__` returns a coroutine."""

    class Work:
        __name__ = "work"

        def __call__(self, text: str) -> Any:
            return body(text)

    return Work()


def partial(body: Body) -> Any:
    """Give a partial of a plain function that returns a coroutine."""

    def work(of: Body, text: str) -> Any:
        return of(text)

    return functools.partial(work, body)


def bound(body: Body) -> Any:
    """Give a bound method that returns a coroutine."""

    class Desk:
        def work(self, text: str) -> Any:
            return body(text)

    return Desk().work


def static(body: Body) -> Any:
    """Give a static method that returns a coroutine."""

    class Desk:
        @staticmethod
        def work(text: str) -> Any:
            return body(text)

    return Desk.work


def task(body: Body) -> Any:
    """Give an async function that returns a task that has begun."""

    async def work(text: str) -> Any:
        return asyncio.ensure_future(body(text))

    return work


SHAPES = [delegating, counted, callable_object, partial, bound, static, task]


@pytest.mark.parametrize("shape", SHAPES)
def test_all_that_tools_use_works_behind_any_wrapper(
    make_swarm: MakeSwarm, run: Run, shape: Callable[[Body], Any]
) -> None:
    """The call is known, a step is recorded, and sleeping is durable, however the coroutine is given."""

    @step
    async def save(text: str) -> str:
        return f"saved {text}"

    async def body(text: str) -> str:
        await sleep_async(0.01)
        return f"{await save(text)} in {current_call().tool}"

    swarm = make_swarm(ScriptedModel([[call("work", text="it")], "Done"]))
    response = run(swarm, Agent(functions=[shape(body)]), user())
    assert tool_contents(response) == ["saved it in work"]
    if isinstance(swarm, DurableSwarm):
        assert "save" in [made.name for made in swarm.get(response.run_id or "").steps()]


@pytest.mark.parametrize("shape", SHAPES)
def test_retries_and_timeouts_count_behind_any_wrapper(
    make_swarm: MakeSwarm, run: Run, shape: Callable[[Body], Any]
) -> None:
    """An attempt that raises while it is awaited is made again, and one that is late ends; each knows its number."""
    attempts: list[int] = []

    async def body(text: str) -> str:
        attempts.append(current_call().attempt)
        if len(attempts) == 1:
            raise ConnectionError("away")
        if len(attempts) == 2:
            await asyncio.sleep(30)
        return "third"

    work = tool(retries=2, timeout=0.2)(shape(body))
    swarm = make_swarm(ScriptedModel([[call("work", text="it")], "Done"]))
    assert tool_contents(run(swarm, Agent(functions=[work]), user())) == ["third"]
    assert attempts == [1, 2, 3]


@pytest.mark.parametrize("shape", [counted, callable_object, partial, static])
def test_a_tool_error_is_told_and_not_tried_again(make_swarm: MakeSwarm, shape: Callable[[Body], Any]) -> None:
    """`ToolError` raised while it is awaited reaches the model at once."""
    entered: list[str] = []

    async def body(text: str) -> str:
        entered.append(text)
        raise ToolError("no such order")

    swarm = make_swarm(ScriptedModel([[call("work", text="it")], "Done"]))
    response = swarm.run(Agent(functions=[tool(retries=3)(shape(body))]), user())
    assert tool_contents(response) == ["Error: no such order"]
    assert entered == ["it"]


@pytest.mark.parametrize("shape", [delegating, callable_object, bound, task])
def test_a_person_can_be_asked_behind_any_wrapper(make_swarm: MakeSwarm, shape: Callable[[Body], Any]) -> None:
    """`ask_human_async` opens a request of the call, and the answer comes back to it."""

    async def body(text: str) -> str:
        return await ask_human_async(f"{text}?")

    swarm = make_swarm(ScriptedModel([[call("work", text="Red or green")], "Done"]))

    def answer() -> None:
        for _ in range(1000):
            for request in swarm.requests():
                swarm.answer("green", request.id)
                return
            threading.Event().wait(0.02)

    person = threading.Thread(target=answer)
    person.start()
    response = swarm.run(Agent(functions=[shape(body)]), user())
    person.join()
    assert tool_contents(response) == ["green"]


@pytest.mark.parametrize("shape", [delegating, counted, callable_object, partial])
def test_a_step_whose_function_only_looks_plain(make_swarm: MakeSwarm, run: Run, shape: Callable[[Body], Any]) -> None:
    """A `@step` over it is awaited, is recorded once, and has its retries."""
    tries: list[str] = []

    async def body(text: str) -> str:
        tries.append(text)
        await asyncio.sleep(0)
        if len(tries) == 1:
            raise ConnectionError("away")
        return f"saved {text}"

    save = step(name="save", retries=1, backoff=0.01)(shape(body))

    async def work() -> str:
        return f"{await save('a')}, {await save('b')}"

    swarm = make_swarm(ScriptedModel([["work"], "Done"]))
    response = run(swarm, Agent(functions=[work]), user())
    assert tool_contents(response) == ["saved a, saved b"]
    assert tries == ["a", "a", "b"]
    if isinstance(swarm, DurableSwarm):
        assert [made.name for made in swarm.get(response.run_id or "").steps()].count("save") == 2


def test_a_finished_step_is_awaited_again_in_a_further_attempt(make_swarm: MakeSwarm) -> None:
    """An attempt that follows a failed one gets the finished step's result to await, and does not repeat it."""
    saved: list[str] = []

    async def body(text: str) -> str:
        saved.append(text)
        return f"saved {text}"

    save = step(delegating(body))
    attempts: list[int] = []

    async def work() -> str:
        text: str = await save("a")
        attempts.append(current_call().attempt)
        if len(attempts) == 1:
            raise ConnectionError("away")
        return text

    agent = Agent(functions=[tool(retries=1)(delegating_without_arguments(work))])
    response = make_swarm(ScriptedModel([["work"], "Done"])).run(agent, user())
    assert tool_contents(response) == ["saved a"]
    assert saved == ["a"]


def delegating_without_arguments(body: Callable[[], Any]) -> Callable[[], Any]:
    """Wrap it as a decorator does that loses all marks."""

    def work() -> Any:
        return body()

    return work


@pytest.mark.parametrize("shape", [delegating, counted, callable_object, partial])
@pytest.mark.parametrize("agreed", [True, False])
def test_rules_for_approvals_may_be_awaited(make_swarm: MakeSwarm, shape: Callable[[Body], Any], agreed: bool) -> None:
    """The verdict of a rule is what it gives when awaited, not that it gave something."""

    async def rule(text: str) -> bool:
        await asyncio.sleep(0)
        return not agreed

    @tool(approval=shape(rule), approval_timeout=0.05)
    def pay(text: str) -> str:
        return f"paid {text}"

    response = make_swarm(ScriptedModel([[call("pay", text="it")], "Done"])).run(Agent(functions=[pay]), user())
    assert (tool_contents(response) == ["paid it"]) is agreed


@pytest.mark.parametrize("shape", [delegating, callable_object, task])
def test_instructions_may_be_awaited(make_swarm: MakeSwarm, run: Run, shape: Callable[[Body], Any]) -> None:
    """A prompt function that gives something to await makes the prompt it gives in the end."""

    async def prompt(context_variables: Any) -> str:
        await asyncio.sleep(0)
        return f"Serve {context_variables['name']}."

    model = ScriptedModel(["Done"])
    run(make_swarm(model), Agent(instructions=shape(prompt)), user(), {"name": "Ada"})
    assert model.calls[0]["messages"][0]["content"] == "Serve Ada."


def test_a_future_of_a_thread_is_waited_for(make_swarm: MakeSwarm, run: Run) -> None:
    """A tool that hands its work to a pool of its own and returns the future gives the work's result."""
    with ThreadPoolExecutor(1) as pool:

        def work(text: str) -> Any:
            return pool.submit(lambda: f"made {text}")

        response = run(make_swarm(ScriptedModel([[call("work", text="it")], "Done"])), Agent(functions=[work]), user())
    assert tool_contents(response) == ["made it"]


def test_a_future_of_another_loop_is_waited_for(make_swarm: MakeSwarm, run: Run) -> None:
    """A tool that returns a task of a loop of the program's own gives the task's result."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def make(text: str) -> str:
        await asyncio.sleep(0.01)
        return f"made {text}"

    def work(text: str) -> Any:
        made: list[Any] = []
        begun = threading.Event()

        def begin() -> None:
            made.append(loop.create_task(make(text)))
            begun.set()

        loop.call_soon_threadsafe(begin)
        begun.wait(10)
        return made[0]

    try:
        response = run(make_swarm(ScriptedModel([[call("work", text="it")], "Done"])), Agent(functions=[work]), user())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    assert tool_contents(response) == ["made it"]


@pytest.mark.parametrize("shape", [delegating, callable_object, partial])
def test_a_transactional_tool_gives_nothing_to_await(tmp_path: Any, shape: Callable[[Body], Any]) -> None:
    """One that does fails with one clear error, and nothing of it is committed."""

    async def body(text: str) -> str:
        return text

    work = tool(effect="transactional")(shape(body))
    database = f"sqlite:///{tmp_path}/runs.sqlite"
    with (
        DurableSwarm(ScriptedModel([[call("work", text="it")]]), database=database) as swarm,
        pytest.raises(ConfigurationError, match="must be a plain function"),
    ):
        swarm.run(Agent(functions=[work]), user())
