"""The local provider, asked by the real `openai` client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from durable_swarm.testing import ProviderError, call
from tests.support.provider import Cut, Provider, Reset, Stall, bad_json, empty_choices, html, status

HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture
def provider() -> Iterator[Provider]:
    """A provider that answers every request with `Hi`."""
    with Provider(lambda _: "Hi") as running:
        yield running


@pytest.fixture
def client(provider: Provider) -> Iterator[openai.OpenAI]:
    """A real client of the provider that never retries."""
    with provider.client() as made:
        yield made


def ask(client: openai.OpenAI, **more: Any) -> Any:
    """Make one request."""
    return client.chat.completions.create(**{"model": "gpt-4o", "messages": HELLO} | more)


def text_of(answer: Any) -> Any:
    """Give the text of the answer."""
    return answer.choices[0].message.content


def test_the_real_client_gets_the_scripts_answer() -> None:
    """Text, tool calls, usage and finish reason arrive in openai's own types."""
    with Provider([[call("look", at=1)], "Done"]) as provider, provider.client() as client:
        first, second = ask(client), ask(client)
    made = first.choices[0].message.tool_calls[0]
    assert isinstance(first, openai.types.chat.ChatCompletion)
    assert (made.id, made.function.name, made.function.arguments) == ("call_1", "look", '{"at": 1}')
    assert (first.choices[0].finish_reason, second.choices[0].finish_reason) == ("tool_calls", "stop")
    assert (text_of(second), second.usage.total_tokens) == ("Done", 2)


async def _ask_async(provider: Provider) -> Any:
    async with openai.AsyncOpenAI(base_url=provider.base_url, api_key="sk-test", max_retries=0) as client:
        return await client.chat.completions.create(model="gpt-4o", messages=HELLO)


def test_the_async_client_works_too(provider: Provider) -> None:
    """An AsyncOpenAI client gets the same answers."""
    assert text_of(asyncio.run(_ask_async(provider))) == "Hi"


def test_requests_are_recorded(provider: Provider, client: openai.OpenAI) -> None:
    """Path, headers and body are kept as they arrived."""
    ask(client, temperature=0, extra_headers={"Idempotency-Key": "run/0"})
    [request] = provider.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["idempotency-key"] == "run/0"
    assert request.headers["authorization"] == "Bearer sk-test"
    assert request.body == {"model": "gpt-4o", "messages": HELLO, "temperature": 0}


def test_connections_are_kept_alive(provider: Provider, client: openai.OpenAI) -> None:
    """Several requests of one client, errors among them, use one connection."""
    provider.inject(None, status(500))
    ask(client)
    with pytest.raises(openai.InternalServerError):
        ask(client)
    ask(client)
    assert (len(provider.requests), provider.connections) == (3, 1)


def test_a_malformed_request_is_refused(provider: Provider, client: openai.OpenAI) -> None:
    """The server is as strict as a real provider: an orphan tool message is a 400."""
    orphan = {"role": "tool", "tool_call_id": "call_1", "content": ""}
    with pytest.raises(openai.BadRequestError, match="answers no tool call"):
        ask(client, messages=[*HELLO, orphan])


def test_a_script_without_replies_left_is_a_400() -> None:
    """A script that ran out is told at once; no client retries a 400."""
    with Provider([]) as empty, empty.client() as client, pytest.raises(openai.BadRequestError, match="add a reply"):
        ask(client)


def test_an_error_in_the_script_is_answered() -> None:
    """A scripted ProviderError arrives as openai's error of that status, with its header."""
    script = [ProviderError("slow down", status_code=429, retry_after=7)]
    with Provider(script) as provider, provider.client() as client, pytest.raises(openai.RateLimitError) as refused:
        ask(client)
    assert "slow down" in str(refused.value)
    assert refused.value.response.headers["Retry-After"] == "7"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (529, openai.InternalServerError),
    ],
)
def test_injected_status(provider: Provider, client: openai.OpenAI, code: int, kind: type) -> None:
    """An injected status reaches the client with its headers, and the next request is answered."""
    provider.inject(status(code, "not now", retry_after=3, x_request_id="req-1"))
    with pytest.raises(openai.APIStatusError, match="not now") as refused:
        ask(client)
    assert type(refused.value) is kind
    assert (refused.value.status_code, refused.value.request_id) == (code, "req-1")
    assert refused.value.response.headers["retry-after"] == "3"
    assert text_of(ask(client)) == "Hi"


def test_faults_use_up_no_reply() -> None:
    """The client's own retry gets the reply that the fault kept back."""
    with Provider(["first", "second"]) as provider, provider.client(max_retries=1) as client:
        provider.inject(status(500, retry_after_ms="1"))
        assert text_of(ask(client)) == "first"
        assert len(provider.requests) == 2


@pytest.mark.parametrize("fault", [Reset(), Cut()])
def test_a_broken_connection(provider: Provider, client: openai.OpenAI, fault: Reset | Cut) -> None:
    """A reset before the headers or a cut in the body is a connection error, and the next request is answered."""
    provider.inject(fault)
    with pytest.raises(openai.APIConnectionError) as broken:
        ask(client)
    assert not isinstance(broken.value, openai.APITimeoutError)
    assert text_of(ask(client)) == "Hi"
    assert provider.connections == 2


def test_a_stall_delays_the_answer(provider: Provider, client: openai.OpenAI) -> None:
    """A patient client gets the answer after the stall."""
    provider.inject(Stall(0.2))
    began = time.monotonic()
    assert text_of(ask(client)) == "Hi"
    assert time.monotonic() - began >= 0.2


def test_a_stall_outlasts_an_impatient_client() -> None:
    """A client that gave up during the stall uses up no reply."""
    with Provider(["only"]) as provider, provider.client() as client:
        provider.inject(Stall(0.3))
        with pytest.raises(openai.APITimeoutError):
            ask(client, timeout=0.1)
        time.sleep(0.4)
        assert text_of(ask(client)) == "only"


def test_a_page_instead_of_json(provider: Provider, client: openai.OpenAI) -> None:
    """A proxy's page with an error status is that error; with status 200 the client hands out bare text."""
    provider.inject(html(502), html(200))
    with pytest.raises(openai.InternalServerError):
        ask(client)
    assert "<html>" in ask(client)


def test_a_body_that_is_no_json(provider: Provider, client: openai.OpenAI) -> None:
    """A success with broken JSON is an error of the client, not an answer."""
    provider.inject(bad_json())
    with pytest.raises((openai.APIError, ValueError)):
        ask(client)
    assert text_of(ask(client)) == "Hi"


def test_an_answer_without_choices(provider: Provider, client: openai.OpenAI) -> None:
    """A success may hold no choice at all."""
    provider.inject(empty_choices())
    assert ask(client).choices == []


def test_other_paths_are_not_found(client: openai.OpenAI) -> None:
    """Only chat completions are served."""
    with pytest.raises(openai.NotFoundError, match="/v1/embeddings"):
        client.embeddings.create(model="m", input="text")


def test_a_stopped_provider_is_away_until_it_starts_again(provider: Provider, client: openai.OpenAI) -> None:
    """Stopping drops the connections; started again, the same address answers."""
    ask(client)
    provider.stop()
    with pytest.raises(openai.APIConnectionError):
        ask(client)
    provider.start()
    assert text_of(ask(client)) == "Hi"
