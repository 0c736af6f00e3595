"""A client that a program, a tracer or a guard has wrapped is called as Swarm calls it, and sees every message."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai.resources.chat import AsyncChat, Chat
from openai.resources.chat.completions import AsyncCompletions, Completions

from durable_swarm import Agent, ModelError, Swarm
from durable_swarm.background import background_loop
from durable_swarm.models.lean import is_bare
from durable_swarm.testing import ScriptedServer, http_error, no_choices, serve_scripted
from tests.contract.conftest import run_sync
from tests.contract.helpers import MakeSwarm, Run, user
from tests.support.model_calls import Naps, ask
from tests.support.patience import PATIENCE
from tests.support.raw import DONE, RawServer

Seen = list[tuple[list[str], list[str]]]
"""For each call the roles of its messages and the names of its tools."""


def look_up(order: str) -> str:
    """Look up an order."""
    return f"{order} is on its way"


CLERK = Agent(name="Clerk", functions=[look_up])
ALL: Seen = [(["system", "user"], ["look_up"]), (["system", "user", "assistant", "tool"], ["look_up"])]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A provider that calls the tool, then answers."""
    with serve_scripted([[("look_up", {"order": "A1"})], "Sent."]) as server:
        yield server


def noting(create: Any, seen: Seen) -> Callable[..., Any]:
    """Wrap `create` as tracers do."""

    @functools.wraps(create)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        tools = [tool["function"]["name"] for tool in kwargs.get("tools") or []]
        seen.append(([message["role"] for message in kwargs["messages"]], tools))
        return create(*args, **kwargs)

    return wrapper


class _Proxy:
    """A callable that only looks like the function it stands for, as wrapt's does."""

    def __init__(self, wrapped: Any, seen: Seen) -> None:
        self.__wrapped__, self.__name__, self.__module__ = wrapped, wrapped.__name__, wrapped.__module__
        self._call = noting(wrapped, seen)

    @property
    def __class__(self) -> Any:
        return type(self.__wrapped__)

    def __get__(self, instance: Any, owner: Any) -> Any:
        return functools.partial(self._call, instance)


class _Outer:
    """Stands before a part of a client, and passes on what it does not know."""

    def __init__(self, inner: Any, **own: Any) -> None:
        self._inner = inner
        vars(self).update(own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


Wrap = Callable[[Any, Seen, pytest.MonkeyPatch], None]


def on_the_instance(client: Any, seen: Seen, _: pytest.MonkeyPatch) -> None:
    client.chat.completions.create = noting(client.chat.completions.create, seen)


def on_the_class(_: Any, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Completions, AsyncCompletions):
        monkeypatch.setattr(kind, "create", noting(kind.create, seen))


def by_a_proxy_on_the_class(_: Any, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Completions, AsyncCompletions):
        monkeypatch.setattr(kind, "create", _Proxy(kind.create, seen))


def before_the_completions(client: Any, seen: Seen, _: pytest.MonkeyPatch) -> None:
    completions = client.chat.completions
    client.chat.completions = _Outer(completions, create=noting(completions.create, seen))


def before_the_chat(client: Any, seen: Seen, _: pytest.MonkeyPatch) -> None:
    chat = client.chat
    completions = _Outer(chat.completions, create=noting(chat.completions.create, seen))
    client.chat = _Outer(chat, completions=completions)


def for_all_completions(_: Any, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    for chat, kind in ((Chat, Completions), (AsyncChat, AsyncCompletions)):
        monkeypatch.setattr(
            chat,
            "completions",
            property(
                lambda chat, kind=kind: _Outer(kind(chat._client), create=noting(kind(chat._client).create, seen))
            ),
        )


def below(client: Any, seen: Seen, _: pytest.MonkeyPatch) -> None:
    post = client.chat.completions._post

    def noted(path: str, *, body: Any, **more: Any) -> Any:
        seen.append(
            ([one["role"] for one in body["messages"]], [one["function"]["name"] for one in body.get("tools", [])])
        )
        return post(path, body=body, **more)

    client.chat.completions._post = noted


WAYS: list[Wrap] = [
    *(on_the_instance, on_the_class, by_a_proxy_on_the_class, before_the_completions, before_the_chat),
    *(for_all_completions, below),
]


@pytest.mark.parametrize("wrap", WAYS, ids=lambda wrap: wrap.__name__)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_wrapped_is_called(
    server: ScriptedServer,
    make_swarm: MakeSwarm,
    run: Run,
    asynchronous: bool,
    wrap: Wrap,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever stands round `create`, wherever it was put, sees the messages and the tools of each call."""
    client: Any = server.async_client() if asynchronous else server.client()
    seen: Seen = []
    assert is_bare(client)
    wrap(client, seen, monkeypatch)
    assert not is_bare(client)
    response = (run_sync if asynchronous else run)(make_swarm(client), CLERK, user())
    closing = client.close()
    if asynchronous:
        asyncio.run_coroutine_threadsafe(closing, background_loop()).result(PATIENCE)
    assert (response.messages[-1]["content"], seen) == ("Sent.", ALL)


def test_a_subclass_is_called(server: ScriptedServer, make_swarm: MakeSwarm, plain_run: Run) -> None:
    """A client class of the program's own is asked itself, and no copy of it."""
    seen: Seen = []

    class Guarded(openai.OpenAI):
        @property
        def chat(self) -> Any:
            chat = Chat(self)
            return _Outer(chat, completions=_Outer(chat.completions, create=noting(chat.completions.create, seen)))

    with Guarded(base_url=server.base_url, api_key=server.api_key) as client:
        response = plain_run(make_swarm(client), CLERK, user())
    assert (response.messages[-1]["content"], seen) == ("Sent.", ALL)


ODD = {"deep": "[" * 100_000, "nested": '{"choices": ' + "[" * 400 + "]" * 400 + "}", "long": "9" * 5_000}


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("wrap", [on_the_instance, below], ids=lambda wrap: wrap.__name__)
def test_an_answer_that_a_wrapped_client_cannot_read_is_asked_for_again(
    wrap: Wrap, odd: str, asynchronous: bool, streamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON that only Python refuses is the provider's fault behind a wrapper, too, and no error of the program."""
    said = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]}
    message = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]}
    answers = [[f"data: {odd}", DONE], [said, DONE]] if streamed else [odd, message]
    with RawServer(*answers) as provider:
        kind: Any = openai.AsyncOpenAI if asynchronous else openai.OpenAI
        client = kind(base_url=provider.base_url, api_key="x", max_retries=1)
        wrap(client, [], monkeypatch)
        shown = list(Swarm(client).run(Agent(name="Reader"), user(), stream=True)) if streamed else [ask(client)]
    last = shown[-1]["response"].messages[-1] if streamed else shown[-1].message
    assert (last["content"], len(provider.requests)) == ("Hello", 2)


def blocks(_: Any) -> Any:
    raise ValueError("blocked")


def reads_too_deep(_: Any) -> Any:
    return json.loads(ODD["deep"])


@pytest.mark.parametrize(("guard", "kind"), [(blocks, ValueError), (reads_too_deep, RecursionError)])
def test_an_error_of_the_wrapper_is_the_programs(
    server: ScriptedServer, guard: Callable[[Any], Any], kind: type[Exception]
) -> None:
    """What a wrapper raises by itself passes unchanged, also if it reads JSON."""
    with server.client() as client:
        create: Any = client.chat.completions.create
        client.chat.completions.create = lambda **given: guard(create(**given))  # type: ignore[method-assign]
        with pytest.raises(kind) as caught:
            ask(client)
    assert type(caught.value) is kind
    assert len(server.requests) == 1


@pytest.mark.parametrize("kind", [openai.OpenAI, openai.AsyncOpenAI, openai.AzureOpenAI, openai.AsyncAzureOpenAI])
def test_the_official_classes_are_bare(kind: Any) -> None:
    """Nothing stands before a client as its package makes it, nor before a copy with other options."""
    azure = {"api_version": "2024-10-21", "azure_endpoint": "http://127.0.0.1:9"}
    client = kind(api_key="x", **(azure if "Azure" in kind.__name__ else {"base_url": "http://127.0.0.1:9"}))
    assert is_bare(client)
    assert is_bare(client.with_options(timeout=3))


def test_a_wrapped_client_retries_by_itself(server: ScriptedServer) -> None:
    """What a wrapped client has tried again is not tried again by us; what it takes for an answer is."""
    naps = Naps()
    with server.client(max_retries=1) as client:
        client.chat.completions.create = noting(client.chat.completions.create, [])  # type: ignore[method-assign]
        server.inject(*[http_error(500, retry_after=0.01)] * 2)
        with pytest.raises(ModelError, match="after 2 tries") as caught:
            ask(client, naps=naps)
        assert (caught.value.tries, len(server.requests), naps.taken) == (2, 2, [])
        server.inject(no_choices())
        assert ask(client, agent=CLERK, naps=naps).message["tool_calls"]
    assert (len(server.requests), len(naps.taken)) == (4, 1)


def test_the_lean_body_says_the_same(server: ScriptedServer) -> None:
    """The body that arrives is the same, whether the client is wrapped or not."""
    for wrapped in (False, True):
        with server.client() as client:
            if wrapped:
                client.chat.completions.create = noting(client.chat.completions.create, [])  # type: ignore[method-assign]
            settings = {"temperature": 0.5, "stop": None, "extra_body": {"top_k": 3}}
            agent = CLERK.model_copy(update={"model_settings": settings})
            ask(client, [{"role": "user", "content": "Hi ü"}], agent=agent)
    first, second = (request.body for request in server.requests)
    assert first == second
