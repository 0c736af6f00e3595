"""`Responses`: what the API is asked, what its answers become, and what comes back to it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming
from pydantic import TypeAdapter

from durable_swarm import Agent, ConfigurationError, DurableSwarm, ModelError, Response, Swarm
from durable_swarm.providers import Responses, Routes
from durable_swarm.testing import (
    ScriptedModel,
    ScriptedServer,
    call,
    cut,
    cut_off,
    http_error,
    rate_limited,
    serve_scripted,
    slowly,
)
from tests.providers.conftest import Opened
from tests.support.raw import RawServer

REQUEST: TypeAdapter[Any] = TypeAdapter(ResponseCreateParamsNonStreaming)
HI: list[Any] = [{"role": "user", "content": "Where is A1?"}]
LOOK_UP = {**call("look_up", order="A1"), "id": "call_A1"}
CALLS: Any = {"content": "I look.", "reasoning_content": "One order.", "tool_calls": [LOOK_UP]}
WAYS = [(background, streamed) for background in (False, True) for streamed in (False, True)]


def look_up(order: str) -> str:
    """Look up an order."""
    return "shipped"


def clerk(**settings: Any) -> Agent:
    """An agent with a tool."""
    return Agent(name="Clerk", model="gpt-5.4", functions=[look_up], model_settings=settings)


def run(client: Any, agent: Agent, *, streamed: bool = False, messages: list[Any] = HI) -> Response:
    """Run an agent in memory."""
    swarm = Swarm(client)  # Not closed: an async client is closed on the loop that it was asked on.
    if not streamed:
        return swarm.run(agent, messages)
    [*_, last] = swarm.run(agent, messages, stream=True)
    response: Response = last["response"]
    return response


def sent(server: ScriptedServer, number: int = 0) -> dict[str, Any]:
    """Return a request as it was sent, having checked it against the official types."""
    posts = [request.body for request in server.requests if request.method == "POST"]
    checked = REQUEST.validate_python(posts[number])
    if "tools" in checked:
        [*checked["tools"]]
    body: dict[str, Any] = posts[number]
    return body


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A provider whose first reply calls a tool, and whose second is the answer."""
    with serve_scripted([CALLS, "It is on its way."]) as running:
        yield running


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize(("background", "streamed"), WAYS)
def test_a_run_is_what_it_is_by_chat_completions(
    background: bool, streamed: bool, asynchronous: bool, server: ScriptedServer, opened: Opened
) -> None:
    """Whole or streamed, at once or in the background, plain or async: the same messages, but for what comes back."""
    client: Any = opened(server.async_client() if asynchronous else server.client())
    by_responses = run(Responses(client, background=background), clerk(), streamed=streamed)
    plain = {**CALLS, "reasoning_content": None}
    by_chat = run(ScriptedModel([plain, "It is on its way."]), clerk(), streamed=streamed)
    origins = [message.pop("provider", None) for message in by_responses.messages]
    assert by_responses.messages == by_chat.messages
    assert [None if origin is None else origin["kind"] for origin in origins] == [
        "openai-responses",
        None,
        "openai-responses",
    ]
    assert by_responses.usage is not None
    assert (by_responses.usage.requests, by_responses.usage.reasoning_tokens) == (2, 2)


def test_reasoning_is_sent_back_in_front_of_its_call(server: ScriptedServer, opened: Opened) -> None:
    """The second request holds the encrypted reasoning, what was said and the call, in their order, and its result."""
    run(Responses(opened(server.client())), clerk())
    second = sent(server, 1)
    assert [item.get("type", item.get("role")) for item in second["input"]] == [
        "user",
        "reasoning",
        "message",
        "function_call",
        "function_call_output",
    ]
    assert second["input"][1]["encrypted_content"].startswith("scripted.")
    assert (second["store"], second["include"]) == (False, ["reasoning.encrypted_content"])


EMPTY = {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"max_tokens": 50}, {"max_output_tokens": 50}),
    ({"max_completion_tokens": 50, "temperature": 0.5}, {"max_output_tokens": 50, "temperature": 0.5}),
    ({"reasoning_effort": "low"}, {"reasoning": {"effort": "low"}}),
    (
        {"reasoning": {"summary": "auto"}, "reasoning_effort": "low"},
        {"reasoning": {"summary": "auto", "effort": "low"}},
    ),
    ({"verbosity": "low"}, {"text": {"verbosity": "low"}}),
    ({"response_format": {"type": "json_object"}}, {"text": {"format": {"type": "json_object"}}}),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": EMPTY, "strict": True},
            }
        },
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": EMPTY, "strict": True}}},
    ),
    ({"tool_choice": "required"}, {"tool_choice": "required"}),
    (
        {"tool_choice": {"type": "function", "function": {"name": "look_up"}}},
        {"tool_choice": {"type": "function", "name": "look_up"}},
    ),
    ({"metadata": {"team": "a"}, "service_tier": "flex"}, {"metadata": {"team": "a"}, "service_tier": "flex"}),
    ({"logprobs": True, "top_logprobs": 2}, {"top_logprobs": 2}),
    ({"n": 1, "truncation": "auto"}, {"truncation": "auto"}),
]


@pytest.mark.parametrize(("settings", "wanted"), SETTINGS)
def test_settings_are_translated(
    settings: dict[str, Any], wanted: dict[str, Any], server: ScriptedServer, opened: Opened
) -> None:
    """Each setting of chat completions has its place in the request, which is valid by the official types."""
    run(Responses(opened(server.client())), clerk(**settings))
    body = sent(server)
    assert {name: body[name] for name in wanted} == wanted
    assert body["instructions"] == "You are a helpful agent."
    assert body["tools"][0]["strict"] is False


@pytest.mark.parametrize("name", ["seed", "stop", "frequency_penalty", "logit_bias"])
def test_settings_without_a_place_are_refused(name: str, server: ScriptedServer, opened: Opened) -> None:
    """A setting that the API does not have is an error that names it, and nothing is asked."""
    with pytest.raises(ConfigurationError, match=name):
        run(Responses(opened(server.client())), clerk(**{name: 1}))
    assert server.requests == []


def test_parts_of_messages_reach_the_provider(server: ScriptedServer, opened: Opened) -> None:
    """Texts, images and files come in the API's own form; a part that has that form already is left as it is."""
    picture = "data:image/png;base64,AAAA"
    parts = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": picture, "detail": "low"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "input_text", "text": "Say it."},
    ]
    run(Responses(opened(server.client())), clerk(), messages=[{"role": "user", "content": parts}])
    assert sent(server)["input"][0]["content"] == [
        {"type": "input_text", "text": "What is it?"},
        {"type": "input_image", "image_url": picture, "detail": "low"},
        {"type": "input_file", "file_id": "file-1"},
        {"type": "input_text", "text": "Say it."},
    ]


def test_reasoning_goes_to_no_other_kind_of_provider(opened: Opened) -> None:
    """After a handoff to a model by chat completions nothing of it is sent there; after one back it is there again."""

    def to_writer() -> Agent:
        return writer

    def to_thinker() -> Agent:
        return thinker

    thinker = Agent(name="Thinker", model="gpt-5.4", functions=[to_writer])
    writer = Agent(name="Writer", model="other", functions=[to_thinker])
    thought = {"reasoning_content": "Hm.", "tool_calls": ["to_writer"]}
    with serve_scripted([thought, "Done."]) as server:
        chat = ScriptedModel(lambda _: ["to_thinker"])
        response = run(Routes({"gpt-*": Responses(opened(server.client())), "*": chat}), thinker)
        assert response.messages[-1]["content"] == "Done."
        assert "scripted." not in str(chat.calls)
        assert "provider" not in str(chat.calls)
        assert sum(item.get("type") == "reasoning" for item in sent(server, 1)["input"]) == 1


@pytest.mark.parametrize(("background", "streamed"), WAYS)
def test_a_cut_reply_makes_no_call_and_leaves_a_legal_history(background: bool, streamed: bool, opened: Opened) -> None:
    """Calls of a reply at its limit are answered with an error; a cut text ends the run and says by what."""
    script = [cut_off(CALLS), cut_off("Once upon", "content_filter")]
    with serve_scripted(script) as server:
        response = run(Responses(opened(server.client()), background=background), clerk(), streamed=streamed)
    assert response.messages[1]["content"].startswith("Error:")
    assert (response.messages[-1]["content"], response.ended_by) == ("Once upon", "content_filter")


def test_a_stream_in_the_background_goes_on_where_it_broke(opened: Opened) -> None:
    """The connection is lost in the middle: the rest is read by `starting_after`, and no piece is taken back."""
    with serve_scripted([slowly(cut("one two three four", after=5), pace=0.01)]) as server:
        with Swarm(Responses(opened(server.client()), background=True)) as swarm:
            items = [*swarm.run(clerk(), HI, stream=True)]
        asked = [request.path for request in server.requests if request.method == "GET"]
    assert "".join(item.get("content") or "" for item in items) == "one two three four"
    assert not any(item.get("delim") == "reset" for item in items)
    assert (len(server.calls), "starting_after=4" in asked[0]) == (1, True)


@pytest.mark.parametrize("streamed", [False, True])
def test_what_may_pass_is_tried_again(streamed: bool, opened: Opened) -> None:
    """A rate limit and a lost connection are followed by another try, as often as the client's own setting says."""
    with serve_scripted([rate_limited(), cut("Hello", after=3), "Hello"]) as server:
        client = opened(server.client(max_retries=2))
        assert run(Responses(client), clerk(), streamed=streamed).messages[-1]["content"] == "Hello"
        assert len(server.calls) == 3


def test_a_refusal_of_the_caller_is_one_clear_error(opened: Opened) -> None:
    """Status 401 is not tried again, and a key in it is masked."""
    with serve_scripted([http_error(401, "bad key sk-test-0123456789")]) as server:
        with pytest.raises(ModelError, match=r"AuthenticationError.*\*\*\*"):
            run(Responses(opened(server.client(max_retries=3))), clerk())
        assert len(server.calls) == 1


def failed(code: str) -> dict[str, Any]:
    """Return a response that has failed."""
    base = {"id": "resp_1", "object": "response", "created_at": 0, "model": "m", "output": [], "tools": []}
    more = {"parallel_tool_calls": True, "tool_choice": "auto", "status": "failed"}
    return {**base, **more, "error": {"code": code, "message": "it did not work"}}


@pytest.mark.parametrize(("code", "tries"), [("server_error", 3), ("rate_limit_exceeded", 3), ("invalid_prompt", 1)])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_response_that_failed_is_an_error(code: str, tries: int, streamed: bool, opened: Opened) -> None:
    """What may pass is asked again, what lasts is not; either way the provider's words are in the error."""
    whole = failed(code)
    events = [{"type": "response.failed", "sequence_number": 0, "response": whole}]
    with RawServer(events if streamed else whole) as server:
        client = opened(openai.OpenAI(base_url=server.base_url, api_key="sk-test", max_retries=2))
        with pytest.raises(ModelError, match="it did not work"):
            run(Responses(client), clerk(), streamed=streamed)
        assert len(server.requests) == tries


def answered(**fields: Any) -> dict[str, Any]:
    """Return a finished response, with other fields or items."""
    head = {"id": "resp_1", "object": "response", "created_at": 1, "model": "m", "status": "completed", "error": None}
    return {**head, "output": [], "usage": None, "incomplete_details": None, **fields}


UNFIT: dict[str, Any] = {
    "a page of a proxy": (200, "<html>Bad gateway</html>", {"content-type": "text/html"}),
    "no response": {},
    "a list": (200, "[]"),
    "no output": {key: value for key, value in answered().items() if key != "output"},
    "an output that is not a list": answered(output="Hi"),
    "an error in place of it": {"error": {"message": "it did not work"}},
    "an error that is a text": answered(error="it did not work", status="failed"),
    "an error with an odd code": answered(error={"code": ["a"], "message": "it did not work"}, status="failed"),
}


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("kind", UNFIT)
def test_an_answer_that_is_no_response_is_an_error_of_the_model(kind: str, background: bool, opened: Opened) -> None:
    """What a gateway sends in place of a response ends in a `ModelError`, after the usual tries."""
    with RawServer(UNFIT[kind]) as server:
        client = opened(openai.OpenAI(base_url=server.base_url, api_key="sk-test", max_retries=0))
        with pytest.raises(ModelError, match="it did not work" if "error" in kind else "not a response|no output"):
            run(Responses(client, background=background), clerk())


def test_odd_parts_of_a_response_are_left_out(opened: Opened) -> None:
    """Items and parts that are not objects, texts that are not texts, odd times: the rest of the answer is read."""
    parts = ["odd", {"type": "output_text", "text": 7}, {"type": "output_text", "text": "Hi", "annotations": []}]
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": parts}
    with RawServer(answered(created_at="now", output=["odd", None, message], incomplete_details="odd")) as server:
        client = opened(openai.OpenAI(base_url=server.base_url, api_key="sk-test", max_retries=0))
        assert run(Responses(client), clerk()).messages[-1]["content"] == "Hi"


EVENTS: dict[str, Any] = {
    "arguments of no call": {"type": "response.function_call_arguments.delta", "output_index": 0, "delta": "{}"},
    "a text without its place": {"type": "response.output_text.delta", "item_id": "msg_1", "delta": "Hi"},
    "a text that is none": {"type": "response.output_text.delta", "item_id": "m", "output_index": 0, "delta": {"a": 1}},
    "an item that is none": {"type": "response.output_item.done", "output_index": 0, "item": "odd"},
    "no type": {"delta": "Hi"},
    "no object": 'data: "Hi"',
}


@pytest.mark.parametrize("kind", EVENTS)
def test_an_event_that_is_none_is_an_error_of_the_model(kind: str, opened: Opened) -> None:
    """An event that cannot be read breaks the stream off, which is a `ModelError` after the usual tries."""
    with RawServer(
        [{"sequence_number": 0, **EVENTS[kind]} if isinstance(EVENTS[kind], dict) else EVENTS[kind]]
    ) as server:
        client = opened(openai.OpenAI(base_url=server.base_url, api_key="sk-test", max_retries=0))
        with pytest.raises(ModelError, match="the provider's stream"):
            run(Responses(client), clerk(), streamed=True)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
def test_it_is_a_client_of_its_own(asynchronous: bool, server: ScriptedServer, opened: Opened) -> None:
    """Without a swarm, too, it gives `ChatCompletion`s and chunks, awaited where its client is async."""

    async def asked() -> tuple[Any, list[Any]]:
        async with server.async_client() as client:
            create = Responses(client).chat.completions.create
            whole = await create(model="gpt-5.4", messages=HI)
            return whole, [chunk async for chunk in await create(model="gpt-5.4", messages=HI, stream=True)]

    if asynchronous:
        whole, chunks = asyncio.run(asked())
    else:
        create = Responses(opened(server.client())).chat.completions.create
        whole = create(model="gpt-5.4", messages=HI)
        chunks = [*create(model="gpt-5.4", messages=HI, stream=True)]
    assert isinstance(whole, ChatCompletion)
    assert (whole.choices[0].finish_reason, whole.choices[0].message.content) == ("tool_calls", "I look.")
    assert all(isinstance(chunk, ChatCompletionChunk) for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "It is on its way."


def test_making_it_needs_nothing_and_a_missing_key_fails_no_run(
    monkeypatch: pytest.MonkeyPatch, server: ScriptedServer
) -> None:
    """Without a key the error says what to set; the run is not failed by it, and goes on once there is a key."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    with DurableSwarm(Responses()) as swarm:
        with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
            swarm.run(clerk(), HI, run_id="run-key")
        assert [run.status for run in swarm.runs(status="failed")] == []
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with DurableSwarm(Responses()) as swarm:
        assert swarm.run(clerk(), HI, run_id="run-key").messages[-1]["content"] == "It is on its way."


@pytest.mark.parametrize("given", [ScriptedModel([]), "gpt-5.4", 5])
def test_a_client_without_responses_is_refused(given: Any) -> None:
    """What cannot ask that API is refused when it is given."""
    with pytest.raises(ConfigurationError, match="responses"):
        Responses(given)
