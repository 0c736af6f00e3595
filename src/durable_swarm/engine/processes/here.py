"""The engine of this process, while a `DurableSwarm` is open here. Asking for it imports nothing of DBOS."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from durable_swarm.errors import ConfigurationError

if TYPE_CHECKING:
    from durable_swarm.engine.processes.process import Process

PAUSE = 0.05
"""Seconds between looks for an engine that is about to be opened."""

_process: Process | None = None


def opened() -> Process | None:
    """Return the process's engine, or None if no `DurableSwarm` is open."""
    return _process


def current() -> Process:
    """Return the process's engine, which a `DurableSwarm` has opened. Raises `ConfigurationError` if none has."""
    if _process is None:
        raise ConfigurationError("no DurableSwarm is open in this process")
    return _process


async def wait_for_current() -> Process:
    """Return the process's engine as soon as there is one: a host's DBOS may recover runs before it is opened."""
    while True:
        if _process is not None:
            return _process
        await asyncio.sleep(PAUSE)


def enter(process: Process | None) -> None:
    """Set the process's engine; None when it is closed."""
    global _process
    _process = process
