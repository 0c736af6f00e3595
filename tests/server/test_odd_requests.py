"""Requests that no client should send, at each door and on both kinds of database: refused, and not in the log."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from durable_swarm import Agent
from tests.engine.helpers import unique
from tests.server.conftest import Serve, pay

HEADERS = {"accept": "application/json, text/event-stream", "a2a-version": "1.0", "content-type": "application/json"}
IMAGE = "data:image/png;base64,iVBORw0KGgo="
Ask = Callable[..., Any]


@pytest.fixture
def url(database_url: str) -> str:
    """A fresh database of each kind: they refuse different texts and numbers."""
    return database_url


@pytest.fixture
def ask(serve: Serve) -> Ask:
    """Serve an agent, and give a way to ask a door: AGENT in a path and a body is its name."""
    agent = Agent(name=unique(), functions=[pay])

    def reply(request: Any) -> Any:
        said = request["messages"][-1]["content"]
        return [("pay", {"amount": 1})] if said == "pay" else json.dumps(said)

    _, client = serve([reply] * 100, agents=[agent])

    def post(path: str, body: Any, method: str = "POST") -> Any:
        text = body if isinstance(body, str) else json.dumps(body)
        raw = text.replace("AGENT", agent.name).encode()
        return client.request(method, path.replace("AGENT", agent.name), content=raw, headers=HEADERS)

    return post


def said(text: str = "Hi", **more: Any) -> dict[str, Any]:
    """Return a message as the AI SDK sends it."""
    return {"id": "m1", "role": "user", "parts": [{"type": "text", "text": text}], **more}


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    """Return the body of a chat of the AI SDK."""
    return {"id": "c1", "messages": list(messages), **more}


def thread(content: Any, **more: Any) -> dict[str, Any]:
    """Return the body of a request by AG-UI."""
    message = {"id": "m", "role": "user", "content": content}
    return {"threadId": "t1", "runId": "r1", "messages": [message], "tools": [], "context": [], **more}


def rpc(method: str, params: Any, number: Any = 1) -> dict[str, Any]:
    """Return a request by JSON-RPC."""
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def message(*parts: Any, **more: Any) -> dict[str, Any]:
    """Return the parameters of a message by A2A."""
    return {"message": {"messageId": "m1", "role": "ROLE_USER", "parts": list(parts), **more}}


HI = {"role": "user", "content": "Hi"}
BODIES: dict[str, Any] = {
    "/api/runs": {"agent": "AGENT", "message": "Hi", "context_variables": {"a": "HERE"}},
    "/api/chat/AGENT": chat(said(metadata="HERE")),
    "/agui/AGENT": thread("Hi", state="HERE"),
    "/a2a/AGENT": rpc("SendMessage", message({"text": "Hi"}, metadata={"a": "HERE"})),
    "/v1/chat/completions": {"model": "AGENT", "messages": [HI], "seed": "HERE"},
    "/v1/responses": {"model": "AGENT", "input": "Hi", "seed": "HERE"},
    "/mcp": rpc("tools/list", {"_meta": {"a": "HERE"}}),
}
"""A body of each door, with a place for something that is no JSON."""
NO_JSON = {
    "deep": "[" * 10_000 + "]" * 10_000,
    "digits": "9" * 5000,
    "surrogate": r'"\ud800"',
    "nan": "NaN",
    "cut": '"',
}


@pytest.mark.parametrize("name", NO_JSON)
@pytest.mark.parametrize("path", BODIES)
def test_what_is_no_json_is_refused(ask: Ask, path: str, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """JSON that cannot be read, stored or sent back is the sender's mistake: 400, or JSON-RPC's error for it."""
    answer = ask(path, json.dumps(BODIES[path]).replace('"HERE"', NO_JSON[name]))
    if path == "/a2a/AGENT":
        assert (answer.status_code, answer.json()["error"]["code"]) == (200, -32700)
    else:
        assert answer.status_code == 400
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    "body",
    [
        "[]", "5", {}, rpc("Nothing", {}), rpc("GetTask", []), rpc("GetTask", {"id": {}}), rpc("GetTask", {"id": "x"}),
        rpc("SendMessage", {}), rpc("SendMessage", {"message": 5}), rpc("SendMessage", message({"data": 5})),
        rpc("SendMessage", message({"text": "Hi"}), number={}), rpc("ListTasks", {"pageSize": "x"}),
        rpc("SubscribeToTask", {"id": "x"}), rpc("SendStreamingMessage", message({"text": "Hi"}, taskId="a\0b")),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_request_of_a_peer_is_answered_and_not_logged(
    ask: Ask, body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The door `a2a` answers each mistake with an error of JSON-RPC that is not the server's."""
    answer = ask("/a2a/AGENT", body)
    assert answer.status_code == 200
    assert answer.json()["error"]["code"] != -32603
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


NOBODY = [
    ("POST", "/api/runs", BODIES["/api/runs"]),
    ("POST", "/api/chat/AGENT", BODIES["/api/chat/AGENT"]),
    ("GET", "/api/chat/AGENT/c1/stream", ""),
    ("POST", "/agui/AGENT", BODIES["/agui/AGENT"]),
    ("POST", "/a2a/AGENT", BODIES["/a2a/AGENT"]),
    ("GET", "/a2a/AGENT/.well-known/agent-card.json", ""),
    ("POST", "/v1/chat/completions", BODIES["/v1/chat/completions"]),
    ("POST", "/v1/responses", BODIES["/v1/responses"]),
    ("GET", "/v1/models/AGENT", ""),
]
"""Each request that names an agent, in its path or its body."""


@pytest.mark.parametrize(("method", "path", "body"), NOBODY, ids=lambda part: part if isinstance(part, str) else "")
def test_an_unknown_agent_is_not_found(ask: Ask, method: str, path: str, body: Any) -> None:
    """Every door answers 404 with the same sentence, which names the nearest agent; OpenAI's has OpenAI's code."""
    [known] = [one["id"] for one in ask("/v1/models", "", "GET").json()["data"]]
    wrong = f"{known}x"
    text = body if isinstance(body, str) else json.dumps(body)
    answer = ask(path.replace("AGENT", wrong), text.replace("AGENT", wrong), method)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["message"] == f"no agent named {wrong!r} is served here; did you mean {known!r}?"
    openai = path.startswith("/v1/")
    assert (error["type"], error.get("code")) == (("model_not_found",) * 2 if openai else ("UnknownAgent", None))


@pytest.mark.parametrize("size", [-5, -(2**31), 0, 2**31 - 1])
def test_a_page_of_tasks_has_a_size(ask: Ask, size: int) -> None:
    """Any number is taken: less than one is the usual page, and too large is the largest."""
    assert "result" in ask("/a2a/AGENT", rpc("ListTasks", {"pageSize": size})).json()


OPENAI = ("/v1/chat/completions", {"messages": [HI]}), ("/v1/responses", {"input": "Hi"})


@pytest.mark.parametrize(
    "more",
    [
        {"metadata": "x"}, {"metadata": [1]}, {"metadata": {"session": {}}}, {"metadata": {"run_id": 5}},
        {"conversation": 5}, {"conversation": {"id": []}}, {"model": None}, {"n": []},
        {"messages": ["x"], "input": [5]},
        {"stream_options": "x", "previous_response_id": []},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize(("path", "body"), OPENAI)
def test_fields_of_another_type_are_refused(ask: Ask, path: str, body: Any, more: Any) -> None:
    """The door `openai` checks a body before it begins a run."""
    answer = ask(path, {"model": "AGENT", **body, **more})
    assert (answer.status_code, answer.json()["error"]["type"]) == (422, "InvalidBody"), answer.text


@pytest.mark.parametrize("after", ["²", "9" * 5000, "-1", "x", ""])
def test_an_odd_number_of_an_event_is_the_beginning(ask: Ask, after: str) -> None:
    """A stream of a response is read from a number, or from its beginning."""
    response = ask("/v1/responses", {"model": "AGENT", "input": "Hi"}).json()
    answer = ask(f"/v1/responses/{response['id']}?stream=true&starting_after={after}", "", "GET")
    assert answer.status_code == (200 if after in ("-1", "") else 422)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "x", "state": "approval-responded"},
        {"type": "x", "state": "approval-responded", "approval": None},
        {"type": "x", "state": "approval-responded", "approval": {"id": []}},
        {"type": "x", "state": "approval-responded", "approval": {"id": "no such"}},
        "x",
    ],
    ids=str,
)
def test_an_answer_without_its_request_is_refused(ask: Ask, part: Any) -> None:
    """What looks like an answer to an approval of the AI SDK, and names none."""
    ask("/api/chat/AGENT", chat(said("pay")))
    answer = ask("/api/chat/AGENT", chat({"id": "m2", "role": "assistant", "parts": [part]}))
    assert answer.status_code in (409, 422)


def test_pictures_reach_the_model(ask: Ask) -> None:
    """A picture beside a text is passed on as part of the message, at each door whose protocol has them."""
    wanted = [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": IMAGE}}]
    ai_sdk = [{"type": "text", "text": "What?"}, {"type": "file", "mediaType": "image/png", "url": IMAGE}]
    source = {"type": "data", "mimeType": "image/png", "value": IMAGE.partition(",")[2]}
    ag_ui = [{"type": "text", "text": "What?"}, {"type": "image", "source": source}]
    a2a = [{"text": "What?"}, {"raw": IMAGE.partition(",")[2], "mediaType": "image/png"}]
    ask("/api/chat/AGENT", chat(said(id="p1", parts=ai_sdk)))
    ask("/agui/AGENT", thread(ag_ui, runId="p2"))
    ask("/a2a/AGENT", rpc("SendMessage", message(*a2a, messageId="p3")))
    for run_id in ("p1", "p2", "p3"):
        assert ask(f"/api/runs/{run_id}", "", "GET").json()["asked"][-1]["content"] == wanted, run_id


def test_parts_that_cannot_be_passed_on_are_refused(ask: Ask) -> None:
    """A part is never left out: what is no text and no picture is refused, and no run begins."""
    ai_sdk = said(parts=[{"type": "text", "text": "Hi"}, {"type": "file", "mediaType": "application/pdf", "url": "x"}])
    source = {"type": "url", "value": "https://x/y.pdf", "mimeType": "application/pdf"}
    ag_ui = [{"type": "text", "text": "Hi"}, {"type": "document", "source": source}]
    for path, body in (("/api/chat/AGENT", chat(ai_sdk)), ("/agui/AGENT", thread(ag_ui))):
        assert ask(path, body).status_code == 422, path
    for part in ({"url": "https://x/y.pdf", "mediaType": "application/pdf"}, {"data": {"a": 1}}):
        answer = ask("/a2a/AGENT", rpc("SendMessage", message({"text": "Hi"}, part)))
        assert answer.json()["error"]["code"] == -32005
    assert ask("/api/runs", "", "GET").json()["runs"] == []
