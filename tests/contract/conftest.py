"""The two swarms and the two faces that every test of this folder runs over."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import DurableSwarm, Response, Swarm
from tests.contract.helpers import MakeSwarm, Run


@pytest.fixture(params=["memory", "durable"])
def make_swarm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeSwarm]:
    """Make a `Swarm`, or a `DurableSwarm` on a SQLite file of its own, and close it after the test."""
    with ExitStack() as stack:

        def make(client: Any, **options: Any) -> Any:
            if request.param == "memory":
                return Swarm(client, **options)
            database = f"sqlite:///{tmp_path}/runs.sqlite"
            return stack.enter_context(DurableSwarm(client, database=database, **options))

        yield make


@pytest.fixture(params=["run", "run_async"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run through the sync or the async face: `run(swarm, agent, messages, ...)`."""

    def run_sync(swarm: Any, *args: Any, **options: Any) -> Response:
        response: Response = swarm.run(*args, **options)
        return response

    def run_async(swarm: Any, *args: Any, **options: Any) -> Response:
        async def main() -> Response:
            response: Response = await swarm.run_async(*args, **options)
            return response

        return asyncio.run(main())

    return run_sync if request.param == "run" else run_async
