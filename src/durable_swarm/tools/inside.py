"""Functions that tools use while they run: `sleep`, `emit`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from durable_swarm.codec import as_json
from durable_swarm.concurrency import Runtime
from durable_swarm.errors import ConfigurationError
from durable_swarm.tools.context import Recorder, calling
from durable_swarm.tools.worktime import WorkTime
from durable_swarm.validation import check_seconds


def sleep(seconds: float) -> None:
    """Sleep. In a tool the end time is recorded, so a crash does not restart the time.

    Raises `ConfigurationError` inside a `@step`, which is one checkpoint and cannot record a time within.
    """
    recorder = _recorder("sleep", seconds)
    time.sleep(seconds) if recorder is None else recorder.sleep(seconds)


async def sleep_async(seconds: float) -> None:
    """Sleep as `sleep` does, on the event loop."""
    recorder = _recorder("sleep_async", seconds)
    await (asyncio.sleep(seconds) if recorder is None else recorder.sleep_async(seconds))


def emit(progress: str | dict[str, Any]) -> None:
    """Report the progress of a tool or step to readers of the run, as JSON data: an event `tool.progress`.

    It is sent once per execution: an interrupted tool sends it again when it is executed again, with a higher
    `attempt`. Outside a tool, and in a `Swarm` in memory, it has no effect. A thread or task that outlives the tool
    emits nothing after the tool's end.

    A thread that the tool starts knows of the tool only if it is started with its context:
    `executor.submit(contextvars.copy_context().run, work)`, or `asyncio.to_thread`.

    Raises `ConfigurationError` for a value that is neither a text nor a dictionary, `NotSerializable` for one that is
    not JSON.
    """
    if not isinstance(progress, str | dict):
        raise ConfigurationError(f"emit() takes a text or a dictionary, not a {type(progress).__name__}")
    data = as_json(progress, "emit()")
    here = calling()
    if here is not None and here.emit is not None:
        here.check()
        here.emit(here.call.attempt, data)


class MemoryRecorder:
    """The recorder of runs in memory: nothing is recorded, steps are plain calls, sleeping does not count as work."""

    def __init__(self, work: WorkTime) -> None:
        self._work = work

    def step(self, name: str, body: Callable[[], object]) -> Any:
        return body()

    async def mark(self, waits: Runtime) -> bool:
        return True

    def sleep(self, seconds: float) -> None:
        with self._work.waiting():
            time.sleep(seconds)

    async def sleep_async(self, seconds: float) -> None:
        with self._work.waiting():
            await asyncio.sleep(seconds)


IN_MEMORY: Recorder = MemoryRecorder(WorkTime())
"""For a step inside a step, which is a plain call."""


def _recorder(word: str, seconds: float) -> Recorder | None:
    check_seconds(f"{word}: seconds", seconds)
    here = calling()
    if here is not None and here.recorder is None:
        raise ConfigurationError(
            f"{word}() inside a @step of tool {here.call.tool!r} would not survive a crash; "
            "take @step off the tool, or sleep outside the step"
        )
    if here is None:
        return None
    here.check()
    return here.recorder
