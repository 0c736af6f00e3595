"""Many readers of one run: each gets every event once, and the events are read once for all that keep up."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter

import pytest

from durable_swarm import Agent, DurableSwarm
from durable_swarm.engine.api.run import Run
from durable_swarm.events import Event
from durable_swarm.server.event_hub import EventHubs
from durable_swarm.testing import ScriptedModel
from tests.engine.helpers import unique
from tests.support.patience import PATIENCE


def begun(url: str, gate: threading.Event) -> tuple[DurableSwarm, Run, Agent]:
    """Return a run of 20 calls, of which the eleventh waits for the gate."""
    calls = []

    def count() -> str:
        calls.append(1)
        if len(calls) == 11:
            gate.wait(60)
        return "counted"

    agent = Agent(name=unique(), functions=[count])
    swarm = DurableSwarm(ScriptedModel([["count"] * 5] * 4 + ["Done"]), database=url)
    return swarm, swarm.start(agent, [{"role": "user", "content": "Count."}]), agent


async def all_of(hubs: EventHubs, run: Run, after: int, encode: object, pause: float = 0.0) -> list[int]:
    """Return what a reader gets, who takes a pause after each batch."""
    found: list[int] = []
    async for batch in hubs.batches(run, after, encode, 30):  # type: ignore[arg-type]
        found += batch
        await asyncio.sleep(pause)
    return found


@pytest.mark.parametrize("ahead", [2, 1000])
def test_each_reader_gets_every_event_once(url: str, ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast ones, slow ones, late ones and one that names a number that does not exist; live and from the database."""
    monkeypatch.setattr("durable_swarm.server.event_hub.AHEAD", ahead)
    gate, encoded = threading.Event(), Counter[int]()
    swarm, run, agent = begun(url, gate)

    def encode(event: Event) -> int:
        encoded[event.seq] += 1
        return event.seq

    async def read() -> list[list[int]]:
        hubs = EventHubs()
        readers = [asyncio.ensure_future(all_of(hubs, run, after, encode)) for after in (0, 0, 0, 7, 10_000)]
        readers.append(asyncio.ensure_future(all_of(hubs, run, 0, encode, pause=0.1)))
        await asyncio.sleep(0.2)
        gate.set()
        found = await asyncio.gather(*readers)
        return [*found, await all_of(hubs, run, 3, encode)]

    with swarm:
        first, second, third, from_seven, beyond, slow, late = asyncio.run(read())
        last = [event.seq for event in run.events()]
    assert agent
    assert first == second == third == slow == last
    assert from_seven == last[7:]
    assert beyond == []
    assert late == last[3:]
    if ahead > len(last):
        assert max(encoded.values()) == 2  # Once for those that read together, once for the late one.


def test_a_server_that_ends_lets_its_readers_go(url: str) -> None:
    """`stop` may be called in any thread."""
    gate = threading.Event()
    swarm, run, agent = begun(url, gate)

    async def read() -> list[int]:
        hubs = EventHubs()
        threading.Timer(0.3, hubs.stop).start()
        return await all_of(hubs, run, 0, lambda event: event.seq)

    with swarm:
        found = asyncio.run(read())
        assert agent
        assert found
        assert run.status == "running"
        gate.set()
        run.result(PATIENCE)
