"""Performs the loop's effects as checkpoints: a model call is a step, a tool call a step or a workflow.

Written once for both colours: `InThread` runs DBOS's steps in the calling thread, `OnEventLoop` awaits them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Any, TypeVar

from durable_swarm import agents, codec, errors
from durable_swarm.concurrency import LoopRuntime, Runtime, in_thread
from durable_swarm.engine.execution.colours import Colour
from durable_swarm.engine.execution.errors import engines_code, users_code
from durable_swarm.engine.execution.execution import Execution
from durable_swarm.engine.execution.guard_steps import GuardSteps
from durable_swarm.engine.execution.limit_requests import LimitRequests
from durable_swarm.engine.execution.provider_waits import PatientCall, ProviderWaits
from durable_swarm.engine.execution.tool_batch import CallServices, ToolBatch
from durable_swarm.engine.records import names, runs
from durable_swarm.engine.records.agent_versions import Answered, changed, mark
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.signals import RunHeld, RunSuspended, StepFailed
from durable_swarm.engine.storage.messages import Messages
from durable_swarm.engine.storage.ownership import now
from durable_swarm.engine.storage.provider_outages import Provider
from durable_swarm.engine.storage.rates import Rates
from durable_swarm.engine.storage.run_state import BY_TOOL
from durable_swarm.guardrails import output_guardrails
from durable_swarm.loop import Ask, CallAll, Effect, Guard, Outcome, Reply
from durable_swarm.models.call import Completion, Gate, ModelCall, complete
from durable_swarm.models.choice import ModelChoice, choose_model
from durable_swarm.models.client import client_for, provider_of
from durable_swarm.models.memo import Memo
from durable_swarm.models.prices import cost_of, refuse_unpriced
from durable_swarm.models.verdict import judge
from durable_swarm.observing import executing
from durable_swarm.tools.batch import runs_together
from durable_swarm.tools.calls import load_tools, plan_calls, written_call
from durable_swarm.tools.repeats import failing_in_a_row
from durable_swarm.types import AgentLike, Block, Message

REFUSED = (401, 403)
"""HTTP statuses with which a provider refuses a key. Where no key has worked yet, they prove nothing about the run."""

T = TypeVar("T")


@dataclass
class Durable:
    """Performs the effects of one run."""

    run: Execution
    colour: Colour
    calls: CallServices
    still_wanted: Callable[[Execution], None]
    """Stops an execution that is over: the process's engine was closed, or a later execution owns the run."""
    mailbox: Messages
    rates: Rates
    more: LimitRequests
    """Asks for more of what a limit permits."""
    accepted: Callable[[str], str | None]
    """Returns the change of an agent that a person has accepted for the run of an id."""
    providers: ProviderWaits
    memo: Callable[..., Memo]
    """Returns the memo of a run's model call: of the run, the call and the name of the note."""
    replayed: bool = False
    """True if the last model call came from its record."""
    answered_here: bool = False
    """True if the provider has answered this execution."""
    finishes: str = ""
    """The limit that did not permit a tool call, so that the next model call is the run's last."""

    def __post_init__(self) -> None:
        self.guards = GuardSteps(self.run, self.agent, self.calls.crash_guard)

    async def __call__(self, effect: Effect) -> Reply | list[Outcome] | Block | bool:
        self.still_wanted(self.run)
        try:
            return await self._perform(effect)
        except BaseException as error:
            self.guards.cancel()
            if isinstance(error, StepFailed | RunSuspended):
                # Before the run's end, or its suspension, is recorded: readers may rely on no event following it.
                await in_thread(self.run.publisher.settle)
            raise

    async def _perform(self, effect: Effect) -> Reply | list[Outcome] | Block | bool:
        if isinstance(effect, Ask):
            return await self._ask(effect)
        if isinstance(effect, CallAll):
            return await self._call_all(effect)
        if isinstance(effect, Guard):
            return await self.guards.passed(effect)
        with engines_code(f"the end of run {self.run.run_id!r}"):
            close = self.mailbox.close_for_good if effect.at_limit else self.mailbox.close
            return not await in_thread(close, self.run.run_id, self.run.heard)

    async def _ask(self, effect: Ask) -> Reply:
        self.replayed, budget = True, self.run.budget

        async def body(waits: Runtime) -> Record:
            self.replayed = False
            return await self._model_call(effect, waits)

        with engines_code(f"model call {effect.turn} of run {self.run.run_id!r}"):
            self.run.publisher.asked(effect.turn, effect.agent)
            self.guards.begin_input(effect)
            started = time.time()
            record = await self.colour.step(names.model_step(effect.agent), body)
            reply = runs.read_reply(record)
            if self.run.trace is not None:
                self.run.trace.replied(effect, str(record.get("model", "")), started, reply)
            unsettled = budget.replied(effect.turn, reply, record, replayed=self.replayed)
            if unsettled is not None:
                await in_thread(budget.settle, unsettled)
            self.run.heard += len(reply.heard)
            self.run.tokens = 0 if reply.usage is None else reply.usage.total_tokens
            by_tool = record.get("form") == runs.BY_TOOL
            self.run.answered[effect.agent] = Answered(effect.turn, record.get("version", ""), by_tool)
            self.run.publisher.replied(record)
            return reply

    async def _model_call(self, effect: Ask, waits: Runtime) -> Record:
        agent, step = self.agent(effect.agent), names.model_step(effect.agent)
        await self._load(agent, waits)
        await self._check_change(agent)
        if self.run.streams:
            self.run.publisher.asking(effect.agent, effect.turn)
        if (recovery := self.run.recovery(effect.turn)) is not None:
            self.run.publisher.waiting("run.recovered", **recovery)
        with engines_code(f"model call {effect.turn} of run {self.run.run_id!r}"):
            # Not the run's failure: another process, or this one after a restart, may have a client.
            client = self.run.swarm.clients.get(asyncio.get_running_loop() if isinstance(waits, LoopRuntime) else None)
            client = client_for(client, self.choice(agent).name)
        last = ""

        @contextlib.asynccontextmanager
        async def reserved() -> AsyncIterator[None]:
            nonlocal last
            new = effect.history[len(self.run.start.messages) :]
            failing = failing_in_a_row(new, effect.turn - len(self.run.start.kept))
            async with self.run.budget.model_call(effect.turn):
                with users_code(step):
                    last = await self.reserve(agent.name, self.choice(agent).name, failing, waits)
                yield

        def ask(gate: Gate) -> Awaitable[Record]:
            return self._reply(client, agent, effect, gate, waits, last)

        record = await self.patiently(client, self.choice(agent).name, step, effect.turn, waits, ask, reserved)
        self.answered_here = True
        return record

    async def patiently(
        self,
        client: Any,
        model: str,
        step: str,
        turn: int | None,
        waits: Runtime,
        ask: Callable[[Gate], Awaitable[T]],
        reserved: Callable[[], contextlib.AbstractAsyncContextManager[None]] = contextlib.nullcontext,
    ) -> T:
        """Make a model call, and wait while its provider is away; `ask` makes one attempt; `turn` is told.

        `reserved` wraps each attempt.
        """
        call = self.providers.call(self.run, Provider(provider_of(client), model), step, turn, waits)

        async def attempt() -> T:
            async with reserved(), self.calls.crash_guard.execution(f"{self.run.run_id}/{turn}", waits):
                with users_code(step), self.run.budget.work.working():
                    return await ask(_Gate(self, call, waits))

        return await call.result(attempt)

    async def _load(self, agent: AgentLike, waits: Runtime) -> None:
        """Read the agent's tools that are still to be read; if that fails, the run is held."""
        with engines_code(f"the tools of agent {agent.name!r}"):
            await load_tools(agent, waits)

    async def _check_change(self, agent: AgentLike) -> None:
        """Hold the run if its swarm says so and the agent has changed since its last answer without being accepted."""
        run = self.run
        holds = run.swarm.changed_agents == "hold"
        change = changed(run.run_id, agent, run.answered.get(agent.name)) if holds else None
        if change is None:
            return
        with engines_code(f"what was accepted for run {run.run_id!r}"):
            accepted = await in_thread(self.accepted, run.run_id)
        if accepted != mark(change):
            raise RunHeld(change)

    async def reserve(self, agent: str, model: str, failing: int, waits: Runtime) -> str:
        """Reserve a model call of an agent. Return the limit because of which it is the run's last, or ''.

        `failing` is how often in a row the last tool call has failed. Raises `LimitReached`; `RunHeld` if the limit is
        one of cost and the model's price is unknown.
        """
        run, budget = self.run, self.run.budget
        if budget.limits_cost():
            with engines_code(f"the limits of run {run.run_id!r}"):
                await in_thread(refuse_unpriced, run.swarm.prices, model)
        again, run.live = run.recovered and not run.live and budget.limits is not None, True
        while not self.finishes and not budget.reserve_here(failing, again=again):
            with engines_code(f"the limits of run {run.run_id!r}"):
                refusal = await in_thread(partial(budget.reserve, failing, again=again))
            if refusal is None:
                break
            if refusal.on_limit == "finish":
                self.finishes = refusal.found.limit
            elif refusal.on_limit == "fail" or not await self.more.grants(run, refusal, agent, waits):
                raise refusal.error(run.run_id)
            else:
                again = False  # At the limit, no call was made.
        if self.finishes:
            with engines_code(f"the limits of run {run.run_id!r}"):
                await in_thread(partial(budget.reserve, failing, again=again, forced=True))
        return self.finishes

    async def _reply(self, client: Any, agent: AgentLike, effect: Ask, gate: Gate, waits: Runtime, last: str) -> Record:
        """Ask the model and return the record of its reply, which is the last one if a limit is named in `last`."""
        run, heard = self.run, await self._heard()
        try:
            call = await self._call_of(agent, effect, heard)
            with executing(run.swarm, "model", self.choice(agent).name, agent.name) as seen:
                completion = await complete(
                    client,
                    agent,
                    [*effect.history, *heard],
                    {key: codec.round_trip(value) for key, value in effect.context.items()},
                    conversation=run.conversation,
                    choice=self.choice(agent),
                    debug=run.debug,
                    call=call,
                    waits=waits,
                    show=run.publisher if run.streams else None,
                    gate=gate,
                    tools=not last,
                )
                seen.usage = completion.usage
        except errors.ModelError as error:
            if error.status in REFUSED and not self.answered_here:
                raise RunHeld(error) from error
            raise
        cost = self.pay(completion)
        # A session counts as one run: its earlier calls are known to its tools.
        before = effect.history[len(run.start.messages) if run.place is None else 0 :]
        calls = await plan_calls(agent, completion.message, waits, completion.finish, before, last)
        verdict = judge(agent, completion.message, completion.finish, effect.misfits)
        written = written_call(agent, completion.message)
        together = runs_together(agent, calls, run.swarm.tool_concurrency)
        guards = ([] if effect.turn else self.guards.names, output_guardrails(agent, completion.message, verdict))
        reply = Reply(
            completion.message, calls, completion.usage, together, heard, completion.finish, written, verdict, last,
            *guards,
        )  # fmt: skip
        return self._recorded(agent, completion, reply, cost)

    def _recorded(self, agent: AgentLike, completion: Completion, reply: Reply, cost: Decimal | None) -> Record:
        """Return the record of a reply, with what it has cost."""
        return runs.reply_record(
            reply,
            model=completion.model,
            version=agents.fingerprint(agent),
            at=now(),
            shown=self.run.publisher.said(completion.message["content"]),
            by_tool=completion.by_tool,
            cost=cost,
            worked=self.run.budget.work_to_record,
        )

    def pay(self, completion: Completion) -> Decimal | None:
        """Note that a model call is answered, and so paid, and return what it has cost."""
        budget = self.run.budget
        budget.answered(completion.usage)
        cost = cost_of(self.run.swarm.prices, completion, limited=budget.limits_cost())
        budget.answered(completion.usage, cost)
        return cost

    def choice(self, agent: AgentLike) -> ModelChoice:
        """Return the model of an agent in this run."""
        return choose_model(agent, self.run.start.model_override, self.run.swarm.default_model)

    async def _call_of(self, agent: AgentLike, effect: Ask, heard: list[Message]) -> ModelCall:
        """Return the model call, with what is kept of it; not of a request in which the model is told more."""
        run, last = self.run, self.run.answered.get(effect.agent)
        place = f"{effect.turn}.{len(effect.history) + len(heard)}"
        kept, form = self.memo(run.run_id, place), self.memo(run.run_id, place, BY_TOOL)
        by_tool = None if last is None else last.by_tool
        if not by_tool and run.recovered and getattr(agent, "output_type", None) is not None:
            by_tool = bool(await in_thread(form.read)) or by_tool
        keep = functools.partial(form.write, True)
        return ModelCall(run.run_id, effect.turn, len(run.start.kept), kept, by_tool=by_tool, keep_by_tool=keep)

    async def _heard(self) -> list[Message]:
        """Return the messages added to the run that were not received before."""
        run = self.run
        if run.said == run.heard:
            return []
        with engines_code(f"what was said to run {run.run_id!r}"):
            return await in_thread(self.mailbox.heard, run.run_id, run.heard, run.record_codec)

    async def admit(self, model: str, waits: Runtime) -> None:
        """Wait until the rate limit allows a model call, if there is one, and check that the call is still wanted."""
        rate = self.run.swarm.model_rates.get(model)
        if rate is not None:
            calls, seconds = rate
            with engines_code(f"the rate of model {model!r}"):
                wait = await in_thread(self.rates.reserve, model, seconds / calls)
            self.run.rated = f"model {model!r} may be asked in {wait:.3g} s (model_rates)"
            try:
                await self.pause(wait, waits)
            finally:
                self.run.rated = None
        if not self.run.ownership_is_fresh:
            await in_thread(self.run.verify_ownership)

    async def pause(self, seconds: float, waits: Runtime) -> None:
        """Wait before a model is asked, as long as the call is wanted.

        The run stays in memory: a slot of a model that it would give up is lost to all.
        """
        with self.run.budget.work.waiting():
            await self.providers.waiting_calls.wait_outside_calls(self.run, waits, seconds=seconds, stays=True)
        self.still_wanted(self.run)

    def agent(self, name: str) -> AgentLike:
        """Return the agent of that name: the object this run has met, or after a crash the one found by name."""
        if name not in self.run.cast:
            try:
                self.run.cast[name] = agents.find(name)
            except (errors.UnknownAgent, errors.AmbiguousAgent) as reason:
                raise RunHeld(reason) from None
        return self.run.cast[name]

    async def _call_all(self, effect: CallAll) -> list[Outcome]:
        if all(call.plan == "tell" for call in effect.calls):
            return [Outcome(call.text) for call in effect.calls]
        # Looked up once, because a handoff in the batch may bring another agent of the same name.
        agent = self.agent(effect.agent)
        await self._load(agent, self.colour.waits)
        attempt = 2 if self.run.recovered and self.replayed else 1
        outcomes = await ToolBatch(self.calls, self.run, self.colour, agent, effect, attempt).outcomes()
        for outcome in outcomes:
            self.finishes = outcome.limit or self.finishes
        return outcomes


@dataclass(frozen=True)
class _Gate:
    """Decides for one model call when the model is asked."""

    performer: Durable
    call: PatientCall
    waits: Runtime

    async def admit(self, model: str) -> None:
        await self.performer.admit(model, self.waits)

    def gives_up(self, error: Exception, attempt: int) -> bool:
        return self.call.gives_up(error, attempt)

    async def pause(self, seconds: float) -> None:
        await self.performer.pause(seconds, self.waits)
