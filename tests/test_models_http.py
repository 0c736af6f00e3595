"""The real `openai` client against a real HTTP server: what arrives, what is tried again, and what is told."""

from __future__ import annotations

import asyncio
import json
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from durable_swarm import Agent, DurableSwarm, ModelError, Swarm, tool
from durable_swarm.background import background_loop
from durable_swarm.models.call import Completion
from durable_swarm.testing import (
    ScriptedServer,
    cut,
    dropped,
    garbled,
    http_error,
    no_choices,
    proxy_page,
    serve_scripted,
    timed_out,
)
from durable_swarm.types import Usage
from tests.support.model_calls import Naps, ask
from tests.support.patience import PATIENCE
from tests.support.raw import DONE, RawServer

KINDS = ["sync", "sync on a loop", "async", "async in a thread"]
KEY = "canary-key-0815"


@pytest.fixture
def provider() -> Iterator[ScriptedServer]:
    """A provider that says Hello."""
    with serve_scripted(lambda _: "Hello") as running:
        yield running


def ask_provider(provider: ScriptedServer, kind: str, *, naps: Naps | None = None, **options: Any) -> Completion:
    """Make one model call with a client of this kind, and close the client."""
    given = {"base_url": provider.base_url, "api_key": KEY, "max_retries": options.pop("max_retries", 0)}
    timeout = options.pop("timeout", 5.0)
    if kind.startswith("sync"):
        with openai.OpenAI(**given, timeout=timeout) as client:
            return ask(client, naps=naps, on_loop=kind == "sync on a loop", **options)
    async_client = openai.AsyncOpenAI(**given, timeout=timeout)
    if kind == "async":
        return ask(async_client, naps=naps, on_loop=True, close=async_client.close, **options)
    try:
        return ask(async_client, naps=naps, **options)
    finally:
        asyncio.run_coroutine_threadsafe(async_client.close(), background_loop()).result(PATIENCE)


@tool(name="add", description="Add two numbers.")
def add(a: int, b: int = 1) -> int:
    """Unused text."""
    return a + b


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_request_arrives(provider: ScriptedServer, kind: str) -> None:
    """Prompt, history, tools, choice and settings stand in the body that arrives, and nothing that is null."""
    agent = Agent(
        name="A",
        model="gpt-test",
        instructions="Be brief.",
        functions=[add],
        tool_choice="auto",
        parallel_tool_calls=False,
        model_settings={
            "temperature": 0.25,
            "seed": 7,
            "extra_body": {"routing": {"only": ["x"]}, "top_k": 3},
            "extra_headers": {"X-Title": "Test"},
            "stop": None,
        },
    )
    history = [
        {"role": "user", "content": "1+1? ü 👩‍🚀"},
        {"role": "assistant", "content": None, "sender": "A", "tool_calls": [_call('{"a": 1}')], "refusal": None},
        {"role": "tool", "tool_call_id": "call_1", "tool_name": "add", "content": "2"},
    ]
    ask_provider(provider, kind, history=history, agent=agent)
    [request] = provider.requests
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a"],
    }
    assert request.body == {
        "model": "gpt-test",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1+1? ü 👩‍🚀"},
            {"role": "assistant", "content": None, "tool_calls": [_call('{"a": 1}')]},
            {"role": "tool", "tool_call_id": "call_1", "content": "2"},
        ],
        "tools": [
            {
                "type": "function",
                "function": {"name": "add", "description": "Add two numbers.", "parameters": schema},
            }
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "temperature": 0.25,
        "seed": 7,
        "routing": {"only": ["x"]},
        "top_k": 3,
        "stream": False,
    }
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["x-title"] == "Test"


def _call(arguments: str) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": arguments}}


@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_request(provider: ScriptedServer, kind: str) -> None:
    """An agent without tools sends model and messages, that nothing is to be streamed, and nothing else."""
    answer = ask_provider(provider, kind)
    assert provider.requests[0].body.keys() == {"model", "messages", "stream"}
    assert provider.requests[0].body["stream"] is False
    assert answer.message["content"] == "Hello"
    assert answer.model == "gpt-4o"
    assert answer.usage == Usage(requests=1, prompt_tokens=6, completion_tokens=1, total_tokens=7)


def test_the_override_names_the_model(provider: ScriptedServer) -> None:
    """`model_override` is the model that is asked, and that the answer is noted with."""
    answer = ask_provider(provider, "sync", model_override="gpt-small")
    assert provider.requests[0].body["model"] == answer.model == "gpt-small"


def test_extra_body_may_replace(provider: ScriptedServer) -> None:
    """What `extra_body` says wins over everything else, as the client itself has it."""
    settings = {"temperature": 0, "extra_body": {"messages": [{"role": "user", "content": "mine"}], "temperature": 1}}
    ask_provider(provider, "sync", agent=Agent(model_settings=settings))
    assert provider.requests[0].body["messages"] == [{"role": "user", "content": "mine"}]
    assert provider.requests[0].body["temperature"] == 1


FAULTS: dict[str, Any] = {
    "408": http_error(408),
    "409": http_error(409),
    "429": http_error(429),
    "500": http_error(500),
    "503": http_error(503),
    "529": http_error(529),
    "page of a proxy": proxy_page(502),
    "page instead of JSON": proxy_page(200),
    "broken JSON": garbled(),
    "no choices": no_choices(),
    "cut body": cut("Hello"),
    "reset": dropped(),
    "stall": timed_out(),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_may_pass_is_tried_again(provider: ScriptedServer, kind: str, fault: str) -> None:
    """After a rate limit, an error of the server, a lost connection or a broken answer the request is made again."""
    provider.inject(FAULTS[fault])
    naps = Naps()
    answer = ask_provider(provider, kind, max_retries=1, naps=naps, timeout=2)
    assert answer.message["content"] == "Hello"
    assert len(provider.requests) == 2
    assert provider.requests[0].body == provider.requests[1].body
    assert len(naps.taken) == 1
    assert 0.3 < naps.taken[0] <= 0.5


@pytest.mark.parametrize("fault", FAULTS)
def test_tries_are_those_of_the_client(provider: ScriptedServer, fault: str) -> None:
    """The request is made once more than the client's `max_retries` says; then the error tells what happened."""
    provider.inject(*[FAULTS[fault]] * 5)
    with pytest.raises(ModelError, match="the model call failed after 3 tries: ") as caught:
        ask_provider(provider, "sync", max_retries=2, timeout=1)
    assert len(provider.requests) == 3
    assert caught.value.tries == 3
    assert caught.value.status == (int(fault) if fault.isdigit() else 502 if fault == "page of a proxy" else None)
    assert caught.value.error_type
    assert KEY not in "".join(traceback.format_exception(caught.value))


REFUSALS = {400: "BadRequestError", 401: "AuthenticationError", 403: "PermissionDeniedError", 404: "NotFoundError"}


@pytest.mark.parametrize("code", REFUSALS)
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_refusals_are_not_tried_again(provider: ScriptedServer, kind: str, code: int) -> None:
    """A refusal ends the call at its first try, with status, kind and the provider's own words."""
    provider.inject(http_error(code, "you may not"))
    naps = Naps()
    with pytest.raises(ModelError, match="you may not") as caught:
        ask_provider(provider, kind, max_retries=5, naps=naps)
    assert len(provider.requests) == 1
    assert naps.taken == []
    assert (caught.value.status, caught.value.error_type, caught.value.tries) == (code, REFUSALS[code], 1)


def test_nobody_listens() -> None:
    """A server that cannot be reached is tried again, then named as a lost connection without a status."""
    with serve_scripted([]) as gone:
        pass
    with pytest.raises(ModelError) as caught:
        ask_provider(gone, "sync", max_retries=2)
    assert (caught.value.status, caught.value.error_type, caught.value.tries) == (None, "APIConnectionError", 3)


@pytest.mark.parametrize("kind", KINDS)
def test_retry_after_is_asked_for(provider: ScriptedServer, kind: str) -> None:
    """The pause before each try is the one its answer asked for, not one of our own."""
    provider.inject(
        http_error(429, retry_after=0.75), http_error(503, retry_after=7), http_error(500, retry_after="soon")
    )
    naps = Naps()
    ask_provider(provider, kind, max_retries=3, naps=naps)
    assert naps.taken[:2] == [0.75, 7]
    assert 0.75 * 2 <= naps.taken[2] <= 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_retry_after_is_waited(provider: ScriptedServer, asynchronous: bool) -> None:
    """A run really waits what Retry-After says."""
    provider.inject(http_error(429, retry_after=0.2))
    begin = time.monotonic()
    with provider.client(max_retries=1) as client:
        swarm = Swarm(client)
        if asynchronous:
            asyncio.run(swarm.run_async(Agent(), [{"role": "user", "content": "Hi"}]))
        else:
            swarm.run(Agent(), [{"role": "user", "content": "Hi"}])
    assert time.monotonic() - begin >= 0.2


def test_the_server_may_forbid_a_retry(provider: ScriptedServer) -> None:
    """An answer with `x-should-retry: false` is not tried again."""
    provider.inject(http_error(500, headers={"x-should-retry": "false"}))
    with pytest.raises(ModelError) as caught:
        ask_provider(provider, "sync", max_retries=3)
    assert (caught.value.status, caught.value.tries) == (500, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_that_the_provider_repeats_is_masked(provider: ScriptedServer, kind: str) -> None:
    """The key stands neither in the error nor in its cause nor in the traceback, even where the provider repeats it."""
    provider.inject(http_error(401, f"Incorrect API key provided: {KEY}. Header was 'Authorization: Bearer {KEY}'."))
    with pytest.raises(ModelError, match="Incorrect API key provided: ") as caught:
        ask_provider(provider, kind)
    assert isinstance(caught.value.__context__, openai.AuthenticationError)
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_connections_are_kept(provider: ScriptedServer) -> None:
    """The calls of a run share a connection."""
    with provider.client() as client:
        for _ in range(5):
            ask(client)
    assert provider.connections == 1


def test_broken_arguments_are_sent_mended_and_shown_as_they_were() -> None:
    """What the model wrote stays in the response; the strict provider gets a history it takes."""
    replies = [[("add", '{"a": '), ("add", "[1]"), ("füg hinzu", '{"a": 1}')], "Sorry"]
    with serve_scripted(replies) as strict, strict.client() as client:
        response = Swarm(client).run(Agent(functions=[add]), [{"role": "user", "content": "Hi"}])
    shown = [call["function"] for call in response.messages[0]["tool_calls"]]
    assert shown == [
        {"name": "add", "arguments": '{"a": '},
        {"name": "add", "arguments": "[1]"},
        {"name": "füg hinzu", "arguments": '{"a": 1}'},
    ]
    sent = [call["function"] for call in strict.requests[1].body["messages"][2]["tool_calls"]]
    assert sent == [
        {"name": "add", "arguments": "{}"},
        {"name": "add", "arguments": "{}"},
        {"name": "f_g_hinzu", "arguments": '{"a": 1}'},
    ]
    assert [message["content"][:6] for message in response.messages[1:4]] == ["Error:"] * 3


HELLO = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]}
HELLO_IN_CHUNKS = [{"choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": "stop"}]}, DONE]


def _whole(message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    "odd",
    [
        {"choices": {"0": "Hi"}},
        {"choices": True},
        {"choices": 5},
        _whole("Hi"),
        _whole(["Hi"]),
        _whole({"role": "assistant", "tool_calls": 5}),
        _whole({"role": "assistant", "tool_calls": {"id": "c"}}),
        _whole({"role": "assistant", "tool_calls": [None]}),
        "[" * 100_000,
        '{"choices": ' + "9" * 5_000 + "}",
    ],
    ids=lambda odd: str(odd)[:60],
)
def test_an_answer_that_is_none_is_asked_for_again(odd: Any, asynchronous: bool) -> None:
    """What is JSON, but no answer, is the provider's fault and no error of the program."""
    with RawServer(odd, HELLO) as provider:
        kind: Any = openai.AsyncOpenAI if asynchronous else openai.OpenAI
        client = kind(base_url=provider.base_url, api_key=KEY, max_retries=1)
        assert ask(client).message["content"] == "Hello"
    assert len(provider.requests) == 2


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("odd", ["[" * 100_000, "9" * 5_000], ids=["deep", "long"])
def test_a_chunk_that_cannot_be_read_breaks_its_stream(odd: str, asynchronous: bool) -> None:
    """The same in a stream: it is asked for again."""
    with RawServer([f"data: {odd}", DONE], HELLO_IN_CHUNKS) as provider:
        kind: Any = openai.AsyncOpenAI if asynchronous else openai.OpenAI
        client = kind(base_url=provider.base_url, api_key=KEY, max_retries=1)
        swarm = Swarm(client)
        shown = list(swarm.run(Agent(), [{"role": "user", "content": "Hi"}], stream=True))
        assert shown[-1]["response"].messages[-1]["content"] == "Hello"
    assert len(provider.requests) == 2


DEEP: list[Any] = []
for _ in range(200):
    DEEP = [DEEP]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("odd", [float("nan"), [{"score": float("inf")}], DEEP], ids=["nan", "infinite", "deep"])
def test_a_field_that_is_not_sent_back_spoils_no_run(odd: Any, streamed: bool, tmp_path: Path) -> None:
    """A provider's own field holds what JSON does not, or no end of lists: it is null where it cannot be kept."""
    calls = [{"index": 0, "id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}]
    message = {"role": "assistant", "content": "So", "tool_calls": calls, "reasoning_details": odd}
    chunks = [{"choices": [{"index": 0, "delta": message, "finish_reason": "tool_calls"}]}, DONE]
    first, then = (chunks, HELLO_IN_CHUNKS) if streamed else (_whole(message), HELLO)
    agent = Agent(name="Odd fields", functions=[add])
    with RawServer(first, then) as provider:
        client = openai.OpenAI(base_url=provider.base_url, api_key=KEY, max_retries=0)
        with DurableSwarm(client, database=f"sqlite:///{tmp_path / 'runs.sqlite'}") as swarm:
            if streamed:
                response = swarm.start(agent, [{"role": "user", "content": "Hi"}]).result()
            else:
                response = swarm.run(agent, [{"role": "user", "content": "Hi"}])
    assert response.messages[-1]["content"] == "Hello"
    assert json.loads(json.dumps(response.messages, allow_nan=False)) == response.messages


def test_an_odd_subclass_of_the_client(provider: ScriptedServer) -> None:
    """A client class of the program's own, made with other arguments, works and keeps its number of tries."""

    class Gateway(openai.OpenAI):
        def __init__(self, url: str) -> None:
            super().__init__(base_url=url, api_key=KEY, max_retries=1)

    provider.inject(http_error(500))
    with Gateway(provider.base_url) as client:
        assert ask(client).message["content"] == "Hello"
    assert len(provider.requests) == 2
