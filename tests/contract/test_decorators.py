"""`tool`, `step` and `sleep`: what a tool may say about itself, and do inside."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, current_call, sleep, sleep_async, step, tool
from durable_swarm.testing import ScriptedModel, call
from tests.contract.helpers import PATIENCE, MakeSwarm, Run, tool_contents, tool_messages, user


def test_tool_name_and_description(make_swarm: MakeSwarm) -> None:
    """`@tool(name=, description=)` is what the model sees and calls; the function's own name is then unknown."""

    @tool(name="find_order", description="Finds an order.")
    def internal(order: str) -> str:
        """Not for the model."""
        return f"Found {order}"

    model = ScriptedModel([[call("find_order", order="A1"), call("internal", order="A1")], "Done"])
    response = make_swarm(model).run(Agent(functions=[internal]), user())
    function = model.calls[0]["tools"][0]["function"]
    assert (function["name"], function["description"]) == ("find_order", "Finds an order.")
    assert tool_messages(response)[0]["tool_name"] == "find_order"
    assert tool_contents(response) == ["Found A1", "Error: Tool internal not found. Your tools are: find_order."]
    assert internal("A2") == "Found A2"


def test_tool_without_arguments(make_swarm: MakeSwarm) -> None:
    """`@tool()` changes nothing about a function."""

    @tool()
    def greet(name: str) -> str:
        """Greets."""
        return f"Hello, {name}"

    model = ScriptedModel([[call("greet", name="Ada")], "Done"])
    response = make_swarm(model).run(Agent(functions=[greet]), user())
    assert model.calls[0]["tools"][0]["function"]["description"] == "Greets."
    assert tool_contents(response) == ["Hello, Ada"]


def test_tool_retries(make_swarm: MakeSwarm) -> None:
    """`@tool(retries=2)` calls the tool again after an exception; each attempt is numbered and has the same key."""
    seen: list[Any] = []

    @tool(retries=2)
    def flaky() -> str:
        seen.append(current_call())
        if len(seen) < 2:
            raise OSError("not now")
        return "Done at last"

    response = make_swarm(ScriptedModel([["flaky"], "Done"])).run(Agent(functions=[flaky]), user())
    assert tool_contents(response) == ["Done at last"]
    assert [made.attempt for made in seen] == [1, 2]
    assert seen[0].idempotency_key == seen[1].idempotency_key


@pytest.mark.parametrize("asynchronous", [False, True])
def test_step_retries_are_spent(make_swarm: MakeSwarm, run: Run, asynchronous: bool) -> None:
    """A step as a tool is tried `retries` times more; then its last exception ends the run."""
    tries: list[int] = []

    def fail() -> str:
        tries.append(len(tries) + 1)
        raise OSError(f"try {len(tries)}")

    @step(retries=2, backoff=0.01)
    def flaky() -> str:
        return fail()

    @step(retries=2, backoff=0.01)
    async def flaky_async() -> str:
        return fail()

    function = flaky_async if asynchronous else flaky
    with pytest.raises(OSError, match="try 3"):
        run(make_swarm(ScriptedModel([[function.__name__]])), Agent(functions=[function]), user())
    assert tries == [1, 2, 3]


def test_timeout_of_an_async_tool(make_swarm: MakeSwarm, run: Run) -> None:
    """`@tool(timeout=)` ends an async tool that takes longer with TimeoutError, and cancels it."""
    cancelled = threading.Event()

    @tool(timeout=0.05)
    async def slow() -> str:
        try:
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "never"

    with pytest.raises(TimeoutError):
        run(make_swarm(ScriptedModel([["slow"]])), Agent(functions=[slow]), user())
    assert cancelled.wait(PATIENCE)


def test_timeout_of_a_plain_tool(make_swarm: MakeSwarm, run: Run) -> None:
    """`@tool(timeout=)` ends the wait for a plain tool that takes longer with TimeoutError."""
    released = threading.Event()

    @tool(timeout=0.05)
    def slow() -> str:
        released.wait(PATIENCE)
        return "too late"

    try:
        with pytest.raises(TimeoutError, match=r"0\.05"):
            run(make_swarm(ScriptedModel([["slow"]])), Agent(functions=[slow]), user())
    finally:
        released.set()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_tool_within_its_timeout(make_swarm: MakeSwarm, run: Run, asynchronous: bool) -> None:
    """A tool that keeps its timeout is called like any other, with its context and its current call."""

    @tool(timeout=PATIENCE)
    def quick(context_variables: dict[str, Any]) -> str:
        return f"{context_variables['name']} by {current_call().tool}"

    @tool(timeout=PATIENCE)
    async def quick_async(context_variables: dict[str, Any]) -> str:
        return f"{context_variables['name']} by {current_call().tool}"

    function = quick_async if asynchronous else quick
    model = ScriptedModel([[function.__name__], "Done"])
    response = run(make_swarm(model), Agent(functions=[function]), user(), {"name": "Ada"})
    assert tool_contents(response) == [f"Ada by {function.__name__}"]


@pytest.mark.parametrize("settings", [{"retries": -1}, {"timeout": 0}, {"timeout": -1.0}])
def test_impossible_settings(settings: dict[str, Any]) -> None:
    """`tool` and `step` refuse a negative number of retries and a timeout that is no time."""
    with pytest.raises(ConfigurationError):
        tool(**settings)(lambda: None)
    with pytest.raises(ConfigurationError):
        step(**settings)(lambda: None)


def test_step_outside_a_run() -> None:
    """Outside a run a step is the plain function, sync or async."""

    @step
    def double(number: int) -> int:
        """Doubles."""
        return number * 2

    @step(name="triple", retries=1)
    async def triple(number: int) -> int:
        return number * 3

    assert double(21) == 42
    assert (double.__name__, double.__doc__) == ("double", "Doubles.")
    assert asyncio.run(triple(14)) == 42


def test_steps_inside_tools(make_swarm: MakeSwarm, run: Run) -> None:
    """Steps called inside a tool give what they return, in plain and in async tools, as often as they are called."""
    made: list[str] = []

    @step
    def charge(order: str) -> dict[str, Any]:
        made.append(order)
        return {"order": order, "number": len(made)}

    @step(name="charge later")
    async def charge_async(order: str) -> dict[str, Any]:
        await asyncio.sleep(0)
        made.append(order)
        return {"order": order, "number": len(made)}

    def pay() -> str:
        return str([charge("A1"), charge("A2")])

    async def pay_async() -> str:
        return str([await charge_async("A3"), await charge_async("A4")])

    model = ScriptedModel([["pay"], ["pay_async"], "Done"])
    response = run(make_swarm(model), Agent(functions=[pay, pay_async]), user())
    assert tool_contents(response) == [
        "[{'order': 'A1', 'number': 1}, {'order': 'A2', 'number': 2}]",
        "[{'order': 'A3', 'number': 3}, {'order': 'A4', 'number': 4}]",
    ]
    assert made == ["A1", "A2", "A3", "A4"]


def test_exception_of_a_step_can_be_caught(make_swarm: MakeSwarm, run: Run) -> None:
    """A tool may catch what its step raised, and go on."""

    @step
    def charge() -> str:
        raise LookupError("no such card")

    def pay() -> str:
        try:
            return charge()
        except LookupError as error:
            return f"Not paid: {error.args[0]}"

    response = run(make_swarm(ScriptedModel([["pay"], "Done"])), Agent(functions=[pay]), user())
    assert tool_contents(response) == ["Not paid: no such card"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_step_as_a_tool(make_swarm: MakeSwarm, run: Run, asynchronous: bool) -> None:
    """A step is a tool like any other: with context, changes in place, and its own current call."""

    @step
    def charge(order: str, context_variables: dict[str, Any]) -> str:
        """Charges."""
        context_variables["charged"] = order
        return f"{current_call().tool} {order}"

    @step
    async def charge_async(order: str, context_variables: dict[str, Any]) -> str:
        """Charges."""
        context_variables["charged"] = order
        return f"{current_call().tool} {order}"

    function = charge_async if asynchronous else charge
    model = ScriptedModel([[call(function.__name__, order="A1")], "Done"])
    response = run(make_swarm(model), Agent(functions=[function]), user())
    offered = model.calls[0]["tools"][0]["function"]
    assert (offered["name"], offered["description"]) == (function.__name__, "Charges.")
    assert list(offered["parameters"]["properties"]) == ["order"]
    assert tool_contents(response) == [f"{function.__name__} A1"]
    assert response.context_variables == {"charged": "A1"}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_step_as_a_tool_hands_off(make_swarm: MakeSwarm, run: Run, asynchronous: bool) -> None:
    """A step that returns an agent is a handoff."""

    @step
    def transfer() -> Agent:
        return second

    @step
    async def transfer_async() -> Agent:
        return second

    function = transfer_async if asynchronous else transfer
    second = Agent(name="Second")
    model = ScriptedModel([[function.__name__], "Hello"])
    response = run(make_swarm(model), Agent(name="First", functions=[function]), user())
    assert response.agent is second


def test_sleeping(make_swarm: MakeSwarm, run: Run) -> None:
    """`sleep` and `sleep_async` let the time pass inside a tool."""

    def rest() -> str:
        began = time.monotonic()
        sleep(0.05)
        return str(time.monotonic() - began >= 0.045)

    async def rest_async() -> str:
        began = time.monotonic()
        await sleep_async(0.05)
        return str(time.monotonic() - began >= 0.045)

    model = ScriptedModel([["rest"], ["rest_async"], "Done"])
    response = run(make_swarm(model), Agent(functions=[rest, rest_async]), user())
    assert tool_contents(response) == ["True", "True"]
