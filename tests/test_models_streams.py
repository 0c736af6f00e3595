"""One streamed model call: what is sent, shown, tried again, taken back and closed, over every kind of client."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import openai
import pytest

from durable_swarm import Agent, ModelError
from durable_swarm.background import background_loop
from durable_swarm.concurrency import LoopRuntime
from durable_swarm.models.call import Completion, ModelCall, complete, current_model_call
from durable_swarm.models.choice import choose_model
from durable_swarm.models.client import Clients
from durable_swarm.models.wire import Conversation
from durable_swarm.testing import (
    AsyncScriptedModel,
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
from tests.support.chunks import put_together
from tests.support.http import httpx
from tests.support.model_calls import Naps, Shown, ask
from tests.support.patience import PATIENCE

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
        asyncio.run_coroutine_threadsafe(client.close(), background_loop()).result(PATIENCE)


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
    answer = ask_streamed(provider, kind, max_retries=1, naps=naps, timeout=2, show=shown)
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
        ask_streamed(provider, kind, max_retries=1, timeout=1, show=shown)
    assert (caught.value.tries, len(provider.calls)) == (2, 2)
    assert caught.value.status == (int(fault) if fault.isdigit() else 502 if fault == "page of a proxy" else None)
    assert shown.deltas == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_instead_of_a_stream(provider: ScriptedServer, kind: str) -> None:
    """Where nothing of a stream comes, a whole reply is asked for at once: the answer may have been one."""
    provider.inject(proxy_page(200))
    shown, naps = Shown(), Naps()
    answer = ask_streamed(provider, kind, max_retries=0, naps=naps, show=shown)
    assert answer.message["content"] == shown.text == "Hello there"
    assert [bool(request.get("stream")) for request in provider.calls] == [True, False]
    assert (naps.taken, shown.resets) == ([], [])


@pytest.mark.parametrize("kind", ["scripted", "openai", "async openai"])
def test_pages_that_stay(provider: ScriptedServer, kind: str) -> None:
    """A page in place of every answer is an error that shows what came."""
    provider.inject(*[proxy_page(200)] * 3)
    with pytest.raises(ModelError, match="from a proxy") as caught:
        ask_streamed(provider, kind, max_retries=1, show=Shown())
    assert (caught.value.tries, caught.value.status, len(provider.calls)) == (2, None, 3)


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
                client: Any = openai.AsyncOpenAI(**options, http_client=httpx.AsyncClient(event_hooks=hooks))
                ask(client, on_loop=True, turn=3, close=client.close, show=shown)
            else:
                with openai.OpenAI(**options, http_client=httpx.Client(event_hooks=hooks)) as client:
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
        choice=choose_model(Agent(), None, None),
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
        asyncio.run(asyncio.wait_for(call_streamed(ScriptedModel(["Hi"]), LoopRuntime(reader), shown), 5))
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
        task = asyncio.create_task(call_streamed(client, LoopRuntime(), shown))
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
        asyncio.run(call_streamed(clients.get(background_loop()), LoopRuntime(), shown))
    clients.close()
    assert (shown.text, shown.threads) == ("Hello there" * 3, {"durable-swarm-loop"})
    assert provider.connections == 1
