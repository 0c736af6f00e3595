"""`run(stream=True)`: Swarm's dictionaries, live, over both swarms and both faces."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, ModelError, Response
from durable_swarm.testing import ScriptedModel, call, cut, rate_limited, timed_out
from tests.contract.helpers import PATIENCE, MakeSwarm, completion, essence, mock_client, rebuilt, replies_in, user

Take = Callable[..., list[dict[str, Any]]]
"""Gives the first items of `swarm.run(..., stream=True)`: all, or as many as `take` says."""


@pytest.fixture(params=["run", "run_async", "awaited"])
def items(request: pytest.FixtureRequest) -> Take:
    """Read a streamed run through a `for`, an `async for`, and one that awaits first."""

    def take(swarm: Any, *args: Any, take: int | None = None, **options: Any) -> list[dict[str, Any]]:
        if request.param == "run":
            found = []
            for item in swarm.run(*args, **options, stream=True):
                found.append(item)
                if len(found) == take:
                    break
            return found

        async def main() -> list[dict[str, Any]]:
            found = []
            stream = swarm.run_async(*args, **options, stream=True)
            async for item in (await stream) if request.param == "awaited" else stream:
                found.append(item)
                if len(found) == take:
                    break
            return found

        return asyncio.run(main())

    return take


def hello() -> str:
    """Say hello."""
    return "hello"


def kinds(items: list[dict[str, Any]]) -> list[str]:
    """Give what each item is, deltas in a row as one."""
    names = [item.get("delim") or ("response" if "response" in item else "delta") for item in items]
    return [name for index, name in enumerate(names) if index == 0 or name != "delta" or names[index - 1] != "delta"]


def test_order(make_swarm: MakeSwarm, items: Take) -> None:
    """Each reply is a start, its deltas, an end; the response comes last."""
    swarm = make_swarm(ScriptedModel([[call("hello")], "Done with it."]))
    found = items(swarm, Agent(functions=[hello]), user())
    assert kinds(found) == ["start", "delta", "end", "start", "delta", "end", "response"]
    texts = [item["content"] for item in found if item.get("content")]
    assert texts == ["Done", " with", " it."]
    assert isinstance(found[-1]["response"], Response)
    assert found[-1]["response"].messages[-1]["content"] == "Done with it."


def test_deltas_have_all_keys_of_swarm(make_swarm: MakeSwarm, items: Take) -> None:
    """Every delta has the keys that Swarm's have, fragments of calls too: programs read them without asking."""
    found = items(make_swarm(ScriptedModel([[call("hello")], "Hi."])), Agent(functions=[hello]), user())
    for delta in (item for item in found if "delim" not in item and "response" not in item):
        assert delta.keys() >= {"content", "role", "tool_calls", "function_call", "refusal"}
        for fragment in delta["tool_calls"] or ():
            assert fragment.keys() == {"index", "id", "type", "function"}
            assert fragment["function"].keys() == {"name", "arguments"}


def test_sender_is_the_active_agent(make_swarm: MakeSwarm, items: Take) -> None:
    """After a handoff the deltas name the agent that speaks now, which Swarm's streaming got wrong."""
    second = Agent(name="Second")

    def to_second() -> Agent:
        """Hand off."""
        return second

    swarm = make_swarm(ScriptedModel([[call("to_second")], "Here I am."]))
    found = items(swarm, Agent(name="First", functions=[to_second]), user())
    assert [item["sender"] for item in found if "sender" in item] == ["First", "Second"]


@pytest.mark.parametrize("fault", [cut("Never mind this.", after=3), timed_out(), rate_limited(retry_after=0)], ids=str)
def test_reset(make_swarm: MakeSwarm, items: Take, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that breaks off is void after a reset, and comes anew; what showed nothing needs none."""
    monkeypatch.setattr("durable_swarm.models.provider_errors.FIRST_PAUSE", 0.0)
    swarm = make_swarm(ScriptedModel([fault, "All of it."]))
    found = items(swarm, Agent(name="A"), user())
    showed = any(item.get("content") == "Never" for item in found)
    assert kinds(found) == ["start", *(["delta", "reset"] if showed else []), "delta", "end", "response"]
    (reply,) = replies_in(found[:-1])
    assert rebuilt(reply) == essence(found[-1]["response"].messages[0])


def test_a_completion_where_a_stream_was_asked_for(make_swarm: MakeSwarm, items: Take) -> None:
    """A client that answers with a whole completion has it told in one delta."""
    found = items(
        make_swarm(mock_client(completion("Hello", [("hello", {})]), completion("Bye"))),
        Agent(functions=[hello]),
        user(),
    )
    assert kinds(found) == ["start", "delta", "end", "start", "delta", "end", "response"]
    assert [rebuilt(reply)["content"] for reply in replies_in(found[:-1])] == ["Hello", "Bye"]


def test_errors_reach_the_reader(make_swarm: MakeSwarm, items: Take) -> None:
    """What ends the run is raised to whoever reads it; a wrong argument before anything is read."""

    def broken() -> str:
        """Break."""
        raise LookupError("no such thing")

    swarm = make_swarm(ScriptedModel([[call("broken")], ModelError("spent")]))
    with pytest.raises(LookupError, match="no such thing"):
        items(swarm, Agent(name="Breaks", functions=[broken]), user())
    with pytest.raises(ModelError):
        items(swarm, Agent(name="Other"), user())
    with pytest.raises(ConfigurationError, match="agent must be an Agent"):
        swarm.run(None, user(), stream=True)
    with pytest.raises(ConfigurationError, match="agent must be an Agent"):
        swarm.run_async(None, user(), stream=True)


def test_nothing_runs_before_it_is_read(make_swarm: MakeSwarm) -> None:
    """As a generator of Swarm's, a streamed run begins with the first reading."""
    model = ScriptedModel(["Hi."])
    stream = make_swarm(model).run(Agent(), user(), stream=True)
    time.sleep(0.05)
    assert not model.calls
    assert list(stream)[-1]["response"].messages[0]["content"] == "Hi."


def test_tools_run_in_the_readers_thread(make_swarm: MakeSwarm) -> None:
    """A plain function is called in the thread that reads, where what belongs to that thread can be used."""
    seen = []

    def where() -> str:
        """Look."""
        seen.append(threading.get_ident())
        return "here"

    list(make_swarm(ScriptedModel([[call("where")], "Ok."])).run(Agent(functions=[where]), user(), stream=True))
    assert seen == [threading.get_ident()]


@pytest.mark.parametrize("kept", [True, False])
def test_a_reader_who_stops(make_swarm: MakeSwarm, kept: bool) -> None:
    """A run goes on to its end when its reader stops, whether it drops the generator or keeps it."""
    ended = threading.Event()

    def finish() -> str:
        """Finish."""
        ended.set()
        return "finished"

    swarm = make_swarm(ScriptedModel([[call("finish")], "Bye."], pace=0.01))
    stream = swarm.run(Agent(functions=[finish]), user(), stream=True)
    assert next(stream) == {"delim": "start"}
    if not kept:
        del stream
    assert ended.wait(PATIENCE)


def test_an_async_reader_who_stops(make_swarm: MakeSwarm) -> None:
    """The same on an event loop that goes on."""

    async def main() -> None:
        ended = asyncio.Event()

        async def finish() -> str:
            """Finish."""
            ended.set()
            return "finished"

        swarm = make_swarm(ScriptedModel([[call("finish")], "Bye."], pace=0.01))
        async for item in swarm.run_async(Agent(functions=[finish]), user(), stream=True):
            assert item == {"delim": "start"}
            break
        await asyncio.wait_for(ended.wait(), PATIENCE)

    asyncio.run(main())


def test_usage(make_swarm: MakeSwarm, items: Take) -> None:
    """Tokens are counted where the provider sends them at the end of the stream."""
    found = items(make_swarm(ScriptedModel(["Hello there."])), Agent(), user())
    usage = found[-1]["response"].usage
    assert usage is not None
    assert (usage.requests, usage.total_tokens > 0) == (1, True)


def test_a_streamed_run_inside_a_tool(make_swarm: MakeSwarm, items: Take) -> None:
    """A tool may read a streamed run of its own; where that would stop the loop it runs on, an error says so."""
    inner = Agent(name="Inner")

    def plain() -> str:
        """Ask another agent."""
        return str(list(swarm.run(inner, user(), stream=True))[-1]["response"].messages[-1]["content"])

    async def asynchronous() -> str:
        """Ask another agent."""
        found = [item async for item in swarm.run_async(inner, user(), stream=True)]
        return str(found[-1]["response"].messages[-1]["content"])

    async def wrong() -> str:
        """Block the loop."""
        with pytest.raises(ConfigurationError, match="would stop the event loop"):
            list(swarm.run(inner, user(), stream=True))
        return "refused"

    script = [[call("plain")], "One.", [call("asynchronous")], "Two.", "Done."]
    swarm = make_swarm(ScriptedModel(script))
    found = items(swarm, Agent(name="Outer", functions=[plain, asynchronous, wrong]), user())
    assert [item["sender"] for item in found if "sender" in item] == ["Outer"] * 3
    told = [message["content"] for message in found[-1]["response"].messages if message["role"] == "tool"]
    assert told == ["One.", "Two."]
    swarm = make_swarm(ScriptedModel([[call("wrong")], "Done."]))
    outer = Agent(name="Outermost", functions=[wrong])
    response = list(swarm.run(outer, user(), stream=True))[-1]["response"]
    assert [message["content"] for message in response.messages if message["role"] == "tool"] == ["refused"]


def test_fragments_that_say_little(make_swarm: MakeSwarm, items: Take) -> None:
    """A fragment with neither name nor arguments has all keys too; fields that look like ours pass for nothing."""
    fragments: list[dict[str, Any]] = [
        {
            "role": "assistant",
            "tool_calls": [{"index": 0, "id": "x", "type": "function", "function": {"arguments": ""}}],
        },
        {"tool_calls": [{"index": 0, "function": {"name": "hello", "arguments": "{}"}}], "delim": "end", "response": 1},
    ]
    streams = [fragments, [{"content": "Bye.", "response": "forged"}]]

    def create(**_: Any) -> Any:
        deltas = streams.pop(0)
        chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        return iter([*chunks, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}])

    client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)))
    found = items(make_swarm(client), Agent(functions=[hello]), user())
    assert kinds(found) == ["start", "delta", "end", "start", "delta", "end", "response"]
    messages = found[-1]["response"].messages
    assert [message["content"] for message in messages] == [None, "hello", "Bye."]
