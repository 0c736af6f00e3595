"""Streamed answers: the chunks in this process and those that openai's client reads off the wire are the same."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_swarm.testing import (
    AsyncScriptedModel,
    ScriptedModel,
    ScriptedServer,
    call,
    otherwise,
    serve_scripted,
    slowly,
)
from tests.support.patience import PATIENCE

HELLO: Any = [{"role": "user", "content": "hello"}]
USAGE: Any = {"stream_options": {"include_usage": True}}
BOTH: Any = {
    "role": "assistant",
    "content": " Looking  for it\n",
    "tool_calls": [call("look_up", order="A1", of="Ada"), ("weigh", "{not json"), "now"],
}
REPLIES: dict[str, Any] = {
    "text": "Hello there, Ada.",
    "no text": "",
    "calls": [call("look_up", order="A1")],
    "text and calls": BOTH,
    "refusal": {"role": "assistant", "refusal": "I may not."},
    "fields of its own": {"content": "Hi", "reasoning_content": "The user greets."},
}


def open_stream(client: Any, **more: Any) -> Any:
    """Begin a streamed request."""
    return client.chat.completions.create(model="m", messages=HELLO, stream=True, **more)


def merged(chunks: list[Any]) -> dict[str, Any]:
    """Put the deltas together by hand: texts are joined, calls found by their index."""
    message: dict[str, Any] = {"content": None, "refusal": None, "calls": {}}
    for delta in (choice.delta for chunk in chunks for choice in chunk.choices):
        for key in ("content", "refusal"):
            piece = getattr(delta, key)
            message[key] = message[key] if piece is None else (message[key] or "") + piece
        for piece in delta.tool_calls or ():
            made = message["calls"].setdefault(piece.index, {"id": piece.id, "name": piece.function.name, "text": ""})
            made["text"] += piece.function.arguments
    return message


def whole(message: Any) -> dict[str, Any]:
    """Give an unstreamed message in the form of `merged`."""
    calls = [
        {"id": made.id, "name": made.function.name, "text": made.function.arguments}
        for made in message.tool_calls or ()
    ]
    return {"content": message.content, "refusal": message.refusal, "calls": dict(enumerate(calls))}


def test_the_chunks_of_a_text() -> None:
    """The role comes first, then word by word, then the finish reason; nothing else stands in the chunks."""
    chunks = list(open_stream(ScriptedModel(["Hello there"])))
    sent = [chunk.as_sent() for chunk in chunks]
    assert [chunk["choices"] for chunk in sent] == [
        [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}],
        [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": None}],
        [{"index": 0, "delta": {"content": " there"}, "finish_reason": None}],
        [{"index": 0, "delta": {}, "finish_reason": "stop"}],
    ]
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in sent} == {
        ("chatcmpl-1", "chat.completion.chunk", "m")
    }


def test_the_chunks_of_a_call() -> None:
    """Id, type and name come in a call's first chunk, its arguments in pieces after it, all under its index."""
    chunks = list(open_stream(ScriptedModel([[call("look_up", order="A1"), "now"]])))
    deltas = [chunk.as_sent()["choices"][0]["delta"].get("tool_calls") for chunk in chunks]
    opened = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": ""}}
    assert deltas[0] is None
    assert deltas[1:5] == [
        [opened],
        [{"index": 0, "function": {"arguments": '{"order"'}}],
        [{"index": 0, "function": {"arguments": ': "A1"}'}}],
        [{**opened, "index": 1, "id": "call_2", "function": {"name": "now", "arguments": ""}}],
    ]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("reply", REPLIES)
def test_openais_client_reads_the_same_chunks(reply: str) -> None:
    """What the real client reads off the wire are the chunks of this process, sync and async, in openai's types."""
    here = [chunk.as_sent() for chunk in open_stream(ScriptedModel([REPLIES[reply]]), **USAGE)]

    async def read(server: ScriptedServer) -> list[Any]:
        async with server.async_client() as client:
            return [chunk async for chunk in await open_stream(client, **USAGE)]

    with serve_scripted([REPLIES[reply]]) as server, server.client() as client:
        there = list(open_stream(client, **USAGE))
    with serve_scripted([REPLIES[reply]]) as server:
        there_async = asyncio.run(read(server))
    assert {type(chunk) for chunk in there + there_async} == {openai.types.chat.ChatCompletionChunk}
    assert [chunk.model_dump(exclude_unset=True) for chunk in there] == here
    assert there_async == there


@pytest.mark.parametrize("reply", REPLIES)
def test_a_stream_adds_up_to_the_whole(reply: str) -> None:
    """Put together by openai's own helper, the chunks are the message that comes without `stream`."""
    with serve_scripted([otherwise(REPLIES[reply])]) as server, server.client() as client:
        asked = client.chat.completions.create(model="m", messages=HELLO)
        with client.chat.completions.stream(model="m", messages=HELLO, **USAGE) as stream:
            streamed = stream.get_final_completion()
    assert whole(streamed.choices[0].message) == whole(asked.choices[0].message)
    assert streamed.choices[0].finish_reason == asked.choices[0].finish_reason
    assert streamed.usage == asked.usage is not None
    assert streamed.choices[0].message.model_extra == asked.choices[0].message.model_extra


@given(st.one_of(st.none(), st.text()), st.lists(st.tuples(st.just("tool"), st.text())))
def test_nothing_is_lost_between_chunks(text: str | None, calls: list[tuple[str, str]]) -> None:
    """Any text and any arguments come out as they went in, whatever their spaces and characters."""
    reply: Any = {"content": text, "tool_calls": calls or None}
    asked = ScriptedModel([reply]).chat.completions.create(model="m", messages=HELLO)
    assert merged(list(open_stream(ScriptedModel([reply])))) == whole(asked.choices[0].message)


def test_usage_comes_last_and_only_if_asked_for() -> None:
    """With `include_usage` one more chunk, without choices, brings the tokens; else no chunk has any."""
    [*chunks, last] = open_stream(ScriptedModel(["Hello there"]), **USAGE)
    assert (last.choices, last.usage.total_tokens) == ([], 3)
    plain = list(open_stream(ScriptedModel(["Hello there"])))
    assert [chunk.usage for chunk in chunks + plain] == [None] * 8
    assert len(list(open_stream(ScriptedModel(["Hello there"]), stream_options={"include_usage": False}))) == 4


def test_the_pace_comes_before_each_chunk() -> None:
    """The model's pace precedes each chunk and not the stream, and a reply may have its own."""
    model = ScriptedModel(["Hi", slowly("Hi", pace=0.1), slowly("Hi", pace=0)], pace=3600)
    open_stream(model)
    opened = time.monotonic()
    assert len(list(open_stream(model))) == 3
    assert time.monotonic() - opened >= 3 * 0.1
    assert len(list(open_stream(model))) == 3


def test_chunks_are_sent_as_they_come() -> None:
    """The real client has each chunk at its time, not all at the end."""
    with serve_scripted(["one two three"], pace=0.05) as server, server.client() as client:
        times = [time.monotonic() for _ in open_stream(client)]
    assert times[-1] - times[0] >= 0.9 * (len(times) - 1) * 0.05


def test_the_wire_ends_with_done() -> None:
    """Read by hand, the body is lines of `data: {...}` with an empty line after each, and `[DONE]` last."""
    body = json.dumps({"model": "m", "messages": HELLO, "stream": True})
    with serve_scripted(["Hi"]) as server:
        connection = http.client.HTTPConnection("127.0.0.1", int(server.base_url.split(":")[2].split("/")[0]))
        connection.request("POST", "/v1/chat/completions", body)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.request("GET", "/v1/models")
        assert connection.getresponse().status == 200
        connection.close()
        assert server.connections == 1
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert [json.loads(event.removeprefix("data: "))["object"] for event in events] == ["chat.completion.chunk"] * 3


def test_a_stream_may_be_closed() -> None:
    """Closed, by `close` or by the end of `with`, a stream gives nothing more, whatever was still to come."""
    for reply in ("Hello there", slowly("Hello there", pace=0.01)):
        with open_stream(ScriptedModel([reply])) as stream:
            assert (next(stream).choices[0].delta.role, stream.closed) == ("assistant", False)
        assert (list(stream), stream.closed) == ([], True)


def test_an_async_stream() -> None:
    """`await` gives a stream for `async for` and `async with`, at its pace, without blocking the loop."""
    model = AsyncScriptedModel(lambda _: "one two", latency=0.1, pace=0.1)

    came: list[str | None] = []

    async def read() -> list[str | None]:
        found: list[str | None] = []
        async with await open_stream(model) as stream:
            async for chunk in stream:
                found.append(chunk.choices[0].delta.content)
                came.append(found[-1])
        return found

    async def main() -> list[list[Any]]:
        stream = await open_stream(model)
        await anext(stream)
        await stream.close()
        assert ([chunk async for chunk in stream], stream.closed) == ([], True)
        return await asyncio.gather(*(read() for _ in range(5)))

    began = time.monotonic()
    assert asyncio.run(main()) == [["", "one", " two", None]] * 5
    assert time.monotonic() - began >= 0.2 + 0.5, "the closed one and the five together take that long"
    assert came == [part for part in ("", "one", " two", None) for _ in range(5)], "one stream held up the others"


def test_a_server_notices_that_the_client_left() -> None:
    """A client that leaves a slow stream ends it at once, and the server serves the next request."""
    with serve_scripted([slowly("Hello", pace=2 * PATIENCE), "next"]) as server, server.client() as client:
        with open_stream(client, timeout=1) as stream, pytest.raises(openai.APITimeoutError):
            next(stream)
        answer = client.chat.completions.create(model="m", messages=HELLO)
        assert answer.choices[0].message.content == "next"
        deadline = time.monotonic() + PATIENCE
        while sum("process_request" in thread.name for thread in threading.enumerate()) > 1:
            assert time.monotonic() < deadline, "the server goes on with a stream that nobody reads"
            time.sleep(0.01)
