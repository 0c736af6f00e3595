"""Whatever is sent to any route of any door, the answer is not an error of the server, and shows no traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from durable_swarm import Agent, DurableSwarm
from durable_swarm.server import app
from durable_swarm.server.ids import encode_id
from durable_swarm.server.open_streams import OpenStreams
from durable_swarm.testing import ScriptedModel
from tests.engine.helpers import unique
from tests.server.conftest import pay
from tests.support.patience import PATIENCE

WORDS = st.sampled_from(
    ["r1", "s1", "user", "assistant", "tool", "approve", "answer", "queue", "1", "true", "\ud800", "a\0b"]
)
TEXTS = st.one_of(WORDS, st.text(max_size=12))
NAMES = st.sampled_from(
    [
        "id", "role", "content", "parts", "type", "text", "message", "messages", "agent", "model", "input", "stream",
        "session", "run_id", "verdict", "value", "reason", "arguments", "limits", "turn", "requests", "cost",
        "context_variables", "metadata", "conversation", "previous_response_id", "trigger", "approval", "approved",
        "state", "threadId", "runId", "tools", "context", "resume", "interruptId", "status", "payload", "method",
        "params", "messageId", "contextId", "taskId", "data", "name", "after", "stream_options", "result",
    ]
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.one_of(NAMES, TEXTS), inner, max_size=4)),
    max_leaves=12,
)


class Served:
    """A server with a run that has ended and one that waits, and the description of all its routes."""

    def __init__(self, swarm: DurableSwarm, client: Any, agent: Agent, streams: OpenStreams) -> None:
        self.swarm = swarm
        self.client = client
        self.streams = streams
        self.agent = agent
        self.known = {"agent": agent.name, "name": agent.name, "token": "t1", "id": "r1"}
        body = {"agent": agent.name, "message": "Hi", "run_id": "r1", "session": "s1"}
        assert client.post("/api/runs", json=body).status_code == 201
        swarm.get("r1").result(PATIENCE)
        self.paths = client.get("/api/openapi.json").json()["paths"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve all doors."""
    folder: Path = tmp_path_factory.mktemp("fuzz")
    agent = Agent(name=unique(), functions=[pay])

    def reply(request: Any) -> Any:
        return [("pay", {"amount": 1})] if "pay" in str(request["messages"][-1]["content"]) else "Well."

    model = ScriptedModel([reply] * 100_000)
    with DurableSwarm(model, database=f"sqlite:///{folder}/runs.sqlite") as swarm:
        made = app(swarm, agents=[agent])
        with TestClient(made, raise_server_exceptions=True) as client:
            yield Served(swarm, client, agent, made.streams)


ROUTES = [
    ("POST", "/api/runs"), ("GET", "/api/runs"), ("GET", "/api/runs/{id}"), ("GET", "/api/runs/{id}/events"),
    ("POST", "/api/runs/{id}/cancel"), ("POST", "/api/runs/{id}/resume"), ("POST", "/api/runs/{id}/say"),
    ("POST", "/api/runs/{id}/fork"), ("POST", "/api/runs/{id}/extend"), ("GET", "/api/requests"),
    ("POST", "/api/requests/{id}"), ("POST", "/api/tokens/{token}"),
    ("POST", "/api/chat/{agent}"), ("GET", "/api/chat/{agent}/{id}/stream"),
    ("GET", "/v1/models"), ("GET", "/v1/models/{name}"), ("POST", "/v1/chat/completions"), ("POST", "/v1/responses"),
    ("GET", "/v1/responses/{id}"), ("POST", "/v1/responses/{id}/cancel"),
    ("POST", "/agui/{agent}"), ("POST", "/a2a/{agent}"), ("GET", "/a2a/{agent}/.well-known/agent-card.json"),
    ("POST", "/mcp"), ("DELETE", "/mcp"),
]  # fmt: skip


def test_every_route_is_described_and_fuzzed(served: Served) -> None:
    """The description has the routes of all doors, and this file sends nonsense to each."""
    described = {(method.upper(), path) for path, methods in served.paths.items() for method in methods}
    assert described == set(ROUTES)


@pytest.mark.parametrize(("method", "path"), ROUTES)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_nonsense_is_refused(served: Served, method: str, path: str, data: st.DataObject) -> None:
    """Random bodies, ids, queries and headers, some of them nearly right."""
    operation = served.paths[path][method.lower()]
    for parameter in operation["parameters"]:
        if parameter["in"] == "path":
            name = parameter["name"]
            known = st.just(encode_id(served.known[name]))
            given_id = data.draw(
                st.one_of(known, known, TEXTS.map(encode_id), st.text("ab~/.%20", min_size=1, max_size=6))
            )
            path = path.replace(f"{{{name}}}", given_id)
    query = {one["name"]: data.draw(TEXTS) for one in operation["parameters"] if one["in"] == "query"}
    query = {name: text.encode("utf-8", "replace").decode() for name, text in query.items() if data.draw(st.booleans())}
    headers = {"accept": "application/json, text/event-stream"}
    headers |= {"a2a-version": "1.0", "content-type": "application/json"} if data.draw(st.booleans()) else {}
    answer = served.client.request(
        method, path, params=query, headers=headers, content=body_for(served, operation, data)
    )
    assert answer.status_code < 500, answer.text
    assert "Traceback" not in answer.text


def body_for(served: Served, operation: Any, data: st.DataObject) -> bytes:
    """Return a body: nonsense, or what the description asks for with nonsense in some places."""
    if "requestBody" not in operation or data.draw(st.integers(0, 5)) == 0:
        return data.draw(
            st.one_of(st.just(b""), st.binary(max_size=20), VALUES.map(lambda one: json.dumps(one).encode()))
        )
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    body: dict[str, Any] = {
        name: data.draw(st.one_of(fitting(served, name), VALUES))
        for name in [*schema.get("required", []), *schema.get("properties", {})]
        if name in schema.get("required", []) or data.draw(st.booleans())
    }
    body |= data.draw(st.dictionaries(NAMES, VALUES, max_size=2))
    return json.dumps(body).encode()


def fitting(served: Served, name: str) -> st.SearchStrategy[Any]:
    """Return values that fit a field of this name."""
    said = {"id": "m1", "role": "user", "content": "Hi", "parts": [{"type": "text", "text": "Hi"}]}
    asked = {"message": {"messageId": "m2", "role": "ROLE_USER", "parts": [{"text": "pay"}]}}
    known: dict[str, Any] = {
        "agent": served.agent.name, "model": served.agent.name, "messages": [said], "message": "Hi", "input": "Hi",
        "jsonrpc": "2.0", "threadId": "s1", "runId": "r2", "tools": [], "context": [], "turn": 0, "verdict": "approve",
        "context_variables": {}, "limits": {"requests": 5}, "params": asked, "id": "c1", "session": "s2",
    }  # fmt: skip
    if name == "method":
        return st.sampled_from(
            ["SendMessage", "SendStreamingMessage", "GetTask", "ListTasks", "tools/list", "tools/call"]
        )
    return st.just(known.get(name, "x"))


def test_a_body_has_a_limit_at_every_door(served: Served) -> None:
    """A body above 10 MB is refused before it is parsed."""
    big = b'{"agent": "' + b"x" * (10 * 2**20) + b'"}'
    for method, path in ROUTES:
        if method == "POST" and not path.startswith("/v1/responses/"):  # Whose body is not read.
            there = path.replace("{agent}", served.agent.name).replace("{id}", "r1").replace("{token}", "t")
            assert served.client.post(there, content=big).status_code == 413, path


@pytest.mark.parametrize("path", [*sorted({path for method, path in ROUTES if method == "POST"}), "/runs/r1/cancel"])
def test_a_client_that_leaves_within_its_body_is_no_error(served: Served, path: str) -> None:
    """Half a body starts nothing, and is not reported: at every door, and on the pages of the console."""
    there = path.replace("{agent}", served.agent.name).replace("{id}", "r1").replace("{token}", "t")
    known = [run.id for run in served.swarm.runs()]
    headers = [(b"host", b"testserver"), (b"content-length", b"100"), (b"sec-fetch-site", b"same-origin")]
    scope = {
        "type": "http", "method": "POST", "path": there, "raw_path": there.encode(), "query_string": b"",
        "headers": headers, "scheme": "http", "http_version": "1.1", "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2), "root_path": "",
    }  # fmt: skip

    async def leave() -> None:
        coming = iter([{"type": "http.request", "body": b'{"agent": ', "more_body": True}])

        async def receive() -> Any:
            return next(coming, {"type": "http.disconnect"})

        async def send(_: Any) -> None:
            return

        await served.client.app(scope, receive, send)

    served.client.portal.call(leave)
    assert [run.id for run in served.swarm.runs()] == known


def test_open_streams_have_a_limit(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """One stream too many is refused with 429, at any door and on the pages of the console."""
    monkeypatch.setattr(served.streams, "most", 0)
    agent = served.agent.name
    said = {"id": "m9", "role": "user", "parts": [{"type": "text", "text": "Hi"}]}
    thread = {
        "threadId": "t9",
        "runId": "r9",
        "messages": [{"id": "m", "role": "user", "content": "Hi"}],
        "tools": [],
        "context": [],
    }
    chat = {"model": agent, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    for path, body in (
        (f"/api/chat/{agent}", {"id": "c9", "messages": [said]}),
        (f"/agui/{agent}", thread),
        ("/v1/chat/completions", chat),
        ("/v1/responses", {"model": agent, "input": "Hi", "stream": True}),
    ):
        assert served.client.post(path, json=body).status_code == 429, path
    assert served.client.get("/api/runs/r1/events").status_code == 429
    assert served.client.post("/mcp", json={"jsonrpc": "2.0", "method": "ping", "id": 1}).status_code == 429
    page = served.client.get("/runs/r1/events")
    assert page.status_code == 429
    assert "--max-streams" in page.text


@pytest.mark.parametrize("path", sorted({path for _, path in ROUTES}))
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "POST", "FOO"])
def test_other_methods_are_refused(served: Served, method: str, path: str) -> None:
    """A method that a route does not have is answered with 405."""
    there = path.replace("{agent}", served.agent.name).replace("{id}", "r1").replace("{name}", "x")
    if (method, path) in ROUTES or (method == "HEAD" and ("GET", path) in ROUTES):
        return
    answer = served.client.request(method, there.replace("{token}", "t"), content=b"{}")
    assert answer.status_code == 405, answer.text
