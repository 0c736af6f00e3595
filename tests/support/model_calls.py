"""Making single model calls in tests: the real `complete`, with pauses that are noted and not slept."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from durable_swarm import Agent
from durable_swarm.concurrency import BlockingRuntime, LoopRuntime, finish
from durable_swarm.models.call import Completion, ModelCall, complete
from durable_swarm.models.choice import choose_model
from durable_swarm.models.wire import Conversation
from durable_swarm.types import Message


@dataclass
class Naps:
    """The pauses that were asked for, in seconds."""

    taken: list[float] = field(default_factory=list)


@dataclass
class Shown:
    """The deltas shown since the last reset, how many there were at each reset, and the threads that showed them."""

    deltas: list[dict[str, Any]] = field(default_factory=list)
    resets: list[int] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)

    def delta(self, delta: dict[str, Any]) -> None:
        self.deltas.append(delta)
        self.threads.add(threading.current_thread().name)

    def reset(self) -> None:
        self.resets.append(len(self.deltas))
        self.deltas.clear()

    @property
    def text(self) -> str:
        """The content so far."""
        return "".join(delta.get("content", "") for delta in self.deltas)


class NappingBlocking(BlockingRuntime):
    """Waits in the calling thread, and only notes how long it should sleep."""

    def __init__(self, naps: Naps) -> None:
        self._naps = naps

    async def sleep(self, seconds: float) -> None:
        self._naps.taken.append(seconds)


class NappingOnLoop(LoopRuntime):
    """Waits on the event loop, and only notes how long it should sleep."""

    def __init__(self, naps: Naps) -> None:
        super().__init__()
        self._naps = naps

    async def sleep(self, seconds: float) -> None:
        self._naps.taken.append(seconds)


def ask(
    client: Any,
    history: list[Message] | None = None,
    *,
    agent: Any = None,
    context: dict[str, Any] | None = None,
    model_override: str | None = None,
    debug: bool = False,
    naps: Naps | None = None,
    on_loop: bool = False,
    turn: int = 0,
    close: Callable[[], Awaitable[None]] | None = None,
    show: Any = None,
) -> Completion:
    """Make one model call, with its retries, in this thread or on an event loop, where `close` ends it."""
    naps = naps or Naps()

    async def call(waits: Any) -> Completion:
        return await complete(
            client,
            agent or Agent(),
            [{"role": "user", "content": "Hi"}] if history is None else history,
            context or {},
            conversation=Conversation(),
            choice=choose_model(agent or Agent(), model_override, None),
            debug=debug,
            call=ModelCall("run", turn),
            waits=waits,
            show=show,
        )

    async def call_and_close() -> Completion:
        try:
            return await call(NappingOnLoop(naps))
        finally:
            if close is not None:
                await close()

    if on_loop:
        return asyncio.run(call_and_close())
    return finish(call(NappingBlocking(naps)))
