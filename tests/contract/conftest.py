"""The two swarms and the two faces that every test of this folder runs over."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import DurableSwarm, Response, Swarm
from tests.contract.helpers import MakeSwarm, Run, essence, rebuilt, replies_in

TWICE = ({"make_swarm": "memory", "run": "stream"}, {"make_swarm": "durable", "run": "stream_async"})
"""Faces of which the others say nearly all: left out of the short form."""

STREAMED = (
    "test_turns",
    "test_endings",
    "test_guardrails",
    "test_handoffs",
    "test_model_errors",
    "test_output",
    "test_together",
    "test_tool_errors",
)
"""Where the short form tries streamed faces."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out of the short form what is tested twice."""
    if os.environ.get("DURABLE_SWARM_LONG", "") in ("", "0"):
        items[:] = [item for item in items if not any(_has(item, params) for params in _left_out(item))]


def _left_out(item: pytest.Item) -> tuple[dict[str, str], ...]:
    return TWICE if item.path.stem in STREAMED else ({"run": "stream"}, {"run": "stream_async"})


def _has(item: pytest.Item, params: dict[str, str]) -> bool:
    given = getattr(item, "callspec", None)
    return given is not None and given.params.items() >= params.items()


@pytest.fixture(params=["memory", "durable"])
def make_swarm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeSwarm]:
    """Make a `Swarm`, or a `DurableSwarm` on a SQLite file of its own, and close it after the test."""
    with ExitStack() as stack:

        def make(client: Any, **options: Any) -> Any:
            if request.param == "memory":
                return Swarm(client, **options)
            path = tmp_path / "runs.sqlite"
            database = f"sqlite:///{path}" if path.exists() else request.getfixturevalue("fresh_sqlite")(path)
            # In memory nothing waits for a provider that is away, unless it is told to.
            options = {"provider_patience": 0, **options}
            return stack.enter_context(DurableSwarm(client, database=database, **options))

        yield make


@pytest.fixture(params=["run", "run_async", "stream", "stream_async"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run through the sync or the async face, whole or streamed: `run(swarm, agent, messages, ...)`."""
    return FACES[request.param]


@pytest.fixture(params=["run", "run_async"])
def plain_run(request: pytest.FixtureRequest) -> Run:
    """Run through the sync or the async face, as a program says it: streamed where it asks for it."""
    return FACES[request.param]


def run_sync(swarm: Any, *args: Any, **options: Any) -> Response:
    response: Response = swarm.run(*args, **options)
    return response


def run_async(swarm: Any, *args: Any, **options: Any) -> Response:
    async def main() -> Response:
        response: Response = await swarm.run_async(*args, **options)
        return response

    return asyncio.run(main())


def stream(swarm: Any, *args: Any, **options: Any) -> Response:
    return checked_stream(list(swarm.run(*args, **options, stream=True)))


def stream_async(swarm: Any, *args: Any, **options: Any) -> Response:
    async def main() -> Response:
        return checked_stream([item async for item in swarm.run_async(*args, **options, stream=True)])

    return asyncio.run(main())


FACES: dict[str, Run] = {"run": run_sync, "run_async": run_async, "stream": stream, "stream_async": stream_async}


def checked_stream(items: list[dict[str, Any]]) -> Response:
    """Check that what was streamed tells the messages of the response it ends with, and give that."""
    *told, last = items
    response: Response = last["response"]
    said = [message for message in response.messages if message["role"] == "assistant"]
    assert [rebuilt(reply) for reply in replies_in(told)] == [essence(message) for message in said]
    return response
