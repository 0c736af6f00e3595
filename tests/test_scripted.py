"""The scripted model and the checks of a strict provider."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
import time
from contextvars import copy_context
from typing import Any

import pytest

from durable_swarm import Agent, Swarm
from durable_swarm.concurrency import running_loop
from durable_swarm.errors import ConfigurationError
from durable_swarm.models.call import ModelCall, current_model_call
from durable_swarm.testing import AsyncScriptedModel, ProviderError, ScriptedModel, call, check_request, slowly

HELLO = [{"role": "user", "content": "hello there"}]
CALLED: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
}
ANSWER = {"role": "tool", "tool_call_id": "call_1", "content": "found"}
LOOK: dict[str, Any] = {
    "type": "function",
    "function": {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}},
}


def ask(model: ScriptedModel, messages: list[dict[str, Any]] | None = None, **more: Any) -> Any:
    """Ask for the next reply."""
    return model.chat.completions.create(model="gpt-4o", messages=HELLO if messages is None else messages, **more)


def ask_in_run(model: ScriptedModel, run_id: str, turn: int) -> Any:
    """Ask for the next reply as a run does."""

    def inside() -> Any:
        current_model_call.set(ModelCall(run_id, turn))
        return ask(model).choices[0].message.content

    return copy_context().run(inside)


def test_a_string_is_the_models_text() -> None:
    """A string becomes a finished text reply."""
    choice = ask(ScriptedModel(["Hi"])).choices[0]
    assert (choice.message.role, choice.message.content, choice.message.tool_calls) == ("assistant", "Hi", None)
    assert (choice.finish_reason, choice.message.refusal) == ("stop", None)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("look", ("call_1", "look", "{}")),
        (("look", {"at": 1}), ("call_1", "look", '{"at": 1}')),
        (("look", "{not json"), ("call_1", "look", "{not json")),
        (call("look", at=1), ("call_1", "look", '{"at": 1}')),
        (call("look", name="x"), ("call_1", "look", '{"name": "x"}')),
        ({"name": "look"}, ("call_1", "look", "{}")),
        ({"name": "look", "arguments": "[]"}, ("call_1", "look", "[]")),
        ({"name": "look", "arguments": {}, "id": "mine"}, ("mine", "look", "{}")),
        ({"function": {"name": "look", "arguments": {"at": 1}}}, ("call_1", "look", '{"at": 1}')),
        (
            {"id": "abc", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}},
            ("abc", "look", '{"at":1}'),
        ),
    ],
)
def test_each_form_of_a_tool_call(spec: Any, expected: tuple[str, str, str]) -> None:
    """Every documented form of a tool call gives the name, the arguments text and an id."""
    choice = ask(ScriptedModel([[spec]])).choices[0]
    [made] = choice.message.tool_calls
    assert (made.id, made.function.name, made.function.arguments) == expected
    assert (made.type, choice.finish_reason, choice.message.content) == ("function", "tool_calls", None)


def test_ids_are_unique_over_replies() -> None:
    """Ids count on from reply to reply, several calls in one reply included."""
    model = ScriptedModel([["a", "b"], ["c"]])
    ids = [made.id for _ in range(2) for made in ask(model).choices[0].message.tool_calls]
    assert ids == ["call_1", "call_2", "call_3"]


def test_ids_count_on_from_the_history() -> None:
    """A model built anew makes no id that the history already holds."""
    message = ask(ScriptedModel([["look"]]), [*HELLO, CALLED, ANSWER]).choices[0].message
    assert message.tool_calls[0].id == "call_2"


def test_a_dict_is_a_whole_message() -> None:
    """A dict gives text and calls together, a refusal, or an empty list of calls, as it says."""
    both = {"role": "assistant", "content": "Looking", "tool_calls": [call("look")]}
    model = ScriptedModel([both, {"role": "assistant", "refusal": "No."}, {"content": "Hi", "tool_calls": []}])
    first, second, third = (ask(model).choices[0].message for _ in range(3))
    assert (first.content, first.tool_calls[0].function.name) == ("Looking", "look")
    assert (second.content, second.refusal) == (None, "No.")
    assert third.tool_calls == []


def test_exceptions_are_raised_and_use_up_a_reply() -> None:
    """An exception instance or class is raised, and the next request gets the next reply."""
    model = ScriptedModel([ProviderError("slow down", status_code=429, retry_after=2), TimeoutError, "Hi"])
    with pytest.raises(ProviderError) as refused:
        ask(model)
    with pytest.raises(TimeoutError):
        ask(model)
    assert (refused.value.status_code, refused.value.response.headers) == (429, {"retry-after": "2"})
    assert ask(model).choices[0].message.content == "Hi"


def test_a_callable_sees_the_request() -> None:
    """A callable gets the request and returns any other form of reply."""
    model = ScriptedModel([lambda request: request["messages"][-1]["content"].upper(), lambda _: [("look", {})]])
    assert ask(model).choices[0].message.content == "HELLO THERE"
    assert ask(model).choices[0].message.tool_calls[0].function.name == "look"


def test_a_callable_may_return_an_exception_or_a_response() -> None:
    """An exception from a callable is raised; a complete response object is handed on as it is."""
    made = ask(ScriptedModel(["made elsewhere"]))
    model = ScriptedModel([lambda _: ValueError("no"), lambda _: made, made])
    with pytest.raises(ValueError, match="no"):
        ask(model)
    assert ask(model) is made
    assert ask(model) is made


def test_one_callable_answers_every_request() -> None:
    """A callable in place of the list never runs out."""
    model = ScriptedModel(lambda request: f"message {len(request['messages'])}")
    assert ask(model).choices[0].message.content == "message 1"
    assert ask(model, HELLO * 2).choices[0].message.content == "message 2"


def test_calls_records_requests_as_they_were() -> None:
    """A message appended after the request does not show in the record."""
    model = ScriptedModel(["Hi"])
    messages = copy.deepcopy(HELLO)
    ask(model, messages, temperature=0)
    messages.append({"role": "assistant", "content": "Hi"})
    assert model.calls == [{"model": "gpt-4o", "messages": HELLO, "temperature": 0}]


def test_responses_look_like_openais() -> None:
    """Responses carry id, model and usage, dump to JSON, and take attributes of their own."""
    answer = ask(ScriptedModel(["one two three"]))
    answer.choices[0].message.sender = "Agent"
    dumped = json.loads(answer.choices[0].message.model_dump_json())
    assert dumped["sender"] == "Agent"
    assert dumped == answer.model_dump()["choices"][0]["message"]
    assert (answer.id, answer.model, answer.object) == ("chatcmpl-1", "gpt-4o", "chat.completion")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 3, 5)


def test_a_script_that_ran_out_says_so() -> None:
    """The error names the number of replies and the last message."""
    model = ScriptedModel(["Hi"])
    ask(model)
    with pytest.raises(ConfigurationError, match=r"has 1 reply .* add a reply.*user: hello there"):
        ask(model)


@pytest.mark.parametrize(
    ("replies", "text"),
    [
        ("Hi", "takes a list of replies or one callable, not str"),
        ([None], "cannot give the reply None"),
        ([[]], r"cannot give the reply \[\]"),
        ([("look", {})], "A reply is a string, a list of tool calls"),
        ([call("look")], "cannot give the reply"),
        ([[3]], "cannot make the tool call 3"),
        ([[("look", 3)]], "cannot make the tool call"),
        ([[{"name": "look", "arguments": None}]], "cannot make the tool call"),
        ([[{"name": "look", "id": 3}]], "must be a string, not 3"),
        ([[("look", {"at": object()})]], "arguments of the scripted tool call 'look' are not JSON"),
        ([{"role": "user", "content": "Hi"}], "is not an assistant message"),
    ],
)
def test_a_wrong_reply_is_refused_at_once(replies: Any, text: str) -> None:
    """A reply of no known form is refused where the script is written, with the forms that work."""
    with pytest.raises(ConfigurationError, match=text):
        ScriptedModel(replies)


def test_an_injected_reply_comes_first() -> None:
    """Injected replies strike one request each, before script and strict checks; None lets one pass."""
    model = ScriptedModel(["first", "second"])
    model.inject(TimeoutError(), None, "between")
    with pytest.raises(TimeoutError):
        ask(model, [*HELLO, ANSWER])
    assert [ask(model).choices[0].message.content for _ in range(3)] == ["first", "between", "second"]
    assert len(model.calls) == 4
    with pytest.raises(ConfigurationError, match="cannot give the reply 3"):
        model.inject(3)


def test_latency_comes_before_the_answer() -> None:
    """The model's latency precedes each reply, and a reply may have its own."""
    model = ScriptedModel([slowly("Hi", latency=0.2), slowly("Ho", latency=0)], latency=3600)
    began = time.monotonic()
    assert ask(model).choices[0].message.content == "Hi"
    assert time.monotonic() - began >= 0.2
    assert ask(model).choices[0].message.content == "Ho"


def test_a_requests_timeout_is_kept_to() -> None:
    """A request that waits no longer than its `timeout` ends then, as the real client's does."""
    model = ScriptedModel(lambda _: "Hi", latency=3600)
    with pytest.raises(TimeoutError, match=r"timeout of 0\.05 s"):
        ask(model, timeout=0.05)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_wait_that_is_none_is_refused(seconds: float) -> None:
    """Latency and pace are finite seconds, not below 0."""
    for make in (
        lambda: ScriptedModel([], latency=seconds),
        lambda: ScriptedModel([], pace=seconds),
        lambda: slowly("", latency=seconds),
        lambda: slowly("", pace=seconds),
    ):
        with pytest.raises(ConfigurationError, match="seconds, 0 or more"):
            make()


def test_the_async_model_is_awaited() -> None:
    """An `AsyncScriptedModel` answers `await`, several requests side by side, from one script."""
    model = AsyncScriptedModel([str(number) for number in range(8)], latency=0.5)

    async def main() -> list[str]:
        asked = [asyncio.ensure_future(model.chat.completions.create(messages=HELLO)) for _ in range(8)]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        assert len(model.calls) == 8, "a request waited for the answer to another"
        return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]

    assert asyncio.run(main()) == list("01234567")


@pytest.mark.parametrize("on_loop", [False, True])
def test_runs_use_the_async_model(on_loop: bool) -> None:
    """A swarm takes the async client, and makes its calls on an event loop."""
    loops: list[bool] = []
    model = AsyncScriptedModel(lambda _: loops.append(running_loop() is not None) or "Hi")
    swarm, agent = Swarm(model), Agent()
    response = asyncio.run(swarm.run_async(agent, HELLO)) if on_loop else swarm.run(agent, HELLO)
    assert (response.messages[-1]["content"], loops) == ("Hi", [True])


def test_a_restarted_program_goes_on_in_the_script() -> None:
    """A run first seen at turn n gets reply n, and the ones after it in order, also when a call is repeated."""
    model = ScriptedModel(["zero", "one", "two", "three"])
    assert ask_in_run(model, "r", 2) == "two"
    assert ask_in_run(model, "r", 2) == "three"


def test_a_run_seen_from_its_start_moves_one_by_one() -> None:
    """Within one life the script moves by one a call, whatever the turn; a later run never moves it back."""
    model = ScriptedModel(["zero", "one", "two", "three"])
    assert [ask_in_run(model, "r", turn) for turn in (0, 5)] == ["zero", "one"]
    assert [ask_in_run(model, "s", turn) for turn in (1, 0)] == ["two", "three"]


def test_threads_share_a_script() -> None:
    """Each reply and each id is given once, however many threads ask."""
    model = ScriptedModel([["look"] for _ in range(200)])
    ids: list[str] = []

    def work() -> None:
        ids.extend(ask(model).choices[0].message.tool_calls[0].id for _ in range(25))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ids) == sorted(f"call_{number}" for number in range(1, 201))
    assert len(model.calls) == 200


def test_a_strict_model_refuses_without_using_up_a_reply() -> None:
    """A request that a provider would refuse gets status 400, is recorded, and leaves the script where it was."""
    model = ScriptedModel(["Hi"])
    with pytest.raises(ProviderError, match="answers no tool call") as refused:
        ask(model, [*HELLO, ANSWER])
    assert refused.value.status_code == 400
    assert len(model.calls) == 1
    assert ask(model).choices[0].message.content == "Hi"


def test_strict_can_be_turned_off() -> None:
    """With strict=False any request is answered."""
    model = ScriptedModel(["Hi", "Ho"], strict=False)
    assert ask(model, [*HELLO, ANSWER]).choices[0].message.content == "Hi"
    assert model.chat.completions.create(messages=[object()]).choices[0].message.content == "Ho"


def test_provider_errors_survive_pickling() -> None:
    """Status and headers are still there after pickling."""
    given = ProviderError("busy", status_code=503, retry_after=0.5, code="full", headers={"X-A": "b"})
    error = pickle.loads(pickle.dumps(given))
    assert (error.message, error.status_code, error.code) == ("busy", 503, "full")
    assert error.response.headers == {"retry-after": "0.5", "x-a": "b"}


def request_of(*messages: Any, **more: Any) -> dict[str, Any]:
    """Give a request after `hello`."""
    return {"model": "gpt-4o", "messages": [*HELLO, *messages], **more}


@pytest.mark.parametrize(
    "request_",
    [
        request_of(),
        request_of(tools=None, tool_choice=None, parallel_tool_calls=None, stream=False),
        request_of(tools=[LOOK], tool_choice=None, parallel_tool_calls=True, stream=False),
        request_of(tools=[{"type": "function", "function": {"name": "now"}}]),
        request_of(CALLED, ANSWER),
        request_of({**CALLED, "content": "Looking"}, ANSWER, {"role": "assistant", "content": "Done"}),
        request_of({"role": "assistant", "content": None, "refusal": "No."}),
        request_of({"role": "user", "name": "Ann", "content": [{"type": "text", "text": "Hi"}]}),
        request_of(
            {**CALLED, "tool_calls": [CALLED["tool_calls"][0], {**CALLED["tool_calls"][0], "id": "call_2"}]},
            {**ANSWER, "tool_call_id": "call_2"},
            ANSWER,
        ),
        request_of({**CALLED, "tool_calls": CALLED["tool_calls"] * 2}, ANSWER, ANSWER),
        request_of(stream=True, stream_options={"include_usage": True}),
        request_of(timeout=object(), extra_headers={"Idempotency-Key": "k"}),
    ],
)
def test_what_a_provider_accepts(request_: dict[str, Any]) -> None:
    """A well-formed request passes, with answers in any order and Swarm's explicit None arguments."""
    check_request(request_)


def with_call(**changes: Any) -> dict[str, Any]:
    """Give a request whose one tool call has these changes, those of the function in `function`."""
    made = copy.deepcopy(CALLED["tool_calls"][0])
    made["function"].update(changes.pop("function", {}))
    return request_of({**CALLED, "tool_calls": [{**made, **changes}]}, ANSWER)


def with_tool(**changes: Any) -> dict[str, Any]:
    """Give a request whose one tool's function has these changes."""
    return request_of(tools=[{"type": "function", "function": {**LOOK["function"], **changes}}])


REFUSED = [
    ({"messages": []}, "at least one message"),
    ({}, "at least one message"),
    ({"messages": "hello"}, "must be a list"),
    (request_of("hello"), r"messages\[1\] must be a dict"),
    (request_of({"role": "robot", "content": ""}), "role 'robot' is none of"),
    (request_of({"role": ["user"], "content": ""}), "is none of"),
    (request_of({"content": "Hi"}), "role None is none of"),
    (request_of({"role": "assistant", "content": "Hi", "sender": "Agent"}), "unknown keys: sender"),
    (request_of(CALLED, {**ANSWER, "tool_name": "look"}), "unknown keys: tool_name"),
    (request_of({"role": "assistant", "content": "Hi", "refusal": None}), "refusal must not be null"),
    (request_of({"role": "assistant", "content": "Hi", "tool_calls": None}), "tool_calls must not be null"),
    (request_of({"role": "user", "content": None}), "content must not be null"),
    (request_of({"role": "user"}), "content must be a string or a list of parts"),
    (request_of({"role": "system", "content": 3}), "content must be a string or a list of parts"),
    (request_of(CALLED, {**ANSWER, "content": {}}), "content must be a string or a list of parts"),
    (request_of({"role": "user", "content": []}), "content must be a string or a list of parts"),
    (request_of({"role": "user", "content": ["Hi"]}), r"content\[0\] must be a part"),
    (request_of({"role": "assistant", "content": 3}), "content must be a string or a list of parts"),
    (request_of({"role": "assistant", "content": None}), "needs content or tool_calls"),
    (request_of({"role": "assistant", "content": "Hi", "tool_calls": []}), "at least one call"),
    (request_of({"role": "user", "content": "Hi", "tool_calls": CALLED["tool_calls"]}), "only allowed when"),
    (request_of({**CALLED, "tool_calls": ["look"]}), "must have the type 'function'"),
    (with_call(type="custom"), "must have the type 'function'"),
    (with_call(id=""), "id must be a string that is not empty"),
    (with_call(id=None), "id must be a string that is not empty"),
    (with_call(function={"name": "no such tool"}), "name 'no such tool' must be"),
    (with_call(function={"arguments": "{"}), "must be the text of a JSON object"),
    (with_call(function={"arguments": "[]"}), "must be the text of a JSON object"),
    (with_call(function={"arguments": ""}), "must be the text of a JSON object"),
    (with_call(function={"arguments": {}}), "must be the text of a JSON object"),
    (with_call(function={"arguments": b"{}"}), "must be the text of a JSON object"),
    (request_of(ANSWER), r"messages\[1\] answers no tool call"),
    (request_of(CALLED), "missing at the end, for the calls call_1"),
    (request_of(CALLED, *HELLO, ANSWER), r"missing before messages\[2\], for the calls call_1"),
    (request_of(CALLED, ANSWER, ANSWER), r"messages\[3\] answers no tool call"),
    (request_of(CALLED, {**ANSWER, "tool_call_id": "call_2"}), r"messages\[2\] answers no tool call"),
    (request_of({"role": "tool", "content": ""}), "tool_call_id must be a string that is not empty"),
    (request_of(tools=[]), "at least one tool"),
    (request_of(tools=[{"type": "function"}]), "must have the type 'function'"),
    (request_of(tools=[LOOK["function"]]), "must have the type 'function'"),
    (request_of(tools=[LOOK, LOOK]), "several functions named look"),
    (with_tool(name="<lambda>"), "name '<lambda>' must be 1 to 64"),
    (with_tool(name="a" * 65), "must be 1 to 64"),
    (with_tool(name=None), "must be 1 to 64"),
    (with_tool(description=None), "description must be a string"),
    (with_tool(parameters=None), "of the type 'object'"),
    (with_tool(parameters={"type": "string"}), "of the type 'object'"),
    (with_tool(parameters={"type": "object", "properties": []}), "properties must be a dict"),
    (request_of(parallel_tool_calls=False), "only allowed when tools are given"),
    (request_of(tools=None, parallel_tool_calls=True), "only allowed when tools are given"),
    (request_of(stream_options={"include_usage": True}), "only allowed when stream is true"),
    (request_of(metadata=object()), "cannot be written as JSON"),
    (request_of(temperature=float("nan")), "cannot be written as JSON"),
]


@pytest.mark.parametrize(("request_", "text"), REFUSED)
def test_what_a_provider_refuses(request_: dict[str, Any], text: str) -> None:
    """A malformed request gets status 400 and a message that names the part."""
    with pytest.raises(ProviderError, match=text) as refused:
        check_request(request_)
    assert refused.value.status_code == 400


def test_the_check_leaves_the_request_alone() -> None:
    """Checking changes nothing."""
    given = request_of(CALLED, ANSWER, tools=[LOOK])
    kept = copy.deepcopy(given)
    check_request(given)
    assert given == kept
