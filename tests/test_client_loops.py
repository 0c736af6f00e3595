"""One official async client serves several event loops, over connections of the swarm's own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from durable_swarm import Agent, DurableSwarm, Swarm
from durable_swarm.testing import call, serve_scripted
from durable_swarm.testing.server import ScriptedServer
from tests.engine.helpers import PATIENCE, unique, user, wait_until

TURNS = 3


def look_up(n: int = 0) -> str:
    """Look it up."""
    return f"found {n}"


def script(request: dict[str, Any]) -> Any:
    return [call("look_up", n=1)] if request["messages"][-1]["role"] == "user" else "done"


def azure(server: ScriptedServer) -> openai.AsyncAzureOpenAI:
    return openai.AsyncAzureOpenAI(base_url=server.base_url, api_key="none", api_version="2024-10-21")


CLIENTS: dict[str, Callable[[ScriptedServer], Any]] = {
    "official": lambda server: server.async_client(),
    "copy": lambda server: server.async_client().with_options(timeout=30, max_retries=1),
    "azure": azure,
}


@pytest.fixture(autouse=True)
def _one_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Azure's client ask at the path that the scripted provider has: that knows no deployments."""
    monkeypatch.setattr(openai.lib.azure, "_deployments_endpoints", set())


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    """A provider."""
    with serve_scripted(script) as serving:
        yield serving


@pytest.fixture(params=["memory", "durable"])
def make(
    request: pytest.FixtureRequest, tmp_path: Path, fresh_sqlite: Callable[[Path], str]
) -> Iterator[Callable[[Any], Any]]:
    """Make a swarm of either kind with the client, and close it after the test."""
    url = fresh_sqlite(tmp_path / "runs.sqlite")
    with ExitStack() as stack:

        def one(client: Any) -> Any:
            return stack.enter_context(
                Swarm(client) if request.param == "memory" else DurableSwarm(client, database=url)
            )

        yield one


@pytest.fixture
def client(kind: str, server: ScriptedServer) -> Any:
    """A client of the kind, which the program itself does not use."""
    return CLIENTS[kind](server)


@pytest.fixture
def agent() -> Agent:
    """An agent with a tool."""
    return Agent(name=unique(), functions=[look_up])


def last(response: Any) -> str:
    return str(response.messages[-1]["content"])


async def streamed(swarm: Any, agent: Agent) -> str:
    return last([item async for item in swarm.run_async(agent, user(), stream=True)][-1]["response"])


def streamed_in_thread(swarm: Any, agent: Agent) -> str:
    return last(list(swarm.run(agent, user(), stream=True))[-1]["response"])


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("first", ["thread", "loop"])
def test_a_server_with_plain_and_async_endpoints(
    client: Any, first: str, make: Callable[[Any], Any], agent: Agent
) -> None:
    """One client serves `run` in threads, `run_async` on the loop, `start`, and streams, together and in turn."""
    with make(client) as swarm:

        async def main() -> list[str]:
            on_loop: list[Callable[[], Awaitable[str]]] = [
                lambda: as_text(swarm.run_async(agent, user())),
                lambda: streamed(swarm, agent),
            ]
            in_thread: list[Callable[[], Awaitable[str]]] = [
                lambda: asyncio.to_thread(lambda: last(swarm.run(agent, user()))),
                lambda: asyncio.to_thread(streamed_in_thread, swarm, agent),
            ]
            if isinstance(swarm, DurableSwarm):
                in_thread.append(lambda: asyncio.to_thread(lambda: last(swarm.start(agent, user()).result(PATIENCE))))
            ways = [*on_loop, *in_thread] if first == "loop" else [*in_thread, *on_loop]
            found = [await way() for _ in range(TURNS) for way in ways]
            return [*found, *await asyncio.gather(*(way() for way in ways))]

        assert set(asyncio.run(main())) == {"done"}


async def as_text(response: Any) -> str:
    return last(await response)


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("own_swarm", [False, True])
def test_one_loop_after_the_other(client: Any, own_swarm: bool, make: Callable[[Any], Any], agent: Agent) -> None:
    """A client outlives the loops that ask it: with a swarm for all of them, and with one for each."""
    swarm = make(client)
    for _ in range(TURNS):
        assert asyncio.run(as_text(swarm.run_async(agent, user()))) == "done"
        assert asyncio.run(streamed(swarm, agent)) == "done"
        if own_swarm:
            swarm.close()
            swarm = make(client)
    swarm.close()


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_run_that_goes_on_in_another_life_of_the_swarm(
    client: Any, tmp_path: Path, fresh_sqlite: Callable[[Path], str]
) -> None:
    """A client that was asked on one loop is asked for the rest of a recovered run, whichever loop executes that."""
    url = fresh_sqlite(tmp_path / "runs.sqlite")
    entered, opened = threading.Event(), threading.Event()

    def look_up(n: int = 0) -> str:
        """Look it up, when the test says so."""
        entered.set()
        opened.wait(PATIENCE)
        return f"found {n}"

    agent = Agent(name=unique(), functions=[look_up])

    async def main() -> str:
        with DurableSwarm(client, database=url) as swarm:
            run = await swarm.start_async(agent, user())
            await asyncio.to_thread(entered.wait, PATIENCE)
        return run.id

    run_id = asyncio.run(main())
    opened.set()
    with DurableSwarm(client, database=url) as swarm:
        assert last(swarm.get(run_id).result(PATIENCE)) == "done"


@pytest.mark.parametrize("kind", CLIENTS)
def test_the_program_uses_its_client_beside_us(
    kind: str, server: ScriptedServer, make: Callable[[Any], Any], agent: Agent
) -> None:
    """A program that asks the client itself on its loop, before, meanwhile and after, is not disturbed."""
    client = CLIENTS[kind](server)

    told: Any = [{"role": "system", "content": "Say done."}]

    async def ask() -> str:
        reply = await client.chat.completions.create(model="m", messages=told)
        return str(reply.choices[0].message.content)

    async def main() -> list[str]:
        with make(client) as swarm:
            found = [await ask(), await as_text(swarm.run_async(agent, user()))]
            found += await asyncio.gather(ask(), as_text(swarm.run_async(agent, user())), ask())
            found.append(await asyncio.to_thread(lambda: last(swarm.run(agent, user()))))
        found.append(await ask())
        await client.close()
        return found

    assert set(asyncio.run(main())) == {"done"}


def test_closing_closes_the_connections_of_an_official_client(
    server: ScriptedServer, make: Callable[[Any], Any], agent: Agent
) -> None:
    """What was opened to ask a client of the program is closed with the swarm, and the client stays the program's."""

    def held() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    client = server.async_client()
    before = held()
    for _ in range(TURNS):
        swarm = make(client)
        assert last(swarm.run(agent, user())) == "done"
        asyncio.run(as_text(swarm.run_async(agent, user())))
        swarm.close()
    asyncio.run(client.close())
    # The provider is of this process too, and closes its ends when it hears of it.
    assert wait_until(lambda: held() <= before)
    assert not own_threads()


def test_a_key_that_changes_is_used(server: ScriptedServer, make: Callable[[Any], Any], agent: Agent) -> None:
    """A program may change the settings of its client while a swarm uses it."""
    client = server.async_client()
    with make(client) as swarm:
        swarm.run(agent, user())
        client.base_url = "http://127.0.0.1:9/v1"
        client.max_retries = 0
        with pytest.raises(Exception, match="the model call failed"):
            swarm.run(agent, user(), provider_patience=0)


@pytest.mark.parametrize("kind", CLIENTS)
def test_a_loop_that_is_blocked_by_who_waits(client: Any, agent: Agent) -> None:
    """A blocking `run` on the thread of the loop that asked before gets its answer elsewhere, and nothing hangs."""

    async def main(swarm: Swarm) -> list[str]:
        return [await as_text(swarm.run_async(agent, user())), last(swarm.run(agent, user()))]

    with Swarm(client) as swarm:
        assert asyncio.run(main(swarm)) == ["done", "done"]


@pytest.mark.parametrize("given", [True, False])
def test_closing_one_swarm_leaves_the_connections_of_another(
    given: bool, server: ScriptedServer, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A swarm goes on over its connection when others, which use the same loop, are closed; the last gives it back."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "k")

    def ask(swarm: Swarm) -> str:
        return asyncio.run(as_text(swarm.run_async(agent, user())))

    with Swarm(server.async_client() if given else None) as swarm:
        for _ in range(TURNS):
            assert ask(swarm) == "done"
            with Swarm(server.async_client()) as other:
                assert ask(other) == "done"
        assert ask(swarm) == "done"
        assert server.connections == 1 + TURNS
    assert not own_threads()


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("durable-swarm")]


class Odd(openai.AsyncOpenAI):
    """A class of the program's own."""


def hooked(server: ScriptedServer) -> Any:
    async def hook(request: Any) -> None:
        """Note nothing."""

    client = server.async_client()
    client._client.event_hooks = {"request": [hook]}
    return client


def instrumented(server: ScriptedServer) -> Any:
    """As OpenTelemetry does it for the connections of one client."""
    client = server.async_client()
    transport: Any = client._client._transport
    handle = transport.handle_async_request

    async def traced(request: Any) -> Any:
        return await handle(request)

    transport.handle_async_request = traced
    return client


def wrapped(server: ScriptedServer) -> Any:
    inner = server.async_client()

    async def create(**request: Any) -> Any:
        return await inner.chat.completions.create(**request)

    return SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=create)), close=inner.close)


OTHERS: dict[str, Callable[[ScriptedServer], Any]] = {
    "over connections of the program": lambda server: server.async_client(http_client=openai.DefaultAsyncHttpxClient()),
    "of another class": lambda server: Odd(base_url=server.base_url, api_key="none"),
    "with a hook": hooked,
    "instrumented": instrumented,
    "wrapped": wrapped,
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("stream", [False, True])
def test_any_other_client_is_asked_itself(
    kind: str, stream: bool, server: ScriptedServer, make: Callable[[Any], Any], agent: Agent
) -> None:
    """What is not official through and through is asked over the connection that the program's own loop has opened."""
    client = OTHERS[kind](server)

    async def main() -> str:
        told: Any = [{"role": "system", "content": "Say done."}]
        await client.chat.completions.create(model="m", messages=told)
        with make(client) as swarm:
            found = await (streamed(swarm, agent) if stream else as_text(swarm.run_async(agent, user())))
        await client.close()
        return found

    assert asyncio.run(main()) == "done"
    assert server.connections == 1
