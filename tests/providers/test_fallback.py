"""`Fallback`: the next client where one is away."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, ModelError, Swarm
from durable_swarm.providers import Fallback, Routes
from durable_swarm.testing import (
    AsyncScriptedModel,
    ScriptedModel,
    cut,
    dropped,
    garbled,
    http_error,
    no_choices,
    proxy_page,
    rate_limited,
    serve_scripted,
    timed_out,
)
from tests.providers.conftest import Opened

HI: list[Any] = [{"role": "user", "content": "Hi"}]
AWAY: dict[str, Any] = {
    "connection": dropped(),
    "timeout": timed_out(),
    "408": http_error(408),
    "409": http_error(409),
    "429": rate_limited(60),
    "no quota": http_error(429, code="insufficient_quota"),
    "500": http_error(500),
    "529": http_error(529),
    "a proxy's page": proxy_page(502),
    "an empty answer": no_choices(),
    "no JSON": garbled(),
}
KINDS: dict[str, Any] = {"plain": ScriptedModel, "async": AsyncScriptedModel}


def run(client: Any, *, streamed: bool = False, model: str = "m") -> list[dict[str, Any]]:
    """Return the dictionaries of a run."""
    with Swarm(client) as swarm:
        if streamed:
            return [*swarm.run(Agent(model=model), HI, stream=True)]
        return [{"response": swarm.run(Agent(model=model), HI)}]


def answer(items: list[dict[str, Any]]) -> str:
    """Return what the model has answered in the end."""
    return str(items[-1]["response"].messages[-1]["content"])


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("why", AWAY)
def test_the_next_one_is_asked_where_one_is_away(why: str, first: str, second: str, streamed: bool) -> None:
    """Whatever says that a client is away leads to the next one, at once; plain and async ones may stand together."""
    last = KINDS[second](["Hello there"])
    fallback = Fallback(KINDS[first]([AWAY[why]]), last)
    items = run(fallback, streamed=streamed, model="my-model")
    assert answer(items) == "Hello there"
    assert not any(item.get("delim") == "reset" for item in items)
    assert last.calls[0]["model"] == "my-model"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_mistake_of_the_caller_is_told_at_once(status: int, streamed: bool) -> None:
    """The next client would refuse it, too, or answer what nobody should pay: it is not asked."""
    last = ScriptedModel(["Hello"])
    with pytest.raises(ModelError, match=str(status)):
        run(Fallback(ScriptedModel([http_error(status)]), last), streamed=streamed)
    assert last.calls == []


def test_all_are_away(opened: Opened) -> None:
    """The error of the last one is told, after the retries that the clients would have made."""
    with serve_scripted(lambda _: http_error(503, "the first")) as one:
        with serve_scripted(lambda _: http_error(502, "the second")) as two:
            fallback = Fallback(opened(one.client(max_retries=1)), opened(two.client()))
            with pytest.raises(ModelError, match=r"after 2 tries.*the second"):
                run(fallback)
        assert (len(one.calls), len(two.calls)) == (2, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_breaks_off_is_made_again_by_the_next_one(kind: str) -> None:
    """What was shown is taken back, and the call is made again by the client after the one that broke off."""
    broken = KINDS[kind]([cut("Hello there, Ada", after=3), "Not asked again"])
    items = run(Fallback(broken, KINDS[kind](["Good day, Ada"])), streamed=True)
    assert answer(items) == "Good day, Ada"
    assert sum(item.get("delim") == "reset" for item in items) == 1
    assert len(broken.calls) == 1


def test_each_call_begins_with_the_first_again() -> None:
    """A client that was away once is asked again by the next model call."""
    first = ScriptedModel([http_error(500), "First"])
    fallback = Fallback(first, ScriptedModel(["Second"]))
    assert [answer(run(fallback)), answer(run(fallback))] == ["Second", "First"]


def test_another_name_of_the_model_is_asked_and_recorded() -> None:
    """A client given with a model's name is asked for that; the record and the reply's origin say who answered."""
    thinking = {"content": "Hello", "reasoning_content": "Hm."}
    other = ScriptedModel([thinking])
    fallback = Fallback(ScriptedModel([http_error(500)]), (other, "claude-opus"))
    with DurableSwarm(fallback) as swarm:
        message = swarm.run(Agent(model="gpt-5.4"), HI, run_id="run-other").messages[-1]
        [step] = swarm.get("run-other").steps()
    assert other.calls[0]["model"] == "claude-opus"
    assert message["provider"] == {"kind": "anthropic", "model": "claude-opus"}
    assert step.output is not None


def test_fields_of_another_maker_are_not_sent_on() -> None:
    """What the first model wants back goes to models of its maker alone, whichever client comes to be asked."""

    def again() -> str:
        return "again"

    thinking = {"content": None, "reasoning_content": "Hm.", "tool_calls": ["again"]}
    first = ScriptedModel([thinking, http_error(503)])
    same, other = ScriptedModel(lambda _: http_error(503)), ScriptedModel(lambda _: "Done")
    with Swarm(Fallback(first, (same, "deepseek-v4-flash"), (other, "gpt-5.4"))) as swarm:
        swarm.run(Agent(model="deepseek-v4", functions=[again]), HI)
    seen = [json.dumps(client.calls[-1]["messages"]) for client in (first, same, other)]
    assert ["Hm." in messages for messages in seen] == [True, True, False]


def test_it_leads_to_routes_and_routes_to_it() -> None:
    """Providers stand in providers: the route of the model is asked, and the next one where that is away."""
    fallback = Fallback(
        Routes({"a-*": ScriptedModel([http_error(500)]), "*": ScriptedModel([])}),
        (Routes({"b-*": AsyncScriptedModel(["B"])}), "b-1"),
    )
    assert answer(run(Routes({"a-*": fallback}), model="a-1")) == "B"


@pytest.mark.parametrize("given", [(), ("m",), ((ScriptedModel([]), ""),), ((ScriptedModel([]), 5),), (None,)])
def test_it_takes_clients(given: tuple[Any, ...]) -> None:
    """Anything else is refused when it is made."""
    with pytest.raises(ConfigurationError, match="Fallback"):
        Fallback(*given)


def test_a_client_that_does_not_tell_that_it_is_async() -> None:
    """What is to be awaited is awaited, also from a client whose `create` is a plain function."""

    class Wrapped:
        def __init__(self, inner: Any) -> None:
            self.chat = self.completions = self
            self.inner = inner

        def create(self, **request: Any) -> Any:
            return self.inner.chat.completions.create(**request)

    fallback = Fallback(Wrapped(AsyncScriptedModel([http_error(500)])), Wrapped(AsyncScriptedModel(["Hello"])))
    assert answer(run(fallback)) == "Hello"

    async def on_loop() -> str:
        again = Fallback(Wrapped(AsyncScriptedModel([http_error(500)])), ScriptedModel(["Hello"]))
        return str((await Swarm(again).run_async(Agent(model="m"), HI)).messages[-1]["content"])

    assert asyncio.run(on_loop()) == "Hello"
