"""The door `mcp`, asked by the SDK's own client, and by agents of another swarm."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp_types import INVALID_PARAMS, ElicitRequestParams, ElicitResult

from durable_swarm import Agent, DurableSwarm, Swarm, ask_human, tool
from durable_swarm.mcp import mcp_tools
from durable_swarm.server import app
from durable_swarm.server.backend import MOST, Backend
from durable_swarm.server.mcp import KEY, Mcp
from durable_swarm.sub_agents import snake_case
from durable_swarm.testing import ScriptedModel
from durable_swarm.types import tool_name
from tests.contract.helpers import tool_contents, user
from tests.crash.test_requests import soon
from tests.engine.helpers import unique
from tests.server.test_kills import serving

Serve = Callable[..., tuple[DurableSwarm, Any, str, Agent]]


@pytest.fixture
def serve(url: str, request: pytest.FixtureRequest) -> Serve:
    """Serve an agent; give the swarm, the MCP server, the name of the agent's tool, and the agent."""

    def make(replies: list[Any], *functions: Any) -> tuple[DurableSwarm, Any, str, Agent]:
        swarm = DurableSwarm(ScriptedModel(replies), database=url)
        agent = Agent(name=unique(), functions=list(functions))
        backend = Backend(swarm, {agent.name: agent}, MOST)
        request.addfinalizer(swarm.close)
        request.addfinalizer(backend.close)
        return swarm, Mcp(backend).server, f"ask_{snake_case(agent.name)}", agent

    return make


def ask(server: Any, name: str, arguments: dict[str, Any], answers: Any = None, meta: Any = None) -> str:
    """Call a tool with the SDK's client, which answers what it is asked, if it can be asked."""

    async def elicit(context: Any, params: ElicitRequestParams) -> ElicitResult:
        made: ElicitResult = answers(params)
        return made

    async def main() -> str:
        async with Client(server, elicitation_callback=None if answers is None else elicit) as client:
            try:
                result = await client.call_tool(name, arguments, meta=meta)
            except MCPError as error:
                return f"{error.error.code}: {error.error.message}"
            return ("Error: " if result.is_error else "") + "".join(getattr(one, "text", "") for one in result.content)

    return asyncio.run(main())


def test_agents_are_tools(serve: Serve) -> None:
    """A call is a run; the same key attaches to it."""
    swarm, server, name, _agent = serve(["Hello"])
    assert ask(server, name, {"message": "Hi"}, meta={KEY: "r1"}) == "Hello"
    assert ask(server, name, {"message": "Hi"}, meta={KEY: "r1"}) == "Hello"
    assert [run.id for run in swarm.runs()] == ["r1"]
    assert ask(server, "get_run", {"run_id": "r1"}) == "Hello"


def test_wrong_calls_are_told(serve: Serve) -> None:
    """An unknown tool is an error of the protocol; other mistakes are results that are errors, which models read."""
    _, server, name, _agent = serve([])
    assert (
        ask(server, "nothing", {})
        == f"{INVALID_PARAMS}: this server has no tool 'nothing'; its tools are {name}, get_run"
    )
    assert "no argument 'sesion'; did you mean 'session'?" in ask(server, name, {"message": "Hi", "sesion": "s"})
    assert "no argument 'id'; did you mean 'run_id'?" in ask(server, "get_run", {"id": "r1"})
    assert "message must be a text" in ask(server, name, {})
    assert ask(server, "get_run", {"run_id": "none"}).startswith("Error: RunNotFound")


def test_what_a_run_asks_is_asked_of_the_client(serve: Serve) -> None:
    """An approval and a question end the request; with the answers the call goes through."""

    @tool(approval=True)
    def pay(amount: int) -> str:
        return f"paid {amount}"

    def colour() -> str:
        return ask_human("Which colour?", choices=["red", "blue"])

    asked: list[str] = []

    def answers(params: Any) -> ElicitResult:
        asked.append(params.message)
        fields: dict[str, Any] = {"approve": True} if "pay" in params.message else {"answer": "blue"}
        return ElicitResult(action="accept", content=fields)

    swarm, server, name, _agent = serve([[("pay", {"amount": 5})], ["colour"], "Done"], pay, colour)
    assert ask(server, name, {"message": "Hi"}, answers, {KEY: "r1"}) == "Done"
    assert ['"amount": 5' in asked[0], asked[1]] == [True, "Which colour?"]
    told = [message["content"] for message in swarm.get("r1").messages() if message["role"] == "tool"]
    assert told == ["paid 5", "blue"]


def test_an_accepted_form_without_its_field_decides_nothing(serve: Serve) -> None:
    """A misspelt `approve` is no rejection: the call is an error, and the request stays open."""

    @tool(approval=True)
    def pay(amount: int) -> str:
        return f"paid {amount}"

    swarm, server, name, _agent = serve([[("pay", {"amount": 5})], "Done"], pay)

    def answers(_params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"aprove": True})

    told = ask(server, name, {"message": "Hi"}, answers, {KEY: "r1"})
    assert told.startswith("Error: InvalidAnswer: request 'r1/0.0/approval' takes")
    assert [one.status for one in swarm.get("r1").requests()] == ["open"]


def test_a_client_that_cannot_be_asked_is_told(serve: Serve) -> None:
    """It gets the question and the request's id; once it is answered, `get_run` has the answer."""
    swarm, server, name, _agent = serve([["colour"], "Blue it is."], lambda: None)
    _agent.functions[0] = colour
    text = ask(server, name, {"message": "Hi"}, meta={KEY: "r1"})
    assert "Which colour? (waiting for a decision about request r1/0.0/0)" in text
    swarm.get("r1").answer("blue")
    soon(lambda: swarm.get("r1").status == "done")
    assert ask(server, "get_run", {"run_id": "r1"}) == "Blue it is."


def colour() -> str:
    """Ask for a colour."""
    return ask_human("Which colour?")


def test_an_agent_of_another_swarm_asks(serve: Serve) -> None:
    """Both ends are ours: the tool's idempotency key is the id of the run at the other end."""
    _, server, name, _agent = serve(["I am fine."])
    tools = mcp_tools(server, only=[name], effects={name: "idempotent"})
    agent = Agent(name=unique(), functions=[tools])
    with Swarm(ScriptedModel([[(name, {"message": "How are you?"})], "Good."])) as other:
        assert tool_contents(other.run(agent, user())) == ["I am fine."]
    tools.close()


PROGRAM = """
from durable_swarm import Agent, DurableSwarm
from durable_swarm.testing import ScriptedModel
from durable_swarm.types import tool_name
clerk = Agent(name="Clerk")
swarm = DurableSwarm(ScriptedModel(["Hello"] * 9), database="sqlite:///runs.sqlite")
"""


@pytest.mark.slow
def test_programs_are_served_over_stdio_and_http(tmp_path: Path) -> None:
    """`serve --mcp-stdio` speaks on stdin and stdout; /mcp is asked with the server's token."""
    (tmp_path / "program.py").write_text(PROGRAM)
    arguments = ["-m", "durable_swarm", "serve", "program:swarm"]
    stdio = StdioServerParameters(command=sys.executable, args=[*arguments, "--mcp-stdio"], cwd=tmp_path)
    assert ask(stdio, "ask_clerk", {"message": "Hi"}) == "Hello"
    with serving(tmp_path) as (base, _):
        tools = mcp_tools(f"{base}/mcp", auth="secret", trust=True)
        tools.load()
        assert [tool_name(made) for made in tools.tools()] == ["ask_clerk", "get_run"]
        agent = Agent(name=unique(), functions=[tools])
        with Swarm(ScriptedModel([[("ask_clerk", {"message": "Hi"})], "Done"])) as other:
            assert tool_contents(other.run(agent, user())) == ["Hello"]
        tools.close()


def test_the_first_requests_may_come_at_once(url: str) -> None:
    """Requests that come while the door is being opened wait for it."""
    agent = Agent(name=unique())
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    headers = {"accept": "application/json, text/event-stream"}

    async def ask_all(served: Any) -> list[int]:
        transport = httpx.ASGITransport(app=served, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            answers = await asyncio.gather(*(client.post("/mcp", json=ping, headers=headers) for _ in range(5)))
        return [answer.status_code for answer in answers]

    with DurableSwarm(ScriptedModel([]), database=url) as swarm:
        served = app(swarm, agents=[agent], doors=["mcp"])
        assert asyncio.run(ask_all(served)) == [200] * 5
        served.close()
