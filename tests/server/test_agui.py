"""The door `agui`: its events are those of the protocol, and an interrupt is answered by the next request."""

from __future__ import annotations

import json
from typing import Any

from ag_ui.core import Event
from pydantic import TypeAdapter

from durable_swarm import Agent, ask_human, tool
from tests.engine.helpers import unique
from tests.server.conftest import Serve

EVENTS: TypeAdapter[Any] = TypeAdapter(Event)


def ask(client: Any, agent: str, run_id: str, text: str = "Hi", **more: Any) -> list[dict[str, Any]]:
    """Run an agent; give the events, each of which the protocol's own types take."""
    messages = [{"id": f"m-{run_id}", "role": "user", "content": text}]
    body = {"threadId": "t1", "runId": run_id, "state": {}, "messages": messages, "tools": [], "context": []}
    answer = client.post(f"/agui/{agent}", json={**body, "forwardedProps": {}, **more})
    assert answer.status_code == 200, answer.text
    told = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")]
    for event in told:
        EVENTS.validate_python(event)
    return told


def text_of(told: list[dict[str, Any]]) -> str:
    """Return the text of the messages."""
    return "".join(event["delta"] for event in told if event["type"] == "TEXT_MESSAGE_CONTENT")


def test_a_run_is_a_stream_of_events(serve: Serve) -> None:
    """It starts, calls its tools, says its text, and finishes; the same run again is the same stream."""

    def look(what: str) -> str:
        return f"saw {what}"

    agent = Agent(name=unique(), functions=[look])
    _, client = serve([[("look", {"what": "x"})], "I saw it."])
    told = ask(client, agent.name, "r1")
    kinds = [event["type"] for event in told]
    assert (kinds[0], kinds[-1]) == ("RUN_STARTED", "RUN_FINISHED")
    assert kinds[1:5] == ["TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END", "TOOL_CALL_RESULT"]
    assert told[4]["content"] == "saw x"
    assert text_of(told) == "I saw it."
    assert ask(client, agent.name, "r1") == told


def test_an_interrupt_is_answered_by_the_next_request(serve: Serve) -> None:
    """An approval and a question each end the stream; `resume` answers and reads on behind it."""

    @tool(approval=True)
    def pay(amount: int) -> str:
        return f"paid {amount}"

    def colour() -> str:
        return ask_human("Which colour?", choices=["red", "blue"])

    agent = Agent(name=unique(), functions=[pay, colour])
    _, client = serve([[("pay", {"amount": 5})], ["colour"], "Done."], authorize=lambda _: "anna")
    [approval] = ask(client, agent.name, "r1")[-1]["outcome"]["interrupts"]
    assert (approval["reason"], approval["metadata"]["arguments"]) == ("approval", {"amount": 5})
    entry = {"interruptId": approval["id"], "status": "resolved", "payload": {"approve": True}}
    second = ask(client, agent.name, "r2", resume=[entry])
    assert [event["content"] for event in second if event["type"] == "TOOL_CALL_RESULT"] == ["paid 5"]
    [question] = second[-1]["outcome"]["interrupts"]
    assert question["responseSchema"]["properties"]["answer"]["enum"] == ["red", "blue"]
    entry = {"interruptId": question["id"], "status": "resolved", "payload": {"answer": "blue"}}
    last = ask(client, agent.name, "r3", resume=[entry])
    assert text_of(last) == "Done."
    assert last[-1]["outcome"] == {"type": "success"}
    late = {"threadId": "t1", "runId": "r4", "messages": [], "resume": [entry], "tools": [], "context": []}
    assert client.post(f"/agui/{agent.name}", json=late).status_code == 409


def test_a_payload_that_says_nothing_decides_nothing(serve: Serve) -> None:
    """A misspelt field is no rejection and no empty answer: it is refused, and the request stays open."""

    @tool(approval=True)
    def pay(amount: int) -> str:
        return f"paid {amount}"

    def colour() -> str:
        return ask_human("Which colour?")

    agent = Agent(name=unique(), functions=[pay, colour])
    swarm, client = serve([[("pay", {"amount": 5})], ["colour"], "Done."])
    told = ask(client, agent.name, "r1")
    for number, (wrong, right) in enumerate([({"aprove": True}, {"approve": True}), ({"anser": "x"}, {"answer": "x"})]):
        [asked] = told[-1]["outcome"]["interrupts"]
        body = {"threadId": "t1", "runId": f"x{number}", "messages": [], "tools": [], "context": []}
        for payload in (wrong, {}, {"approve": "yes"}):
            entry = {"interruptId": asked["id"], "status": "resolved", "payload": payload}
            answer = client.post(f"/agui/{agent.name}", json={**body, "resume": [entry]})
            assert (answer.status_code, answer.json()["error"]["type"]) == (422, "InvalidAnswer"), payload
        assert [one.status for one in swarm.get("r1").requests()] == ["open"]
        entry = {"interruptId": asked["id"], "status": "resolved", "payload": right}
        told = ask(client, agent.name, f"r{number + 2}", resume=[entry])
    assert text_of(told) == "Done."


def test_a_name_with_a_space_is_told_how_to_be_written(serve: Serve) -> None:
    """An address with `%20` is refused with the one to write, which leads to the agent."""
    agent = Agent(name=f"{unique()} desk")
    _, client = serve(["Hello"])
    body = {"threadId": "t", "runId": "r", "messages": [{"id": "1", "role": "user", "content": "Hi"}]}
    body |= {"tools": [], "context": [], "state": {}, "forwardedProps": {}}
    refused = client.post(f"/agui/{agent.name}", json=body)
    assert refused.status_code == 404
    written = refused.json()["error"]["message"].rpartition(" is ")[2].strip("'")
    assert client.post(f"/agui/{written}", json=body).status_code == 200


def test_a_thread_is_a_session(serve: Serve) -> None:
    """The next run of a thread knows the one before it; a failed one ends with an error."""
    agent = Agent(name=unique())
    _, client = serve(["One", lambda request: f"{len(request['messages'])} messages", ValueError("broken")])
    ask(client, agent.name, "r1")
    assert text_of(ask(client, agent.name, "r2", "More")) == "4 messages"
    assert ask(client, agent.name, "r3", "Again")[-1]["type"] == "RUN_ERROR"


def test_a_wrong_body_is_told(serve: Serve) -> None:
    """What is no input of the protocol is refused."""
    agent = Agent(name=unique())
    _, client = serve([])
    assert client.post(f"/agui/{agent.name}", json={}).json()["error"]["type"] == "InvalidBody"
