"""Tasks of the door `mcp`: a call is a task whose id is its run's, which any process of the server answers for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import mcp_types
import pytest
from mcp import Client, MCPError
from mcp.client.extension import ClientExtension, ResultClaim
from mcp_types import Result
from pydantic import Field

from durable_swarm import Agent, DurableSwarm, ask_human
from durable_swarm.server.backend import MOST, Backend
from durable_swarm.server.mcp import KEY, Mcp
from durable_swarm.server.mcp_tasks import TASKS
from durable_swarm.sub_agents import snake_case
from durable_swarm.testing import ScriptedModel
from tests.engine.helpers import unique
from tests.server.conftest import pay


class Created(Result):
    """What a call becomes."""

    result_type: Literal["task"] = Field(alias="resultType")
    task_id: str
    status: str
    created_at: str


class State(Result):
    """What is said of a task."""

    task_id: str = ""
    status: str = ""
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    input_requests: dict[str, Any] | None = None


class Knows(ClientExtension):
    """A client that says that it knows tasks."""

    identifier = TASKS

    def claims(self) -> Any:
        """Take a task as the result of a call."""
        return (ResultClaim(result_type="task", model=Created, resolve=self._never),)

    async def _never(self, *_: Any) -> Any:
        raise AssertionError


class Asking(mcp_types.Request[Any, Any]):
    """A request about a task."""

    method: str
    params: Any


Ask = Callable[..., Awaitable[Any]]


def colour() -> str:
    """Ask for a colour."""
    return ask_human("Which colour?", choices=["red", "blue"])


def talk(url: str, replies: list[Any], functions: list[Any], steps: Callable[[Ask, str], Awaitable[None]]) -> None:
    """Serve an agent, and take these steps as a client of it, which knows tasks."""
    agent = Agent(name=unique(), functions=functions)
    with DurableSwarm(ScriptedModel(replies), database=url) as swarm:
        backend = Backend(swarm, {agent.name: agent}, MOST)

        async def main() -> None:
            async with Client(Mcp(backend).server, extensions=[Knows()]) as client:

                async def ask(method: str, **params: Any) -> Any:
                    if method == "tools/call":
                        return await client.session.call_tool(allow_claimed=True, **params)
                    return await client.session.send_request(Asking(method=method, params=params), State)

                await steps(ask, f"ask_{snake_case(agent.name)}")

        asyncio.run(main())
        backend.close()


async def reached(ask: Ask, task: str, status: str) -> Any:
    """Ask for a task until it has a status."""
    while (state := await ask("tasks/get", taskId=task)).status != status:
        assert state.status == "working", state
        await asyncio.sleep(0.02)
    return state


def test_a_call_is_a_task(url: str) -> None:
    """Its id is that of its run; an approval and a question are asked and answered by it; it has the answer at last."""

    async def steps(ask: Ask, name: str) -> None:
        task = await ask("tools/call", name=name, arguments={"message": "Hi"}, meta={KEY: "r1"})
        assert (task.task_id, task.status) == ("r1", "working")
        [(number, asked)] = (await reached(ask, "r1", "input_required")).input_requests.items()
        assert (asked["method"], '"amount": 5' in asked["params"]["message"]) == ("elicitation/create", True)
        accepted = {"action": "accept", "content": {"approve": True}}
        for _ in range(2):  # An answer that is sent again is left out.
            await ask("tasks/update", taskId="r1", inputResponses={number: accepted})
        [(number, asked)] = (await reached(ask, "r1", "input_required")).input_requests.items()
        assert asked["params"]["message"] == "Which colour?"
        for odd in ({"action": "accept", "content": {"answer": "green"}}, "x"):
            with pytest.raises(MCPError):
                await ask("tasks/update", taskId="r1", inputResponses={number: odd})
        await ask("tasks/update", taskId="r1", inputResponses={number: {**accepted, "content": {"answer": "blue"}}})
        done = await reached(ask, "r1", "completed")
        assert done.result["content"][0]["text"] == "Done."
        again = await ask("tools/call", name=name, arguments={"message": "Hi"}, meta={KEY: "r1"})
        assert again.task_id == "r1"

    talk(url, [[("pay", {"amount": 5})], ["colour"], "Done."], [pay, colour], steps)


def test_a_task_takes_answers_to_what_it_asks(url: str) -> None:
    """An update leaves out what its task does not ask: a request of another task, and one that nobody made."""

    async def steps(ask: Ask, name: str) -> None:
        asked = []
        for run_id in ("r1", "r2"):
            await ask("tools/call", name=name, arguments={"message": "Hi"}, meta={KEY: run_id})
            asked += (await reached(ask, run_id, "input_required")).input_requests
        accepted = {"action": "accept", "content": {"approve": True}}
        await ask("tasks/update", taskId="r1", inputResponses={asked[1]: accepted, "none": accepted})
        for run_id, number in zip(("r1", "r2"), asked, strict=True):
            assert [*(await ask("tasks/get", taskId=run_id)).input_requests] == [number]
        await ask("tasks/update", taskId="r1", inputResponses=dict.fromkeys(asked, accepted))
        await reached(ask, "r1", "completed")
        assert [*(await ask("tasks/get", taskId="r2")).input_requests] == asked[1:]

    talk(url, [[("pay", {"amount": 5})], [("pay", {"amount": 6})], "Done."], [pay], steps)


def test_tasks_are_cancelled_and_fail(url: str) -> None:
    """A task is cancelled, a second time without effect; one that fails says why; an unknown one does not exist."""

    async def steps(ask: Ask, name: str) -> None:
        await ask("tools/call", name=name, arguments={"message": "Hi"}, meta={KEY: "r1"})
        await reached(ask, "r1", "input_required")
        for _ in range(2):
            await ask("tasks/cancel", taskId="r1")
        assert (await reached(ask, "r1", "cancelled")).result is None
        await ask("tools/call", name=name, arguments={"message": "Hi"}, meta={KEY: "r2"})
        assert "broken" in (await reached(ask, "r2", "failed")).error["message"]
        for method in ("tasks/get", "tasks/update", "tasks/cancel"):
            with pytest.raises(MCPError, match="no run"):
                await ask(method, taskId="none", inputResponses={})

    talk(url, [[("pay", {"amount": 5})], ValueError("broken")], [pay], steps)


def test_what_is_no_work_is_answered_at_once(url: str) -> None:
    """A mistake, and the answer of a run, are no tasks."""

    async def steps(ask: Ask, name: str) -> None:
        assert (await ask("tools/call", name=name, arguments={})).is_error
        assert (await ask("tools/call", name="get_run", arguments={"run_id": "none"})).is_error

    talk(url, [], [], steps)
