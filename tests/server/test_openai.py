"""The door `openai`, asked by OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai import OpenAI
from starlette.testclient import TestClient

from durable_swarm import Agent, ask_human
from tests.crash.test_requests import soon
from tests.engine.helpers import unique
from tests.server.conftest import Serve


def client_of(client: TestClient) -> OpenAI:
    """Return OpenAI's client for a server."""
    return OpenAI(base_url="http://testserver/v1", api_key="none", max_retries=0, http_client=client)


@pytest.fixture
def asked(serve: Serve) -> Any:
    """Serve an agent whose model gives these replies; give its name, the client and the agent."""

    def make(replies: list[Any], *functions: Any) -> tuple[str, OpenAI, Agent]:
        agent = Agent(name=unique(), functions=list(functions))
        _, client = serve(replies)
        return agent.name, client_of(client), agent

    return make


USER: Any = [{"role": "user", "content": "Hi"}]


def test_agents_are_models(asked: Any) -> None:
    """They are listed, and found by name."""
    name, client, _agent = asked([])
    assert name in [model.id for model in client.models.list()]
    assert client.models.retrieve(name).id == name
    with pytest.raises(openai.NotFoundError, match="no agent named"):
        client.models.retrieve("nobody")


def test_a_completion_is_a_run(asked: Any) -> None:
    """The tools are the agent's own; the same Idempotency-Key attaches to the same run."""

    def look() -> str:
        return "seen"

    name, client, _agent = asked([["look"], "I saw it."], look)
    key = {"Idempotency-Key": "r1"}
    first = client.chat.completions.create(model=name, messages=USER, extra_headers=key)
    again = client.chat.completions.create(model=name, messages=USER, extra_headers=key)
    assert first == again
    assert (first.id, first.choices[0].message.content) == ("chatcmpl-r1", "I saw it.")
    assert first.choices[0].finish_reason == "stop"
    assert first.usage
    assert first.usage.total_tokens > 0


def test_a_completion_is_streamed(asked: Any) -> None:
    """The chunks make the text, and the last one counts the tokens."""
    name, client, _agent = asked(["One two three four."])
    options: Any = {"include_usage": True}
    chunks = list(client.chat.completions.create(model=name, messages=USER, stream=True, stream_options=options))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "One two three four."
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage
    assert chunks[-1].usage.total_tokens > 0


def test_what_does_not_fit_is_told(asked: Any) -> None:
    """Unknown models, tools of a client and broken bodies have an error that the client reads."""
    name, client, _agent = asked([ValueError("broken")])
    with pytest.raises(openai.NotFoundError, match="no agent named 'nobody'"):
        client.chat.completions.create(model="nobody", messages=USER)
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with pytest.raises(openai.UnprocessableEntityError, match="tools of their own"):
        client.chat.completions.create(model=name, messages=USER, tools=tools)
    with pytest.raises(openai.UnprocessableEntityError, match="is failed"):
        client.chat.completions.create(model=name, messages=USER)


def test_a_run_that_waits_says_for_what(asked: Any) -> None:
    """The text names the request, whole and streamed; once it is decided, the same key has the answer."""

    def ask() -> str:
        return ask_human("Which colour?")

    name, client, _agent = asked([["ask"], "Blue it is."], ask)
    key = {"Idempotency-Key": "r1"}
    first = client.chat.completions.create(model=name, messages=USER, extra_headers=key)
    assert "Which colour? (waiting for a decision about request r1/0.0/0)" in str(first.choices[0].message.content)
    chunks = client.chat.completions.create(model=name, messages=USER, extra_headers=key, stream=True)
    assert "Which colour?" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    http: Any = client._client
    http.post("/api/requests/r1~2F0~2E0~2F0", json={"verdict": "answer", "value": "blue"})
    soon(lambda: http.get("/api/runs/r1").json()["status"] == "done")
    last = client.chat.completions.create(model=name, messages=USER, extra_headers=key)
    assert last.choices[0].message.content == "Blue it is."


def test_a_session_remembers(asked: Any) -> None:
    """With `metadata.session` only what is new is added, though clients send all of it each time."""
    name, client, _agent = asked(["One", "Two"])
    about: Any = {"session": "talk"}
    first = client.chat.completions.create(model=name, messages=USER, metadata=about)
    said: Any = [*USER, {"role": "assistant", "content": first.choices[0].message.content}, *USER]
    client.chat.completions.create(model=name, messages=said, metadata=about)
    http: Any = client._client
    runs = http.get("/api/runs").json()["runs"]
    assert [(run["session"], run["number"]) for run in runs] == [("talk", 2), ("talk", 1)]
    asked_last = http.get(f"/api/runs/{runs[0]['id']}").json()["asked"]
    assert [message["content"] for message in asked_last] == ["Hi"]


def test_a_response_is_a_run(asked: Any) -> None:
    """It is read back by its id, and another one continues it."""
    name, client, agent = asked(["One", lambda request: f"{len(request['messages'])} messages"])
    assert agent
    first = client.responses.create(model=name, input="Hi")
    assert (first.status, first.output_text) == ("completed", "One")
    assert client.responses.retrieve(first.id).output_text == "One"
    second = client.responses.create(model=name, input="More", previous_response_id=first.id)
    assert second.output_text == "4 messages"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_none")


def test_a_response_is_streamed_and_read_on(asked: Any) -> None:
    """Its events are numbered without a gap; a reader continues after the last number it has seen."""
    name, client, _agent = asked(["One two three."])
    events = list(client.responses.create(model=name, input="Hi", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events][:2] == ["response.created", "response.in_progress"]
    done: Any = events[-1]
    assert (done.type, done.response.output_text) == ("response.completed", "One two three.")
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == "One two three."
    rest = list(client.responses.retrieve(done.response.id, stream=True, starting_after=3))
    assert [event.sequence_number for event in rest] == list(range(4, len(events)))


def test_a_response_in_the_background(asked: Any) -> None:
    """It is returned at once, then polled; it can be cancelled."""

    def ask() -> str:
        return ask_human("Go on?")

    name, client, _agent = asked(["Done", ["ask"]], ask)
    first = client.responses.create(model=name, input="Hi", background=True)
    assert first.status in ("queued", "in_progress", "completed")
    assert soon(lambda: (r := client.responses.retrieve(first.id)).status == "completed" and r).output_text == "Done"
    second = client.responses.create(model=name, input="Hi", background=True)
    assert client.responses.cancel(second.id).status == "cancelled"


def test_parts_of_messages_are_taken(asked: Any) -> None:
    """Texts are joined, images passed on by their URLs; what is no message is refused."""
    name, client, _agent = asked([lambda request: json.dumps(request["messages"][-1]["content"])] * 2)
    text: Any = [{"role": "user", "content": [{"type": "input_text", "text": "A"}]}]
    assert client.responses.create(model=name, input=text).output_text == '"A"'
    text[0]["content"].append({"type": "input_image", "image_url": "https://example.com/a.png"})
    assert "image_url" in client.responses.create(model=name, input=text).output_text
    with pytest.raises(openai.UnprocessableEntityError, match="function_call_output"):
        client.responses.create(model=name, input=[{"type": "function_call_output", "call_id": "1", "output": "x"}])
    for odd in ({"file_id": "file_1"}, {"image_url": None}, {"image_url": {"url": "https://example.com/a.png"}}):
        text[0]["content"][1] = {"type": "input_image", **odd}
        with pytest.raises(openai.UnprocessableEntityError, match="send image_url"):
            client.responses.create(model=name, input=text)


def test_a_clients_key_is_the_token(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """What clients send as their API key is what the server asks for."""
    monkeypatch.setenv("DURABLE_SWARM_SERVER_TOKEN", "secret")
    _, client = serve([])
    with pytest.raises(openai.AuthenticationError):
        client_of(client).models.list()
    OpenAI(base_url="http://testserver/v1", api_key="secret", http_client=client).models.list()
