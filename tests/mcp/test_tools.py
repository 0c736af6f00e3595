"""Tools of an MCP server in this process: how they stand in an agent, and what the model and the people get."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, InvalidAnswer, Swarm
from durable_swarm.mcp import mcp_tools
from durable_swarm.testing import ScriptedModel
from durable_swarm.types import settings_of, tool_name
from tests.contract.conftest import make_swarm
from tests.contract.helpers import MakeSwarm, tool_contents, user
from tests.crash.test_requests import soon
from tests.engine.helpers import unique
from tests.mcp.shop import shop
from tests.support import programs

__all__ = ["make_swarm"]


def test_the_tools_of_a_server_stand_in_place_of_one(make_swarm: MakeSwarm, ledger: Path) -> None:
    """They are sent to the model beside plain tools, with their own schema; names get the prefix, `only` picks some."""

    def plain() -> str:
        return "plain"

    tools = mcp_tools(shop(ledger), prefix="shop_", only=["look", "put", "book.seats"])
    model = ScriptedModel([["plain", ("shop_look", {"what": "x"}), ("shop_put", {"what": "y"})], "Done"])
    agent = Agent(name=unique(), functions=[plain, tools])
    response = make_swarm(model).run(agent, user())
    sent = {tool["function"]["name"]: tool["function"] for tool in model.calls[0]["tools"]}
    assert list(sent) == ["plain", "shop_look", "shop_put", "shop_book_seats"]
    assert sent["shop_look"]["description"] == "Look something up."
    assert sent["shop_look"]["parameters"]["properties"]["what"]["type"] == "string"
    assert tool_contents(response)[:2] == ["plain", "saw x"]
    assert '"put": "y"' in tool_contents(response)[2]
    tools.close()


def test_an_error_of_the_server_is_told_to_the_model(make_swarm: MakeSwarm, ledger: Path) -> None:
    """A result that is an error begins with "Error:"; arguments are checked before they are sent."""
    tools = mcp_tools(shop(ledger))
    model = ScriptedModel([[("pay", {"what": "nothing"}), ("pay", {"what": 5})], "Done"], strict=False)
    response = make_swarm(model).run(Agent(name=unique(), functions=[tools]), user())
    failed, refused = tool_contents(response)
    assert failed.startswith("Error: ")
    assert "nothing to pay" in failed
    assert refused.startswith("Error: The arguments for pay do not fit")
    assert ledger.read_text() == "pay nothing\n"
    tools.close()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"look": "once", "put": "once", "pay": "once"}),
        ({"trust": True}, {"look": "read", "put": "idempotent", "pay": "once"}),
        ({"effects": {"pay": "idempotent"}}, {"look": "once", "put": "once", "pay": "idempotent"}),
        ({"trust": True, "effects": {"look": "once"}}, {"look": "once", "put": "idempotent", "pay": "once"}),
    ],
)
def test_hints_decide_the_effect_where_the_server_is_trusted(
    ledger: Path, options: dict[str, Any], expected: dict[str, str]
) -> None:
    """Hints of strangers count for nothing, and `effects` has the last word."""
    tools = mcp_tools(shop(ledger), only=list(expected), **options)
    tools.load()
    assert {tool_name(made): settings_of(made).effect for made in tools.tools()} == expected
    tools.close()


def test_an_approval_shows_the_call_of_a_servers_tool(make_swarm: MakeSwarm, ledger: Path) -> None:
    """With `approval` by name, only that tool asks; nothing is sent before."""
    tools = mcp_tools(shop(ledger), approval={"pay": True})
    model = ScriptedModel([[("look", {"what": "x"}), ("pay", {"what": "y"})], "Done"])
    swarm, agent = make_swarm(model), Agent(name=unique(), functions=[tools])
    person = _person(swarm, lambda request: swarm.approve(request.id, arguments={"what": "z"}))
    response = swarm.run(agent, user())
    assert tool_contents(response) == ["saw x", "paid z"]
    assert [request.kind for request in person] == ["approval"]
    tools.close()


@pytest.mark.parametrize("given", ["3", '{"count": 3}', {"count": 3}])
def test_a_question_of_the_server_is_a_request_with_fields(make_swarm: MakeSwarm, ledger: Path, given: Any) -> None:
    """It is answered with the fields, their JSON, or the text of the only one; what does not fit leaves it open."""
    tools = mcp_tools(shop(ledger))
    swarm = make_swarm(ScriptedModel([[("book_seats", {"show": "Hamlet"})], "Done"]))
    agent = Agent(name=unique(), functions=[tools])

    def decide(request: Any) -> None:
        with pytest.raises(InvalidAnswer, match="count"):
            swarm.answer("many", request.id)
        swarm.answer(given, request.id)

    person = _person(swarm, decide)
    response = swarm.run(agent, user())
    [request] = person
    assert (request.kind, request.question) == ("question", "How many seats for Hamlet?")
    assert request.schema["properties"]["count"]["type"] == "integer"
    assert tool_contents(response) == ["3 for Hamlet"]
    tools.close()


def test_a_question_is_approved_with_fields_or_rejected(make_swarm: MakeSwarm, ledger: Path) -> None:
    """`approve(arguments=)` accepts with these fields; `reject` declines, and the server says what that means."""
    tools = mcp_tools(shop(ledger))
    swarm = make_swarm(ScriptedModel([[("book_seats", {"show": "A"}), ("book_seats", {"show": "B"})], "Done"]))
    agent = Agent(name=unique(), functions=[tools])

    def decide(request: Any) -> None:
        if "A?" in request.question:
            swarm.approve(request.id, arguments={"count": 2})
        else:
            swarm.reject("no", request.id)

    person = _person(swarm, decide, 2)
    first, second = tool_contents(swarm.run(agent, user()))
    assert first == "2 for A"
    assert second.startswith("Error: ")
    assert len(person) == 2
    assert "book B" not in ledger.read_text()
    tools.close()


def _person(swarm: Any, decide: Any, number: int = 1) -> list[Any]:
    """Decide about the requests of a swarm as they come, in a thread; give the list that takes them."""
    met: list[Any] = []

    def work() -> None:
        while len(met) < number:
            request = soon(lambda: [one for one in swarm.requests() if one not in met])[0]
            decide(request)
            met.append(request)

    threading.Thread(target=work, daemon=True).start()
    return met


@pytest.mark.parametrize(
    ("source", "options", "problem"),
    [
        ("shop.py", {}, "not the URL"),
        ([], {}, "list of texts"),
        (None, {}, "must be a URL"),
        ("http://127.0.0.1:9/mcp", {"effects": {"x": "maybe"}}, "'read', 'idempotent' or 'once'"),
        ("http://127.0.0.1:9/mcp", {"only": "look"}, "list of names"),
        (["server"], {"auth": "token"}, "URL"),
    ],
)
def test_wrong_arguments_are_refused_at_once(source: Any, options: dict[str, Any], problem: str) -> None:
    """Each mistake has one sentence, and nothing is connected."""
    with pytest.raises(ConfigurationError, match=problem):
        mcp_tools(source, **options)


def test_names_that_the_server_does_not_have_are_told(ledger: Path) -> None:
    """A misspelled name in `only` or `effects` would silently leave a tool out, or untrusted."""
    tools = mcp_tools(shop(ledger), effects={"pai": "read"})
    with pytest.raises(ConfigurationError, match="no tool 'pai'; it has look, put, pay"):
        Swarm(ScriptedModel(["Hi"])).run(Agent(name=unique(), functions=[tools]), user())
    tools.close()


def test_without_the_extra_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the SDK is needed to import the module."""
    monkeypatch.setitem(sys.modules, "mcp", None)
    for name in ("durable_swarm.mcp.connection", "durable_swarm.mcp.toolset"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ConfigurationError, match=r"pip install 'durable-swarm\[mcp\]'"):
        mcp_tools(["server"])


def test_a_server_that_cannot_be_reached_holds_the_run(fresh_sqlite: Any, tmp_path: Path, ledger: Path) -> None:
    """The caller gets the reason, no failure is recorded, and the run continues once the server is there."""
    command = [sys.executable, str(tmp_path / "server.py"), str(ledger)]
    tools = mcp_tools(command)
    agent = Agent(name=unique(), functions=[tools])
    model = ScriptedModel([[("look", {"what": "x"})], "Done"])
    with DurableSwarm(model, database=fresh_sqlite(tmp_path / "runs.sqlite")) as swarm:
        with pytest.raises(ConfigurationError, match="cannot be reached"):
            swarm.run(agent, user(), run_id="r1")
        assert model.calls == []
        source = Path(__file__).with_name("shop.py").read_text()
        (tmp_path / "server.py").write_text(source)
        assert tool_contents(swarm.run(agent, user(), run_id="r1")) == ["saw x"]
    tools.close()


def test_doctor_tries_each_server(tmp_path: Path, ledger: Path) -> None:
    """It names the tools of those that answer, and fails for one that does not."""
    program = f"""
import subprocess
import sys
from durable_swarm import Agent, DurableSwarm
from durable_swarm.mcp import mcp_tools
good = mcp_tools([sys.executable, {str(Path(__file__).with_name("shop.py"))!r}, {str(ledger)!r}])
bad = mcp_tools(["no-such-server"])
agent = Agent(name="Doctored", functions=[good, bad])
swarm = DurableSwarm(database="sqlite:///doctored.sqlite")
"""
    (tmp_path / "doctored.py").write_text(program)
    command = [sys.executable, "-m", "durable_swarm", "doctor", "doctored:swarm"]
    done = programs.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "4 tools: look, put, pay, book_seats" in done.stdout
    [told] = [line for line in done.stdout.splitlines() if "no-such-server" in line]
    assert told.startswith("fail")
    assert "MCP server 'no-such-server' cannot be reached: " in told
