"""The model call that writes a summary of a session, for every swarm."""

from __future__ import annotations

from durable_swarm.agents import RemoteAgent
from durable_swarm.concurrency import Runtime
from durable_swarm.models.call import Completion, Gate, ModelCall, complete
from durable_swarm.models.choice import ModelChoice
from durable_swarm.models.client import client_for
from durable_swarm.models.wire import Conversation
from durable_swarm.swarm.compaction import INSTRUCTIONS, Compaction, transcript
from durable_swarm.types import Message


def model_of(compaction: Compaction, agents: ModelChoice) -> ModelChoice:
    """Return the model that writes summaries: that of the compaction, or else that of the agent."""
    if compaction.model is None:
        return agents
    return ModelChoice(compaction.model, "Compaction(model=...) names it; give it a model that the provider has")


async def written_by_model(
    client: object,
    agent: str,
    choice: ModelChoice,
    compaction: Compaction,
    messages: list[Message],
    call: ModelCall,
    waits: Runtime,
    *,
    debug: bool,
    gate: Gate | None = None,
) -> Completion:
    """Return a model's answer with a summary of messages, which is to be checked. Raises `ModelError`."""
    return await complete(
        client_for(client, choice.name),
        RemoteAgent(agent, choice.name, compaction.instructions or INSTRUCTIONS),
        [{"role": "user", "content": transcript(messages)}],
        {},
        conversation=Conversation(),
        choice=choice,
        debug=debug,
        call=call,
        waits=waits,
        gate=gate,
    )
