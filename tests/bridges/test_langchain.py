"""Tools of LangChain: adopted, they answer as they do there, and a finished call survives a kill."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain_core.tools import BaseTool, InjectedToolArg, InjectedToolCallId, Tool
from langchain_core.tools import tool as langchain_tool

from durable_swarm import Agent, ConfigurationError, DurableSwarm, Swarm
from durable_swarm.bridges.langchain import tool
from durable_swarm.testing import ScriptedModel, call
from tests.contract.conftest import make_swarm
from tests.contract.helpers import MakeSwarm, tool_contents, user
from tests.crash.conftest import lives
from tests.crash.lives import Lives

__all__ = ["lives", "make_swarm"]


@langchain_tool
def price(item: str, count: int = 1, *, call_id: Annotated[str, InjectedToolCallId]) -> str:
    """Return a price."""
    return f"{count} {item}, call {call_id}"


@langchain_tool
async def stock(item: str) -> dict[str, int]:
    """Return what is in stock."""
    return {item: 5}


@langchain_tool(response_format="content_and_artifact")
def picture(item: str) -> tuple[str, bytes]:
    """Draw an item."""
    return f"a picture of a {item}", b"PNG"


class Shout(BaseTool):
    """A tool that is a class, with a coroutine."""

    name: str = "shout"
    description: str = "Shout."

    def _run(self, text: str) -> str:
        raise AssertionError("the coroutine is preferred")

    async def _arun(self, text: str) -> str:
        return text.upper()


LOWER = Tool(name="lower", func=str.lower, description="Lower a text.")


def test_an_adopted_tool_does_what_it_did(make_swarm: MakeSwarm) -> None:
    """Plain and async, functions and classes, texts and other results: the model gets what LangChain would send."""
    replies: list[Any] = [
        [call("price", item="hat", count=2), call("stock", item="hat"), call("picture", item="hat")],
        [call("shout", text="hat"), call("lower", __arg1="HAT")],
        "Done",
    ]
    model = ScriptedModel(replies)
    functions = [tool(one) for one in (price, stock, picture, Shout(), LOWER)]
    response = make_swarm(model).run(Agent(name="Clerk of LangChain", functions=functions), user())
    first, *others = tool_contents(response)
    assert first == f"2 hat, call {response.messages[0]['tool_calls'][0]['id']}"
    assert others == ['{"hat": 5}', "a picture of a hat", "HAT", "hat"]
    [sent, *_] = model.calls[0]["tools"]
    assert sent["function"]["description"] == "Return a price."
    assert set(sent["function"]["parameters"]["properties"]) == {"item", "count"}
    assert sent["function"]["parameters"]["required"] == ["item"]


def test_arguments_that_do_not_fit_are_told_to_the_model() -> None:
    """As for any tool; the tool is not called."""
    model = ScriptedModel([[("price", '{"count": "many"}')], "Sorry"])
    [told] = tool_contents(Swarm(model).run(Agent(functions=[tool(price)]), user()))
    assert "count" in told
    assert "item" in told


def test_a_tool_that_fails_fails_the_call() -> None:
    """An exception of the tool is one of the call."""

    @langchain_tool
    def broken() -> str:
        """Break."""
        raise ValueError("out of paper")

    with pytest.raises(ValueError, match="out of paper"):
        Swarm(ScriptedModel([[call("broken")]])).run(Agent(functions=[tool(broken)]), user())


@langchain_tool
def from_graph(item: str, state: Annotated[dict[str, Any], InjectedToolArg]) -> str:
    """Look."""
    return item


@langchain_tool(return_direct=True)
def last(item: str) -> str:
    """Look."""
    return item


@pytest.mark.parametrize(
    ("given", "named"), [(from_graph, "'state'"), (last, "return_direct"), (print, "builtin_function")]
)
def test_what_cannot_be_adopted_is_named(given: Any, named: str) -> None:
    """A tool that needs what only a graph has is refused when it is adopted."""
    with pytest.raises(ConfigurationError, match=named):
        tool(given)


def test_what_only_a_graph_can_apply_is_named() -> None:
    """A result that is an instruction for a graph is an error that says so."""

    class Strange(BaseTool):
        name: str = "strange"
        description: str = "Strange."

        def invoke(self, *_: Any, **__: Any) -> Any:
            return object()

        def _run(self) -> None:
            """Do nothing."""

    with pytest.raises(TypeError, match="'strange' returned a object, which only a graph can apply"):
        Swarm(ScriptedModel([[call("strange")]])).run(Agent(functions=[tool(Strange())]), user())


def life(url: str, ledger: Path) -> str:
    """Run an agent whose second tool kills the process the first time."""

    @langchain_tool
    def pay(amount: int) -> str:
        """Pay."""
        with ledger.open("a") as file:
            file.write(f"paid {amount}\n")
        return "paid"

    @langchain_tool
    def post() -> str:
        """Post."""
        with ledger.open("a") as file:
            file.write("posted\n")
        if ledger.read_text().count("posted") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return "posted"

    payer = Agent(name="Payer of LangChain", functions=[tool(pay, effect="once"), tool(post)])
    with DurableSwarm(ScriptedModel([[call("pay", amount=5)], [call("post")], "Done"]), database=url) as swarm:
        return str(swarm.run(payer, user(), run_id="r1").messages[-1]["content"])


def test_a_finished_call_is_not_repeated(lives: Lives, fresh_sqlite: Any, tmp_path: Path) -> None:
    """Killed inside a tool, the run is finished by the next process, which repeats that call alone."""
    url, ledger = fresh_sqlite(tmp_path / "runs.sqlite"), tmp_path / "ledger"
    assert lives.live(life, url, ledger, ledger=tmp_path / "l").killed
    assert lives.live(life, url, ledger, ledger=tmp_path / "l").value == "Done"
    assert ledger.read_text() == "paid 5\nposted\nposted\n"
