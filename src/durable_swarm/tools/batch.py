"""Makes the calls of one reply in order or together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from durable_swarm.awaitables import is_async
from durable_swarm.concurrency import together
from durable_swarm.loop import NOT_MADE, Call, Outcome, known
from durable_swarm.tools.calls import find_tool
from durable_swarm.types import AgentLike


class ConcurrencyLimit:
    """Decides which calls of a batch run together: async tools always, plain functions `width` at a time."""

    def __init__(self, width: int) -> None:
        self._places = asyncio.Semaphore(width)

    async def run(self, function: object, body: Callable[[], Awaitable[Outcome]]) -> Outcome:
        """Make one call when a slot is free."""
        if is_async(function):
            return await body()
        async with self._places:
            return await body()


async def call_in_order(calls: list[Call], one: Callable[[Call], Awaitable[Outcome]]) -> list[Outcome]:
    """Make the calls one after the other."""
    outcomes: list[Outcome] = []
    for call in calls:
        outcomes.append(known(call, outcomes) or await one(call))
    return outcomes


async def call_together(calls: list[Call], one: Callable[[Call], Awaitable[Outcome]]) -> list[Outcome]:
    """Make the calls together; all finish, then the first exception in the model's order is raised."""
    return await together(one(call) for call in calls)


def runs_together(agent: AgentLike, calls: list[Call], tool_concurrency: int) -> bool:
    """Return True if a batch runs together: several calls, one of them async or plain functions may overlap."""
    made = [call for call in calls if call.plan not in NOT_MADE]
    if len(made) < 2 or any(call.plan == "same" for call in calls):
        return False  # A twin's outcome is that of an earlier call.
    return tool_concurrency > 1 or any(is_async(find_tool(agent, call.tool)) for call in made)
