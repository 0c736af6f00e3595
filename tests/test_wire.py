"""What is sent of a history: to whom a provider's own fields go, ids, half characters, tokens that are parts."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm
from durable_swarm.engine.records import runs
from durable_swarm.loop import Reply
from durable_swarm.models.reply import Answer, read_message, read_usage
from durable_swarm.models.stream import ReplyBuilder
from durable_swarm.models.wire import Conversation, maker_of, to_wire
from durable_swarm.testing import ProviderError, ScriptedModel, check_request
from durable_swarm.types import Usage
from tests.contract.conftest import make_swarm
from tests.contract.helpers import MakeSwarm, user
from tests.support.chunks import stream
from tests.support.patience import PATIENCE

__all__ = ["make_swarm"]

SIGNED = {"extra_content": {"google": {"thought_signature": "c2ln"}}, "provider_specific_fields": {"n": 1}}


def look_up() -> str:
    """Look it up."""
    return "found"


def signed(**more: Any) -> dict[str, Any]:
    """Return a reply with fields of its provider's own, in the message, the call and the function."""
    function = {"name": "look_up", "arguments": "{}", "hint": "h"}
    call = {"id": "c", "type": "function", "function": function, **SIGNED}
    return {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call], **more}


@pytest.mark.parametrize("streamed", [False, True])
def test_what_a_provider_adds_comes_back_to_it(make_swarm: MakeSwarm, streamed: bool) -> None:
    """Fields that nobody knows come back with the message and the call, whole and streamed."""

    class Client:
        def __init__(self) -> None:
            self.requests: list[dict[str, Any]] = []
            self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.create))

        def create(self, **request: Any) -> Any:
            self.requests.append(request)
            message = signed() if len(self.requests) == 1 else {"role": "assistant", "content": "done"}
            if not request["stream"]:
                return {"choices": [{"message": message, "finish_reason": "stop"}]}
            calls = [{**call, "index": 0} for call in message.get("tool_calls", ())]
            return iter(stream({**message, **({"tool_calls": calls} if calls else {})}))

    client = Client()
    swarm = make_swarm(client)
    given = swarm.run(Agent(functions=[look_up]), user(), stream=streamed)
    response = list(given)[-1]["response"] if streamed else given
    assert response.messages[-1]["content"] == "done"
    sent = client.requests[1]["messages"][2]
    assert sent == signed()
    check_request(client.requests[1])


def test_what_a_provider_adds_goes_to_no_other(make_swarm: MakeSwarm) -> None:
    """After a handoff to a model of another maker it is left out, and it is back where its own maker is asked again."""

    def to_other() -> Agent:
        return other

    def back() -> Agent:
        return first

    first = Agent(name="First", model="deepseek-reasoner", functions=[to_other])
    other = Agent(name="Other", model="openai/gpt-5-mini", functions=[back])
    own = {"reasoning_content": "hm", "content": [{"type": "thinking", "thinking": "x"}, {"type": "text", "text": "Y"}]}
    replies = [
        {"content": None, "reasoning_content": "hm", "tool_calls": ["to_other"]},
        {"content": None, "reasoning": "mine", "tool_calls": ["back"]},
        "done",
    ]
    model = ScriptedModel(replies)
    response = make_swarm(model).run(first, user())
    reasons = [[m.get("reasoning_content") or m.get("reasoning") for m in call["messages"]] for call in model.calls]
    assert reasons == [[None] * 2, [None] * 4, [None, None, "hm", None, None, None]]
    assert response.messages[0]["provider"] == {"kind": "deepseek", "model": "deepseek-reasoner"}
    conversation = Conversation()
    history = [{"role": "assistant", **own, "provider": {"kind": "mistral"}}]
    assert conversation.request("", history, "gpt-4o")[1] == {
        "role": "assistant",
        "content": [{"type": "text", "text": "Y"}],
    }
    assert conversation.request("", history, "mistral-large")[1] == {"role": "assistant", **own}
    assert conversation.request("", history, "my-alias")[1] == {"role": "assistant", **own}


@pytest.mark.parametrize(
    ("model", "maker"),
    [
        ("gpt-4o", "openai"),
        ("o3-mini", "openai"),
        ("anthropic/claude-sonnet-5", "anthropic"),
        ("models/gemini-3-pro", "google"),
        ("deepseek-r1-distill-qwen-32b", "deepseek"),
        ("qwen2.5-coder", "qwen"),
        ("x-ai/grok-4", "xai"),
        ("local", ""),
        ("my-deployment", ""),
        (None, ""),
    ],
)
def test_makers(model: Any, maker: str) -> None:
    """Who made a model is told from its name; a name of one's own tells nothing."""
    assert maker_of(model) == maker


@pytest.mark.parametrize("field", ["annotations", "sender", "tool_name", "provider"])
def test_what_only_describes_a_reply_is_not_sent(field: str) -> None:
    """It stays in the message, is left out on the wire, and our own check would refuse it."""
    message = {"role": "assistant", "content": "x", field: [{"type": "url_citation"}]}
    assert to_wire(message) == {"role": "assistant", "content": "x"}
    with pytest.raises(ProviderError, match=field):
        check_request({"model": "m", "messages": [*user(), message]})


def test_audio_goes_back_by_its_id() -> None:
    """Of an audio reply only the id is sent back."""
    message = {"role": "assistant", "content": None, "audio": {"id": "a", "data": "xxx", "transcript": "Hi"}}
    assert to_wire(message)["audio"] == {"id": "a"}
    check_request({"model": "m", "messages": [*user(), to_wire({**message, "content": ""})]})


@pytest.mark.parametrize("given", ["call_0", "", None, "x" * 60])
def test_ids_are_unique_on_the_wire(given: Any) -> None:
    """Ids that repeat, are empty, missing or too long twice are told apart; each answer goes with its call."""

    def turn(text: str) -> list[dict[str, Any]]:
        calls = [{"id": given, "type": "function", "function": {"name": "look_up", "arguments": "{}"}}] * 2
        answers = [{"role": "tool", "tool_call_id": given, "content": f"{text}{n}"} for n in range(2)]
        return [{"role": "assistant", "content": None, "tool_calls": calls}, *answers]

    conversation = Conversation()
    history = [*user(), *turn("a")]
    first = conversation.request("s", history)
    second = conversation.request("s", [*history, *turn("b")])
    check_request({"model": "m", "messages": second})
    assert second[: len(first)] == first
    ids = [call["id"] for message in second for call in message.get("tool_calls", ())]
    assert len(set(ids)) == 4
    assert [message["tool_call_id"] for message in second if message["role"] == "tool"] == ids
    assert json.dumps(Conversation().request("s", [*history, *turn("b")])) == json.dumps(second)


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_arguments_that_only_python_reads_are_not_sent(name: str) -> None:
    """A provider that reads them as JSON would refuse the history for ever."""
    function = {"name": "look_up", "arguments": f'{{"price":{name}}}'}
    sent = to_wire({"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": function}]})
    assert sent["tool_calls"][0]["function"]["arguments"] == "{}"


def test_custom_calls_come_back() -> None:
    """A call of another type is kept as it is, and goes back as it came."""
    custom = {"id": "c", "type": "custom", "custom": {"name": "shell", "input": "ls"}}
    read = read_message({"content": None, "tool_calls": [custom]}, 0)
    assert read["tool_calls"][0]["function"] == {"name": "shell", "arguments": "ls"}
    assert to_wire(read)["tool_calls"] == [custom]
    pieces = ReplyBuilder()
    for chunk in stream({"tool_calls": [{"index": 0, **custom}]}):
        pieces.add(chunk)
    assert to_wire(read_message(pieces.answer().message, 0))["tool_calls"] == [custom]


def test_streamed_lists_and_objects_are_merged() -> None:
    """Texts are joined, entries of lists by their index, objects deep; what only names a value is not repeated."""
    detail = {"type": "reasoning.text", "format": "f", "index": 0}
    deltas: list[dict[str, Any]] = [
        {"reasoning_details": [{**detail, "text": "a"}], "reasoning": {"content": "x"}},
        {"reasoning_details": [{**detail, "text": "b"}, {**detail, "index": 1, "text": "c"}], "score": 1},
        {"reasoning_details": [{**detail, "signature": "s"}], "reasoning": {"content": "y", "n": 2}, "score": 2},
        {"images": [{"url": "1"}]},
        {"images": [{"url": "2"}]},
    ]
    pieces = ReplyBuilder()
    for chunk in stream(*deltas):
        pieces.add(chunk)
    message = pieces.answer().message
    assert message["reasoning_details"] == [
        {**detail, "text": "ab", "signature": "s"},
        {**detail, "index": 1, "text": "c"},
    ]
    assert (message["reasoning"], message["score"]) == ({"content": "xy", "n": 2}, 2)
    assert message["images"] == [{"url": "1"}, {"url": "2"}]


HALF = "caf\udce9"


@pytest.mark.parametrize("streamed", [False, True])
def test_half_characters_are_mended_everywhere(make_swarm: MakeSwarm, streamed: bool) -> None:
    """In messages, prompts, tools, context and results: nothing fails, and nothing that is sent or stored has one."""

    def rename(context_variables: dict[str, Any]) -> str:
        context_variables["made"] = HALF
        return HALF

    rename.__doc__ = f"Rename {HALF}."
    agent = Agent(functions=[rename], instructions=lambda context: f"{context['file']} {HALF}")
    model = ScriptedModel([{"content": HALF, "tool_calls": ["rename"]}, HALF])
    given = make_swarm(model).run(agent, user(HALF), {"file": HALF, "deep": {HALF: [HALF]}}, stream=streamed)
    response = list(given)[-1]["response"] if streamed else given
    json.dumps(model.calls, ensure_ascii=False, default=str).encode()
    json.dumps(response.messages, ensure_ascii=False).encode()
    assert response.messages[-1]["content"] == "caf\ufffd"
    assert response.context_variables["file"] == "caf\ufffd"
    assert response.context_variables["deep"] == {"caf\ufffd": ["caf\ufffd"]}


def test_half_characters_are_never_stored(tmp_path: Any) -> None:
    """What a run, a message to it and a tool bring is stored mended."""
    path = tmp_path / "runs.sqlite"
    with DurableSwarm(ScriptedModel([["look_up"], "done"]), database=f"sqlite:///{path}") as swarm:

        def look_up() -> str:
            return f"{HALF} \ud83d\ude00"

        run = swarm.start(Agent(functions=[look_up]), user(HALF), {"a": HALF})
        assert run.result(timeout=PATIENCE).messages[1]["content"] == "caf\ufffd 😀"
    assert not any(mark in path.read_bytes() for mark in (b"dce9", b"ud83d"))


def test_the_check_sees_half_characters() -> None:
    """A request with half a character is none that a provider gets."""
    with pytest.raises(ProviderError, match="JSON"):
        check_request({"model": "m", "messages": user(HALF)})


USAGES: list[tuple[dict[str, Any], tuple[int, int, int]]] = [
    ({"prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 3}}, (4, 0, 3)),
    ({"prompt_cache_hit_tokens": 5, "prompt_cache_miss_tokens": 2}, (5, 0, 0)),
    ({"cache_read_input_tokens": 6, "cache_creation_input_tokens": 7}, (6, 7, 0)),
    ({"prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 8}}, (0, 8, 0)),
    ({"prompt_tokens_details": None, "completion_tokens_details": {"reasoning_tokens": None}}, (0, 0, 0)),
]


@pytest.mark.parametrize(("counted", "parts"), USAGES)
def test_tokens_that_are_parts_of_others(counted: dict[str, Any], parts: tuple[int, int, int]) -> None:
    """Cached, cache-written and reasoning tokens are read wherever a provider counts them, and are recorded."""
    usage = read_usage(Answer(None, {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13, **counted}))
    assert usage is not None
    assert (usage.cached_tokens, usage.cache_write_tokens, usage.reasoning_tokens) == parts
    assert (usage + usage).cached_tokens == 2 * parts[0]
    reply = Reply({"role": "assistant", "content": "x", "tool_calls": None}, [], usage)
    record = json.loads(json.dumps(runs.reply_record(reply, model="m", version="v", at=1, shown=None)))
    assert len(record["usage"]) == 4
    assert ("usage_details" in record) == any(parts)
    assert runs.read_reply(record).usage == usage


def test_a_usage_that_earlier_versions_recorded() -> None:
    """A record without the further counts is read with zeros."""
    record = {"v": 1, "message": {"content": "x"}, "usage": [1, 2, 3, 5]}
    expected = Usage(requests=1, prompt_tokens=2, completion_tokens=3, total_tokens=5)
    assert runs.read_reply(record).usage == expected
