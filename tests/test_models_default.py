"""The default client: `openai`'s, from the environment, made at first use."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, Run, Swarm
from durable_swarm.testing import ScriptedServer, http_error, rate_limited, serve_scripted, timed_out
from tests.support.patience import PATIENCE

MESSAGES = [{"role": "user", "content": "Hi"}]
KEY = "canary-key-4711"
MAKERS: dict[str, Callable[[], Any]] = {"Swarm": Swarm, "DurableSwarm": DurableSwarm}


@pytest.fixture(params=MAKERS)
def swarm(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A swarm without a client of its own, closed after the test."""
    with MAKERS[request.param]() as made:
        yield made
    gc.collect()


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    """A provider that says Hello, to which the environment points."""
    with serve_scripted(lambda _: "Hello") as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        yield running


def recorded_runs() -> int:
    """Give the number of runs in the default database."""
    path = Path("durable_swarm.sqlite")
    if not path.exists():
        return 0
    connection = sqlite3.connect(path)
    [(count,)] = connection.execute("SELECT count(*) FROM workflow_status")
    connection.close()
    return int(count)


@pytest.mark.parametrize("method", ["run", "run_async", "start", "start_async"])
def test_a_missing_key_is_told_before_anything_is_recorded(swarm: Any, method: str) -> None:
    """Without a key nothing begins: the error says what to do, and no run is recorded."""
    if not hasattr(swarm, method):
        pytest.skip("runs in memory are not started in the background")

    async def call() -> None:
        result = getattr(swarm, method)(Agent(), MESSAGES, run_id="r")
        if asyncio.iscoroutine(result):
            await result

    with pytest.raises(ConfigurationError, match="Set OPENAI_API_KEY, or pass client= to the swarm"):
        asyncio.run(call())
    assert recorded_runs() == 0


@pytest.mark.parametrize("method", ["run", "run_async", "start", "start_async"])
def test_what_has_ended_is_read_without_a_key(
    provider: ScriptedServer, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The same call again gives the recorded answer in a process without a key; another call says what is missing."""

    async def call(run_id: str) -> Any:
        with DurableSwarm() as swarm:
            found = getattr(swarm, method)(Agent(), MESSAGES, run_id=run_id)
            if asyncio.iscoroutine(found):
                found = await found
            return await found.result_async() if isinstance(found, Run) else found

    asyncio.run(call("r"))
    monkeypatch.delenv("OPENAI_API_KEY")
    assert asyncio.run(call("r")).messages[-1]["content"] == "Hello"
    with pytest.raises(ConfigurationError, match="Set OPENAI_API_KEY"):
        asyncio.run(call("other"))
    assert (recorded_runs(), len(provider.requests)) == (1, 1)


def test_the_swarm_works_once_the_key_is_there(
    swarm: Any, provider: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed first use does not spoil the swarm: the key may come later."""
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigurationError):
        swarm.run(Agent(), MESSAGES)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert swarm.run(Agent(), MESSAGES).messages[-1]["content"] == "Hello"


def test_the_environment_is_used(swarm: Any, provider: ScriptedServer) -> None:
    """Base URL and key of the environment reach the provider, over one connection for all calls."""
    for _ in range(3):
        assert swarm.run(Agent(), MESSAGES).messages[-1]["content"] == "Hello"
    assert {request.headers["authorization"] for request in provider.requests} == {f"Bearer {KEY}"}
    assert provider.connections == 1


def test_two_event_loops(swarm: Any, provider: ScriptedServer) -> None:
    """Runs on one event loop after another, several on each and a blocking one between, all work."""

    async def main() -> list[str]:
        runs = [swarm.run_async(Agent(), MESSAGES) for _ in range(3)]
        return [response.messages[-1]["content"] for response in await asyncio.gather(*runs)]

    assert asyncio.run(main()) == ["Hello"] * 3
    assert swarm.run(Agent(), MESSAGES).messages[-1]["content"] == "Hello"
    assert asyncio.run(main()) == ["Hello"] * 3


def test_connections_outlive_event_loops(swarm: Any, provider: ScriptedServer) -> None:
    """A program that makes a new event loop for each run still keeps its one connection."""

    async def main() -> None:
        await swarm.run_async(Agent(), MESSAGES)

    for _ in range(4):
        asyncio.run(main())
    assert provider.connections == 1


def test_a_cancelled_run_ends_its_request(swarm: Any, provider: ScriptedServer) -> None:
    """Cancelling `run_async` in the middle of a model call does not wait for the answer."""
    provider.inject(timed_out())

    async def main() -> None:
        async with asyncio.timeout(0.3):
            await swarm.run_async(Agent(), MESSAGES)

    with pytest.raises(TimeoutError):
        asyncio.run(main())


def test_started_runs_use_the_background_loop(provider: ScriptedServer) -> None:
    """`start` needs no event loop of the caller, with the default client too."""
    with DurableSwarm() as swarm:
        runs = [swarm.start(Agent(), MESSAGES) for _ in range(3)]
        assert [run.result(PATIENCE).messages[-1]["content"] for run in runs] == ["Hello"] * 3


def test_the_default_client_tries_again(swarm: Any, provider: ScriptedServer) -> None:
    """The default client is patient: a rate limit that passes does not end a run."""
    provider.inject(rate_limited(), http_error(503, retry_after=0), http_error(500, retry_after=0))
    assert swarm.run(Agent(), MESSAGES).messages[-1]["content"] == "Hello"
    assert len(provider.requests) == 4


def test_a_closed_swarm_opens_again(swarm: Any, provider: ScriptedServer) -> None:
    """After `close` a further run makes a new client."""
    swarm.run(Agent(), MESSAGES)
    swarm.close()
    assert swarm.run(Agent(), MESSAGES).messages[-1]["content"] == "Hello"
    assert provider.connections == 2


def test_a_client_that_was_given_stays_open(provider: ScriptedServer) -> None:
    """A client the program made is the program's to close."""
    with provider.client() as client:
        for maker in MAKERS.values():
            maker_with_client: Any = maker
            with maker_with_client(client) as swarm:
                swarm.run(Agent(), MESSAGES)
        assert not client.is_closed()
