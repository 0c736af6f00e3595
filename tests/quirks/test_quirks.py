"""What providers really send, over HTTP with the official client: whole, streamed, sync, async, in both swarms.

Each quirk is how a provider asks for the tool `look_up`, and what must come of it: the run ends with "done", the tool
was called with these orders, and every request is one that a strict provider takes.
"""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from durable_swarm import Agent, Response
from durable_swarm.testing import check_request
from tests.contract.conftest import make_swarm
from tests.contract.helpers import MakeSwarm, user
from tests.support.raw import DONE, RawServer, Reply, called, piece, whole

__all__ = ["make_swarm"]

ORDER = '{"order": "7"}'


def fragment(arguments: Any = None, name: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a chunk with one piece of a tool call."""
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return piece({"tool_calls": [{"function": function, **more}]})


TWO = ["7", "8"]
SECOND = '{"order": "8"}'


def both(first: dict[str, Any], second: dict[str, Any]) -> list[Any]:
    """Return a stream of two whole calls that come with these fields."""
    return [fragment(ORDER, "look_up", **first), fragment(SECOND, "look_up", **second), END, DONE]


END = piece({}, "tool_calls")
OPENED = fragment("", "look_up", index=0, id="a", type="function")

STREAMED: dict[str, tuple[list[Any], list[str]]] = {
    "name in every chunk": (
        [OPENED, fragment('{"order"', "look_up", index=0), fragment(': "7"}', "look_up", index=0), END, DONE],
        ["7"],
    ),
    "id and name in every chunk": (
        [
            OPENED,
            OPENED,
            *(fragment(text, "look_up", index=0, id="a") for text in (ORDER[:9], ORDER[9:], "")),
            END,
            DONE,
        ],
        ["7"],
    ),
    "name in every chunk, no index, no id": (
        [fragment("", "look_up"), fragment('{"order"', "look_up"), fragment(': "7"}', "look_up"), END, DONE],
        ["7"],
    ),
    "the whole call once more at the end": (
        [fragment(ORDER, "look_up", index=0, id="a"), fragment(ORDER, "look_up", index=0, id="a"), END, DONE],
        ["7"],
    ),
    "name letter by letter": (
        [*(fragment("", letter, index=0) for letter in "look_up"), fragment(ORDER, index=0), END, DONE],
        ["7"],
    ),
    "two whole calls of one index, without ids": (both({"index": 0}, {"index": 0}), TWO),
    "two whole calls of one index and one id": (both({"index": 0, "id": "x"}, {"index": 0, "id": "x"}), TWO),
    "two whole calls without index, of one id": (both({"id": "x"}, {"id": "x"}), TWO),
    "two whole calls without index and id": (both({}, {}), TWO),
    "two indices of one id": (both({"index": 0, "id": "x"}, {"index": 1, "id": "x"}), TWO),
    "empty ids": ([fragment(ORDER, "look_up", index=0, id=""), END, DONE], ["7"]),
    "arguments as an object": ([fragment({"order": "7"}, "look_up", index=0, id="a"), END, DONE], ["7"]),
    "finish reason stop": ([fragment(ORDER, "look_up", index=0, id="a"), piece({}, "stop"), DONE], ["7"]),
    "finish reason with the call": (
        [piece({"tool_calls": [{"index": 0, **called("look_up", ORDER)}]}, "tool_calls"), DONE],
        ["7"],
    ),
    "no [DONE]": ([OPENED, fragment(ORDER, index=0), END], ["7"]),
    "comments and empty choices": (
        [": keep-alive", piece(), OPENED, fragment(ORDER, index=0), ": still here", END, piece(), DONE],
        ["7"],
    ),
    "nulls everywhere": (
        [
            piece({"role": "assistant", "content": None, "tool_calls": None, "refusal": None, "function_call": None}),
            fragment(ORDER, "look_up", index=0, id="a"),
            piece({"content": None, "tool_calls": None}, "tool_calls"),
            DONE,
        ],
        ["7"],
    ),
    "half a character beside the call": (
        [piece({"content": "cut \ud83d"}), OPENED, fragment(ORDER, index=0), END, DONE],
        ["7"],
    ),
    "cut by its length": ([OPENED, piece({}, "length"), DONE], []),
    "cut, with whole arguments": ([OPENED, fragment(ORDER, index=0), piece({}, "length"), DONE], []),
    "cut by a filter": ([OPENED, piece({}, "content_filter"), DONE], []),
}

WHOLE: dict[str, tuple[Any, list[str]]] = {
    "arguments as an object": (whole(None, [called("look_up", {"order": "7"})]), ["7"]),
    "arguments as a text in a text": (whole(None, [called("look_up", '"{\\"order\\": \\"7\\"}"')]), ["7"]),
    **{
        f"arguments {text!r}": (whole(None, [called("look_up", text)]), ["any"])
        for text in ("", None, "null", "{}", "[]", " \n", {}, [], '""', '"{}"')
    },
    "no id": (whole(None, [called("look_up", ORDER, None)]), ["7"]),
    "two calls of one id": (whole(None, [called("look_up", ORDER), called("look_up", '{"order": "8"}')]), ["7", "8"]),
    "no type": (whole(None, [{"id": "a", "function": {"name": "look_up", "arguments": ORDER}}]), ["7"]),
    "finish reason stop": (whole(None, [called("look_up", ORDER)], "stop"), ["7"]),
    "fields that only describe it": (
        whole(None, [called("look_up", ORDER)], annotations=[], refusal=None, audio=None, function_call=None),
        ["7"],
    ),
    "half a character beside the call": (whole("cut \ud83d", [called("look_up", ORDER)]), ["7"]),
    "half a character in the arguments": (whole(None, [called("look_up", '{"order": "\ud83d"}')]), ["\ufffd"]),
    "cut by its length": (whole(None, [called("look_up", "")], "length"), []),
    "cut, with whole arguments": (whole(None, [called("look_up", ORDER)], "max_tokens"), []),
    "cut by a filter": (whole(None, [called("look_up", "{}")], "content_filter"), []),
}

BEFORE: dict[str, Reply] = {
    "an error in a success": {"error": {"message": "overloaded", "code": 502}},
    "an error whose code is none": {"error": {"message": "slow down", "code": ["busy"], "type": {"of": "load"}}},
    "an error with empty choices": {"choices": [], "error": {"message": "slow down", "code": "429"}},
    "an error in a choice": {
        "choices": [{"index": 0, "finish_reason": "error", "message": {"content": ""}, "error": {"message": "lost"}}]
    },
    "a reply that was broken off": whole("Hal", finish="insufficient_system_resource"),
    "a call that its provider could not read": whole("", finish="malformed_function_call"),
    "a call that its provider could not read, as a 400": (
        400,
        {"error": {"message": "Failed to call a function.", "code": "tool_use_failed", "failed_generation": "<fun"}},
    ),
    "retry-after-ms": (429, {"error": {"message": "slow"}}, {"retry-after-ms": "20"}),
    "retry-after in the past": (503, {}, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}),
}
"""What comes once before the answer, and is asked for again."""

LASTING: dict[str, tuple[Reply, str]] = {
    "no credits": ({"error": {"message": "no credits left", "code": 402}}, "no credits left"),
    "no such model": (
        {"choices": None, "error": {"message": "unknown model", "code": "model_not_found"}},
        "unknown model",
    ),
    "a spent quota": ((429, {"error": {"message": "spent", "code": "insufficient_quota"}}), "spent"),
    "a day to wait": ((429, {"error": {"message": "come back"}}, {"retry-after": "86400"}), "come back"),
    "a bad request": ((400, {"error": {"message": "no such field", "type": "invalid_request_error"}}), "no such field"),
}


def as_stream(reply: dict[str, Any]) -> list[Any]:
    """Return the stream of a whole answer."""
    [choice] = reply["choices"]
    message = dict(choice["message"])
    calls = [{"index": index, **call} for index, call in enumerate(message.pop("tool_calls", None) or [])]
    return [piece({**message, **({"tool_calls": calls} if calls else {})}), piece({}, choice["finish_reason"]), DONE]


def provider(whole_reply: Any, streamed: Any) -> Any:
    """Answer the first request with the quirk, further ones with "done", in the form that was asked for."""

    def answer(body: dict[str, Any]) -> Any:
        if body["messages"][-1]["role"] != "user":
            return as_stream(whole("done")) if body.get("stream") else whole("done")
        return streamed if body.get("stream") else whole_reply

    return answer


@pytest.fixture(params=["run", "run_async", "stream", "stream_async"])
def face(request: pytest.FixtureRequest) -> str:
    """A way to run: whole or streamed, sync or async."""
    given: str = request.param
    return given


def run(swarms: MakeSwarm, face: str, server: RawServer, orders: list[str], retries: int = 1) -> Response:
    """Run the agent against the server; `orders` gets what its tool is called with."""

    def look_up(order: str = "any") -> str:
        orders.append(order)
        return "found \udce9"

    agent = Agent(name="Clerk", functions=[look_up])
    options: Any = {"base_url": server.base_url, "api_key": "not-a-real-key", "max_retries": retries}
    if not face.endswith("async"):
        with openai.OpenAI(**options) as client:
            asked = swarms(client).run(agent, user("cut \ud83d"), stream=face == "stream")
            return asked if isinstance(asked, Response) else list(asked)[-1]["response"]

    async def on_loop() -> Response:
        async with openai.AsyncOpenAI(**options) as client:
            swarm = swarms(client)
            if face == "run_async":
                response: Response = await swarm.run_async(agent, user())
                return response
            return [item async for item in swarm.run_async(agent, user(), stream=True)][-1]["response"]

    return asyncio.run(on_loop())


def check(server: RawServer, response: Response, orders: list[str], expected: list[str]) -> None:
    """Check what came of a quirk."""
    assert (response.messages[-1]["content"], response.ended_by, orders) == ("done", "answer", expected)
    for request in server.requests:
        check_request(request)
    ids = [call["id"] for message in server.requests[-1]["messages"] for call in message.get("tool_calls", ())]
    assert len(ids) == len(set(ids)) > 0


@pytest.mark.parametrize("quirk", STREAMED)
@pytest.mark.parametrize("face", ["stream", "stream_async"])
def test_streams(make_swarm: MakeSwarm, face: str, quirk: str) -> None:
    """A streamed reply, whatever its form, is the call that was meant; a cut one is none."""
    events, expected = STREAMED[quirk]
    orders: list[str] = []
    with RawServer(provider(None, events)) as server:
        check(server, run(make_swarm, face, server, orders), orders, expected)


@pytest.mark.parametrize("quirk", WHOLE)
def test_replies(make_swarm: MakeSwarm, face: str, quirk: str) -> None:
    """A reply, whole or as a stream of whole calls, is the call that was meant; a cut one is none."""
    reply, expected = WHOLE[quirk]
    orders: list[str] = []
    with RawServer(provider(reply, as_stream(reply))) as server:
        check(server, run(make_swarm, face, server, orders), orders, expected)


CALL = whole(None, [called("look_up", ORDER)])
FORMS: dict[str, tuple[Any, Any]] = {
    "a stream where none was asked": (as_stream(CALL), as_stream(CALL)),
    "a whole answer where a stream was asked": (CALL, CALL),
    "streams without a finish reason": (CALL, [as_stream(CALL)[0], DONE]),
    "streams that just end": (CALL, [as_stream(CALL)[0]]),
    "streams of nothing": (CALL, [DONE]),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(make_swarm: MakeSwarm, face: str, form: str) -> None:
    """An answer of another form than was asked for is understood, or asked for in the other form."""
    orders: list[str] = []
    with RawServer(provider(*FORMS[form])) as server:
        check(server, run(make_swarm, face, server, orders, retries=0), orders, ["7"])
        assert all("stream" in request for request in server.requests)


@pytest.mark.parametrize("quirk", BEFORE)
def test_what_may_pass(make_swarm: MakeSwarm, face: str, quirk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may pass, in whatever form a provider says it, is asked for again."""
    monkeypatch.setattr("durable_swarm.models.provider_errors.FIRST_PAUSE", 0.01)
    reply, orders = BEFORE[quirk], []
    first: list[Any] = [reply]

    def answer(body: dict[str, Any]) -> Any:
        if not first:
            return provider(CALL, as_stream(CALL))(body)
        once = first.pop()
        streams = body.get("stream") and isinstance(once, dict)
        return [{**once, "choices": []}, DONE] if streams and "error" in once else as_stream(once) if streams else once

    with RawServer(answer) as server:
        check(server, run(make_swarm, face, server, orders), orders, ["7"])
        assert len(server.requests) == 3


@pytest.mark.parametrize("quirk", LASTING)
def test_what_lasts(make_swarm: MakeSwarm, face: str, quirk: str) -> None:
    """What will not pass is told at once, in the provider's own words."""
    reply, words = LASTING[quirk]
    with RawServer(reply) as server, pytest.raises(Exception, match=words):
        run(make_swarm, face, server, [], retries=3)
    assert len(server.requests) <= (1 if not face.startswith("stream") else 2)
