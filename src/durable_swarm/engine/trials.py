"""Tools that end their process: how often each open call was executed, and when it is enough.

A crash makes the call in flight run again. If the call itself is the cause (it calls `os._exit`, breaks in native code,
eats all memory), that would go on for ever, and take every other run of the process down each time. So a call that is
executed once more after a crash is counted in its run's row, and given up in the end. What does not count: a shutdown
in good order, a tool that sleeps durably, a tool one of whose own steps was recorded meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

from durable_swarm import errors
from durable_swarm.engine import records
from durable_swarm.engine.failures import engines_code
from durable_swarm.engine.signals import Failed
from durable_swarm.engine.store import TRIED, Store
from durable_swarm.waits import in_thread

EXECUTIONS = 3
"""How often, at most, a call is executed that ends its process each time."""

PROVEN, EXECUTIONS_OF_LONG = 60.0, 10
"""Seconds after which the call is no longer suspected to be what ends the process, and its limit from then on: a tool
that takes hours may well be in flight at every restart."""

PAUSE = 0.1
"""Seconds between looks for the turn of a suspect."""


class Tried(NamedTuple):
    """What stands in a run's row of an open call."""

    inner: int
    """How many records of its own the call had left when it was last begun."""
    times: int
    """How often it was begun at this point."""
    long: bool = False
    """Whether it has gone on for `PROVEN` seconds."""


class Trials:
    """Counts the executions of calls that a crash left open; the third and later ones take place one at a time."""

    def __init__(self, store: Store, still_open: Callable[[], None]) -> None:
        self._store = store
        self._still_open = still_open
        self._lock = threading.Lock()
        self._open: dict[str, tuple[str, Tried]] = {}
        """The counted calls that were begun here and have not ended, with their runs."""
        self._alone: str | None = None
        """The call whose turn it is."""

    @contextlib.asynccontextmanager
    async def trial(self, run_id: str, key: str, tool: str, *, flow: bool) -> AsyncIterator[None]:
        """Round the execution of a call that an earlier life may have begun; `flow` says that it has own records.

        Raises `Failed` if the call was executed often enough.
        """
        with engines_code(f"tool call {key!r}"):
            tried = await self._count(run_id, key, tool, flow)
        proof = None if tried is None else asyncio.create_task(self._prove(run_id, key, tried))
        try:
            yield
        finally:
            if proof is not None:
                proof.cancel()

    @contextlib.contextmanager
    def until_recorded(self, key: str) -> Iterator[None]:
        """Round a call from before its trial until what came of it is recorded: until then it counts as open.

        The next suspect must not begin earlier: if it ended the process, this one would be blamed.
        """
        try:
            yield
            self._open.pop(key, None)
        except Failed:
            self._open.pop(key, None)
            raise
        finally:
            self._leave_turn(key)

    async def _count(self, run_id: str, key: str, tool: str, flow: bool) -> Tried | None:
        """Count one more execution and wait for its turn; None if it is not to be counted."""
        if key in self._open:  # Begun here before: what was in between was no crash.
            return None
        before, sleeps = await in_thread(self._read, run_id, key, flow)
        if sleeps:
            return None
        tried = before._replace(times=before.times + 1)
        if tried.times > (EXECUTIONS_OF_LONG if tried.long else EXECUTIONS):
            raise _given_up(run_id, tool, before.times)
        while tried.times >= EXECUTIONS and not self._take_turn(key):
            self._still_open()
            await asyncio.sleep(PAUSE)
        await in_thread(self._write, run_id, key, tried)
        self._open[key] = run_id, tried
        return tried

    def _read(self, run_id: str, key: str, flow: bool) -> tuple[Tried, bool]:
        """Give how often the call was executed since its last record, and whether it sleeps."""
        steps = self._store.steps(key) if flow else []
        row = self._store.row(run_id, load_output=False)
        noted = ((row and row.attributes) or {}).get(_name(key))
        last = steps[-1] if steps else None
        sleeps = last is not None and last.function_name == "DBOS.sleep" and _later(last.output)
        if isinstance(noted, list) and noted and noted[0] == len(steps):
            return Tried(*noted), sleeps
        return Tried(len(steps), 1), sleeps  # The life before came to this point: it began what is open now.

    def _write(self, run_id: str, key: str, tried: Tried) -> None:
        self._store.annotate(run_id, **{_name(key): list(tried)})

    async def _prove(self, run_id: str, key: str, tried: Tried) -> None:
        """Some time later: the call does not end its process soon, if at all."""
        await asyncio.sleep(PROVEN)
        self._leave_turn(key)
        with contextlib.suppress(errors.DurableSwarmError):
            await in_thread(self._write, run_id, key, tried._replace(long=True))

    def _take_turn(self, key: str) -> bool:
        with self._lock:
            if self._alone is None:
                self._alone = key
            return self._alone == key

    def _leave_turn(self, key: str) -> None:
        with self._lock:
            if self._alone == key:
                self._alone = None

    def close(self) -> None:
        """Take back the count of what is under way: this process ends in good order."""
        for key, (run_id, tried) in list(self._open.items()):
            with contextlib.suppress(errors.DurableSwarmError):
                self._write(run_id, key, tried._replace(times=tried.times - 1))
        self._open.clear()


def _name(key: str) -> str:
    return TRIED + key.rpartition("/")[2]


def _later(moment: Any) -> bool:
    return isinstance(moment, int | float) and moment > time.time()


def _given_up(run_id: str, tool: str, count: int) -> Failed:
    step = records.tool_step(tool)
    error = errors.RunFailed(
        f"run {run_id!r} was given up: tool {tool!r} was being executed when its process died, {count} times in a row; "
        "mend the tool and call Run.resume()",
        run_id=run_id,
    )
    return Failed(error, step)
