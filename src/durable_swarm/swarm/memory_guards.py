"""The guardrails of a run in memory."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from durable_swarm.concurrency import Beside, LoopRuntime, together
from durable_swarm.guardrails import ask_guardrail, blocked, first_block, guardrails_of
from durable_swarm.loop import Guard, GuardKind
from durable_swarm.models.verdict import judged_output
from durable_swarm.streaming import Channel
from durable_swarm.tools.changes import Change
from durable_swarm.types import AgentLike, Block


class MemoryGuards:
    """The guardrails of one run, asked beside what the run does meanwhile. Each gets copies."""

    def __init__(self, channel: Channel | None) -> None:
        self._channel = channel
        self._beside: Beside | None = None

    def begin(
        self, agent: AgentLike, kind: GuardKind, names: list[str], subject: object, context: Mapping[str, object]
    ) -> None:
        """Begin to ask guardrails of an agent about the subject."""
        known, waits = guardrails_of(agent, kind), LoopRuntime()

        def ask(name: str) -> Any:
            mine = Change.watch(context, is_stored=False)[1]
            return ask_guardrail(known[name], kind, copy.deepcopy(subject), mine, waits)

        self._beside = Beside(together([ask(name) for name in names])) if names else None

    async def verdict(self, effect: Guard, agent: AgentLike) -> Block | bool:
        """Wait for the guardrails of a reply. Raises `Blocked`, and what a guardrail raised."""
        if effect.kind == "output":
            self.begin(agent, "output", effect.names, judged_output(effect.reply, agent), effect.context)
        found = None if self._beside is None else first_block(effect.names, await self._beside.result())
        if self._channel is not None:
            self._tell(self._channel, effect, None if found is None else found[1])
        if found is not None and found[1].reply is None:
            raise blocked(*found)
        return False if found is None else found[1]

    def cancel(self) -> None:
        """Stop waiting: the run is over."""
        if self._beside is not None:
            self._beside.cancel()

    @staticmethod
    def _tell(channel: Channel, effect: Guard, block: Block | None) -> None:
        """Take the reply back if it was blocked, and end it if no other guardrail judges it."""
        if block is not None:
            channel.reset()
            if block.reply:
                channel.delta({"role": "assistant", "content": block.reply})
        if block is not None or effect.kind == "output" or not effect.reply.output_guardrails:
            channel.end()
