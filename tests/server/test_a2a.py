"""The door `a2a`, asked by the SDK's own client: a task is a run, and what it asks is answered by the next message."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from a2a.client import ClientConfig, ClientFactory
from a2a.helpers.proto_helpers import get_artifact_text, get_message_text, new_data_part, new_text_part
from a2a.types.a2a_pb2 import (
    CancelTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    Message,
    Role,
    SendMessageRequest,
    SubscribeToTaskRequest,
    Task,
    TaskState,
)
from a2a.utils.errors import A2AError, InvalidParamsError, TaskNotCancelableError, TaskNotFoundError

from durable_swarm import Agent, ask_human
from tests.engine.helpers import unique
from tests.server.conftest import Serve, pay
from tests.server.test_kills import PROGRAM, serving

BASE = "http://127.0.0.1"
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The event loop of the tests."""
    return "asyncio"


@asynccontextmanager
async def connected(url: str, client: httpx.AsyncClient, *, streaming: bool = False) -> AsyncIterator[Any]:
    """Give a client of the agent at an address, made of its card."""
    config = ClientConfig(streaming=streaming, httpx_client=client)
    yield await ClientFactory(config).create_from_url(url)


@asynccontextmanager
async def beside(served: Any, agent: str, **more: Any) -> AsyncIterator[Any]:
    """Give a client of an agent of this application, without a network."""
    transport = httpx.ASGITransport(app=served)
    headers = {"x-user": more.pop("user", "anna")}
    async with (
        httpx.AsyncClient(transport=transport, base_url=BASE, headers=headers, timeout=200) as http,
        connected(f"{BASE}/a2a/{agent}", http, **more) as client,
    ):
        yield client


def said(text: str = "", data: Any = None, **more: Any) -> SendMessageRequest:
    """Return a message of a user."""
    parts = [*([new_text_part(text)] if text else []), *([new_data_part(data)] if data is not None else [])]
    known: dict[str, Any] = {"message_id": str(uuid.uuid4()), **more}
    return SendMessageRequest(message=Message(role=Role.ROLE_USER, parts=parts, **known))


async def send(client: Any, text: str = "", data: Any = None, **more: Any) -> Task:
    """Send a message; give the task in the answer."""
    [answer] = [one async for one in client.send_message(said(text, data, **more))]
    task: Task = answer.task
    return task


def text_of(task: Task) -> str:
    """Return the answer of a task."""
    return "".join(get_artifact_text(artifact) for artifact in task.artifacts)


async def text_streamed(stream: AsyncIterator[Any]) -> tuple[str, list[int]]:
    """Put the updates of a stream together, as clients do; give the text, and the states."""
    text, states = "", []
    async for one in stream:
        if one.HasField("artifact_update"):
            update = one.artifact_update
            piece = get_artifact_text(update.artifact, "")
            text = text + piece if update.append else piece
        elif one.HasField("status_update"):
            states.append(one.status_update.status.state)
        elif one.HasField("task"):
            states.append(one.task.status.state)
    return text, states


Served = Callable[..., Any]


@pytest.fixture
def served(serve: Serve) -> Served:
    """Serve a swarm whose model gives these replies; give the application."""

    def make(replies: list[Any], **options: Any) -> Any:
        return serve(replies, **options)[1].app

    return make


def colour() -> str:
    """Ask for a colour."""
    return ask_human("Which colour?", choices=["red", "blue"])


async def test_a_task_is_a_run(served: Served) -> None:
    """A message begins one; sent again it attaches; the next message of the context is the next run of its session."""
    agent = Agent(name=unique())
    app = served(["One.", lambda request: f"{len(request['messages'])} messages"])
    async with beside(app, agent.name) as client:
        first = await send(client, "Hi", message_id="m1")
        assert (first.id, first.status.state, text_of(first)) == ("m1", TaskState.TASK_STATE_COMPLETED, "One.")
        assert await send(client, "Hi", message_id="m1") == first
        assert await client.get_task(GetTaskRequest(id="m1")) == first
        second = await send(client, "More", context_id=first.context_id)
        assert (second.context_id, text_of(second)) == (first.context_id, "4 messages")
        found = await client.list_tasks(ListTasksRequest(context_id=first.context_id))
        assert [task.id for task in found.tasks] == [second.id, "m1"]
        page = await client.list_tasks(ListTasksRequest(page_size=1))
        rest = await client.list_tasks(ListTasksRequest(page_size=1, page_token=page.next_page_token))
        assert [page.tasks[0].id, rest.tasks[0].id, rest.next_page_token] == [second.id, "m1", ""]


async def test_what_a_run_asks_is_input_required(served: Served) -> None:
    """An approval and a question each end the answer; a message to the task decides, and continues it."""
    agent = Agent(name=unique(), functions=[pay, colour])
    app = served([[("pay", {"amount": 5})], ["colour"], "Done."])
    async with beside(app, agent.name) as client:
        asked = await send(client, "Pay")
        assert asked.status.state == TaskState.TASK_STATE_INPUT_REQUIRED
        data = asked.status.message.parts[1].data.struct_value
        assert (data["tool"], data["arguments"]["amount"]) == ("pay", 5)
        with pytest.raises(InvalidParamsError, match="say approve or reject"):
            await send(client, "perhaps", task_id=asked.id)
        asked = await send(client, data={"approve": True, "arguments": {"amount": 6}}, task_id=asked.id)
        assert get_message_text(asked.status.message) == "Which colour?"
        with pytest.raises(InvalidParamsError):
            await send(client, "green", task_id=asked.id)
        done = await send(client, "blue", task_id=asked.id)
        assert (done.status.state, text_of(done)) == (TaskState.TASK_STATE_COMPLETED, "Done.")
        with pytest.raises(A2AError, match="has ended"):
            await send(client, "blue", task_id=asked.id)


async def test_a_task_is_streamed(served: Served) -> None:
    """Its text comes in pieces, of which the last turn's stay; a subscription gets the whole text of a running one."""
    agent = Agent(name=unique(), functions=[pay])
    app = served([[("pay", {"amount": 5})], "All of it is paid, word for word."])
    async with beside(app, agent.name, streaming=True) as client:
        text, states = await text_streamed(client.send_message(said("Pay", message_id="m1")))
        assert (text, states[-1]) == ("", TaskState.TASK_STATE_INPUT_REQUIRED)
        text, states = await text_streamed(client.subscribe(SubscribeToTaskRequest(id="m1")))
        assert states[-1] == TaskState.TASK_STATE_INPUT_REQUIRED
        text, states = await text_streamed(client.send_message(said("approve", task_id="m1")))
        assert (text, states[-1]) == ("All of it is paid, word for word.", TaskState.TASK_STATE_COMPLETED)
        again, _ = await text_streamed(client.send_message(said("Pay", message_id="m1")))
        assert again == text
        with pytest.raises(A2AError, match="has ended"):
            await text_streamed(client.subscribe(SubscribeToTaskRequest(id="m1")))


async def test_tasks_are_cancelled_and_fail(served: Served) -> None:
    """A cancelled run is a canceled task, once; one that failed says why."""
    agent = Agent(name=unique(), functions=[pay])
    app = served([[("pay", {"amount": 5})], ValueError("broken")])
    async with beside(app, agent.name) as client:
        asked = await send(client, "Pay")
        ended = await client.cancel_task(CancelTaskRequest(id=asked.id))
        assert ended.status.state == TaskState.TASK_STATE_CANCELED
        with pytest.raises(TaskNotCancelableError):
            await client.cancel_task(CancelTaskRequest(id=asked.id))
        failed = await send(client, "Again")
        assert failed.status.state == TaskState.TASK_STATE_FAILED
        assert "broken" in get_message_text(failed.status.message)


async def test_tasks_of_others_do_not_exist(served: Served) -> None:
    """A person sees the own tasks; the card of an unknown agent does not exist."""
    agent = Agent(name=unique(), functions=[pay])
    app = served([[("pay", {"amount": 5})]], authorize=lambda request: request.headers.get("x-user"))
    async with beside(app, agent.name) as anna, beside(app, agent.name, user="bob") as bob:
        task = await send(anna, "Pay")
        for act in (
            bob.get_task(GetTaskRequest(id=task.id)),
            bob.cancel_task(CancelTaskRequest(id=task.id)),
            send(bob, "approve", task_id=task.id),
            send(bob, "Hi", context_id=task.context_id),
        ):
            with pytest.raises(TaskNotFoundError):
                await act
        assert not (await bob.list_tasks(ListTasksRequest())).tasks
        done = await send(anna, data={"approve": False, "reason": "no"}, task_id=task.id)
        assert done.status.state == TaskState.TASK_STATE_FAILED  # The script has no second reply.


@pytest.mark.slow
async def test_a_task_outlives_its_servers(tmp_path: Path) -> None:
    """Two servers are killed while the task waits; the same task is answered at the third, and its text is exact."""
    (tmp_path / "program.py").write_text(PROGRAM)
    task, answers = Task(), ["", "one", "two"]
    for answer in answers:
        with serving(tmp_path) as (base, _):
            headers = {"Authorization": "Bearer secret"}
            async with (
                httpx.AsyncClient(headers=headers, timeout=200) as http,
                connected(f"{base}/a2a/Clerk", http) as client,
            ):
                task = await send(client, answer or "Hi", task_id=task.id)
    assert (task.status.state, text_of(task)) == (
        TaskState.TASK_STATE_COMPLETED, "All of it is answered, word for word.",
    )  # fmt: skip
