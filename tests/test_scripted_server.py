"""The scripted server, asked by the real `openai` client, and by hand."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from durable_swarm.errors import ConfigurationError
from durable_swarm.testing import (
    ProviderError,
    ScriptedServer,
    call,
    http_error,
    serve_scripted,
    slowly,
    timed_out,
    when,
)
from tests.support.patience import PATIENCE

HELLO: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture
def provider() -> Iterator[ScriptedServer]:
    """A provider that answers every request with `Hi`."""
    with serve_scripted(lambda _: "Hi") as running:
        yield running


@pytest.fixture
def client(provider: ScriptedServer) -> Iterator[openai.OpenAI]:
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
    with serve_scripted([[call("look", at=1)], "Done"]) as provider, provider.client() as client:
        first, second = ask(client), ask(client)
    made = first.choices[0].message.tool_calls[0]
    assert isinstance(first, openai.types.chat.ChatCompletion)
    assert (made.id, made.function.name, made.function.arguments) == ("call_1", "look", '{"at": 1}')
    assert (first.choices[0].finish_reason, second.choices[0].finish_reason) == ("tool_calls", "stop")
    assert (text_of(second), second.usage.total_tokens) == ("Done", 2)


async def _ask_async(provider: ScriptedServer) -> Any:
    async with provider.async_client() as client:
        return await client.chat.completions.create(model="gpt-4o", messages=HELLO)


def test_the_async_client_works_too(provider: ScriptedServer) -> None:
    """An AsyncOpenAI client gets the same answers."""
    assert text_of(asyncio.run(_ask_async(provider))) == "Hi"


def test_requests_are_recorded(provider: ScriptedServer, client: openai.OpenAI) -> None:
    """Path, headers and body are kept as they arrived."""
    ask(client, temperature=0, extra_headers={"Idempotency-Key": "run/0"})
    [request] = provider.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["idempotency-key"] == "run/0"
    assert request.headers["authorization"] == "Bearer sk-test"
    assert request.body == {"model": "gpt-4o", "messages": HELLO, "temperature": 0}
    assert provider.calls == [request.body]


def test_connections_are_kept_alive(provider: ScriptedServer, client: openai.OpenAI) -> None:
    """Several requests of one client, errors among them, use one connection."""
    provider.inject(None, http_error(500))
    ask(client)
    with pytest.raises(openai.InternalServerError):
        ask(client)
    ask(client)
    assert (len(provider.requests), provider.connections) == (3, 1)


def test_a_malformed_request_is_refused(provider: ScriptedServer, client: openai.OpenAI) -> None:
    """The server is as strict as a real provider: an orphan tool message is a 400."""
    orphan = {"role": "tool", "tool_call_id": "call_1", "content": ""}
    with pytest.raises(openai.BadRequestError, match="answers no tool call"):
        ask(client, messages=[*HELLO, orphan])


def test_a_script_without_replies_left_is_a_400() -> None:
    """A script that ran out is told at once; no client retries a 400."""
    with (
        serve_scripted([]) as empty,
        empty.client() as client,
        pytest.raises(openai.BadRequestError, match="add a reply"),
    ):
        ask(client)


def test_an_error_in_the_script_is_answered() -> None:
    """A scripted ProviderError arrives as openai's error of that status, with its header."""
    script = [ProviderError("slow down", status_code=429, retry_after=7)]
    with (
        serve_scripted(script) as provider,
        provider.client() as client,
        pytest.raises(openai.RateLimitError) as refused,
    ):
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
def test_injected_status(provider: ScriptedServer, client: openai.OpenAI, code: int, kind: type) -> None:
    """An injected status reaches the client with its headers, and the next request is answered."""
    provider.inject(http_error(code, "not now", retry_after=3, headers={"X-Request-Id": "req-1"}))
    with pytest.raises(openai.APIStatusError, match="not now") as refused:
        ask(client)
    assert type(refused.value) is kind
    assert (refused.value.status_code, refused.value.request_id) == (code, "req-1")
    assert refused.value.response.headers["retry-after"] == "3"
    assert text_of(ask(client)) == "Hi"


def test_faults_use_up_no_reply() -> None:
    """The client's own retry gets the reply that the fault kept back."""
    with serve_scripted(["first", "second"]) as provider, provider.client(max_retries=1) as client:
        provider.inject(http_error(500, headers={"retry-after-ms": "1"}))
        assert text_of(ask(client)) == "first"
        assert len(provider.requests) == 2


def test_a_client_that_left_uses_up_nothing_more() -> None:
    """A client that gave up on an injected silence finds the next reply still there."""
    with serve_scripted(["only"]) as provider, provider.client() as client:
        provider.inject(timed_out())
        with pytest.raises(openai.APITimeoutError):
            ask(client, timeout=1)
        assert text_of(ask(client)) == "only"


def test_a_late_answer(provider: ScriptedServer, client: openai.OpenAI) -> None:
    """A patient client gets a slow answer, and not before its time."""
    provider.inject(slowly("Late", latency=0.2))
    began = time.monotonic()
    assert text_of(ask(client)) == "Late"
    assert time.monotonic() - began >= 0.2


def test_many_clients_at_once() -> None:
    """Clients are answered while another one still waits for its answer, which never comes."""
    with ThreadPoolExecutor(8) as pool, serve_scripted(lambda _: "Hi") as provider:
        provider.inject(timed_out())
        waits = pool.submit(lambda: ask(provider.client()))
        while not provider.calls:
            time.sleep(0.01)
        asked = [pool.submit(lambda: ask(provider.client())) for _ in range(7)]
        assert [text_of(future.result()) for future in asked] == ["Hi"] * 7
        assert not waits.done()


def test_a_silent_answer_ends_with_the_server() -> None:
    """Stopping the server does not wait for an answer under way; its client sees the connection end."""
    with serve_scripted([timed_out()]) as provider, provider.client() as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, client)
        while not provider.calls:
            time.sleep(0.01)
        provider.stop()
        with pytest.raises(openai.APIConnectionError):
            asked.result(PATIENCE)


def test_other_paths_are_not_found(client: openai.OpenAI) -> None:
    """Only chat completions and models are served."""
    with pytest.raises(openai.NotFoundError, match="no such path: POST /v1/embeddings"):
        client.embeddings.create(model="m", input="text")
    with pytest.raises(openai.NotFoundError, match="no such path: GET /v1/files"):
        client.files.list()


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    """A program that looks at the models first finds one."""
    assert [model.id for model in client.models.list()] == ["scripted"]


def test_a_stopped_provider_is_away_until_it_starts_again(provider: ScriptedServer, client: openai.OpenAI) -> None:
    """Stopping drops the connections; started again, the same address answers."""
    ask(client)
    provider.stop()
    with pytest.raises(openai.APIConnectionError):
        ask(client)
    provider.start()
    assert text_of(ask(client)) == "Hi"


def by_hand(provider: ScriptedServer, body: str | None, path: str = "/v1/chat/completions") -> tuple[int, Any]:
    """Post a body without the real client; None leaves its length out."""
    connection = http.client.HTTPConnection("127.0.0.1", int(provider.base_url.split(":")[2].split("/")[0]), timeout=5)
    connection.putrequest("POST", path)
    if body is not None:
        connection.putheader("content-length", str(len(body)))
    connection.endheaders((body or "").encode())
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ("[]", 400, "must be a JSON object"),
        ("{", 400, "must be a JSON object"),
        ("[" * 100_000, 400, "must be a JSON object"),
        ("{}", 400, "messages must be a list"),
        (None, 411, "needs a Content-Length"),
    ],
)
def test_errors_have_openais_form(provider: ScriptedServer, body: str | None, status: int, text: str) -> None:
    """A request that cannot be read is refused with openai's JSON error, whoever asks."""
    found, answer = by_hand(provider, body)
    assert found == status
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert (answer["error"]["type"], answer["error"]["param"]) == ("invalid_request_error", None)
    assert text in answer["error"]["message"]


def test_a_query_is_no_part_of_the_path(provider: ScriptedServer) -> None:
    """Clients that add an `api-version` are answered too."""
    body = json.dumps({"model": "m", "messages": HELLO})
    assert by_hand(provider, body, "/v1/chat/completions?api-version=1")[0] == 200


def test_text_that_utf_8_cannot_hold() -> None:
    """A lone surrogate, which models do write, arrives as it is."""
    with serve_scripted(["a\ud83d", [("look", "\ud83d")]]) as provider, provider.client() as client:
        assert text_of(ask(client)) == "a\ud83d"
        pieces = [chunk.choices[0].delta.tool_calls for chunk in ask(client, stream=True)]
        assert "".join(made[0].function.arguments for made in pieces if made) == "\ud83d"


def test_openais_code_is_sent(provider: ScriptedServer, client: openai.OpenAI) -> None:
    """The word by which a spent quota differs from a rate limit reaches the client."""
    provider.inject(http_error(429, code="insufficient_quota"))
    with pytest.raises(openai.RateLimitError) as refused:
        ask(client)
    assert refused.value.code == "insufficient_quota"


def test_an_exception_of_the_script_is_a_400(client: openai.OpenAI, provider: ScriptedServer) -> None:
    """A mistake in the script, and a request that no rule fits, end the call at once with their text."""
    provider.inject(lambda request: request["nothing"])
    with pytest.raises(openai.BadRequestError, match="KeyError: 'nothing'"):
        ask(client)
    with serve_scripted([when(said="refund", reply="Done")]) as other, other.client() as asking:
        with pytest.raises(openai.BadRequestError, match=r"no rule of the ScriptedModel fits.*user: hello"):
            ask(asking)
        assert text_of(ask(asking, messages=[{"role": "user", "content": "Refund it"}])) == "Done"


def test_a_response_of_openais_own_is_served() -> None:
    """A callable may return openai's response object; another object is refused with what to do."""
    made = openai.types.chat.ChatCompletion.model_validate(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 7,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "own"}}],
        }
    )

    class Odd:
        choices = ()

    with serve_scripted([made, made, Odd()]) as provider, provider.client() as client:
        assert (text_of(ask(client)), ask(client, stream=True).__next__().id) == ("own", "x")
        with pytest.raises(openai.BadRequestError, match="give the reply as a string"):
            ask(client)


def test_the_server_is_of_this_machine_only(provider: ScriptedServer) -> None:
    """The address is that of the loopback, so nobody else can reach the server."""
    assert provider.base_url.startswith("http://127.0.0.1:")


def test_wrong_use_is_told() -> None:
    """An address before the start, a second start and a wrong script are told at once."""
    server = serve_scripted([])
    with pytest.raises(ConfigurationError, match=r"call start\(\)"):
        server.client()
    with server, pytest.raises(ConfigurationError, match=r"stop\(\) it first"):
        server.start()
    with pytest.raises(ConfigurationError, match="cannot give the reply None"):
        serve_scripted([None])


def test_a_port_may_be_chosen(provider: ScriptedServer) -> None:
    """A server takes the port it is told, and says so where that is taken."""
    port = int(provider.base_url.split(":")[2].split("/")[0])
    with pytest.raises(ConfigurationError, match="in use"):
        serve_scripted([], port=port).start()
    provider.stop()
    with serve_scripted([], port=port) as other:
        assert other.base_url == provider.base_url


def test_openai_is_imported_only_for_its_clients() -> None:
    """The server answers without the openai package being imported."""
    program = (
        "import sys; from durable_swarm.testing import serve_scripted\n"
        "with serve_scripted(['Hi']):\n    sys.exit('openai' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
