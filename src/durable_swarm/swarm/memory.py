"""`Swarm`: the loop in memory, with Swarm's own methods. `DurableSwarm` has the same and is in `engine`."""

from __future__ import annotations

import asyncio
import copy
import functools
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Self

from durable_swarm import ends
from durable_swarm.background import background_loop, on_background
from durable_swarm.concurrency import (
    BlockingRuntime,
    CallerThreadExecutor,
    LoopRuntime,
    Runtime,
    beside,
    contained,
    finish,
    result_of,
    running_loop,
)
from durable_swarm.errors import ConfigurationError, LimitReached, ModelError, qualified_name, safe_text
from durable_swarm.guardrails import guarded_turns, guardrails_of, output_guardrails
from durable_swarm.limits import DEFAULT_LIMITS, Limits, Spent, check_limits
from durable_swarm.loop import Ask, Call, CallAll, Effect, Ending, Guard, Outcome, Reply, Start, drive, total
from durable_swarm.models.call import Completion, ModelCall, complete
from durable_swarm.models.choice import choose_model
from durable_swarm.models.client import Clients
from durable_swarm.models.prices import Prices, check_prices, cost_of, refuse_unpriced
from durable_swarm.models.provider_errors import long_pause
from durable_swarm.models.verdict import judge
from durable_swarm.models.wire import Conversation
from durable_swarm.observing import executing, observers_of, run_ended
from durable_swarm.requests import Decision, RequestSpec
from durable_swarm.requests import Request as HumanRequest
from durable_swarm.streaming import PATIENCE, Channel, Item, read, read_async
from durable_swarm.sub_agents import failed_child
from durable_swarm.swarm.answering import fits_code
from durable_swarm.swarm.arguments import RunArguments, check_settings, respond
from durable_swarm.swarm.collected_trace import CollectedTrace, end_of
from durable_swarm.swarm.compaction import Compaction, check_summary
from durable_swarm.swarm.memory_guards import MemoryGuards
from durable_swarm.swarm.memory_limits import MemorySpending, spending_from
from durable_swarm.swarm.memory_requests import MemoryInbox, WaitingAtWork
from durable_swarm.swarm.memory_sessions import MemoryConversation, MemorySession, MemoryTurn
from durable_swarm.swarm.runner import Runner
from durable_swarm.swarm.session import Session, check_session
from durable_swarm.swarm.summaries import model_of, written_by_model
from durable_swarm.tools.approval import approval_of, approved, later_of, posted
from durable_swarm.tools.batch import ConcurrencyLimit, call_in_order, call_together, runs_together
from durable_swarm.tools.calls import Cast, call_tool, find_tool, load_tools, not_made, plan_calls, read_result
from durable_swarm.tools.changes import Change, warn_of_lost_updates
from durable_swarm.tools.context import CurrentCall, Inside, calling
from durable_swarm.tools.inside import MemoryRecorder
from durable_swarm.tools.repeats import failing_in_a_row, same_before, step_number
from durable_swarm.types import AgentLike, Block, Message, Response, Usage
from durable_swarm.validation import LONGEST_ID, check_name, check_whole

StreamedRun = Callable[[Runtime, Any, Channel], Coroutine[Any, Any, Response]]
"""Executes a run with a way to wait and a client, and passes what its model says to a channel."""


class Swarm(Runner):
    """Runs agents in memory: OpenAI Swarm's client. Nothing is stored; see `DurableSwarm` for runs that survive.

    `client` is anything with `client.chat.completions.create(**kwargs)`, sync or async; by default `openai`'s, made at
    first use. `tool_concurrency` above 1 lets plain functions of one reply run together; `tool_errors="tell"` reports a
    tool's exception to the model, where `"raise"` ends the run with it. `default_model` is asked for agents that name
    no model, else `$DURABLE_SWARM_MODEL`, else `gpt-4o`.
    """

    def __init__(
        self,
        client: Any = None,
        *,
        tool_concurrency: int = 1,
        tool_errors: str = "raise",
        default_model: str | None = None,
        limits: Limits | None = DEFAULT_LIMITS,
        prices: Prices | None = None,
    ) -> None:
        check_settings(client, tool_concurrency, tool_errors, default_model)
        self.clients = Clients(client)
        self.tool_concurrency = tool_concurrency
        self.tool_errors = tool_errors
        self.default_model = default_model
        self.limits = check_limits(limits)
        self.prices = check_prices(prices)
        self.inbox = MemoryInbox()
        self.conversations: dict[str, MemoryConversation] = {}
        """The sessions, by id."""
        self.session_lock = threading.Lock()
        self._streaming: set[asyncio.Task[Any]] = set()

    def close(self) -> None:
        """Close the client, if this object made it, and release threads."""
        self.clients.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def requests(self) -> list[HumanRequest]:
        """Return the open requests of the runs in progress, oldest first."""
        return self.inbox.open_requests()

    def _decide(self, request_id: str, decision: Decision, by: str | None) -> None:
        approves = decision.verdict == "approved"
        self.inbox.decide(request_id, decision, by, (lambda asked: fits_code(asked, decision)) if approves else None)

    def _complete(self, token: str, decision: Decision, by: str | None) -> bool:
        return self.inbox.complete(token, decision, by)

    def _respond(self, asked: RunArguments, run_id: str | None) -> Response:
        return finish(self._run(asked, run_id, BlockingRuntime(), self.clients.get()))

    async def _respond_async(self, asked: RunArguments, run_id: str | None) -> Response:
        return await self._run(asked, run_id, LoopRuntime(), self.clients.get(asyncio.get_running_loop()))

    async def run_child(
        self, agent: AgentLike, message: str, context_variables: dict[str, Any], limits: Limits | None = None
    ) -> Response:
        """Run the agent for the tool call in progress and return its response. Raises `RunFailed`."""
        asked = RunArguments(agent, [{"role": "user", "content": message}], context_variables, limits=limits)
        run_id = _inner_id() or str(uuid.uuid4())
        try:
            return await self._run(asked, run_id, LoopRuntime(), self.clients.get(asyncio.get_running_loop()))
        except BaseException as error:
            failure = ends.failure_of(error)
            if failure is None or isinstance(failure, LimitReached):
                raise
            raise failed_child(run_id, agent.name, qualified_name(failure), safe_text(failure)) from failure

    def _stream(self, asked: RunArguments, run_id: str | None) -> Iterator[Item]:
        return self.streamed(lambda waits, client, channel: self._run(asked, run_id, waits, client, channel))

    def streamed(self, run: StreamedRun) -> Iterator[Item]:
        """Execute a run on the background loop, and pass the dictionaries to the calling thread."""
        if running_loop() is background_loop():
            raise ConfigurationError(
                "run(stream=True) would stop the event loop on which it is executed; in an async tool iterate "
                "run_async(..., stream=True)"
            )
        client, channel = self.clients.get(background_loop()), Channel()
        with CallerThreadExecutor(PATIENCE) as home:
            over = on_background(contained(run(LoopRuntime(home), client, channel)))
            try:
                yield from read(channel, home, over)
            finally:
                channel.close()
        yield {"response": result_of(over.result())}

    def _stream_async(self, asked: RunArguments, run_id: str | None) -> AsyncIterator[Item]:
        return self.streamed_async(lambda waits, client, channel: self._run(asked, run_id, waits, client, channel))

    async def streamed_async(self, run: StreamedRun) -> AsyncIterator[Item]:
        """Execute a run on the running loop, and pass the dictionaries to it."""
        loop, channel = asyncio.get_running_loop(), Channel()
        over = loop.create_task(contained(run(LoopRuntime(), self.clients.get(loop), channel)))
        self._streaming.add(over)
        over.add_done_callback(self._streaming.discard)
        try:
            async for item in read_async(channel, over):
                yield item
        finally:
            channel.close()
        yield {"response": result_of(over.result())}

    async def _run(
        self, asked: RunArguments, run_id: str | None, waits: Runtime, client: Any, channel: Channel | None = None
    ) -> Response:
        if run_id is not None:
            check_name("run_id", run_id, LONGEST_ID)
        performer = _InMemory(self, asked, run_id or _inner_id() or str(uuid.uuid4()), waits, client, channel)
        ending = await self._drive(asked.start(copy.deepcopy), performer)
        return respond(ending, performer.cast[ending.agent], run_id)

    async def respond_in_session(
        self,
        asked: RunArguments,
        turn: MemoryTurn,
        waits: Runtime,
        client: Any,
        channel: Channel | None,
        compaction: Compaction | None,
    ) -> Response:
        """Run to the end in a session."""
        performer = _InMemory(self, asked, turn.run_id, waits, client, channel, turn=turn)
        start = asked.start(copy.deepcopy)
        summarizing = await performer.compact(compaction, start.messages)
        performer.conversation = turn.conversation
        ending = await self._drive(turn.begin(start), performer)
        ending = replace(ending, usage=total([summarizing, ending.usage]))
        return respond(ending, performer.cast[ending.agent], turn.run_id)

    async def _drive(self, start: Start, performer: _InMemory) -> Ending:
        try:
            with ends.bare():
                ending = await drive(guarded_turns(start), performer)
        except BaseException as error:
            performer.tell_end("", error)
            raise
        else:
            performer.tell_end(ending.ended_by)
            return ending
        finally:
            self.inbox.forget(performer.run_id)
            performer.guards.cancel()

    # Sessions

    def session(
        self,
        id: str,
        agent: Any = None,
        *,
        context_variables: dict[str, Any] | None = None,
        limits: Limits | None = None,
        compaction: Compaction | None = None,
    ) -> Session:
        """Return the session of an id, which may be new.

        A new session needs an `agent` for its first message, and begins with a copy of `context_variables`. A session
        that exists continues with the agent and the context that its last run left. `limits` are one total over all its
        runs, beside those of each run; other ones given later replace them. With `compaction`, messages that
        this object sends are answered with a summary in place of the first messages, once they have become many. It
        exists as long as the swarm. Raises `ConfigurationError`.
        """
        check_session(id, agent, context_variables, limits, compaction)
        return MemorySession(self, id, agent, dict(context_variables or {}), limits, compaction)

    def spending_of_session(self, id: str, limits: Limits, before: MemorySpending | None) -> MemorySpending:
        """Return what a session may spend with these limits, and has spent."""
        spent = Spent() if before is None else before.spent
        return MemorySpending(id, limits, self.inbox, BlockingRuntime(), spent=spent, allowed=limits)

    def sessions(self, agent: str | None = None, limit: int = 100) -> list[Session]:
        """Return the sessions, that with the latest change first; with `agent`, those it answers next."""
        check_whole("limit", limit, 1)
        known = sorted(self.conversations.items(), key=lambda item: item[1].updated_at, reverse=True)
        found = [id for id, session in known if agent in (None, session.agent.name)]
        return [MemorySession(self, id, None, {}) for id in found[:limit]]


def _inner_id() -> str | None:
    """Return the id of a run that a tool of a run in memory starts; None outside such a tool."""
    here = calling()
    return here.next_id() if here is not None and here.owner is None else None


@dataclass
class _InMemory:
    """Performs the loop's effects without recording them.

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
            if call.approval:
                function = find_tool(agent, call.tool)
                self.swarm.inbox.open(self._approval(function, effect, call))

    async def _call_apart(self, agent: AgentLike, effect: CallAll, call: Call, waits: Runtime) -> Outcome:
        """Make a call of a batch made together: its changes of the context reach the other calls after the batch."""
        change, context = Change.watch(effect.context, is_stored=False)
        return change.read(await self._call(agent, effect, call, context, waits), context)

    async def _call(
        self, agent: AgentLike, effect: CallAll, call: Call, context: dict[str, Any], waits: Runtime
    ) -> Outcome:
        function = find_tool(agent, call.tool)
        if call.plan == "tell" or function is None:
            return Outcome(call.text)
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

    def _approval(self, function: Any, effect: CallAll, call: Call) -> RequestSpec:
        new = self._new(effect)
        same = same_before(new, call.index)
        number = None if same is None else step_number(new, same)
        return approval_of(function, call, self._current(effect, call), number)

    def _current(self, effect: CallAll, call: Call) -> CurrentCall:
        key = f"{self.run_id}/{effect.turn}.{call.index}"
        return CurrentCall(self.run_id, effect.agent, call.tool, call.id, 1, key)
