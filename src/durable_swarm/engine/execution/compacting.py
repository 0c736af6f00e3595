"""The step by which a run of a session writes a summary of the first messages, before its first model call."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from durable_swarm import codec
from durable_swarm.concurrency import LoopRuntime, Runtime
from durable_swarm.engine.execution.errors import engines_code, users_code
from durable_swarm.engine.execution.performer import Durable
from durable_swarm.engine.execution.publisher import now
from durable_swarm.engine.records import names
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.records.compactions import CompactionPlan, Summary, read_summary, summary_record
from durable_swarm.engine.signals import RunHeld
from durable_swarm.errors import ConfigurationError
from durable_swarm.models.call import Gate, ModelCall
from durable_swarm.models.client import client_for
from durable_swarm.models.wire import Conversation
from durable_swarm.swarm.compaction import check_summary, function_named
from durable_swarm.swarm.summaries import model_of, written_by_model
from durable_swarm.types import Message, Usage


async def compact(performer: Durable, plan: CompactionPlan | None) -> None:
    """Replace the first messages of a run's session by a summary, if they have become too many for its compaction."""
    run = performer.run
    new = run.start.messages[len(run.history.sent) :]
    if plan is None or not run.history.crosses(plan.compaction, new):
        return
    at = run.history.first(plan.compaction, new)
    if at == 0:
        return

    async def body(waits: Runtime) -> Record:
        with users_code(names.compact_step(run.start.agent)):
            text, usage = await _written(performer, plan, run.history.to_summarize(at), waits)
        kept = len(run.history.messages) - at
        return summary_record(Summary(text, run.history.upto + at, kept, usage), now())

    with engines_code(f"the summary of run {run.run_id!r}"):
        summary = read_summary(await performer.colour.step(names.compact_step(run.start.agent), body))
    run.history = run.history.summarized(at, summary.text)
    run.start = replace(run.start, messages=[*run.history.sent, *new])
    run.conversation, run.summarizing = Conversation(), summary.usage


async def _written(
    performer: Durable, plan: CompactionPlan, messages: list[Message], waits: Runtime
) -> tuple[str, Usage | None]:
    """Return a summary of messages, and the tokens of the model that wrote it."""
    if plan.function is None:
        return await _by_model(performer, plan, messages, waits)
    function = function_named(plan.function)
    if function is None:
        missing = ConfigurationError(
            f"run {performer.run.run_id!r} needs the compaction function {plan.function}, and no Compaction in this "
            "process has it; make one with Compaction(function=...)"
        )
        raise RunHeld(missing, passes=True)
    return check_summary(await waits.call(function, [codec.round_trip(message) for message in messages])), None


async def _by_model(
    performer: Durable, plan: CompactionPlan, messages: list[Message], waits: Runtime
) -> tuple[str, Usage | None]:
    run = performer.run
    choice = model_of(plan.compaction, performer.choice(performer.agent(run.start.agent)))
    with engines_code(f"the summary of run {run.run_id!r}"):
        client = run.swarm.clients.get(asyncio.get_running_loop() if isinstance(waits, LoopRuntime) else None)

    async def ask(gate: Gate) -> tuple[str, Usage | None]:
        call = ModelCall(run.run_id, -1)
        return await written_by_model(
            client,
            *(run.start.agent, choice, plan.compaction, messages, call, waits),
            debug=run.debug,
            gate=gate,
        )

    step = names.compact_step(run.start.agent)
    return await performer.patiently(client_for(client, choice.name), choice.name, step, None, waits, ask)
