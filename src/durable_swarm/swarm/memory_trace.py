"""What tracing tells of a run in memory: collected while it is executed, if anybody observes the swarm."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from durable_swarm.ends import failure_of
from durable_swarm.loop import Ask, Call, CallAll, Reply
from durable_swarm.observing import CallTrace, RunEnd, RunTrace, TurnTrace
from durable_swarm.types import Message


@dataclass
class MemoryTrace:
    """The trace of one run, so far."""

    run_id: str
    agent: str
    messages: Sequence[Message]
    started: float = field(default_factory=time.time)
    turns: list[TurnTrace] = field(default_factory=list)

    def replied(self, effect: Ask, model: str, started: float, reply: Reply) -> None:
        """Add a model call."""
        told = TurnTrace(effect.turn, effect.agent, model, started, time.time(), reply.message, reply.usage)
        self.turns.append(replace(told, finish=reply.finish))

    def called(self, effect: CallAll, call: Call, key: str, started: float, result: str) -> None:
        """Add a tool call to the last turn."""
        made = CallTrace(key, call.tool, call.id, call.arguments, call.effect, started, time.time(), result)
        self.turns[-1] = replace(self.turns[-1], calls=[*self.turns[-1].calls, made])

    def ended(self, ended_by: str, error: BaseException | None = None) -> RunTrace:
        """Return the whole trace."""
        failure = None if error is None else failure_of(error)
        status = "done" if error is None else "failed" if failure is not None else "cancelled"
        end = RunEnd(status, time.time(), ended_by, "" if failure is None else type(failure).__name__)
        return RunTrace(self.run_id, self.run_id, "", self.agent, "", self.started, self.messages, self.turns, end=end)
