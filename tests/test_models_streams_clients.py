"""Streamed model calls of hand-written clients: every kind of stream, whole answers, and errors in mid-stream."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import openai
import pytest

from durable_swarm import ModelError
from durable_swarm.models.call import Completion
from durable_swarm.models.provider_errors import transient
from durable_swarm.testing import ProviderError
from durable_swarm.types import Usage
from tests.contract.helpers import async_mock_client, completion, mock_client
from tests.support.chunks import chunk, merge, stream
from tests.support.http import httpx
from tests.support.model_calls import Shown, ask


def client_of(create: Callable[..., Any]) -> Any:
    """Give a hand-written client."""
    return SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)), max_retries=1)


def test_a_client_that_cannot_count_is_asked_without() -> None:
    """A hand-written client whose `create` takes no `stream_options` serves streamed calls without them."""

    def create(*, model: str, messages: Any, tools: Any, tool_choice: Any, stream: bool) -> Any:
        return iter(stream_of("Hi"))

    assert ask(client_of(create), show=Shown()).message["content"] == "Hi"


def stream_of(*texts: str) -> list[Any]:
    """Give the chunks of a text."""
    return stream({"role": "assistant"}, *({"content": text} for text in texts))


WHOLE = completion("Hello", [("add", {"a": 1}), ("add", {"a": 2})], (1, 2))


@pytest.mark.parametrize("on_loop", [False, True])
@pytest.mark.parametrize("client", [mock_client, async_mock_client])
def test_a_whole_completion_is_taken_as_it_is(client: Any, on_loop: bool) -> None:
    """A client that answers whole although a stream was asked for is understood, and shown as one piece."""
    shown = Shown()
    expected = ask(client(WHOLE), on_loop=on_loop)
    assert ask(client(WHOLE), on_loop=on_loop, show=shown) == expected
    assert expected.usage == Usage(requests=1, prompt_tokens=1, completion_tokens=2, total_tokens=3)
    [delta] = shown.deltas
    calls = [{"index": index, **made} for index, made in enumerate(expected.message["tool_calls"])]
    assert delta == {"role": "assistant", "content": "Hello", "tool_calls": calls}


@pytest.mark.parametrize("empty", [None, SimpleNamespace(choices=[]), SimpleNamespace(), "page", [], 5])
def test_no_answer_at_all_is_tried_again(empty: Any) -> None:
    """What is neither a stream nor a completion is no answer: the request is made again."""
    answers = iter([empty, completion("Hello")])
    assert ask(client_of(lambda **_: next(answers)), show=Shown()).message["content"] == "Hello"


class Both:
    """A stream that can be read in both ways, as some libraries give; it notes how it was read and closed."""

    def __init__(self, chunks: list[Any]) -> None:
        self.chunks = chunks
        self.noted: list[str] = []

    def __iter__(self) -> Iterator[Any]:
        self.noted.append("read")
        yield from self.chunks

    async def __aiter__(self) -> AsyncIterator[Any]:
        self.noted.append("read async")
        for item in self.chunks:
            yield item

    def close(self) -> None:
        self.noted.append("closed")
        raise ValueError("cannot be closed")


@pytest.mark.parametrize("on_loop", [False, True])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_streams_that_can_be_read_both_ways(on_loop: bool, asynchronous: bool) -> None:
    """Who awaits the stream reads it asynchronously, who does not reads it plainly; it is closed either way."""
    both = Both(stream_of("Hi"))

    async def create(**_: Any) -> Any:
        return both

    client = client_of(create if asynchronous else lambda **_: both)
    assert ask(client, on_loop=on_loop, show=Shown()).message["content"] == "Hi"
    assert both.noted == ["read async" if asynchronous else "read", "closed"]


@pytest.mark.parametrize("on_loop", [False, True])
def test_generators_are_streams(on_loop: bool) -> None:
    """A hand-written client may be a generator, plain or async, or await to give a plain one."""
    closed: list[str] = []

    def plain(**_: Any) -> Iterator[Any]:
        try:
            yield from [chunk({"content": "Hi"}), "no chunk"]
        finally:
            closed.append("plain")

    async def asynchronous(**_: Any) -> AsyncIterator[Any]:
        try:
            for item in [chunk({"content": "Hi"}), "no chunk"]:
                yield item
        finally:
            closed.append("async")

    async def awaited(**_: Any) -> Any:
        return plain()

    for create in (plain, asynchronous, awaited):
        shown = Shown()
        with pytest.raises(ModelError, match=r"BrokenStream: .* something that is not a chunk: 'no chunk'"):
            ask(client_of(create), on_loop=on_loop, show=shown)
        assert (shown.deltas, shown.resets) == ([], [1, 1])
    assert closed == ["plain"] * 2 + ["async"] * 2 + ["plain"] * 2


def event_error(**body: Any) -> openai.APIError:
    """Give the error that openai's client raises for an error event."""
    return openai.APIError("overloaded", httpx.Request("POST", "http://provider"), body={"message": "m", **body})


def failing(error: BaseException, *texts: str) -> Iterator[Any]:
    """Give a stream that breaks off with the error."""
    yield from map(chunk, ({"content": text} for text in texts))
    raise error


TRANSPORT = [httpx.RemoteProtocolError("cut"), httpx.ReadError("lost"), httpx.ReadTimeout("late")]
PASSING: list[Exception] = [
    *TRANSPORT,
    event_error(),
    event_error(code=502),
    event_error(code="429", type="rate_limit"),
    event_error(code="server_error"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_errors_in_mid_stream_are_tried_again(error: Exception) -> None:
    """Lost transports and error events are transient in the middle of a stream."""
    streams = iter([failing(error, "He", "l"), iter(stream_of("Hello"))])
    shown = Shown()
    assert ask(client_of(lambda **_: next(streams)), show=shown).message["content"] == shown.text == "Hello"
    assert shown.resets == [2]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (event_error(code=400), 400),
        (event_error(code="insufficient_quota"), None),
        (event_error(type="invalid_request_error"), None),
    ],
)
def test_lasting_errors_in_mid_stream_end_the_call(error: Exception, status: int | None) -> None:
    """An error event that will not pass is told at once, with its status where it has one."""
    assert not transient(error)
    shown = Shown()
    with pytest.raises(ModelError, match="overloaded") as caught:
        ask(client_of(lambda **_: failing(error, "He")), show=shown)
    assert (caught.value.tries, caught.value.status, shown.resets, shown.deltas) == (1, status, [1], [])


@pytest.mark.parametrize("error", [ZeroDivisionError("in the client"), KeyboardInterrupt()], ids=repr)
def test_other_errors_pass_and_take_back_what_was_shown(error: BaseException) -> None:
    """An error of the program, and Ctrl+C, end the call as they are, after what was shown is taken back."""
    shown = Shown()
    with pytest.raises(type(error)):
        ask(client_of(lambda **_: failing(error, "He")), show=shown)
    assert (shown.resets, shown.deltas) == ([1], [])


def over_the_wire(*streams: str) -> Callable[[httpx.Request], httpx.Response]:
    """Answer one request after the other with these bodies, as a provider streams them."""
    sent = iter(streams)
    return lambda _: httpx.Response(200, content=next(sent), headers={"content-type": "text/event-stream"})


def ask_over_the_wire(kind: str, answers: Callable[[httpx.Request], httpx.Response], shown: Shown) -> Completion:
    """Make one streamed call with the real client of this kind."""
    transport = httpx.MockTransport(answers)
    if kind == "sync":
        with openai.OpenAI(api_key="k", max_retries=1, http_client=httpx.Client(transport=transport)) as client:
            return ask(client, show=shown)
    on_loop = openai.AsyncOpenAI(api_key="k", max_retries=1, http_client=httpx.AsyncClient(transport=transport))
    return ask(on_loop, show=shown, on_loop=True, close=on_loop.close)


def on_wire(*chunks: object) -> str:
    """Write chunks as server-sent events."""
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_error_event_over_the_wire(kind: str) -> None:
    """The real client's error for an error event on the wire is tried again."""
    first, *rest = stream_of("Hello")
    failure = {"error": {"message": "overloaded", "code": 502}}
    whole = on_wire(first, *rest) + "data: [DONE]\n\n"
    shown = Shown()
    answer = ask_over_the_wire(kind, over_the_wire(on_wire(first, failure), whole), shown)
    assert (answer.message["content"], shown.text, shown.resets) == ("Hello", "Hello", [1])


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_fields_that_a_provider_leaves_out_are_null(kind: str) -> None:
    """A stream without its nulls is read as one with them: a note has no choices, and an end is required."""
    text = [{"choices": [{"delta": {"content": piece}}]} for piece in ("Hel", "lo")]
    note, end = {"object": "ping"}, {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    shown = Shown()
    answer = ask_over_the_wire(kind, over_the_wire(on_wire(*text, note, end)), shown)
    assert (answer.message["content"], shown.text, shown.resets) == ("Hello", "Hello", [])
    shown = Shown()
    cut_off, whole = on_wire(*text, note), json.dumps({"choices": [{"message": {"content": "Hello, Ada"}}]})
    answer = ask_over_the_wire(kind, over_the_wire(cut_off, whole), shown)
    assert (answer.message["content"], shown.text, shown.resets) == ("Hello, Ada", "Hello, Ada", [2])


def test_mocks_are_understood() -> None:
    """Chunks that are mocks, which answer to every name, come to the message they were given."""
    made = []
    for text, reason in (("Hi", None), (" Ada", None), (None, "stop")):
        mock = MagicMock()
        mock.choices = [MagicMock()]
        mock.choices[0].delta.content, mock.choices[0].finish_reason = text, reason
        made.append(mock)
    assert merge(made)["content"] == "Hi Ada"


def test_keys_are_masked_in_mid_stream_too() -> None:
    """A key that the provider repeats in the middle of a stream does not stand in the error."""
    client = client_of(lambda **_: failing(ProviderError("bad key sk-abcdef123456", 401), "He"))
    with pytest.raises(ModelError, match=r"bad key \*\*\*"):
        ask(client, show=Shown())
