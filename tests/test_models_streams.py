"""One streamed model call: what is sent, shown, tried again, taken back and closed, over every kind of client."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import httpx2
import openai
import pytest

from durable_swarm import Agent, ModelError
from durable_swarm.models import Clients, Completion, Conversation, ModelCall, complete, current_model_call, transient
from durable_swarm.testing import (
    AsyncScriptedModel,
    ProviderError,
    ScriptedModel,
    ScriptedServer,
    call,
    cut,
    dropped,
    garbled,
    http_error,
    no_choices,
    proxy_page,
    serve_scripted,
    slowly,
    timed_out,
)
from durable_swarm.types import Usage
from durable_swarm.waits import OnLoop, background_loop
from tests.contract.helpers import async_mock_client, completion, mock_client
from tests.support.chunks import chunk, merge, put_together, stream
from tests.support.model_calls import Naps, Shown, ask

SCRIPTED = ["scripted", "scripted on a loop", "async scripted", "async scripted in a thread"]
OPENAI = ["openai", "openai on a loop", "async openai", "async openai in a thread"]
KINDS = SCRIPTED + OPENAI
REPLIES: dict[str, Any] = {
    "text": "Hello there, Ada.",
    "no text": "",
    "nothing": {"content": None},
    "calls": [call("look_up", order="A1"), ("weigh", "{not json"), "now"],
    "text and calls": {"content": " Looking  for it\n", "tool_calls": [call("look_up", order="ü 👩‍🚀")]},
    "refusal": {"role": "assistant", "refusal": "I may not."},
    "fields of its own": {"content": "Hi", "reasoning_content": "The user greets."},
}
FAULTS: dict[str, Any] = {
    "408": http_error(408),
    "429": http_error(429),
    "500": http_error(500),
    "page of a proxy": proxy_page(502),
    "page instead of a stream": proxy_page(200),
    "broken JSON": garbled(),
    "no choices": no_choices(),
    "cut at once": cut("Hello there", after=0),
    "cut after the role": cut("Hello there", after=1),
    "cut in the text": cut("Hello there", after=2),
    "cut in a call": cut([call("look_up", order="A1")], after=3),
    "cut at the end": cut("Hello there", after=4),
    "reset": dropped(),
    "stall": timed_out(),
}


def ask_streamed(provider: ScriptedServer, kind: str, **options: Any) -> Completion:
    """Make one model call with a client of this kind; in this process they share the script of the server."""
    retries, timeout = options.pop("max_retries", 0), options.pop("timeout", 5.0)
    on_loop = "on a loop" in kind or (kind.startswith("async") and "in a thread" not in kind)
    if "scripted" in kind:
        client: Any = AsyncScriptedModel([]) if "async" in kind else ScriptedModel([])
        client.play, client.max_retries = provider.model.play, retries
        return ask(client, on_loop=on_loop, **options)
    if kind.startswith("openai"):
        with provider.client(max_retries=retries, timeout=timeout) as client:
            return ask(client, on_loop=on_loop, **options)
    client = provider.async_client(max_retries=retries, timeout=timeout)
    if on_loop:
        return ask(client, on_loop=True, close=client.close, **options)
    try:
        return ask(client, **options)
    finally:
        asyncio.run_coroutine_threadsafe(client.close(), background_loop()).result(5)


@contextmanager
def hello() -> Iterator[ScriptedServer]:
    """A provider that says Hello."""
    with serve_scripted(lambda _: "Hello there") as running:
        yield running


@pytest.fixture
def provider() -> Iterator[ScriptedServer]:
    """A provider that says Hello."""
    with hello() as running:
        yield running


def client_of(create: Callable[..., Any]) -> Any:
    """Give a hand-written client."""
    return SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)), max_retries=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reply", REPLIES)
def test_a_streamed_call_is_the_same_call(kind: str, reply: str) -> None:
    """Message, usage and model are those of the unstreamed call, and what was shown adds up to the message."""
    shown = Shown()
    with serve_scripted([REPLIES[reply]]) as whole, serve_scripted([REPLIES[reply]]) as streamed:
        expected = ask_streamed(whole, kind)
        assert ask_streamed(streamed, kind, show=shown) == expected
    assert expected.usage is not None
    message = expected.message
    seen = put_together([*shown.deltas])
    assert seen.get("content", "") == (message["content"] or "")
    assert seen.get("reasoning_content") == message.get("reasoning_content")
    assert seen["calls"] == [
        (made["id"], made["function"]["name"], made["function"]["arguments"]) for made in message["tool_calls"] or ()
    ]
    assert shown.resets == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_request_asks_for_a_stream_and_its_tokens(provider: ScriptedServer, kind: str) -> None:
    """A streamed request differs from an unstreamed one by `stream` and `stream_options`, and by nothing else."""

    def add(a: int) -> str:
        return str(a)

    agent = Agent(functions=[add], model_settings={"seed": 7, "extra_body": {"top_k": 3}})
    ask_streamed(provider, kind, agent=agent)
    ask_streamed(provider, kind, agent=agent, show=Shown())
    plain, streamed = provider.calls
    assert plain.pop("stream", False) is False
    assert "stream_options" not in plain
    assert streamed == {**plain, "stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("kind", ["scripted", "openai", "async openai"])
def test_model_settings_have_the_last_word(provider: ScriptedServer, kind: str) -> None:
    """Settings may leave the counting of tokens, or the whole streaming, out; a whole reply is shown as one piece."""
    shown = Shown()
    agent = Agent(model_settings={"stream_options": None})
    assert ask_streamed(provider, kind, agent=agent, show=shown).usage is None
    assert len(shown.deltas) == 3
    shown = Shown()
    agent = Agent(model_settings={"stream": False})
    assert ask_streamed(provider, kind, agent=agent, show=shown).usage is not None
    assert shown.deltas == [{"role": "assistant", "content": "Hello there"}]
    assert not provider.calls[1].get("stream")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_may_pass_is_tried_again(provider: ScriptedServer, kind: str, fault: str) -> None:
    """After every fault the request is made again, and what the first try had shown is taken back."""
    provider.inject(FAULTS[fault])
    shown, naps = Shown(), Naps()
    answer = ask_streamed(provider, kind, max_retries=1, naps=naps, timeout=0.5, show=shown)
    assert answer.message["content"] == shown.text == "Hello there"
    assert provider.calls[0] == provider.calls[1]
    assert len(naps.taken) == 1
    showed = {"cut after the role": 1, "cut in the text": 2, "cut in a call": 3, "cut at the end": 3}.get(fault)
    assert shown.resets == ([] if showed is None else [showed])


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["scripted", "openai", "async openai"])
def test_what_stays_away_is_an_error(provider: ScriptedServer, kind: str, fault: str) -> None:
    """A fault that stays is a `ModelError` after all tries, and nothing stays shown."""
    provider.inject(*[FAULTS[fault]] * 3)
    shown = Shown()
    with pytest.raises(ModelError, match="the model call failed after 2 tries: ") as caught:
        ask_streamed(provider, kind, max_retries=1, timeout=0.2, show=shown)
    assert (caught.value.tries, len(provider.calls)) == (2, 2)
    assert caught.value.status == (int(fault) if fault.isdigit() else 502 if fault == "page of a proxy" else None)
    assert shown.deltas == []


@pytest.mark.parametrize("kind", ["scripted", "async scripted", "openai", "async openai"])
def test_a_stream_may_be_cut_after_every_chunk(provider: ScriptedServer, kind: str) -> None:
    """Wherever the connection is lost, the call begins anew and ends with the whole message."""
    reply: Any = {"content": "Hello there", "tool_calls": [call("look_up", order="A1"), "now"]}
    for after in range(9):
        shown = Shown()
        provider.inject(cut(reply, after=after), reply)
        answer = ask_streamed(provider, kind, max_retries=1, show=shown)
        assert answer.message["content"] == shown.text == "Hello there"
        assert len(put_together([*shown.deltas])["calls"]) == len(answer.message["tool_calls"]) == 2
        assert len(shown.resets) == (after > 0)


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422])
@pytest.mark.parametrize("kind", ["scripted", "openai", "async openai"])
def test_refusals_are_not_tried_again(provider: ScriptedServer, kind: str, code: int) -> None:
    """A refusal ends a streamed call at its first try."""
    provider.inject(http_error(code, "you may not"))
    shown = Shown()
    with pytest.raises(ModelError, match="you may not") as caught:
        ask_streamed(provider, kind, max_retries=5, show=shown)
    assert (caught.value.status, caught.value.tries, len(provider.calls)) == (code, 1, 1)
    assert (shown.deltas, shown.resets) == ([], [])


@pytest.mark.parametrize("code", [400, 422])
@pytest.mark.parametrize("kind", KINDS)
def test_a_provider_that_cannot_count_is_asked_without(provider: ScriptedServer, kind: str, code: int) -> None:
    """A refusal that names `stream_options` is answered at once by the request without it, and so are later tries."""
    provider.inject(http_error(code, "unknown argument: stream_options"), cut("Hello", after=2))
    naps, shown = Naps(), Shown()
    answer = ask_streamed(provider, kind, max_retries=1, naps=naps, show=shown)
    assert (answer.message["content"], answer.usage, len(naps.taken)) == ("Hello there", None, 1)
    assert ["stream_options" in request for request in provider.calls] == [True, False, False]
    assert len(shown.resets) == 1


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
        with pytest.raises(ModelError, match=r"BrokenStream: .* what is no chunk: 'no chunk'"):
            ask(client_of(create), on_loop=on_loop, show=shown)
        assert (shown.deltas, shown.resets) == ([], [1, 1])
    assert closed == ["plain"] * 2 + ["async"] * 2 + ["plain"] * 2


@pytest.mark.parametrize("reply", ["Hello there", cut("Hello there", after=2)])
@pytest.mark.parametrize("kind", ["scripted", "async scripted"])
def test_streams_are_closed(kind: str, reply: Any) -> None:
    """A stream is closed at its end and where it breaks off."""
    client: Any = ScriptedModel([reply]) if kind == "scripted" else AsyncScriptedModel([reply])
    client.max_retries = 0
    streams: list[Any] = []
    create = client._create

    def noting(**kwargs: Any) -> Any:
        streams.append(create(**kwargs))
        return streams[-1]

    async def noting_async(**kwargs: Any) -> Any:
        streams.append(await create(**kwargs))
        return streams[-1]

    client.chat.completions.create = noting if kind == "scripted" else noting_async
    try:
        ask(client, on_loop=kind != "scripted", show=Shown())
    except ModelError:
        assert not isinstance(reply, str)
    assert [item.closed for item in streams] == [True]


def event_error(**body: Any) -> openai.APIError:
    """Give the error that openai's client raises for an error event."""
    return openai.APIError("overloaded", httpx2.Request("POST", "http://provider"), body={"message": "m", **body})


def failing(error: BaseException, *texts: str) -> Iterator[Any]:
    """Give a stream that breaks off with the error."""
    yield from map(chunk, ({"content": text} for text in texts))
    raise error


TRANSPORT = [httpx2.RemoteProtocolError("cut"), httpx2.ReadError("lost"), httpx2.ReadTimeout("late")]
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


def test_an_error_event_over_the_wire() -> None:
    """The real client's error for an error event on the wire is tried again."""
    first, *rest = [f"data: {json.dumps(item)}\n\n" for item in stream_of("Hello")]
    failure = 'data: {"error": {"message": "overloaded", "code": 502}}\n\n'
    sent = iter([first + failure, "".join([first, *rest, "data: [DONE]\n\n"])])
    transport = httpx2.MockTransport(
        lambda _: httpx2.Response(200, content=next(sent), headers={"content-type": "text/event-stream"})
    )
    shown = Shown()
    with openai.OpenAI(api_key="k", max_retries=1, http_client=httpx2.Client(transport=transport)) as client:
        answer = ask(client, show=shown)
    assert (answer.message["content"], shown.text, shown.resets) == ("Hello", "Hello", [1])


def test_mocks_are_understood() -> None:
    """Chunks that are mocks, which answer to every name, come to the message they were given."""
    made = []
    for text, reason in (("Hi", None), (" Ada", None), (None, "stop")):
        mock = MagicMock()
        mock.choices = [MagicMock()]
        mock.choices[0].delta.content, mock.choices[0].finish_reason = text, reason
        made.append(mock)
    assert merge(made)["content"] == "Hi Ada"


@pytest.mark.parametrize("kind", KINDS)
def test_the_client_knows_which_call_it_serves(kind: str) -> None:
    """`current_model_call` is visible where a streamed request is made, in whichever thread that is."""
    seen: list[Any] = []
    shown = Shown()
    if "openai" in kind:

        def note(_: Any) -> None:
            seen.append(current_model_call.get())

        async def note_async(_: Any) -> None:
            seen.append(current_model_call.get())

        with hello() as running:
            hooks = {"request": [note_async if "async" in kind else note]}
            options = {"base_url": running.base_url, "api_key": "k"}
            if "async" in kind:
                client: Any = openai.AsyncOpenAI(**options, http_client=httpx2.AsyncClient(event_hooks=hooks))
                ask(client, on_loop=True, turn=3, close=client.close, show=shown)
            else:
                with openai.OpenAI(**options, http_client=httpx2.Client(event_hooks=hooks)) as client:
                    ask(client, on_loop="loop" in kind, turn=3, show=shown)
    else:
        scripted = AsyncScriptedModel if "async" in kind else ScriptedModel
        model = scripted(lambda _: seen.append(current_model_call.get()) or "Hi")
        ask(model, on_loop="loop" in kind, turn=3, show=shown)
    assert [(made.run_id, made.turn) for made in seen] == [("run", 3)]


def call_streamed(client: Any, waits: Any, shown: Any) -> Any:
    """Give the coroutine of one streamed call."""
    return complete(
        client,
        Agent(),
        [{"role": "user", "content": "Hi"}],
        {},
        conversation=Conversation(),
        model_override=None,
        debug=False,
        call=ModelCall("run", 0),
        waits=waits,
        show=shown,
    )


def test_the_readers_thread_stays_free() -> None:
    """A sync client's stream is received in a thread of the general pool, not in the pool the run was given."""
    shown = Shown()
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as reader:
        busy = threading.Event()
        reader.submit(busy.wait, 10)
        asyncio.run(asyncio.wait_for(call_streamed(ScriptedModel(["Hi"]), OnLoop(reader), shown), 5))
        busy.set()
    [thread] = shown.threads
    assert thread.startswith("durable-swarm-tool")
    shown = Shown()
    ask(ScriptedModel(["Hi"]), show=shown)
    assert shown.threads == {threading.current_thread().name}


@pytest.mark.parametrize("kind", ["scripted", "async scripted", "openai", "async openai", "default"])
def test_a_cancelled_call_takes_back_and_shows_no_more(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a cancellation nothing is shown any more, whichever thread still receives."""
    reply = slowly("one two three four five", pace=0.05)
    shown = Shown()
    first = threading.Event()
    shown_delta = shown.delta

    def delta(piece: dict[str, Any]) -> None:
        shown_delta(piece)
        first.set()

    shown.delta = delta  # type: ignore[method-assign]

    async def main(client: Any) -> None:
        task = asyncio.create_task(call_streamed(client, OnLoop(), shown))
        await asyncio.to_thread(first.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(shown.resets) == 1
        await asyncio.sleep(0.2)
        assert (len(shown.resets), shown.deltas) == (1, [])
        if kind == "async openai":
            await client.close()

    with serve_scripted([reply]) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        clients = Clients(None)
        makers: dict[str, Callable[[], Any]] = {
            "scripted": lambda: ScriptedModel([reply]),
            "async scripted": lambda: AsyncScriptedModel([reply]),
            "openai": server.client,
            "async openai": server.async_client,
            "default": lambda: clients.get(background_loop()),
        }
        client = makers[kind]()
        asyncio.run(main(client))
        clients.close()
        if kind == "openai":
            client.close()


def test_the_default_client_streams_on_the_background_loop(
    provider: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default client on event loops makes and reads its streams on the background loop, over one connection."""
    monkeypatch.setenv("OPENAI_BASE_URL", provider.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    clients, shown = Clients(None), Shown()
    for _ in range(3):
        asyncio.run(call_streamed(clients.get(background_loop()), OnLoop(), shown))
    clients.close()
    assert (shown.text, shown.threads) == ("Hello there" * 3, {"durable-swarm-loop"})
    assert provider.connections == 1


def test_keys_are_masked_in_mid_stream_too() -> None:
    """A key that the provider repeats in the middle of a stream does not stand in the error."""
    client = client_of(lambda **_: failing(ProviderError("bad key sk-abcdef123456", 401), "He"))
    with pytest.raises(ModelError, match=r"bad key \*\*\*"):
        ask(client, show=Shown())
