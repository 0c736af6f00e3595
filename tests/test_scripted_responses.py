"""The scripted server's Responses API, asked by the official client and checked against its types."""

from __future__ import annotations

import time
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from durable_swarm.testing import (
    ScriptedServer,
    call,
    cut,
    cut_off,
    otherwise,
    rate_limited,
    serve_scripted,
    slowly,
    when,
)

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
CALLS: Any = {
    "content": "I look.",
    "reasoning_content": "Two orders, so two calls.",
    "tool_calls": [call("look_up", order="A1"), call("look_up", order="A2")],
}
REPLIES: dict[str, Any] = {
    "text": "Hello there, Ada.",
    "no text": "",
    "calls": CALLS,
    "refusal": {"role": "assistant", "refusal": "I may not."},
    "cut at the limit": cut_off("Once upon a"),
    "cut by the filter": cut_off("Once upon a", "content_filter"),
}
LOOK_UP: Any = {"type": "function", "name": "look_up", "parameters": {"type": "object", "properties": {}}}


def ask(server: ScriptedServer, **more: Any) -> Any:
    """Ask with the official client, statelessly unless said otherwise."""
    with server.client() as client:
        made = client.responses.create(**{"model": "gpt-5.4", "input": "Hi", "store": False, **more})
        return [*made] if more.get("stream") else made


def refusal(server: ScriptedServer, **more: Any) -> str:
    """Return why a request is refused."""
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, **more)
    return str(refused.value)


@pytest.mark.parametrize("name", REPLIES)
def test_a_response_is_what_the_official_types_say(name: str) -> None:
    """Each form of reply is a valid response, whole and at the end of its stream, and its events are valid events."""
    with serve_scripted([REPLIES[name]] * 2) as server:
        whole, events = ask(server), ask(server, stream=True)
    assert Response.model_validate(whole.to_dict(mode="json"))
    for event in events:
        EVENT.validate_python(event.to_dict(mode="json"))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    end = events[-1].response
    assert (end.output_text, end.status, end.usage) == (whole.output_text, whole.status, whole.usage)


def test_the_pieces_of_a_stream_make_its_whole() -> None:
    """The deltas of text and arguments, put together, are what the response says at its end."""
    with serve_scripted([CALLS]) as server:
        events = ask(server, stream=True)
    pieces: dict[str, str] = {}
    for event in events:
        if event.type in ("response.output_text.delta", "response.function_call_arguments.delta"):
            pieces[event.item_id] = pieces.get(event.item_id, "") + event.delta
    thought, said, *calls = events[-1].response.output
    assert pieces == {said.id: "I look.", **{made.id: made.arguments for made in calls}}
    assert (thought.summary[0].text, thought.encrypted_content is None) == ("Two orders, so two calls.", False)


def test_one_script_answers_both_interfaces() -> None:
    """A rule that reads tools, prompt and results answers a chat request and the same question to Responses."""
    rules = [
        when(tool="look_up", result="shipped", reply="It is on its way."),
        when(said="A1", system="clerk", offers="look_up", reply=[call("look_up", order="A1")]),
    ]
    with serve_scripted(rules) as server:
        asked: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": "Where is A1?"}]}]
        first = ask(server, input=asked, instructions="A clerk", tools=[LOOK_UP])
        result = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "shipped"}
        history = [*asked, *[item.to_dict() for item in first.output], result]
        second = ask(server, input=history, instructions="A clerk", tools=[LOOK_UP])
    assert (first.output[0].name, second.output_text) == ("look_up", "It is on its way.")
    assert [message["role"] for message in server.calls[1]["messages"]] == ["system", "user", "assistant", "tool"]


def test_reasoning_comes_back_as_it_was_given() -> None:
    """Reasoning without what followed it, without its encrypted content or with foreign content is refused."""
    with serve_scripted([CALLS, otherwise("Done.").reply]) as server:
        thought, said, *calls = [item.to_dict(mode="json") for item in ask(server).output]
        results = [{"type": "function_call_output", "call_id": made["call_id"], "output": "x"} for made in calls]
        bare = {key: value for key, value in thought.items() if key != "encrypted_content"}
        assert "without its required following item" in refusal(server, input=[thought])
        assert "not persisted" in refusal(server, input=[bare, said, *calls, *results])
        foreign = {**thought, "encrypted_content": "gAAAA"}
        assert "could not be verified" in refusal(server, input=[foreign, said, *calls, *results])
        assert ask(server, input=[thought, said, *calls, *results]).output_text == "Done."


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"extra_body": {"messages": []}}, "Unknown parameter: 'messages'"),
        ({"extra_body": {"max_tokens": 5}}, "Unknown parameter: 'max_tokens'"),
        ({"extra_body": {"response_format": {"type": "text"}}}, "Unknown parameter: 'response_format'"),
        ({"background": True}, "requires 'store' to be true"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice.name"),
        ({"text": {"format": {"type": "json_schema", "json_schema": {}}}}, "text.format.name"),
        ({"input": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "answers no tool call"),
        ({"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "content[0].type"),
        ({"input": [{"role": "assistant", "content": [{"type": "input_text", "text": "x"}]}]}, "output_text"),
        ({"input": [{"role": "user", "content": ["x"]}]}, "Invalid type for 'input[0].content[0]'"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 5}]}]}, "content[0].text"),
        ({"input": 5}, "Missing required parameter: 'input'"),
        ({"extra_body": {"text": "short"}}, "Invalid type for 'text'"),
        ({"extra_body": {"reasoning": "high"}}, "Invalid type for 'reasoning'"),
        ({"extra_body": {"tools": {"name": "f"}}}, "Invalid type for 'tools'"),
        ({"extra_body": {"tools": ["f"]}}, "Invalid type for 'tools[0]'"),
        ({"extra_body": {"tool_choice": ["f"]}}, "Invalid type for 'tool_choice'"),
        ({"text": {"format": "json_schema"}}, "Invalid type for 'text.format'"),
    ],
)
def test_what_the_api_refuses_is_refused(more: dict[str, Any], why: str) -> None:
    """A chat request in disguise and items of the wrong shape are answered with status 400, which names the part."""
    with serve_scripted(["Hello"]) as server:
        assert why in refusal(server, **more)
        assert ask(server).output_text == "Hello"


def test_a_response_in_the_background_goes_on_without_its_client() -> None:
    """It is queued at once, can be retrieved until it is done, and is one request to the script."""
    with serve_scripted([slowly("Hello there.", latency=0.3)]) as server, server.client() as client:
        begun = client.responses.create(model="m", input="Hi", background=True)
        statuses = [begun.status]
        while (now := client.responses.retrieve(begun.id)).status != "completed":
            statuses.append(now.status)
            time.sleep(0.05)
        assert (set(statuses), now.output_text, len(server.calls)) == ({"in_progress"}, "Hello there.", 1)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve("resp_99")


def test_a_broken_stream_in_the_background_is_taken_up_where_it_broke() -> None:
    """`starting_after` gives the events behind that one, each once, until the end."""
    with serve_scripted([slowly(cut("One two three.", after=5), pace=0.01)]) as server, server.client() as client:
        seen: list[Any] = []
        stream = client.responses.create(model="m", input="Hi", background=True, stream=True)
        with pytest.raises(openai.APIConnectionError):
            seen.extend(stream)
        rest = client.responses.retrieve(seen[0].response.id, stream=True, starting_after=seen[-1].sequence_number)
        seen += rest
    assert [event.sequence_number for event in seen] == list(range(len(seen)))
    assert (seen[-1].response.output_text, len(server.calls)) == ("One two three.", 1)


def test_a_response_in_the_background_can_be_cancelled() -> None:
    """A response under way that is cancelled has that status from then on; one that is done stays as it is."""
    with serve_scripted([slowly("Late.", latency=60), "Soon."]) as server, server.client() as client:
        late, soon = [client.responses.create(model="m", input="Hi", background=True).id for _ in range(2)]
        assert client.responses.cancel(late).status == "cancelled"
        assert client.responses.retrieve(late).status == "cancelled"
        assert client.responses.cancel(soon).status == "completed"


def test_faults_meet_requests_of_both_interfaces() -> None:
    """A rate limit and a lost connection are the same to Responses as to chat."""
    with serve_scripted([rate_limited(3), cut("Hello"), cut("Hello there", after=3)]) as server:
        with pytest.raises(openai.RateLimitError) as limited:
            ask(server)
        assert limited.value.response.headers["retry-after"] == "3"
        with pytest.raises(openai.APIError):
            ask(server)
        with pytest.raises(openai.APIConnectionError):
            ask(server, stream=True)


def test_events_come_while_the_response_is_written() -> None:
    """The first event is there before the last could be."""
    with serve_scripted([slowly("one two", pace=0.05)]) as server, server.client() as client:
        began = time.monotonic()
        stream = client.responses.create(model="m", input="Hi", stream=True)
        first, early = next(iter(stream)), time.monotonic() - began
        rest = [*stream]
        assert (first.type, rest[-1].type) == ("response.created", "response.completed")
        assert time.monotonic() - began - early > 0.05 * (len(rest) - 2)
