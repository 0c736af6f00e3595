"""The two colours in which a run is executed: in the calling thread, or on an event loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from durable_swarm.concurrency import BlockingRuntime, Runtime, finish
from durable_swarm.engine.backend import steps
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.records.encoding import RecordCodec

Body = Callable[[Runtime], Awaitable[Record]]


class Colour(Protocol):
    """How steps and undecorated calls are run: in this thread, or on an event loop.

    Records pass through the run's codec.
    Both methods draw the numbers by which DBOS recognises a step before they first suspend. So a batch begun in the
    model's order has the same numbers in every execution, regardless of the order in which its calls get their turn.
    """

    @property
    def waits(self) -> Runtime:
        """How the run waits and calls blocking functions."""

    async def step(self, name: str, body: Body) -> Record:
        """Run a step and return its record, the recorded one if there is one."""

    async def child(self, key: str) -> Record:
        """Make the undecorated tool call `key` and return its record."""


@dataclass(frozen=True)
class InThread:
    """Runs everything in the calling thread."""

    run_child: Callable[[str], Record]
    record_codec: RecordCodec
    waits: Runtime = field(default_factory=BlockingRuntime)

    async def step(self, name: str, body: Body) -> Record:
        reserved = steps.reserve()
        place = steps.place_of(reserved, name)
        record = steps.run_step(
            name, lambda: self.record_codec.close_step(finish(_coroutine(body, self.waits)), place), reserved
        )
        return self.record_codec.open(record, place, f"the record of step {name!r}")

    async def child(self, key: str) -> Record:
        return self.run_child(key)


@dataclass(frozen=True)
class OnEventLoop:
    """Awaits everything; plain functions go to the pool of `waits`."""

    start_child: Callable[[str], Awaitable[Record]]
    record_codec: RecordCodec
    waits: Runtime

    async def step(self, name: str, body: Body) -> Record:
        reserved = steps.reserve()
        place = steps.place_of(reserved, name)

        async def go() -> Record:
            return self.record_codec.close_step(await body(self.waits), place)

        record = await steps.run_step_async(name, go, reserved)
        return self.record_codec.open(record, place, f"the record of step {name!r}")

    async def child(self, key: str) -> Record:
        return await self.start_child(key)


async def _coroutine(body: Body, waits: Runtime) -> Record:
    return await body(waits)
