"""One model call without a network: requests, messages read and written, retries and pauses, secrets."""

from __future__ import annotations

import json
import time
from collections import UserDict
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from durable_swarm import Agent, ModelError, codec
from durable_swarm.credentials import without_secrets
from durable_swarm.models.call import current_model_call
from durable_swarm.models.provider_errors import FIRST_PAUSE, LONGEST_PAUSE, pause, transient
from durable_swarm.models.reply import read_message
from durable_swarm.models.request import build_request
from durable_swarm.models.wire import Conversation, to_wire
from durable_swarm.testing import ProviderError, ScriptedModel, check_request
from durable_swarm.types import Usage
from tests.support.model_calls import Naps, ask


def tool_call(name: Any = "add", arguments: Any = "{}", call_id: Any = "call_9") -> dict[str, Any]:
    """Give one tool call as a provider spells it."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def namespaces(value: Any) -> Any:
    """Give nested dictionaries as objects with attributes."""
    if isinstance(value, dict):
        return SimpleNamespace(**{key: namespaces(item) for key, item in value.items()})
    return [namespaces(item) for item in value] if isinstance(value, list) else value


def mocks(value: Any) -> Any:
    """Give nested dictionaries as mocks, which answer to every other attribute too."""
    if isinstance(value, dict):
        mock = MagicMock()
        for key, item in value.items():
            setattr(mock, key, mocks(item))
        return mock
    return [mocks(item) for item in value] if isinstance(value, list) else value


class Client(ScriptedModel):
    """A scripted model with the settings of a real client."""

    def __init__(self, replies: Any, *, max_retries: int = 5, api_key: str | None = None) -> None:
        super().__init__(replies)
        self.max_retries = max_retries
        self.api_key = api_key


class Dumped:
    """An object that only `model_dump` gives away."""

    def __init__(self, data: dict[str, Any]) -> None:
        self._data = data

    def model_dump(self, mode: str) -> dict[str, Any]:
        return dict(self._data) if mode == "json" else {}


SHAPES: dict[str, Any] = {"dict": dict, "mapping": UserDict, "namespace": namespaces, "mock": mocks, "dumped": Dumped}


@pytest.mark.parametrize("shape", SHAPES)
def test_messages_of_every_shape_are_read(shape: str) -> None:
    """Dictionaries, mappings, plain objects, mocks and pydantic-like objects give one and the same plain message."""
    given = {"role": "assistant", "content": "Hi", "tool_calls": [tool_call("add", '{"a": 1}')]}
    message = read_message(SHAPES[shape](given), 0)
    assert message == given
    assert codec.round_trip(message) == message


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("empty", [None, []])
def test_a_message_without_calls(shape: str, empty: Any) -> None:
    """No calls is None, however the provider says it, and `content` is always present."""
    message = read_message(SHAPES[shape]({"role": "assistant", "content": None, "tool_calls": empty}), 0)
    assert message == {"role": "assistant", "content": None, "tool_calls": None}


def test_further_fields_are_kept_and_nulls_are_not() -> None:
    """What a provider adds to a message stays, what it left null goes, and it cannot choose role or speaker."""
    given = {"role": "user", "sender": "X", "content": "Hi", "refusal": "no", "audio": None, "reasoning": {"a": 1}}
    assert read_message(given, 0) == {
        "role": "assistant",
        "content": "Hi",
        "refusal": "no",
        "reasoning": {"a": 1},
        "tool_calls": None,
    }


@pytest.mark.parametrize("shape", [dict, namespaces])
@pytest.mark.parametrize("missing", [None, ""])
def test_missing_ids_are_made(shape: Any, missing: Any) -> None:
    """A call without an id gets one that differs from all others of the run."""
    given = {"content": None, "tool_calls": [tool_call(call_id=missing), tool_call(call_id=missing)]}
    ids = [call["id"] for turn in (0, 1) for call in read_message(shape(given), turn)["tool_calls"]]
    assert len(set(ids)) == 4


def test_calls_without_any_id_or_type() -> None:
    """A call that has no field `id` and no field `type` at all is read like any other."""
    [call] = read_message({"tool_calls": [{"function": {"name": "add", "arguments": "{}"}}]}, 3)["tool_calls"]
    assert call == tool_call(call_id="call_3_0")


@pytest.mark.parametrize("shape", [dict, namespaces])
@pytest.mark.parametrize(
    ("given", "read"), [({"a": [1]}, '{"a": [1]}'), (None, ""), ("{", "{"), ("", ""), ([1], "[1]"), (5, "5")]
)
def test_arguments_become_text(shape: Any, given: Any, read: str) -> None:
    """Arguments that are data become JSON text, none become empty text, text stays as the model wrote it."""
    call = {"id": "c", "type": "function", "function": SimpleNamespace(name="add", arguments=given)}
    [found] = read_message({"tool_calls": [call if shape is dict else namespaces(call)]}, 0)["tool_calls"]
    assert found["function"] == {"name": "add", "arguments": read}


@pytest.mark.parametrize(("given", "read"), [(None, ""), ("", ""), (7, "7"), ("a b", "a b")])
def test_names_become_text(given: Any, read: str) -> None:
    """A tool name is text whatever the provider sent."""
    [found] = read_message({"tool_calls": [tool_call(name=given)]}, 0)["tool_calls"]
    assert found["function"]["name"] == read


HISTORY: dict[str, dict[str, Any]] = {
    "Swarm's own keys": {"role": "assistant", "content": "x", "sender": "A", "tool_name": "t", "tool_calls": None},
    "nulls": {"role": "assistant", "content": None, "refusal": None, "audio": None, "function_call": None},
    "no content": {"role": "assistant"},
    "empty calls": {"role": "assistant", "content": "x", "tool_calls": []},
    "broken arguments": {"role": "assistant", "content": None, "tool_calls": [tool_call(arguments="{")]},
    "list arguments": {"role": "assistant", "content": None, "tool_calls": [tool_call(arguments="[1]")]},
    "deep arguments": {"role": "assistant", "content": None, "tool_calls": [tool_call(arguments="[" * 5000)]},
    "empty arguments": {"role": "assistant", "tool_calls": [tool_call(arguments="")]},
    "null arguments": {"role": "assistant", "tool_calls": [tool_call(arguments=None)]},
    "dict arguments": {"role": "assistant", "tool_calls": [tool_call(arguments={"a": 1})]},
    "unstorable arguments": {"role": "assistant", "tool_calls": [tool_call(arguments={"a": {1}})]},
    "bad name": {"role": "assistant", "tool_calls": [tool_call(name="functions.add ü")]},
    "long name": {"role": "assistant", "tool_calls": [tool_call(name="x" * 200)]},
    "empty name": {"role": "assistant", "tool_calls": [tool_call(name="")]},
    "null name": {"role": "assistant", "tool_calls": [tool_call(name=None)]},
    "no function": {"role": "assistant", "tool_calls": [{"id": "call_9", "type": "function"}]},
}


@pytest.mark.parametrize("kind", HISTORY)
def test_every_history_is_mended_for_the_provider(kind: str) -> None:
    """A strict provider accepts each assistant message as it is sent, whatever was kept of it."""
    message = HISTORY[kind]
    before = json.dumps(message, default=str)
    messages = [to_wire(message)]
    if messages[0].get("tool_calls"):
        messages.append(to_wire({"role": "tool", "tool_call_id": "call_9", "tool_name": "add", "content": "2"}))
    check_request({"model": "m", "messages": messages})
    assert json.dumps(message, default=str) == before


def test_sound_calls_are_sent_as_they_are() -> None:
    """Arguments and names that are in order go back to the provider unchanged, to the letter."""
    message = {"role": "assistant", "content": "x", "tool_calls": [tool_call("a-b_9", ' {"b": 1,  "a": "ü"} ')]}
    assert to_wire(message) == message


def test_a_conversation_is_converted_once() -> None:
    """Each request holds the prompt and the whole history; messages sent before are the same objects again."""
    history = [{"role": "user", "content": "Hi", "sender": "x"}]
    conversation = Conversation()
    first = conversation.request("one", history)
    history.append({"role": "assistant", "content": "Hello", "sender": "A"})
    second = conversation.request("two", history)
    assert first == [{"role": "system", "content": "one"}, {"role": "user", "content": "Hi"}]
    assert [message["content"] for message in second] == ["two", "Hi", "Hello"]
    assert second[1] is first[1]


def add(a: int) -> str:
    """Add one."""
    return str(a + 1)


def test_the_request_is_swarms() -> None:
    """The arguments of `create` are Swarm's: no tools is None, and `parallel_tool_calls` comes with tools only."""
    assert build_request(Agent(), [], "gpt-4o") == {
        "model": "gpt-4o",
        "messages": [],
        "tools": None,
        "tool_choice": None,
        "stream": False,
    }
    with_tools = build_request(Agent(functions=[add], parallel_tool_calls=False, tool_choice="auto"), [], "other")
    assert (with_tools["model"], with_tools["tool_choice"]) == ("other", "auto")
    assert with_tools["parallel_tool_calls"] is False
    assert [tool["function"]["name"] for tool in with_tools["tools"]] == ["add"]


def test_model_settings_go_to_the_client() -> None:
    """`model_settings` are further arguments of `create`, and win over what the agent says otherwise."""
    agent = Agent(functions=[add], model_settings={"temperature": 0.5, "seed": 7, "parallel_tool_calls": False})
    model = ScriptedModel(["Hi"])
    ask(model, agent=agent)
    assert (model.calls[0]["temperature"], model.calls[0]["seed"]) == (0.5, 7)
    assert model.calls[0]["parallel_tool_calls"] is False


def test_the_client_knows_which_call_it_serves() -> None:
    """While a call is made, and no longer, `current_model_call` names its run and turn."""
    seen: list[Any] = []

    def reply(_: Any) -> str:
        seen.append(current_model_call.get())
        return "Hi"

    ask(ScriptedModel(reply), turn=4)
    assert [(call.run_id, call.turn) for call in seen] == [("run", 4)]
    assert current_model_call.get() is None


@pytest.mark.parametrize(
    ("counted", "usage"),
    [
        ({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}, (1, 2, 3)),
        ({"total_tokens": 3}, (0, 0, 3)),
        ({"prompt_tokens": None, "total_tokens": "many"}, None),
    ],
)
def test_usage_is_what_was_counted(counted: dict[str, Any], usage: tuple[int, int, int] | None) -> None:
    """The tokens a provider counted are read; one that counts none gives no usage, not zeros."""
    answer = namespaces({"choices": [{"message": {"content": "Hi"}}], "usage": counted})
    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=lambda **_: answer)))
    found = ask(client).usage
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert found == (None if usage is None else Usage(requests=1, **dict(zip(names, usage, strict=True))))


@pytest.mark.parametrize(
    "choices", [object(), SimpleNamespace(message={"content": "Hi"}), 1, {"message": {"content": "Hi"}}]
)
def test_choices_that_are_no_list_are_no_answer(choices: object) -> None:
    """An answer whose choices are not a list ends in an error that says so, not in a bare TypeError."""
    answer = SimpleNamespace(choices=choices)
    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=lambda **_: answer)))
    with pytest.raises(ModelError, match="the provider's answer has no message"):
        ask(client)


@pytest.mark.parametrize("calls", [object(), SimpleNamespace(name="add"), 1])
def test_tool_calls_that_are_no_list_are_no_answer(calls: object) -> None:
    """A message whose tool calls are not a list ends in an error that says so, not in a bare TypeError."""
    answer = namespaces({"choices": [{"message": {"content": None, "tool_calls": calls}}]})
    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=lambda **_: answer)))
    with pytest.raises(ModelError, match="the provider's answer has no message"):
        ask(client)


@pytest.mark.parametrize("on_loop", [False, True])
def test_pauses_double_up_to_a_bound(on_loop: bool) -> None:
    """Without Retry-After the pauses are half a second, doubling up to eight, each up to a quarter shorter."""
    naps = Naps()
    model = Client([ProviderError("busy", status_code=503)] * 9, max_retries=7)
    with pytest.raises(ModelError) as caught:
        ask(model, naps=naps, on_loop=on_loop)
    assert caught.value.tries == 8
    longest = [min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE) for attempt in range(7)]
    assert len(naps.taken) == 7
    assert all(0.75 * most <= nap <= most for nap, most in zip(naps.taken, longest, strict=True))


@pytest.mark.parametrize("asked", [0, 0.25, "3", 30, 600.0])
def test_retry_after_is_honoured(asked: Any) -> None:
    """What the provider asks for in Retry-After is waited, to the second."""
    assert pause(ProviderError("slow", status_code=429, retry_after=asked), 1) == float(asked)


@pytest.mark.parametrize("asked", [-1, "nan", "inf", "soon", "Wed, 99 Oct 2015 07:28:00 GMT", ""])
def test_a_senseless_retry_after_is_not(asked: Any) -> None:
    """A Retry-After that is no sensible number of seconds leaves the pause as it would be without."""
    assert 0.75 * FIRST_PAUSE <= pause(ProviderError("slow", status_code=429, retry_after=asked), 1) <= FIRST_PAUSE


@pytest.mark.parametrize("ahead", [0, 1, 90, 599])
def test_retry_after_as_a_date(ahead: int) -> None:
    """A date counts by the provider's own clock, where it tells the time; one that has passed asks for no pause."""
    at = 1_700_000_000
    error = ProviderError("slow", status_code=429, retry_after=formatdate(at + ahead, usegmt=True))
    error.response.headers["date"] = formatdate(at, usegmt=True)
    assert pause(error, 1) == ahead
    late = ProviderError("slow", status_code=429, retry_after=formatdate(at, usegmt=True))
    assert pause(late, 1) == 0
    soon = ProviderError("slow", status_code=429, retry_after=formatdate(time.time() + 100, usegmt=True))
    assert 98 <= pause(soon, 1) <= 100


@pytest.mark.parametrize(("given", "seconds"), [("1500", 1.5), ("0", 0), ("250.5", 0.2505), ("nonsense", 7)])
def test_retry_after_in_milliseconds(given: str, seconds: float) -> None:
    """`retry-after-ms` goes before `retry-after`, where it is a number."""
    error = ProviderError("slow", status_code=429, retry_after=7, headers={"Retry-After-Ms": given})
    assert pause(error, 1) == pytest.approx(seconds)


@pytest.mark.parametrize("asked", [601, "86400", "a date"])
def test_a_long_retry_after_ends_the_tries(asked: Any) -> None:
    """A provider that wants to be left alone for more than ten minutes is not asked earlier: the call fails at once."""
    asked = formatdate(time.time() + 7200, usegmt=True) if asked == "a date" else asked
    naps, model = Naps(), Client([ProviderError("slow", status_code=429, retry_after=asked), "never"])
    with pytest.raises(ModelError, match=r"asks to be asked again in \d+ s") as caught:
        ask(model, naps=naps)
    assert (caught.value.tries, naps.taken) == (1, [])


@pytest.mark.parametrize("code", [408, 409, 429, 500, 502, 503, 504, 529, 599])
def test_transient_statuses(code: int) -> None:
    """Timeouts, conflicts, rate limits and errors of the server may pass."""
    assert transient(ProviderError("", status_code=code))


@pytest.mark.parametrize("code", [301, 400, 401, 402, 403, 404, 413, 422])
def test_lasting_statuses(code: int) -> None:
    """Refusals of this very request will not pass."""
    assert not transient(ProviderError("", status_code=code))


def test_a_spent_quota_is_lasting() -> None:
    """A 429 that means an empty account, or that the server says not to repeat, is not tried again."""
    spent = ProviderError("no credit", status_code=429)
    vars(spent)["code"] = "insufficient_quota"
    assert not transient(spent)
    final = ProviderError("stop", status_code=500)
    final.response.headers["X-Should-Retry"] = "false"
    assert not transient(final)


def test_zero_retries_means_one_try() -> None:
    """A client whose `max_retries` is 0 is asked once."""
    model = Client([ProviderError("busy", status_code=503), "never"], max_retries=0)
    naps = Naps()
    with pytest.raises(ModelError, match=r"the model call failed: ProviderError: busy") as caught:
        ask(model, naps=naps)
    assert (caught.value.tries, caught.value.status, naps.taken) == (1, 503, [])


@pytest.mark.parametrize(
    "instructions",
    ["plain", lambda: "plain", lambda context_variables: "plain", lambda context: f"plain{context['missing']}"],
)
def test_instructions_of_every_kind(instructions: Any) -> None:
    """A prompt is text, or a callable with or without the context, where a missing variable reads as empty."""
    model = ScriptedModel(["Hi", "Hi"])
    agent = Agent(instructions=instructions)
    ask(model, agent=agent)
    ask(model, agent=agent, on_loop=True)
    assert [request["messages"][0]["content"] for request in model.calls] == ["plain", "plain"]


@pytest.mark.parametrize("on_loop", [False, True])
def test_async_instructions(on_loop: bool) -> None:
    """A prompt may be made by a coroutine function."""

    async def instructions(context_variables: dict[str, Any]) -> str:
        return f"Help {context_variables['who']}"

    model = ScriptedModel(["Hi"])
    ask(model, agent=Agent(instructions=instructions), context={"who": "Ada"}, on_loop=on_loop)
    assert model.calls[0]["messages"][0]["content"] == "Help Ada"


def test_debug_prints_request_and_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """`debug=True` prints what is sent and what came, as Swarm does; without it nothing is printed."""
    ask(ScriptedModel(["The answer"]), [{"role": "user", "content": "The question"}])
    assert capsys.readouterr().out == ""
    ask(ScriptedModel(["The answer"]), [{"role": "user", "content": "The question"}], debug=True)
    sent, came = capsys.readouterr().out.strip().splitlines()
    assert "Getting chat completion for...: " in sent
    assert "The question" in sent
    assert "Received completion: " in came
    assert "The answer" in came


CANARY = "canary-5f2c77"


@pytest.mark.parametrize("kind", ["of a client", "of the environment", "by its look", "in a header"])
def test_no_error_repeats_a_key(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that the provider repeats is masked in the error, whether it is known or only looks like one."""
    secret = {"by its look": "sk-proj-abc_DEF-123", "in a header": "eyJhbGciOi.J9.x"}.get(
        kind, CANARY + kind[:6].strip()
    )
    refusal = ProviderError(f"wrong key: Authorization: Bearer {secret}, {secret[:3]}", status_code=401)
    model = Client([refusal], api_key=secret if kind == "of a client" else None)
    if kind == "of the environment":
        monkeypatch.setenv("OPENAI_API_KEY", secret)
    with pytest.raises(ModelError) as caught:
        ask(model)
    assert secret not in str(caught.value)
    assert secret not in str(caught.value.__context__)
    assert "wrong key: Authorization: Bearer ***" in str(caught.value)


def test_short_values_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of a few letters, as local servers take, does not black out ordinary text."""
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    assert without_secrets("example text") == "example text"


def test_an_error_that_is_its_own_cause_is_told() -> None:
    """Errors that were wrapped and raised again, so that their chain is a circle, are one error like any other."""

    def circle() -> Exception:
        inner, outer = ConnectionResetError("gone"), ConnectionError("wrapped")
        inner.__context__, outer.__cause__ = outer, inner
        return inner

    def loop() -> Exception:
        error = TimeoutError("late")
        error.__cause__ = error
        return error

    def behind() -> Exception:
        error = ConnectionError("first")
        error.__cause__ = circle()
        return error

    for make, word in ((circle, "gone"), (loop, "late"), (behind, "first")):
        with pytest.raises(ModelError, match=word):
            ask(ScriptedModel(lambda _, make=make: make()))
