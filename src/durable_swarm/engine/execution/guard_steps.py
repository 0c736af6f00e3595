"""The guardrails of a run: each is a step of its own, and they run together, beside what the run does meanwhile."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from durable_swarm import codec, errors
from durable_swarm.codec import Place
from durable_swarm.concurrency import Beside, LoopRuntime, together
from durable_swarm.engine.backend import steps
from durable_swarm.engine.execution.child_calls import CallGuard
from durable_swarm.engine.execution.errors import engines_code, users_code
from durable_swarm.engine.execution.execution import Execution
from durable_swarm.engine.records import names, runs
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.signals import RunHeld, StepFailed
from durable_swarm.guardrails import ask_guardrail, blocked, first_block, guardrails_of
from durable_swarm.loop import Ask, Guard, GuardKind
from durable_swarm.models.verdict import judged_output
from durable_swarm.types import AgentLike, Block


@dataclass(frozen=True)
class Judged:
    """The input of guardrails: the messages of the run, or the answer of the agent in that turn."""

    kind: GuardKind
    turn: int
    agent: str
    subject: Callable[[AgentLike], object]
    """Returns it, given the agent: an answer's type is the agent's."""
    context: dict[str, Any]


@dataclass
class GuardSteps:
    """The guardrails of one run that are being asked."""

    run: Execution
    agent: Callable[[str], AgentLike]
    """Returns the agent of a name."""
    crash_guard: CallGuard
    names: list[str] = field(default_factory=list)
    """The names of those that were begun last."""
    _beside: Beside | None = None

    def begin_input(self, effect: Ask) -> None:
        """Begin the input guardrails of the run, beside its first model call."""
        if effect.turn == 0:
            messages, known = list(effect.history), self.run.input_guardrails
            guardrails = list(guardrails_of(self.agent(effect.agent), "input")) if known is None else known
            self._begin(guardrails, Judged("input", 0, effect.agent, lambda _: messages, effect.context))

    async def passed(self, effect: Guard) -> Block | Literal[False]:
        """Wait for the guardrails of a reply, and return the block of one that stops the run, or False.

        Raises `StepFailed` with `Blocked` for one without a reply, and with what a guardrail raised.
        """
        if effect.kind == "output":
            subject = functools.partial(judged_output, effect.reply)
            self._begin(effect.names, Judged("output", effect.turn, effect.agent, subject, effect.context))
        found = await self._verdict()
        last = effect.kind == "output" or not effect.reply.output_guardrails
        self.run.publisher.guarded(None if found is None else found[1], last=last)
        if found is not None and found[1].reply is None:
            raise StepFailed(blocked(*found), f"{names.GUARDRAIL}{found[0]}")
        return False if found is None else found[1]

    def _begin(self, guardrails: Sequence[str], judged: Judged) -> None:
        """Begin to ask. The steps' numbers are drawn here, so that they are the same in every execution."""
        self.names = list(guardrails)
        reserved = [steps.reserve() for _ in guardrails]
        if guardrails:
            self._beside = Beside(self._ask_all(reserved, judged))

    async def _verdict(self) -> tuple[str, Block] | None:
        """Wait for all, and return the first that stops the run, with its block; None if all passed."""
        if self._beside is None:
            return None
        verdicts = await self._beside.result()
        self._beside = None
        return first_block(self.names, verdicts)

    def cancel(self) -> None:
        """Stop waiting, because the run leaves: a guardrail without a record is asked again."""
        if self._beside is not None:
            self._beside.cancel()

    async def _ask_all(self, reserved: Sequence[steps.Reserved | None], judged: Judged) -> list[Block | None]:
        return await together(self._ask(name, one, judged) for name, one in zip(self.names, reserved, strict=True))

    async def _ask(self, name: str, reserved: steps.Reserved | None, judged: Judged) -> Block | None:
        run, step = self.run, f"{names.GUARDRAIL}{name}"
        place: Place = steps.place_of(reserved, step)

        async def body() -> Record:
            key = f"{run.run_id}/{judged.turn}.{step}"
            waits = LoopRuntime()
            async with self.crash_guard.execution(key, waits):
                agent = self.agent(judged.agent)
                function = guardrails_of(agent, judged.kind).get(name)
                if function is None:
                    raise RunHeld(_gone(run.run_id, judged, name))
                with users_code(step):
                    context = {key: codec.round_trip(value) for key, value in judged.context.items()}
                    subject = copy.deepcopy(judged.subject(agent))
                    block = await ask_guardrail(function, judged.kind, subject, context, waits)
            return run.record_codec.close_step(runs.guard_record(block), place)

        with engines_code(f"guardrail {name!r} of run {run.run_id!r}"):
            record = await steps.run_step_async(step, body, reserved)
            return runs.read_guard(run.record_codec.open(record, place, f"the verdict of guardrail {name!r}"))


def _gone(run_id: str, judged: Judged, name: str) -> errors.ReplayMismatch:
    return errors.ReplayMismatch(
        f"agent {judged.agent!r} has no {judged.kind} guardrail {name!r} any more, and the run waits for its verdict; "
        "bring it back, or cancel the run",
        run_id=run_id,
    )
