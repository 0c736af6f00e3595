"""The trace of a run that one process executes from its start: collected meanwhile, if anybody observes the swarm."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from durable_swarm.ends import failure_of
from durable_swarm.loop import Ask, Call, Reply
from durable_swarm.observing import CallTrace, RunEnd, RunTrace, StepTrace, TurnTrace
from durable_swarm.types import Message


@dataclass
class CollectedTrace:
    """The trace of one run, so far; the fields are those of `RunTrace`, `messages` returns the run's own."""

    run_id: str
    root: str
    agent: str
    started: float
    messages: Callable[[], Sequence[Message]]
    call: str = ""
    session: str = ""
    turns: list[TurnTrace] = field(default_factory=list)
    whole: bool = True
    """False if something is missing that the records of the run have."""
    _calls: dict[int, CallTrace] = field(default_factory=dict)
    """Those of the last turn, by their place in it."""
    _steps: dict[str, Sequence[StepTrace]] = field(default_factory=dict)

    def replied(self, effect: Ask, model: str, started: float, reply: Reply) -> None:
        """Add a model call that has ended now."""
        self._close_turn()
        turn = TurnTrace(
            effect.turn, effect.agent, model, started, time.time(), reply.message, reply.usage, reply.finish
        )
        self.turns.append(turn)

    def made_steps(self, key: str, steps: Sequence[StepTrace]) -> None:
        """Add the steps of a tool call that is about to end."""
        self._steps[key] = steps

    def called(self, call: Call, key: str, started: float, result: str) -> None:
        """Add a tool call of the last turn that has ended now."""
        steps = self._steps.pop(key, ())
        made = CallTrace(key, call.tool, call.id, call.arguments, call.effect, started, time.time(), result, "", steps)
        self._calls[call.index] = made

    def ended(self, end: RunEnd) -> RunTrace:
        """Return the whole trace."""
        self._close_turn()
        return RunTrace(
            self.run_id, self.root, self.call, self.agent, self.session, self.started, self.messages(), self.turns,
            end=end,
        )  # fmt: skip

    def _close_turn(self) -> None:
        if self._calls:
            calls = [made for _, made in sorted(self._calls.items())]
            self.turns[-1] = replace(self.turns[-1], calls=calls)
            self._calls = {}


def end_of(ended_by: str, error: BaseException | None = None) -> RunEnd:
    """Return the end of a run that ends now."""
    failure = None if error is None else failure_of(error)
    status = "done" if error is None else "failed" if failure is not None else "cancelled"
    return RunEnd(status, time.time(), ended_by, "" if failure is None else type(failure).__name__)
