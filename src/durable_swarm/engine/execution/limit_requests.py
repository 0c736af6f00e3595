"""A run that asks for more before a model call: it waits outside of its tool calls, in memory or suspended."""

from __future__ import annotations

import functools
from collections.abc import Callable

from durable_swarm.concurrency import Runtime, in_thread
from durable_swarm.engine.execution.errors import engines_code
from durable_swarm.engine.execution.execution import Execution
from durable_swarm.engine.execution.waiting import WaitingCalls
from durable_swarm.engine.storage.ledger import Refusal
from durable_swarm.engine.storage.requests import Inbox
from durable_swarm.requests import Decision, Request, RequestSpec
from durable_swarm.tools.limit_requests import unfit


class LimitRequests:
    """Opens the requests of runs for more, and waits for the decisions."""

    def __init__(self, inbox: Inbox, waiting_calls: WaitingCalls) -> None:
        self._inbox = inbox
        self._waiting_calls = waiting_calls

    async def grants(self, run: Execution, refusal: Refusal, agent: str, waits: Runtime) -> bool:
        """Ask for more of what is used up; return True if it was approved. Raises `RunSuspended`."""
        with engines_code(f"the limits of run {run.run_id!r}"), run.asking():
            asked = await in_thread(run.budget.request, refusal, agent)
            problem_of = functools.partial(unfit, asked=asked, allowed=refusal.allowed)
            decision = await self._decision(run, asked, problem_of, waits)
            await in_thread(run.budget.decided, refusal, asked, decision)
        return decision.verdict == "approved"

    async def _decision(
        self, run: Execution, asked: RequestSpec, problem_of: Callable[[Decision], str], waits: Runtime
    ) -> Decision:
        about = {"request_id": asked.id, "kind": asked.kind}
        while True:
            request: Request = await in_thread(self._inbox.open, asked, run.swarm.name, None, run.owner)
            run.publisher.waiting("request.opened", **about, question=request.question)
            if request.decision is None:
                run.publisher.waiting("run.waiting", **about)
            while request.decision is None:
                await self._waiting_calls.wait_outside_calls(run, waits, request=asked.id)
                request = await in_thread(self._inbox.found, asked.id)
            decision = request.decision
            run.publisher.waiting("request.closed", **about, verdict=decision.verdict, answered_by=request.answered_by)
            problem = problem_of(decision)
            if not problem:
                return decision
            await in_thread(self._inbox.reopen, asked, run.swarm.name, problem, run.owner)
