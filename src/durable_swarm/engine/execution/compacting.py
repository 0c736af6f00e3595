"""The step by which a run of a session writes a summary of the first messages, before its first model call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

from durable_swarm import codec
from durable_swarm.concurrency import LoopRuntime, Runtime, in_thread
from durable_swarm.engine.execution.errors import engines_code, users_code
from durable_swarm.engine.execution.performer import Durable
from durable_swarm.engine.records import names
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.records.compactions import CompactionPlan, Summary, read_summary, summary_record
from durable_swarm.engine.signals import RunHeld
from durable_swarm.engine.storage.ledger import BEFORE_TURNS
from durable_swarm.engine.storage.ownership import now
from durable_swarm.errors import ConfigurationError
from durable_swarm.models.call import Gate, ModelCall
from durable_swarm.models.client import client_for
from durable_swarm.models.wire import Conversation
from durable_swarm.swarm.compaction import check_summary, function_named
from durable_swarm.swarm.summaries import model_of, written_by_model
from durable_swarm.types import Message


async def compact(performer: Durable, plan: CompactionPlan | None) -> None:
    """Replace the first messages of a run's session by a summary, if they have become too many for its compaction."""
    run = performer.run
    new = run.start.messages[len(run.history.sent) :]
    if plan is None or not run.history.crosses(plan.compaction, new):
        return
    at = run.history.first(plan.compaction, new)
    if at == 0:
        return
    replayed = True

    async def body(waits: Runtime) -> Record:
        nonlocal replayed
        replayed = False
        summary = Summary("", run.history.upto + at, len(run.history.messages) - at)
        with users_code(names.compact_step(run.start.agent)):
            summary = await _written(performer, plan, summary, run.history.to_summarize(at), waits)
        return summary_record(summary, now())

    with engines_code(f"the summary of run {run.run_id!r}"):
        summary = read_summary(await performer.colour.step(names.compact_step(run.start.agent), body))
        unsettled = run.budget.summarized(summary.spent, replayed=replayed)
        if unsettled is not None:
            await in_thread(run.budget.settle, unsettled)
    run.history = run.history.summarized(at, summary.text)
    run.start = replace(run.start, messages=[*run.history.sent, *new])
    run.conversation, run.summarizing = Conversation(), summary.usage


async def _written(
    performer: Durable, plan: CompactionPlan, summary: Summary, messages: list[Message], waits: Runtime
) -> Summary:
    """Return a summary of messages with its text, and with what the model that wrote it has cost."""
    if plan.function is None:
        return await _by_model(performer, plan, summary, messages, waits)
    function = function_named(plan.function)
    if function is None:
        missing = ConfigurationError(
            f"run {performer.run.run_id!r} needs the compaction function {plan.function}, and no Compaction in this "
            "process has it; make one with Compaction(function=...)"
        )
        raise RunHeld(missing, passes=True)
    text = check_summary(await waits.call(function, [codec.round_trip(message) for message in messages]))
    return replace(summary, text=text)


async def _by_model(
    performer: Durable, plan: CompactionPlan, summary: Summary, messages: list[Message], waits: Runtime
) -> Summary:
    run, step = performer.run, names.compact_step(performer.run.start.agent)
    choice = model_of(plan.compaction, performer.choice(performer.agent(run.start.agent)))
    with engines_code(f"the summary of run {run.run_id!r}"):
        client = run.swarm.clients.get(asyncio.get_running_loop() if isinstance(waits, LoopRuntime) else None)

    @contextlib.asynccontextmanager
    async def reserved() -> AsyncIterator[None]:
        async with run.budget.model_call(BEFORE_TURNS):
            with users_code(step):
                await performer.reserve(run.start.agent, choice.name, 0, waits)
            yield

    async def ask(gate: Gate) -> Summary:
        call = ModelCall(run.run_id, BEFORE_TURNS)
        completion = await written_by_model(
            client,
            *(run.start.agent, choice, plan.compaction, messages, call, waits),
            debug=run.debug,
            gate=gate,
        )
        cost, text = performer.pay(completion), check_summary(completion.message.get("content"))
        return replace(summary, text=text, usage=completion.usage, model=completion.model, cost=cost)

    made = await performer.patiently(client_for(client, choice.name), choice.name, step, None, waits, ask, reserved)
    return replace(made, worked=run.budget.work_to_record)
