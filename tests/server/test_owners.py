"""Runs belong to whom they were begun for: to others they do not exist, at any door."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from durable_swarm import Agent
from durable_swarm.server.ids import encode_id
from tests.crash.test_requests import soon
from tests.engine.helpers import unique
from tests.server.conftest import Serve, pay
from tests.support.patience import PATIENCE


@pytest.fixture
def url(database_url: str) -> str:
    """A fresh database of each kind: owners are conditions in SQL."""
    return database_url


class As:
    """A client that says who asks."""

    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self._headers = {"x-user": name}

    def get(self, path: str) -> Any:
        return self._client.get(path, headers=self._headers)

    def post(self, path: str, body: Any = None, **more: Any) -> Any:
        return self._client.post(path, json=body or {}, headers={**self._headers, **more})


People = Callable[..., tuple[Any, As, As, As]]


@pytest.fixture
def people(serve: Serve) -> People:
    """Serve a swarm to Anna, Bob and Olga, who is an operator; give the swarm and their clients."""

    def make(replies: list[Any], **options: Any) -> tuple[Any, As, As, As]:
        authorize = lambda request: request.headers.get("x-user")  # noqa: E731
        swarm, client = serve(replies, authorize=authorize, operators={"olga"}, **options)
        return swarm, As(client, "anna"), As(client, "bob"), As(client, "olga")

    return make


def asking() -> Agent:
    """Return an agent whose run waits for an approval."""
    return Agent(name=unique(), functions=[pay])


PAY: list[Any] = [[("pay", {"amount": 5})], "Paid."]


def begin(anna: As, swarm: Any, agent: Agent, run_id: str, **more: Any) -> str:
    """Begin a run of Anna's that waits; give the id of its request."""
    assert anna.post("/api/runs", {"agent": agent.name, "message": "Pay", "run_id": run_id, **more}).status_code == 201
    for event in swarm.get(run_id).events():
        if event.type == "run.waiting":
            break
    [request] = swarm.get(run_id).requests()
    return str(request.id)


def test_a_run_of_another_does_not_exist(people: People) -> None:
    """To read, to follow, to change, to answer and to list: for Bob there is no such run, for the operator there is."""
    agent = asking()
    swarm, anna, bob, olga = people(PAY)
    request = encode_id(begin(anna, swarm, agent, "r1"))
    for path in ("/api/runs/r1", "/api/runs/r1/events", "/runs/r1", "/runs/r1/export", f"/inbox/{request}"):
        assert bob.get(path).status_code == 404, path
    for act, body in (("cancel", {}), ("resume", {}), ("say", {"text": "x"}), ("fork", {"turn": 0}), ("extend", {})):
        assert bob.post(f"/api/runs/r1/{act}", body).status_code == 404, act
    assert bob.post(f"/api/requests/{request}", {"verdict": "approve"}).status_code == 404
    assert bob.get("/api/runs").json()["runs"] == bob.get("/api/requests").json()["requests"] == []
    assert bob.get("/api/requests?run=r1").status_code == 404
    for path in ("/runs/r1/cancel", "/runs/r1/say", "/runs/r1/fork"):
        assert bob.post(path, **{"sec-fetch-site": "same-origin"}).status_code == 404, path
    assert "r1" not in bob.get("/runs").text
    for who in (anna, olga):
        assert [run["id"] for run in who.get("/api/runs").json()["runs"]] == ["r1"]
        assert len(who.get("/api/requests").json()["requests"]) == 1
        assert who.get("/api/runs/r1").status_code == who.get("/runs/r1").status_code == 200
    assert olga.post(f"/api/requests/{request}", {"verdict": "approve"}).status_code == 200
    decided = [">r1</a>" in who.get("/inbox?state=decided").text for who in (anna, olga, bob)]
    assert decided == [True, True, False]
    assert swarm.get("r1").result(PATIENCE).messages[-1]["content"] == "Paid."
    assert swarm.get("r1").requests(all=True)[0].answered_by == "olga"


def test_an_id_of_another_is_taken(people: People) -> None:
    """A run of another is not attached to by its id, also with the same message; the own one is."""
    agent = Agent(name=unique())
    swarm, anna, bob, _ = people(["Secret"])
    body = {"agent": agent.name, "message": "Hi", "run_id": "r1"}
    assert anna.post("/api/runs", body).status_code == 201
    swarm.get("r1").result(PATIENCE)
    assert anna.post("/api/runs", body).status_code == 200
    refused = bob.post("/api/runs", body)
    assert refused.status_code == 409
    assert "Secret" not in refused.text
    chat = {"model": agent.name, "messages": [{"role": "user", "content": "Hi"}]}
    assert bob.post("/v1/chat/completions", chat, **{"idempotency-key": "r1"}).status_code == 409


def test_a_session_of_another_does_not_exist(people: People) -> None:
    """Nobody continues the conversation of another, at any door, nor reads it in the console."""
    agent = Agent(name=unique())
    swarm, anna, bob, olga = people(["One", "Two", "Three"])
    first = {"agent": agent.name, "message": "Hi", "session": "s1", "run_id": "r1"}
    assert anna.post("/api/runs", first).status_code == 201
    swarm.get("r1").result(PATIENCE)
    more = {"agent": agent.name, "message": "More", "session": "s1"}
    assert bob.post("/api/runs", more).status_code == 404
    chat = {"model": agent.name, "messages": [{"role": "user", "content": "Hi"}], "metadata": {"session": "s1"}}
    assert bob.post("/v1/chat/completions", chat).status_code == 404
    message = {"id": "m", "role": "user", "content": "Hi"}
    thread = {"threadId": "s1", "runId": "r2", "messages": [message], "tools": [], "context": []}
    assert bob.post(f"/agui/{agent.name}", thread).status_code == 404
    assert bob.get("/sessions/s1").status_code == 404
    assert "s1" not in bob.get("/sessions").text
    assert olga.get("/sessions/s1").status_code == 200
    assert anna.post("/api/runs", {**more, "run_id": "r3"}).status_code == 201
    assert swarm.get("r3").result(PATIENCE).messages[-1]["content"] == "Two"


def test_responses_and_tools_of_another_do_not_exist(people: People) -> None:
    """The doors `openai` and `mcp` know no run of another by its id."""
    agent = asking()
    swarm, anna, bob, _ = people(PAY)
    begin(anna, swarm, agent, "r1")
    assert bob.get("/v1/responses/resp_r1").status_code == 404
    assert bob.post("/v1/responses/resp_r1/cancel").status_code == 404
    before = {"model": agent.name, "input": "Hi", "previous_response_id": "resp_r1"}
    assert bob.post("/v1/responses", before).status_code == 404
    assert anna.get("/v1/responses/resp_r1").status_code == 200
    told = {who: mcp_text(client, "get_run", run_id="r1") for who, client in (("anna", anna), ("bob", bob))}
    assert "waiting for a decision" in told["anna"]
    assert told["bob"].startswith("RunNotFound")


def mcp_text(client: As, tool: str, **arguments: Any) -> str:
    """Call a tool over MCP, as a client that cannot be asked; give the text of its result."""
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
    answer = client.post("/mcp", body, accept="application/json, text/event-stream")
    line = next(line for line in answer.text.splitlines() if line.startswith("data: {"))
    return str(json.loads(line.removeprefix("data: "))["result"]["content"][0]["text"])


def test_what_a_run_starts_belongs_to_its_person(people: People) -> None:
    """Child runs and forks have the owner of the run they come from, also those that an operator makes."""
    child = asking()
    parent = Agent(name=unique(), functions=[child.as_tool(name="ask_child")])
    replies: list[Any] = [[("ask_child", {"message": "Pay"})], *PAY, "All done.", "Again."]
    swarm, anna, bob, olga = people(replies)
    assert anna.post("/api/runs", {"agent": parent.name, "message": "Go", "run_id": "r1"}).status_code == 201
    soon(swarm.requests)
    [request] = anna.get("/api/requests").json()["requests"]
    assert request["run_id"] != "r1"
    assert bob.get(f"/api/runs/{encode_id(request['run_id'])}").status_code == 404
    assert bob.get("/api/requests").json()["requests"] == []
    assert anna.post(f"/api/requests/{encode_id(request['id'])}", {"verdict": "approve"}).status_code == 200
    swarm.get("r1").result(PATIENCE)
    assert olga.post("/api/runs/r1/fork", {"turn": 1, "run_id": "f1"}).status_code == 201
    assert bob.get("/api/runs/f1").status_code == 404
    assert anna.get("/api/runs/f1").status_code == 200
    assert len(anna.get("/api/runs").json()["runs"]) == 3


def test_runs_of_the_program_are_everybodys(people: People) -> None:
    """A run that the program begins by itself belongs to nobody; pages about all runs are for operators."""
    agent = Agent(name=unique())
    swarm, anna, bob, olga = people(["One"])
    swarm.run(agent, [{"role": "user", "content": "Hi"}], run_id="r1")
    assert [who.get("/api/runs/r1").status_code for who in (anna, bob, olga)] == [200, 200, 200]
    assert [who.get(page).status_code for who in (bob, olga) for page in ("/workers", "/health")] == [
        404,
        404,
        200,
        200,
    ]
    assert 'href="/workers"' in olga.get("/runs").text
    assert 'href="/workers"' not in bob.get("/runs").text


def test_without_authorize_all_see_all(serve: Serve) -> None:
    """Where nobody has a name, nothing belongs to anybody."""
    agent = Agent(name=unique())
    swarm, client = serve(["One"])
    client.post("/api/runs", json={"agent": agent.name, "message": "Hi", "run_id": "r1"})
    swarm.get("r1").result(PATIENCE)
    assert client.get("/api/runs/r1").status_code == 200
    assert "belongs_to" not in json.dumps(swarm.export("r1"))
