"""The tool calls of one reply, made in order or together: each is a step or a workflow."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from durable_swarm.concurrency import CallerThreadExecutor, Runtime, beside
from durable_swarm.engine.execution.child_calls import CallGuard, ToolCall
from durable_swarm.engine.execution.colours import Colour, InThread, OnEventLoop
from durable_swarm.engine.execution.errors import engines_code
from durable_swarm.engine.execution.execution import Execution
from durable_swarm.engine.execution.tool_call import CallRequests, ToolCallExecution
from durable_swarm.engine.records import names, runs
from durable_swarm.engine.records.base import Record
from durable_swarm.loop import NOT_MADE, Call, CallAll, Outcome, absorb
from durable_swarm.tools.batch import ConcurrencyLimit, call_in_order, call_together
from durable_swarm.tools.changes import warn_of_lost_updates
from durable_swarm.tools.repeats import same_before
from durable_swarm.types import AgentLike


@dataclass(frozen=True)
class CallServices:
    """The services of a process for the tool calls of its runs."""

    on_loop: Callable[[Execution], Colour]
    """Returns the colour for a batch that runs concurrently beside a blocked thread."""
    place_call: Callable[[str, ToolCall], None]
    """Places an undecorated tool call where its workflow finds it."""
    crash_guard: CallGuard
    """Counts the calls that are executed again after a crash."""
    people: Callable[[ToolCall, str], CallRequests]
    """Returns the handler of the requests of a tool call."""


@dataclass(frozen=True)
class ToolBatch:
    """The tool calls of one reply, each made as the reply's record has planned it."""

    services: CallServices
    run: Execution
    colour: Colour
    agent: AgentLike
    effect: CallAll
    attempt: int
    """2 if an earlier execution may have begun these calls, else 1."""

    async def outcomes(self) -> list[Outcome]:
        """Make the calls, and return their outcomes in the order of the calls."""
        run, effect = self.run, self.effect
        if not effect.together:
            return await self._in_order()
        if isinstance(self.colour, InThread):
            outcomes = self._beside()
        else:
            outcomes = await call_together(effect.calls, self._maker(self.colour))
        if any(run.publisher.has_stamped(names.call_key(run.run_id, effect.turn, call.index)) for call in effect.calls):
            warn_of_lost_updates(run.run_id, effect.calls, outcomes)
        return outcomes

    def _beside(self) -> list[Outcome]:
        """Run the batch on the background loop, while this thread makes the calls of plain functions."""
        home = CallerThreadExecutor()
        self.run.caller_threads.append(home)
        try:
            return beside(
                lambda _: call_together(self.effect.calls, self._maker(self.services.on_loop(self.run))), home
            )
        finally:
            self.run.caller_threads.remove(home)

    def _maker(self, colour: Colour) -> Callable[[Call], Awaitable[Outcome]]:
        lane = ConcurrencyLimit(self.run.swarm.tool_concurrency)
        return lambda call: self._make(call, self.effect.context, colour, lane)

    async def _in_order(self) -> list[Outcome]:
        context = dict(self.effect.context)
        if len(self.effect.calls) > 1:
            await self._announce()

        async def one(call: Call) -> Outcome:
            outcome = await self._make(call, context, self.colour, None)
            absorb(context, outcome)
            return outcome

        return await call_in_order(self.effect.calls, one)

    async def _announce(self) -> None:
        """Open the requests for the approval of a batch at once, though its calls are made one after the other."""
        for call in self.effect.calls:
            if call.approval:
                key = names.call_key(self.run.run_id, self.effect.turn, call.index)
                await self._execution(self._call(call, self.effect.context, None), key, self.colour.waits).announce()

    def _call(self, call: Call, context: dict[str, Any], lane: ConcurrencyLimit | None) -> ToolCall:
        run, effect = self.run, self.effect
        new = effect.history[len(run.start.messages) :] if call.approval else []
        same = same_before(new, call.index) if call.approval else None
        position = sum(other.plan not in NOT_MADE for other in effect.calls[: call.index])
        refused = partial(run.budget.refused_call, effect.turn, position)
        return ToolCall(
            run, self.agent, effect.turn, call, context, self.attempt, lane, self.services.crash_guard, refused, same
        )

    def _execution(self, made: ToolCall, key: str, waits: Runtime) -> ToolCallExecution:
        return ToolCallExecution(made, key, None, waits, self.services.people(made, key))

    async def _make(
        self, call: Call, context: dict[str, Any], colour: Colour, lane: ConcurrencyLimit | None
    ) -> Outcome:
        """Make one tool call as planned."""
        if call.plan == "tell":
            return Outcome(call.text)
        run, key = self.run, names.call_key(self.run.run_id, self.effect.turn, call.index)
        made, started = self._call(call, context, lane), time.time()
        counted = contextlib.nullcontext() if made.attempt == 1 else self.services.crash_guard.until_recorded(key)
        with engines_code(f"tool call {key!r}"), counted:
            if call.plan == "step":

                async def body(waits: Runtime) -> Record:
                    return await self._execution(made, key, waits).record()

                record = await colour.step(names.tool_step(call.tool), body)
            else:
                self.services.place_call(key, made)
                child = partial(colour.child, key)
                record = await (made.wait.end(child) if isinstance(colour, OnEventLoop) else child())
            outcome = runs.read_outcome(record)
            run.publisher.returned(call.index, record)
            if run.trace is not None:
                run.trace.called(call, key, started, outcome.text)
            return outcome
