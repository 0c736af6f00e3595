"""The door of the AI SDK: its chunks have the shapes that the SDK's own schema takes, recorded from its version 7."""

from __future__ import annotations

import json
from itertools import groupby
from typing import Any

from durable_swarm import Agent, ask_human
from durable_swarm.events import Event
from durable_swarm.server.chat_shapes import without_void
from tests.engine.helpers import unique
from tests.server.conftest import Serve, pay
from tests.support.patience import PATIENCE

SHAPES: dict[str, dict[str, type]] = {
    "start": {"messageId": str},
    "start-step": {},
    "text-start": {"id": str},
    "text-delta": {"id": str, "delta": str},
    "text-end": {"id": str},
    "tool-input-available": {"toolCallId": str, "toolName": str, "input": object},
    "tool-approval-request": {"approvalId": str, "toolCallId": str},
    "tool-output-available": {"toolCallId": str, "output": object},
    "tool-output-error": {"toolCallId": str, "errorText": str},
    "finish-step": {},
    "finish": {},
    "error": {"errorText": str},
    "abort": {},
    "data-request": {"data": object},
    "data-handoff": {"data": object},
}
"""The chunks that are sent, with the fields that `uiMessageChunkSchema` of ai 7.0.173 requires."""


def colour() -> str:
    """Ask for a colour."""
    return ask_human("Which colour?", choices=["red", "blue"])


def chunks_of(answer: Any) -> list[dict[str, Any]]:
    """Return the chunks of an answer, each of which must have its shape."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    found = [json.loads(line) for line in lines[:-1]]
    for chunk in found:
        for name, kind in SHAPES[chunk["type"]].items():
            assert isinstance(chunk[name], kind), chunk
    return found


def user(text: str, message_id: str = "m1") -> dict[str, Any]:
    """Return a message of the user, as the SDK sends it."""
    return {"id": message_id, "role": "user", "parts": [{"type": "text", "text": text}]}


def send(client: Any, agent: Agent, *messages: dict[str, Any], chat: str = "c1") -> list[dict[str, Any]]:
    """Send the messages of a chat."""
    body = {"id": chat, "messages": list(messages), "trigger": "submit-message"}
    return chunks_of(client.post(f"/api/chat/{agent.name}", json=body))


def text_of(chunks: list[dict[str, Any]]) -> str:
    """Return the text of chunks."""
    return "".join(chunk["delta"] for chunk in chunks if chunk["type"] == "text-delta")


def test_a_message_is_a_run_of_the_chats_session(serve: Serve) -> None:
    """Sent again it is the same stream; the session knows the messages before it."""

    def look(what: str) -> str:
        return f"saw {what}"

    agent = Agent(name=unique(), functions=[look])
    _, client = serve([[("look", {"what": "x"})], "I saw it.", lambda request: f"{len(request['messages'])} messages"])
    first = send(client, agent, user("Look"))
    assert [kind for kind, _ in groupby(chunk["type"] for chunk in first)] == [
        "start", "start-step", "tool-input-available", "tool-output-available", "finish-step",
        "start-step", "text-start", "text-delta", "text-end", "finish-step", "finish",
    ]  # fmt: skip
    assert (first[2]["input"], first[3]["output"]) == ({"what": "x"}, "saw x")
    assert send(client, agent, user("Look")) == first
    assert text_of(send(client, agent, user("Look"), user("More", "m2"))) == "6 messages"


def test_approvals_are_asked_in_the_sdks_way(serve: Serve) -> None:
    """The stream ends with the request; the message that has its answer goes on with the tool's result."""
    agent = Agent(name=unique(), functions=[pay, colour])
    _, client = serve([[("pay", {"amount": 5})], ["colour"], "Done."], authorize=lambda _: "anna")
    asked = send(client, agent, user("Pay"))
    call, request = asked[2], asked[3]
    assert request == {
        "type": "tool-approval-request",
        "approvalId": request["approvalId"],
        "toolCallId": call["toolCallId"],
    }
    answer = {"id": request["approvalId"], "approved": True}
    part = {"type": "dynamic-tool", "state": "approval-responded", "toolCallId": call["toolCallId"], "approval": answer}
    said = {"id": "m1/answer", "role": "assistant", "parts": [part]}
    more = send(client, agent, user("Pay"), said)
    assert {"toolCallId": call["toolCallId"], "output": "paid 5"}.items() <= more[1].items()
    question = next(chunk for chunk in more if chunk["type"] == "data-request")["data"]
    assert (question["question"], question["choices"]) == ("Which colour?", ["red", "blue"])
    late = {"id": "c1", "messages": [user("Pay"), said]}
    assert client.post(f"/api/chat/{agent.name}", json=late).status_code == 409
    path = f"/api/requests/{question['requestId'].replace('/', '~2F').replace('.', '~2E')}"
    assert client.post(path, json={"verdict": "answer", "value": "blue"}).status_code == 200
    resumed = client.get(f"/api/chat/{agent.name}/c1/stream")
    if resumed.status_code != 204:  # It has not ended yet.
        assert text_of(chunks_of(resumed)) == "Done."


def test_a_stream_that_is_read_on_begins_anew(serve: Serve) -> None:
    """What is in progress is sent from its beginning; nothing (204) once all has ended, or nothing was said."""
    agent = Agent(name=unique(), functions=[pay])
    swarm, client = serve([[("pay", {"amount": 5})], "Done."])
    assert client.get(f"/api/chat/{agent.name}/c1/stream").status_code == 204
    first = send(client, agent, user("Pay"))
    assert chunks_of(client.get(f"/api/chat/{agent.name}/c1/stream")) == first
    [request] = swarm.requests()
    swarm.approve(request.id)
    swarm.get("m1").result(PATIENCE)
    assert client.get(f"/api/chat/{agent.name}/c1/stream").status_code == 204


def test_ends_other_than_an_answer(serve: Serve) -> None:
    """A run that failed ends with an error."""
    agent = Agent(name=unique())
    _, client = serve([ValueError("broken")])
    assert send(client, agent, user("Hi"))[-1] == {"type": "error", "errorText": "ValueError: broken"}


def test_arguments_that_no_parser_reads(serve: Serve) -> None:
    """Arguments nested too deep are sent as the text that the model wrote."""

    def look(what: str) -> str:
        return f"saw {what}"

    agent = Agent(name=unique(), functions=[look])
    _, client = serve([[("look", "[" * 100_000)], "I could not."])
    chunks = send(client, agent, user("Look"))
    assert [chunk["input"] for chunk in chunks if chunk["type"] == "tool-input-available"] == ["[" * 100_000]
    assert text_of(chunks) == "I could not."


def test_void_text_is_left_out_of_what_comes_together() -> None:
    """Text before a reset is not sent, if it was not yet."""

    def event(seq: int, kind: Any, text: str = "") -> Event:
        return Event(seq, kind, {"text": text}, None)  # type: ignore[arg-type]

    said = [event(2, "text.delta", "voi"), event(3, "text.delta", "d")]
    events = [event(1, "turn.started"), *said, event(4, "text.reset"), event(5, "text.delta", "valid")]
    assert [one.seq for one in without_void(events)] == [1, 4, 5]


def test_wrong_bodies_are_told(serve: Serve) -> None:
    """Each mistake is a 422 with a sentence."""
    agent = Agent(name=unique())
    _, client = serve([])
    for body in (
        {},
        {"id": "c1", "messages": []},
        {"id": "c1", "messages": [{"role": "user"}]},
        {"messages": [user("Hi")]},
        {"id": "c1", "messages": [user("Hi")], "trigger": "regenerate-message"},
    ):
        answer = client.post(f"/api/chat/{agent.name}", json=body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (422, "InvalidBody"), body
