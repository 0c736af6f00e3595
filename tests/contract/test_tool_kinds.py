"""What may be a tool, and what a tool may return."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, step, tool
from durable_swarm.testing import ScriptedModel, call
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


def test_named_lambda(make_swarm: MakeSwarm) -> None:
    """A lambda is a tool like any other by the name it is given."""
    double = tool(name="double")(lambda number: number * 2)
    client = mock_client(completion(calls=[("double", {"number": 21})]), completion("Done"))
    response = make_swarm(client).run(Agent(functions=[double]), user())
    assert tool_contents(response) == ["42"]


def test_partial_with_a_name_of_its_own(make_swarm: MakeSwarm) -> None:
    """A partial that was given a `__name__` is called by it, whatever the function in it is called."""

    @tool(name="ship")
    def send(to: str, text: str) -> str:
        return f"{text} to {to}"

    to_ada, to_bob = functools.partial(send, "Ada"), functools.partial(send, "Bob")
    to_ada.__name__ = "tell_ada"  # type: ignore[attr-defined]
    model = ScriptedModel([[call("tell_ada", text="Hi"), call("ship", text="Hello")], "Done"])
    response = make_swarm(model).run(Agent(functions=[to_ada, to_bob]), user())
    assert tool_contents(response) == ["Hi to Ada", "Hello to Bob"]


def named(name: str) -> Callable[[], str]:
    """Give a tool of that name."""

    def work() -> str:
        return "worked"

    work.__name__ = name
    return work


def pieces() -> Iterator[str]:
    yield "a piece"


async def pieces_async() -> AsyncIterator[str]:
    yield "a piece"


class Yields:
    """A callable object that yields."""

    def __call__(self) -> Iterator[str]:
        yield "a piece"


@pytest.mark.parametrize(
    ("functions", "problem"),
    [
        ([named("send"), named("send")], "two tools are named 'send'"),
        ([tool(name="send")(named("mail")), named("send")], "two tools are named 'send'"),
        ([lambda: "x"], "'<lambda>'"),
        ([functools.partial(lambda x: x, 1)], "'<lambda>'"),
        ([named("grüßen")], "letters, digits, _ or - of ASCII"),
        ([named("mail.send")], "letters, digits, _ or - of ASCII"),
        ([named("send mail")], "letters, digits, _ or - of ASCII"),
        ([named("s" * 65)], "1 to 64"),
        ([named("")], "1 to 64"),
        ([pieces], "is a generator"),
        ([functools.partial(pieces_async)], "is a generator"),
        ([Yields()], "is a generator"),
    ],
)
def test_functions_that_cannot_be_tools(make_swarm: MakeSwarm, functions: list[Any], problem: str) -> None:
    """One clear error, before anything is recorded and the model is asked; also when it is said by an appended tool."""
    model = ScriptedModel(["Done"])
    swarm, agent = make_swarm(model), Agent(name="Odd")
    agent.functions.extend(functions)
    with pytest.raises(ConfigurationError, match=f"agent 'Odd': .*{problem}"):
        swarm.run(agent, user(), run_id="odd")
    assert model.calls == []
    if isinstance(swarm, DurableSwarm):
        assert swarm.runs() == []


def test_functions_that_cannot_be_tools_behind_a_handoff(make_swarm: MakeSwarm) -> None:
    """An agent that a tool hands over to is checked before its model is asked."""
    other = Agent(name="Odd", functions=[named("send"), named("send")])
    model = ScriptedModel([["transfer"], "Done"])

    def transfer() -> Agent:
        return other

    with pytest.raises(ConfigurationError, match="agent 'Odd': two tools"):
        make_swarm(model).run(Agent(functions=[transfer]), user())
    assert len(model.calls) == 1


def test_a_tool_that_returns_a_generator(make_swarm: MakeSwarm) -> None:
    """What only the call shows is an error then, and nothing that the model is told as a success."""

    def report() -> Any:
        return pieces()

    with pytest.raises(TypeError, match="returned a generator"):
        make_swarm(ScriptedModel([["report"], "Done"])).run(Agent(functions=[report]), user())


@pytest.mark.parametrize("decorator", [tool, step, tool(retries=2), step(name="x")])
def test_generators_are_refused_where_they_are_decorated(decorator: Any) -> None:
    """`@tool` and `@step` say at once that nobody would take what a generator yields."""
    with pytest.raises(ConfigurationError, match="is a generator"):
        decorator(pieces)


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
