"""Official clients of scripted servers, closed after the test."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from durable_swarm.background import background_loop
from tests.support.patience import PATIENCE

Opened = Callable[[Any], Any]
"""Takes a client, returns it, and closes it after the test."""


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Closes clients: the async ones on the loop on which swarms have asked them."""
    clients: list[Any] = []

    def note(client: Any) -> Any:
        clients.append(client)
        return client

    yield note
    for client in clients:
        closed = client.close()
        if closed is not None:
            asyncio.run_coroutine_threadsafe(closed, background_loop()).result(PATIENCE)
