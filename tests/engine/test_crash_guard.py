"""When a call may begin beside one that is suspected of ending its process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from durable_swarm import Agent
from durable_swarm.concurrency import LoopRuntime
from durable_swarm.engine.backend.ownership import OwnershipLost
from durable_swarm.engine.execution import crash_guard
from durable_swarm.engine.execution.child_calls import OpenCall
from durable_swarm.engine.execution.crash_guard import CrashLoopGuard
from durable_swarm.engine.processes import here
from durable_swarm.engine.storage.run_state import TRIED, notes_on
from durable_swarm.testing import ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, user

SUSPECT = "suspect/0.0"


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Have an async test run on an event loop of its own."""

    @functools.wraps(test)
    def main(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return main


class Calls:
    """Calls that begin as soon as they may, and end when they are told."""

    def __init__(self, subject: CrashLoopGuard) -> None:
        self.subject = subject
        self.under_way: set[str] = set()
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def call(self, key: str, again: OpenCall | None = None) -> None:
        """Have the call begun."""
        self._ends[key] = asyncio.Event()
        self._tasks[key] = asyncio.create_task(self._execute(key, again))

    async def _execute(self, key: str, again: OpenCall | None) -> None:
        with self.subject.until_recorded(key):
            async with self.subject.execution(key, LoopRuntime(), again):
                self.under_way.add(key)
                await self._ends[key].wait()
                self.under_way.discard(key)

    async def end(self, *keys: str) -> None:
        """End the calls, which have begun or are about to."""
        for key in keys:
            self._ends[key].set()
            await self._tasks[key]

    async def see(self, *expected: str) -> None:
        """Check which calls come to be under way, and that no other has begun when all had time to."""
        end = time.monotonic() + PATIENCE
        while self.under_way != set(expected) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        await asyncio.sleep(10 * crash_guard.PAUSE)
        assert self.under_way == set(expected)


@contextlib.asynccontextmanager
async def suspicion(make: Make, *run_ids: str) -> AsyncIterator[Calls]:
    """Give the trials of a process with runs whose first call was executed twice before."""
    swarm = make(ScriptedModel(["Done."] * len(run_ids)))
    for run_id in run_ids:
        await swarm.run_async(Agent(), user("Please."), run_id=run_id)
        here.current().store.annotate(run_id, **{f"{TRIED}0.0": [0, crash_guard.EXECUTIONS - 1]})
    yield Calls(here.current().crash_guard)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look more often than a program would."""
    monkeypatch.setattr(crash_guard, "PAUSE", 0.01)


@on_loop
async def test_a_suspect_is_alone(make: Make) -> None:
    """It waits for what is under way, what is new waits for it, and neither keeps the runs of a call from going on."""
    async with suspicion(make, "suspect") as calls:
        calls.call("early/0.0")
        await calls.see("early/0.0")
        calls.call(SUSPECT, OpenCall("suspect", "tool", flow=False))
        await calls.see("early/0.0")
        calls.call("late/0.0")
        calls.call("late/1")
        calls.call("early/0.0/0/0.0")
        await calls.see("early/0.0", "early/0.0/0/0.0")
        await calls.end("early/0.0/0/0.0", "early/0.0")
        await calls.see(SUSPECT)
        calls.call(f"{SUSPECT}/0/0")
        calls.subject.lend("named", SUSPECT)
        calls.call("named/0.0")
        await calls.see(SUSPECT, f"{SUSPECT}/0/0", "named/0.0")
        calls.subject.lend("farther", "named/0.0")
        calls.call("farther/0.0")
        await calls.see(SUSPECT, f"{SUSPECT}/0/0", "named/0.0", "farther/0.0")
        await calls.end(f"{SUSPECT}/0/0", "farther/0.0", "named/0.0", SUSPECT)
        await calls.see("late/0.0", "late/1")
        await calls.end("late/0.0", "late/1")


@on_loop
async def test_a_suspect_inside_a_suspect_is_alone_with_it(make: Make) -> None:
    """A call of a run that a suspect started takes its turn within the other's, and not beside its siblings."""
    async with suspicion(make, "suspect", "inner") as calls:
        calls.call(SUSPECT, OpenCall("suspect", "tool", flow=False))
        await calls.see(SUSPECT)
        calls.subject.lend("inner", SUSPECT)
        calls.subject.lend("sibling", SUSPECT)
        calls.call("inner/0.0", OpenCall("inner", "tool", flow=False))
        await calls.see(SUSPECT, "inner/0.0")
        calls.call("sibling/0.0")
        await calls.see(SUSPECT, "inner/0.0")
        await calls.end("inner/0.0")
        await calls.see(SUSPECT, "sibling/0.0")
        await calls.end("sibling/0.0", SUSPECT)


@on_loop
async def test_no_wait_is_for_ever(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has gone on for a while is suspected no more: a suspect begins beside it, and others beside the suspect."""
    monkeypatch.setattr(crash_guard, "PROVEN", 0.3)
    async with suspicion(make, "suspect") as calls:
        calls.call("early/0.0")
        await asyncio.sleep(0)
        calls.call(SUSPECT, OpenCall("suspect", "tool", flow=False))
        calls.call("late/0.0")
        async with asyncio.timeout(10):
            while len(calls.under_way) < 3:
                await asyncio.sleep(0.01)
        await calls.end("early/0.0", "late/0.0", SUSPECT)


@on_loop
async def test_a_long_call_keeps_no_suspect_waiting(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that a call starts when it has gone on for long wait as others do: there might be no end of them."""
    monkeypatch.setattr(crash_guard, "PROVEN", 1.0)
    async with suspicion(make, "suspect") as calls:
        calls.call("long/0.0")
        await asyncio.sleep(crash_guard.PROVEN)
        calls.call("early/0.0")
        await calls.see("long/0.0", "early/0.0")
        calls.call(SUSPECT, OpenCall("suspect", "tool", flow=False))
        await calls.see("long/0.0", "early/0.0")
        calls.call("long/0.0/0/0.0")
        await calls.see("long/0.0", "early/0.0")
        await calls.end("early/0.0")
        await calls.see("long/0.0", SUSPECT)
        await calls.end(SUSPECT)
        await calls.see("long/0.0", "long/0.0/0/0.0")
        await calls.end("long/0.0/0/0.0", "long/0.0")


@on_loop
async def test_a_suspect_that_never_began_leaves_no_trace(make: Make) -> None:
    """When a suspect's wait is broken off, others wait for it no more."""
    async with suspicion(make, "suspect") as calls:
        calls.call("early/0.0")
        await calls.see("early/0.0")
        calls.call(SUSPECT, OpenCall("suspect", "tool", flow=False))
        await calls.see("early/0.0")
        task = calls._tasks[SUSPECT]
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        calls.call("late/0.0")
        await calls.see("early/0.0", "late/0.0")
        await calls.end("early/0.0", "late/0.0")


@on_loop
async def test_the_turn_of_a_call_whose_run_has_left_ends_with_the_call(make: Make) -> None:
    """A run that is taken over while its suspect waits records no outcome, and others wait for none."""
    async with suspicion(make, "suspect") as calls:
        calls.call("early/0.0")
        await calls.see("early/0.0")
        again = OpenCall("suspect", "tool", flow=False)

        async def alone() -> None:
            async with calls.subject.execution(SUSPECT, LoopRuntime(), again):
                pass

        with calls.subject.until_recorded(SUSPECT):
            left = asyncio.create_task(alone())
            while not calls.subject.is_alone:
                await asyncio.sleep(0.01)
        await calls.end("early/0.0")
        await left
        assert not calls.subject.is_alone
        calls.call("late/0.0")
        await calls.see("late/0.0")
        await calls.end("late/0.0")


@on_loop
async def test_a_call_of_a_run_that_was_taken_over_is_not_counted(make: Make) -> None:
    """An execution that lost its run while the call waited neither makes the call nor changes the owner's count."""

    def lost() -> None:
        raise OwnershipLost("suspect")

    async with suspicion(make, "suspect") as calls:
        store, before = here.current().store, [0, crash_guard.EXECUTIONS - 1]
        again = OpenCall("suspect", "tool", flow=False, verify_ownership=lost)
        with pytest.raises(OwnershipLost):
            async with calls.subject.execution(SUSPECT, LoopRuntime(), again):
                pytest.fail("the call was made")
        assert notes_on(store.found("suspect"))[f"{TRIED}0.0"] == before
        assert not calls.subject.is_alone


@on_loop
async def test_no_turn_is_longer_than_a_suspicion(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that was made, and whose outcome is recorded much later, keeps no others waiting until then."""
    async with suspicion(make, "suspect") as calls:
        with calls.subject.until_recorded(SUSPECT):
            async with calls.subject.execution(SUSPECT, LoopRuntime(), OpenCall("suspect", "tool", flow=False)):
                pass
            calls.call("late/0.0")
            await calls.see()
            monkeypatch.setattr(crash_guard, "PROVEN", 0.3)
            await calls.see("late/0.0")
            await calls.end("late/0.0")


@on_loop
@pytest.mark.parametrize("noted", [None, [0, 1], [0, crash_guard.EXECUTIONS - 1], [0, crash_guard.EXECUTIONS]])
async def test_who_stood_still_has_not_died(noted: list[int] | None, make: Make) -> None:
    """A call that was taken over from a living process may begin as often as if it had not been begun there."""
    swarm = make(ScriptedModel(["Done."]))
    await swarm.run_async(Agent(), user("Please."), run_id="r")
    store, subject = here.current().store, here.current().crash_guard
    store.annotate("r", **{f"{TRIED}0.0": noted})
    async with subject.execution("r/0.0", LoopRuntime(), OpenCall("r", "tool", flow=False, was_paused=True)):
        assert notes_on(store.found("r"))[f"{TRIED}0.0"][1] == (1 if noted is None else noted[1])
