"""Each fault meets a program alike: in this process, and over HTTP by the real `openai` client, whole and streamed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest

from durable_swarm import Agent, Swarm
from durable_swarm.errors import ConfigurationError
from durable_swarm.models.provider_errors import transient
from durable_swarm.testing import (
    AsyncScriptedModel,
    ProviderError,
    ScriptedModel,
    cut,
    dropped,
    garbled,
    http_error,
    no_choices,
    proxy_page,
    rate_limited,
    serve_scripted,
    slowly,
    timed_out,
)

HELLO: Any = [{"role": "user", "content": "hello"}]
Attempt = Callable[[Any, bool], Any]
SILENCE = 1.0
"""Seconds that a client waits for an answer."""


def ask(client: Any, stream: bool) -> Any:
    """Give the answer's text, that of all chunks where it is streamed."""
    answer = client.chat.completions.create(model="m", messages=HELLO, stream=stream, timeout=SILENCE)
    if not stream:
        return answer if isinstance(answer, str) else [choice.message.content for choice in answer.choices]
    return [choice.delta.content for chunk in answer for choice in chunk.choices]


async def ask_async(client: Any, stream: bool) -> Any:
    """Do the same with an async client."""
    answer = await client.chat.completions.create(model="m", messages=HELLO, stream=stream, timeout=SILENCE)
    if not stream:
        return answer if isinstance(answer, str) else [choice.message.content for choice in answer.choices]
    return [choice.delta.content async for chunk in answer for choice in chunk.choices]


def in_process(reply: Any, stream: bool) -> Any:
    """Meet the fault in this process."""
    return ask(ScriptedModel([reply]), stream)


def in_process_async(reply: Any, stream: bool) -> Any:
    """Meet the fault on an event loop."""
    return asyncio.run(ask_async(AsyncScriptedModel([reply]), stream))


def over_http(reply: Any, stream: bool) -> Any:
    """Meet the fault with the real client."""
    with serve_scripted([reply]) as server, server.client() as client:
        return ask(client, stream)


def over_http_async(reply: Any, stream: bool) -> Any:
    """Meet the fault with the real async client."""

    async def main(server: Any) -> Any:
        async with server.async_client() as client:
            return await ask_async(client, stream)

    with serve_scripted([reply]) as server:
        return asyncio.run(main(server))


FAULTS: dict[str, tuple[Any, type[Exception], type[Exception]]] = {
    "429": (rate_limited(2), ProviderError, openai.RateLimitError),
    "401": (http_error(401), ProviderError, openai.AuthenticationError),
    "500": (http_error(500), ProviderError, openai.InternalServerError),
    "spent": (http_error(429, code="insufficient_quota"), ProviderError, openai.RateLimitError),
    "proxy": (proxy_page(502), ProviderError, openai.InternalServerError),
    "timeout": (timed_out(), TimeoutError, openai.APITimeoutError),
    "dropped": (dropped(), ConnectionResetError, openai.APIConnectionError),
    "cut": (cut("Hello there you", after=2), ConnectionResetError, openai.APIConnectionError),
    "garbled": (garbled(), json.JSONDecodeError, json.JSONDecodeError),
    "slow": (slowly("Hi", latency=9), TimeoutError, openai.APITimeoutError),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("meet", [in_process, in_process_async, over_http, over_http_async])
def test_each_fault_is_an_error_of_its_kind(meet: Attempt, stream: bool, fault: str) -> None:
    """The error is the one openai's client raises, or its likeness in this process, and is tried again or not alike."""
    reply, here, there = FAULTS[fault]
    with pytest.raises(here if meet in (in_process, in_process_async) else there) as caught:
        meet(reply, stream)
    assert transient(caught.value) is (fault not in ("401", "spent"))
    assert isinstance(caught.value, openai.APITimeoutError) is (caught.type is openai.APITimeoutError)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("meet", [in_process, in_process_async, over_http, over_http_async])
def test_answers_that_hold_nothing(meet: Attempt, stream: bool) -> None:
    """An answer may have no choice, an empty message, or be a page of status 200, without an error of the client."""
    assert meet(no_choices(), stream) == []
    assert meet({"content": None}, stream) == ([None, None] if stream else [None])
    assert meet(proxy_page(200), stream) == ([] if stream else "<html><body><h1>200 from a proxy</h1></body></html>")


@pytest.mark.parametrize("meet", [in_process, over_http])
def test_retry_after_is_told(meet: Attempt) -> None:
    """Status, header, message and code reach the program."""
    with pytest.raises(Exception, match="slow down") as caught:
        meet(rate_limited("Wed, 21 Oct 2015 07:28:00 GMT", "slow down"), False)
    error: Any = caught.value
    assert (error.status_code, error.code) == (429, None)
    assert error.response.headers["retry-after"] == "Wed, 21 Oct 2015 07:28:00 GMT"
    assert rate_limited().response.headers == {"retry-after": "0"}


@pytest.mark.parametrize("after", [0, 1, 3, 99])
@pytest.mark.parametrize("served", [False, True])
def test_a_cut_stream_gives_its_first_chunks(served: bool, after: int) -> None:
    """Just so many chunks come before the connection is lost, and a whole stream without its end is lost too."""
    server = serve_scripted([cut("Hello there", after=after)])
    with server, server.client() as real:
        client: Any = real if served else ScriptedModel([cut("Hello there", after=after)])
        stream = client.chat.completions.create(model="m", messages=HELLO, stream=True)
        taken = []
        with pytest.raises((ConnectionError, openai.APIConnectionError)):
            taken.extend(chunk.choices[0].delta.content for chunk in stream)
    assert taken == ["", "Hello", " there", None][:after]


def test_a_slow_chunk_is_a_timeout() -> None:
    """A stream that pauses longer than the request waits ends with a timeout, here as over HTTP."""
    with serve_scripted([slowly("Hello", pace=9)]) as server, server.client() as client:
        stream = client.chat.completions.create(model="m", messages=HELLO, stream=True, timeout=SILENCE)
        with pytest.raises(openai.APITimeoutError):
            next(stream)
    with pytest.raises(TimeoutError, match=f"timeout of {SILENCE:g} s"):
        in_process(slowly("Hello", pace=9), True)


def test_a_swarm_meets_them_all() -> None:
    """A run gets past every fault that may pass, in this process as over HTTP, and uses up no reply for it."""
    faults = [rate_limited(), http_error(503, retry_after=0), http_error(500, retry_after=0)]
    model = ScriptedModel(["Hello"])
    model.inject(*faults)
    assert Swarm(model).run(Agent(), HELLO).messages[-1]["content"] == "Hello"
    with serve_scripted(["Hello"]) as server, server.client(max_retries=3) as client:
        server.inject(*faults)
        assert Swarm(client).run(Agent(), HELLO).messages[-1]["content"] == "Hello"
    assert len(model.calls) == len(server.calls) == 4


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda: http_error(200), "status from 400 to 599"),
        (lambda: http_error(600), "status from 400 to 599"),
        (lambda: http_error("500"), "status from 400 to 599 is needed here, not '500'"),  # type: ignore[arg-type]
        (lambda: proxy_page(100), "status from 200 to 599"),
        (lambda: cut("Hi", after=-1), "0 or more, not -1"),
        (lambda: ScriptedModel([cut(3)]), "cannot give the reply 3"),
    ],
)
def test_a_wrong_fault_is_refused_at_once(write: Any, text: str) -> None:
    """A fault that cannot be is refused where it is written."""
    with pytest.raises(ConfigurationError, match=text):
        write()


def test_a_port_that_is_taken() -> None:
    """A port that another server has, or that is none, is refused by its number."""
    with serve_scripted(["Hi"]) as server:
        port = int(server.base_url.split(":")[2].split("/")[0])
        for wrong in (port, 70000, "80"):
            with pytest.raises(ConfigurationError, match=f"cannot listen on port '?{wrong}'?: "):
                serve_scripted(["Hi"], port=wrong).start()  # type: ignore[arg-type]
