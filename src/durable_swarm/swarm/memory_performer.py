"""Performs the effects of the loop in memory: models are asked and tools called, and nothing is recorded."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from durable_swarm.concurrency import BlockingRuntime, LoopRuntime, Runtime, beside
from durable_swarm.errors import ModelError
from durable_swarm.guardrails import guardrails_of, output_guardrails
from durable_swarm.limits import Spent
from durable_swarm.loop import Ask, Call, CallAll, Effect, Guard, Outcome, Reply
from durable_swarm.models.call import Completion, ModelCall, complete
from durable_swarm.models.choice import choose_model
from durable_swarm.models.prices import cost_of, refuse_unpriced
from durable_swarm.models.provider_errors import long_pause
from durable_swarm.models.verdict import judge
from durable_swarm.models.wire import Conversation
from durable_swarm.observing import executing, observers_of, run_ended
from durable_swarm.requests import Decision, RequestSpec
from durable_swarm.streaming import Channel
from durable_swarm.swarm.arguments import RunArguments
from durable_swarm.swarm.collected_trace import CollectedTrace, end_of
from durable_swarm.swarm.compaction import Compaction, check_summary
from durable_swarm.swarm.memory_guards import MemoryGuards
from durable_swarm.swarm.memory_limits import MemorySpending, spending_from
from durable_swarm.swarm.memory_requests import WaitingAtWork
from durable_swarm.swarm.memory_sessions import MemoryTurn
from durable_swarm.swarm.summaries import model_of, written_by_model
from durable_swarm.tools.approval import approval_of, approved, later_of, posted
from durable_swarm.tools.batch import ConcurrencyLimit, call_in_order, call_together, runs_together
from durable_swarm.tools.calls import (
    Cast,
    call_tool,
    find_tool,
    load_tools,
    not_found,
    not_made,
    plan_calls,
    read_result,
)
from durable_swarm.tools.changes import Change, warn_of_lost_updates
from durable_swarm.tools.context import CurrentCall, Inside
from durable_swarm.tools.inside import MemoryRecorder
from durable_swarm.tools.repeats import failing_in_a_row, same_before, step_number
from durable_swarm.types import AgentLike, Block, Message, Usage

if TYPE_CHECKING:
    from durable_swarm.swarm.memory import Swarm


@dataclass
class InMemory:
    """Performs the effects of one run.

    Calls made one after the other get the context itself, not a copy, as in Swarm.
    """

    swarm: Swarm
    asked: RunArguments
    run_id: str
    waits: Runtime
    client: Any
    channel: Channel | None = None
    cast: Cast = field(default_factory=dict)
    conversation: Conversation = field(default_factory=Conversation)
    turn: MemoryTurn | None = None
    """The run's part in a session, or None."""

    def __post_init__(self) -> None:
        self.cast[self.asked.agent.name] = self.asked.agent
        given, default = self.asked.limits, self.swarm.limits
        session = None if self.turn is None else self.turn.spending
        self.spending = MemorySpending.of(self.run_id, given, default, self.swarm.inbox, self.waits, session)
        self.guards = MemoryGuards(self.channel)
        self.trace = self._trace() if observers_of(self.swarm) else None

    async def __call__(self, effect: Effect) -> Reply | list[Outcome] | Block | bool:
        if self.turn is not None:
            self.turn.at(effect)
        if isinstance(effect, Ask):
            return await self._ask(effect)
        if isinstance(effect, CallAll):
            return await self._call_all(effect)
        if isinstance(effect, Guard):
            return await self.guards.verdict(effect, self.cast[effect.agent])
        return self.turn is not None and not self.turn.close(effect)

    async def _ask(self, effect: Ask) -> Reply:
        agent = self.cast[effect.agent]
        await load_tools(agent, self.waits)
        choice = choose_model(agent, self.asked.model_override, self.swarm.default_model)
        if self.spending.limits_cost():
            refuse_unpriced(self.swarm.prices, choice.name)
        last = await self.spending.reserve(effect.agent, failing_in_a_row(self._new(effect), effect.turn))
        heard = [] if self.turn is None else self.turn.hear()
        if self.channel is not None:
            self.channel.begin(effect.agent, effect.turn)
        guards = [] if effect.turn else list(guardrails_of(agent, "input"))
        self.guards.begin(agent, "input", guards, effect.history, effect.context)
        started = time.time()
        with self.spending.model_call(), executing(self.swarm, "model", choice.name, agent.name) as seen:
            completion = await self._patiently(
                lambda: complete(
                    self.client,
                    agent,
                    [*effect.history, *heard],
                    effect.context,
                    conversation=self.conversation,
                    choice=choice,
                    debug=self.asked.debug,
                    call=ModelCall(self.run_id, effect.turn),
                    waits=self.waits,
                    show=self.channel,
                    tools=not last,
                )
            )
            seen.usage = completion.usage
        if self.turn is not None:
            self.turn.tokens = 0 if completion.usage is None else completion.usage.total_tokens
        self._pay(completion)
        # A session counts as one run: its earlier calls are known to its tools.
        before = self._new(effect) if self.turn is None else effect.history
        calls = await plan_calls(agent, completion.message, self.waits, completion.finish, before, last)
        verdict = judge(agent, completion.message, completion.finish, effect.misfits)
        together = runs_together(agent, calls, self.swarm.tool_concurrency)
        checks = output_guardrails(agent, completion.message, verdict)
        if self.channel is not None and not guards and not checks:
            self.channel.end()
        reply = Reply(
            completion.message,
            calls,
            completion.usage,
            together,
            heard,
            completion.finish,
            verdict=verdict,
            limit=last,
            input_guardrails=guards,
            output_guardrails=checks,
        )
        if self.trace is not None:
            self.trace.replied(effect, choice.name, started, reply)
        return reply

    def tell_end(self, ended_by: str, error: BaseException | None = None) -> None:
        """Tell those who observe the swarm that the run ends."""
        if self.trace is not None:
            run_ended(self.swarm, functools.partial(self.trace.ended, end_of(ended_by, error)))

    def _trace(self) -> CollectedTrace:
        return CollectedTrace(
            self.run_id, self.run_id, self.asked.agent.name, time.time(), messages=lambda: self.asked.messages
        )

    def _pay(self, completion: Completion) -> None:
        """Count what an answered model call has cost."""
        cost = cost_of(self.swarm.prices, completion, limited=self.spending.limits_cost())
        self.spending.add(Spent(usage=completion.usage or Usage(), cost=cost))

    async def _patiently(self, ask: Callable[[], Awaitable[Completion]]) -> Completion:
        """Ask the model, again and again if its provider is away and the run was given patience."""
        end = time.monotonic() + (self.asked.provider_patience or 0)
        for failures in count(1):
            try:
                return await ask()
            except ModelError as error:
                left = end - time.monotonic()
                if not error.away or left <= 0:
                    raise
                wished = error.retry_after or long_pause(failures)
            with self.spending.work.waiting():
                await self.waits.sleep(min(wished, left))
        raise AssertionError("unreachable")

    def _new(self, effect: Ask | CallAll) -> list[Message]:
        before = [] if self.turn is None else self.turn.before
        return effect.history[len(before) + len(self.asked.messages) :]

    async def compact(self, compaction: Compaction | None, new: list[Message]) -> Usage | None:
        """Summarize the first messages of the session, if they have become too many; return the tokens of that."""
        turn = self.turn
        if turn is None or compaction is None or not turn.history.crosses(compaction, new):
            return None
        at, usage = turn.history.first(compaction, new), None
        messages = copy.deepcopy(turn.history.to_summarize(at))
        if at == 0:
            return None
        if compaction.function is not None:
            text = check_summary(await self.waits.call(compaction.function, messages))
        else:
            agents = choose_model(self.asked.agent, self.asked.model_override, self.swarm.default_model)
            choice = model_of(compaction, agents)
            if self.spending.limits_cost():
                refuse_unpriced(self.swarm.prices, choice.name)
            await self.spending.reserve(self.asked.agent.name, 0)
            with self.spending.model_call():
                completion = await written_by_model(
                    self.client,
                    *(self.asked.agent.name, choice, compaction, messages, ModelCall(self.run_id, -1), self.waits),
                    debug=self.asked.debug,
                )
            self._pay(completion)
            text, usage = check_summary(completion.message.get("content")), completion.usage
        turn.history, turn.conversation = turn.history.summarized(at, text), Conversation()
        return usage

    async def _call_all(self, effect: CallAll) -> list[Outcome]:
        agent = self.cast[effect.agent]
        if not effect.together:
            self._announce(agent, effect)
            return await call_in_order(
                effect.calls,
                lambda call: self._kept(call, self._call(agent, effect, call, effect.context, self.waits)),
            )
        outcomes = await self._call_together(agent, effect)
        warn_of_lost_updates(self.run_id, effect.calls, outcomes)
        return outcomes

    async def _call_together(self, agent: AgentLike, effect: CallAll) -> list[Outcome]:
        width = self.swarm.tool_concurrency
        lane = ConcurrencyLimit(width)

        async def batch(waits: Runtime) -> list[Outcome]:
            def one(call: Call) -> Awaitable[Outcome]:
                function = find_tool(agent, call.tool)
                return lane.run(function, lambda: self._kept(call, self._call_apart(agent, effect, call, waits)))

            return await call_together(effect.calls, one)

        if not isinstance(self.waits, BlockingRuntime):
            return await batch(self.waits)
        return beside(lambda here: batch(here if width == 1 else LoopRuntime()))

    async def _kept(self, call: Call, making: Awaitable[Outcome]) -> Outcome:
        """Await the outcome of a call, and keep its text for the session, where a run may fail with another call."""
        outcome = await making
        if self.turn is not None:
            self.turn.results[call.index] = outcome.text
        return outcome

    def _announce(self, agent: AgentLike, effect: CallAll) -> None:
        """Open the approval requests of a batch at once, although its calls are made one after the other."""
        for call in effect.calls:
            function = find_tool(agent, call.tool) if call.approval else None
            if function is not None:
                self.swarm.inbox.open(self._approval(function, effect, call))

    async def _call_apart(self, agent: AgentLike, effect: CallAll, call: Call, waits: Runtime) -> Outcome:
        """Make a call of a batch made together: its changes of the context reach the other calls after the batch."""
        change, context = Change.watch(effect.context, is_stored=False)
        return change.read(await self._call(agent, effect, call, context, waits), context)

    async def _call(
        self, agent: AgentLike, effect: CallAll, call: Call, context: dict[str, object], waits: Runtime
    ) -> Outcome:
        function = find_tool(agent, call.tool)
        if call.plan == "tell":
            return Outcome(call.text)
        if function is None:  # An earlier call of the reply has taken the tool away.
            return Outcome(not_found(agent, call.tool))
        current, inbox = self._current(effect, call), self.swarm.inbox
        if limit := await self.spending.reserve_call(effect.agent):
            return Outcome(not_made(limit))
        if call.approval:
            asked = self._approval(function, effect, call)
            call, refused = await approved(asked, function, call, inbox, waits)
            if refused is not None:
                return refused
        work = self.spending.work
        waits_at_work, limited_by = WaitingAtWork(inbox, work), self.spending.run_ids
        here = Inside(current, MemoryRecorder(work), waits_at_work, swarm=self.swarm, limited_by=limited_by)
        tell = self.swarm.tool_errors == "tell"
        key, started = current.idempotency_key, time.time()
        seen = executing(self.swarm, "tool", call.tool, effect.agent, self.run_id, key)
        with work.working(), spending_from(self.spending), seen:
            outcome = await call_tool(function, call, context, here, cast=self.cast, tell_errors=tell, waits=waits)
        if self.trace is not None:
            self.trace.called(call, key, started, outcome.text)
        inbox.close(current.idempotency_key)
        if outcome.later is None:
            return outcome
        decision: Decision = await waits.call(inbox.wait, later_of(call, current, outcome.later))
        return posted(decision, lambda value: read_result(value, self.cast), outcome)

    def _approval(self, function: Callable[..., object], effect: CallAll, call: Call) -> RequestSpec:
        new = self._new(effect)
        same = same_before(new, call.index)
        number = None if same is None else step_number(new, same)
        return approval_of(function, call, self._current(effect, call), number)

    def _current(self, effect: CallAll, call: Call) -> CurrentCall:
        key = f"{self.run_id}/{effect.turn}.{call.index}"
        return CurrentCall(self.run_id, effect.agent, call.tool, call.id, 1, key)
