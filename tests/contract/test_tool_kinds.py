"""What may be a tool, and what a tool may return."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from durable_swarm import Agent, tool
from durable_swarm.testing import ScriptedModel
from tests.contract.helpers import MakeSwarm, Run, completion, mock_client, tool_contents, tool_messages, user


class Account:
    """Has a method that serves as a tool."""

    def __init__(self) -> None:
        self.balance = 0

    def deposit(self, amount: int) -> str:
        """Puts money in."""
        self.balance += amount
        return f"Balance {self.balance}"


class Doubler:
    """A callable object; the model calls it by the name of its class."""

    def __call__(self, number: int) -> int:
        """Doubles a number."""
        return number * 2


class AsyncDoubler:
    """A callable object whose call is a coroutine."""

    async def __call__(self, number: int) -> int:
        """Doubles a number."""
        return number * 2


def multiply(number: int, by: int) -> int:
    """Multiplies two numbers."""
    return number * by


async def multiply_async(number: int, by: int) -> int:
    """Multiplies two numbers."""
    return number * by


def closure() -> Callable[..., Any]:
    factor = 2

    def double(number: int) -> int:
        """Doubles a number."""
        return number * factor

    return double


KINDS = {
    "function": ("multiply", multiply, {"number": 21, "by": 2}),
    "async function": ("multiply_async", multiply_async, {"number": 21, "by": 2}),
    "closure": ("double", closure(), {"number": 21}),
    "lambda": ("double", tool(name="double")(lambda number: number * 2), {"number": 21}),
    "callable object": ("Doubler", Doubler(), {"number": 21}),
    "async callable object": ("AsyncDoubler", AsyncDoubler(), {"number": 21}),
    "partial": ("multiply", functools.partial(multiply, by=2), {"number": 21}),
    "async partial": ("multiply_async", functools.partial(multiply_async, by=2), {"number": 21}),
    "named partial": ("double", tool(name="double")(functools.partial(multiply, by=2)), {"number": 21}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_tools(make_swarm: MakeSwarm, run: Run, kind: str) -> None:
    """Every callable is a tool, under its own name, and is called with the model's arguments."""
    name, function, arguments = KINDS[kind]
    model = ScriptedModel([[(name, arguments)], "Done"])
    response = run(make_swarm(model), Agent(functions=[function]), user())
    assert [offered["function"]["name"] for offered in model.calls[0]["tools"]] == [name]
    assert tool_messages(response)[0]["tool_name"] == name
    assert tool_contents(response) == ["42"]


def test_bound_method(make_swarm: MakeSwarm, run: Run) -> None:
    """A bound method is a tool of its own object, whose state it keeps; `self` is not shown to the model."""
    account = Account()
    calls = [("deposit", {"amount": 2}), ("deposit", {"amount": 3})]
    model = ScriptedModel([calls, "Done"])
    response = run(make_swarm(model), Agent(functions=[account.deposit]), user())
    parameters = model.calls[0]["tools"][0]["function"]["parameters"]
    assert parameters["properties"] == {"amount": {"type": "integer"}}
    assert parameters["required"] == ["amount"]
    assert tool_contents(response) == ["Balance 2", "Balance 5"]
    assert account.balance == 5


def test_bare_lambda(make_swarm: MakeSwarm) -> None:
    """A lambda without a name of its own is called by Python's name for it, as in Swarm."""
    client = mock_client(completion(calls=[("<lambda>", {"number": 21})]), completion("Done"))
    response = make_swarm(client).run(Agent(functions=[lambda number: number * 2]), user())
    assert tool_contents(response) == ["42"]


def test_defaults_of_the_tool(make_swarm: MakeSwarm) -> None:
    """A parameter the model leaves out has the function's own default."""

    def greet(name: str, greeting: str = "Hello") -> str:
        return f"{greeting}, {name}"

    calls = [("greet", {"name": "Ada"}), ("greet", {"name": "Ada", "greeting": "Hej"})]
    response = make_swarm(ScriptedModel([calls, "Done"])).run(Agent(functions=[greet]), user())
    assert tool_contents(response) == ["Hello, Ada", "Hej, Ada"]


def test_keyword_parameters(make_swarm: MakeSwarm) -> None:
    """A tool with keyword-only parameters gets them."""

    def greet(*, name: str) -> str:
        return f"Hello, {name}"

    response = make_swarm(ScriptedModel([[("greet", {"name": "Ada"})], "Done"])).run(Agent(functions=[greet]), user())
    assert tool_contents(response) == ["Hello, Ada"]


VALUES = {
    "text": "plain",
    "empty text": "",
    "dict": {"response": "Ticket created"},
    "list": [1, "two"],
    "int": 42,
    "float": 1.5,
    "bool": False,
    "None": None,
    "object": ValueError("as a value"),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_become_text(make_swarm: MakeSwarm, run: Run, name: str) -> None:
    """The model is told `str()` of what a tool returns, which is Swarm's rule."""

    def produce() -> Any:
        return VALUES[name]

    response = run(make_swarm(ScriptedModel([["produce"], "Done"])), Agent(functions=[produce]), user())
    assert tool_contents(response) == [str(VALUES[name])]


def test_value_without_text(make_swarm: MakeSwarm, run: Run) -> None:
    """A value whose `str()` fails ends the run with TypeError, as in Swarm."""

    class Mute:
        def __str__(self) -> str:
            raise RuntimeError("no words")

    def produce() -> Mute:
        return Mute()

    with pytest.raises(TypeError, match="return a string or Result"):
        run(make_swarm(ScriptedModel([["produce"]])), Agent(functions=[produce]), user())


def test_tool_of_two_agents(make_swarm: MakeSwarm) -> None:
    """One function may be a tool of several agents."""

    def to_second() -> Agent:
        return second

    second = Agent(name="Second", functions=[multiply])
    first = Agent(name="First", functions=[multiply, to_second])
    times = ("multiply", {"number": 2, "by": 3})
    response = make_swarm(ScriptedModel([[times], ["to_second"], [times], "Done"])).run(first, user())
    assert tool_contents(response) == ["6", '{"assistant": "Second"}', "6"]


def test_last_tool_of_a_name_is_called(make_swarm: MakeSwarm) -> None:
    """Where an agent has two functions of one name the later one is called, as in Swarm's function map."""

    def make(text: str) -> Callable[[], str]:
        def report() -> str:
            return text

        return report

    # A provider would refuse two tools of one name; Swarm did not look.
    model = ScriptedModel([["report"], "Done"], strict=False)
    response = make_swarm(model).run(Agent(functions=[make("old"), make("new")]), user())
    assert tool_contents(response) == ["new"]
