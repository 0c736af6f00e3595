"""Makes one tool call, including all steps before and after its tool, and returns the record of its outcome.

All code here may run again in another execution, and finds the traces of earlier ones: an open request, a mark that the
tool was begun, a result that is awaited. `docs/effects.md` has the table of the consequences.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy

from durable_swarm import codec, ends, errors
from durable_swarm.awaitables import is_async, is_awaitable
from durable_swarm.concurrency import BlockingRuntime, Runtime, finish, in_thread
from durable_swarm.credentials import without_secrets
from durable_swarm.engine.backend.deferred_calls import begin_workflow
from durable_swarm.engine.execution.child_calls import OpenCall, ToolCall
from durable_swarm.engine.execution.errors import engines_code, users_code
from durable_swarm.engine.execution.transactions import Transactions
from durable_swarm.engine.execution.waiting import WaitingCalls
from durable_swarm.engine.records import names, runs
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.records.encoding import output_of
from durable_swarm.engine.signals import RunHeld, StepFailed
from durable_swarm.engine.storage.ownership import now
from durable_swarm.engine.storage.requests import Inbox, TokenTaken
from durable_swarm.errors import safe_text
from durable_swarm.events import EventType
from durable_swarm.loop import Call, Outcome, absorb
from durable_swarm.observing import executing
from durable_swarm.requests import TOKEN, Decision, Request, RequestSpec
from durable_swarm.schema import accepted, check_arguments, wants_connection
from durable_swarm.tools.approval import approval_of, approved, later_of, outcome_of, posted
from durable_swarm.tools.attempts import retrying
from durable_swarm.tools.calls import call_tool, find_tool, invoke, not_made, read_result, told
from durable_swarm.tools.changes import Change
from durable_swarm.tools.context import CurrentCall, Inside, Recorder
from durable_swarm.tools.limit_requests import unfit
from durable_swarm.tools.repeats import Place
from durable_swarm.types import ToolSettings, settings_of


@dataclass
class CallRequests:
    """Where one tool call waits for people and programs."""

    made: ToolCall
    key: str
    inbox: Inbox
    waiting_calls: WaitingCalls
    transactions: Transactions
    number_of: Callable[[Place], int | None]
    """Returns the number that a call of the run has as a step."""
    holds_thread: bool = False
    """True if waiting blocks a thread: the tool's own, if it is a plain function."""

    async def wait(
        self, asked: RequestSpec, unfit: Callable[[Decision], str] | None = None, kept: Record | None = None
    ) -> Decision:
        """Open the request, unless it exists, and wait for the decision; an invalid decision reopens the request."""
        with engines_code(f"request {asked.id!r}"), self.made.run.asking():
            while True:
                decision = await self._decision(asked, await self.open(asked, kept))
                problem = unfit(decision) if unfit is not None else ""
                if not problem:
                    return decision
                await in_thread(self.inbox.reopen, asked, self.made.run.swarm.name, problem, self.made.run.owner)

    async def open(self, asked: RequestSpec, kept: Record | None = None) -> Request:
        """Open a request, unless it exists.

        A call that asks, or is asked about because of a limit, has a row, whose end closes its requests: the tool may
        leave its question by a timeout, and the limit may be extended otherwise. An approval, and what comes later, is
        always waited for.
        """
        if asked.kind in ("question", "limit"):
            await in_thread(begin_workflow)
        try:
            request = await in_thread(self.inbox.open, asked, self.made.run.swarm.name, kept, self.made.run.owner)
        except TokenTaken as error:
            raise StepFailed(error, names.tool_step(asked.tool)) from None
        self._tell("request.opened", request, question=request.question)
        return request

    async def _decision(self, asked: RequestSpec, request: Request) -> Decision:
        if request.decision is None:
            self._tell("run.waiting", request)
        # The wall clock is read once: set back meanwhile, it would restart the request's time again and again.
        given, begun = _left(asked, request), time.monotonic()
        while request.decision is None:
            left = None if given is None else given - (time.monotonic() - begun)
            if left is not None and left <= 0:
                request = await in_thread(self.inbox.expire, asked.id)
                continue
            await self.pause(left, asked.id)
            request = await in_thread(self.inbox.found, asked.id)
        self._tell("request.closed", request, verdict=request.decision.verdict, answered_by=request.answered_by)
        return request.decision

    async def pause(self, seconds: float | None, request: str | None = None) -> None:
        """Wait here for a request, or for a number of seconds."""
        run = self.made.run
        # Before and after its tool the call does not work.
        with run.budget.work.waiting() if self.key in run.begun else contextlib.nullcontext():
            await self.waiting_calls.wait(
                run, self.key, request=request, seconds=seconds, holds_thread=self.holds_thread
            )
        if not self.made.run.ownership_is_fresh:
            await in_thread(self.made.run.verify_ownership)

    def _tell(self, kind: EventType, request: Request, **more: object) -> None:
        self.note(kind, request_id=request.id, kind=request.kind, **more)

    def note(self, event: EventType, **data: object) -> None:
        """Publish an event of the call, once."""
        call = self.made.call
        about = {"turn": self.made.turn, "tool": call.tool, "call_id": call.id}
        self.made.run.publisher.note(self.key, event, {**about, **data})


def _left(asked: RequestSpec, request: Request) -> float | None:
    """Return the seconds until the request expires: never more than its original time, even if a clock was set back."""
    if request.expires_at is None:
        return None
    left = request.expires_at.timestamp() - now() / 1000
    return left if asked.timeout is None else min(left, asked.timeout)


class _NoWaits(BlockingRuntime):
    """Calls a transactional tool, whose transaction belongs to this thread."""

    async def call(self, function: Callable[..., Any], *args: object, **kwargs: object) -> object:
        result = function(*args, **kwargs)
        if not is_awaitable(result):
            return result
        if inspect.iscoroutine(result):
            result.close()
        raise errors.ConfigurationError(
            "a tool with effect='transactional' must be a plain function, and this one returned something to await; "
            "nothing was committed"
        )


@dataclass
class ToolCallExecution:
    """One tool call being made, by the present code."""

    made: ToolCall
    key: str
    recorder: Recorder | None
    """Records the call's own steps; None for a `@step` tool, which is one record."""
    waits: Runtime
    people: CallRequests

    def __post_init__(self) -> None:
        run, call = self.made.run, self.made.call
        self.function: Any = find_tool(self.made.agent, call.tool)
        if self.function is None:
            raise RunHeld(_gone(self.made))
        self.current = CurrentCall(run.run_id, self.made.agent.name, call.tool, call.id, self.made.attempt, self.key)
        self.change, self.context = Change.watch(self.made.context, is_stored=True)
        self.tell = run.swarm.tool_errors == "tell"

    async def record(self) -> Record:
        """Make the call and return its record."""
        self.made.run.live = True
        if (recovery := self.made.run.recovery(self.made.turn)) is not None:
            self.made.run.publisher.recovered(self.key, recovery)
        with users_code(names.tool_step(self.made.call.tool)):
            record = await self._kept() or await self._made()
        return self.made.run.publisher.stamped(self.key, record)

    async def announce(self) -> None:
        """Open the request for the call's approval before the call has its turn."""
        asked = await self._approval(self.made.call)
        with engines_code(f"request {asked.id!r}"):
            await self.waits.call(self.people.open, asked)

    async def _made(self) -> Record:
        call, outcome = self.made.call, await self._refused()
        if outcome is not None and call.approval:
            with engines_code(f"tool call {self.key!r}"):
                await in_thread(self.people.inbox.withdraw, self.key)
        if outcome is None and call.approval:
            asked = await self._approval(call)
            call, outcome = await approved(asked, self.function, call, self.people, self.waits)
        if outcome is None:
            outcome = await (self._once(call) if call.effect == "once" else self._entered(call))
        worked = self.made.run.budget.work_to_record
        record = runs.outcome_record(self.change.read(outcome, self.context), worked)
        return record if outcome.later is None else await self._later(outcome.later, record)

    async def _refused(self) -> Outcome | None:
        """Return the outcome of a call that a limit does not permit, if the run may finish. Raises `LimitReached`."""
        if not self.made.run.budget.limits_calls():
            return None
        run = self.made.run
        while True:
            with engines_code(f"the limits of run {run.run_id!r}"):
                refusal = await in_thread(self.made.refused)
            if refusal is None:
                return None
            if refusal.on_limit == "finish":
                return Outcome(not_made(refusal.found.limit), limit=refusal.found.limit)
            if refusal.on_limit != "ask":
                raise refusal.error(run.run_id)
            with engines_code(f"the limits of run {run.run_id!r}"):
                asked = await in_thread(run.budget.request, refusal, self.made.agent.name, self.key)
            check = functools.partial(unfit, asked=asked, allowed=refusal.allowed)
            decision: Decision = await self.waits.call(self.people.wait, asked, check)
            with engines_code(f"the limits of run {run.run_id!r}"):
                await in_thread(run.budget.decided, refusal, asked, decision)
            if decision.verdict != "approved":
                raise refusal.error(run.run_id)

    async def _approval(self, call: Call) -> RequestSpec:
        """Return the request to open before the call, with the step that it repeats."""
        same_as, same = None, self.made.same
        if same is not None:
            with engines_code(f"the steps of run {self.made.run.run_id!r}"):
                same_as = await in_thread(self.people.number_of, same)
        return approval_of(self.function, call, self.current, same_as)

    async def _entered(self, call: Call) -> Outcome:
        """Enter the tool, when its turn has come."""
        body = functools.partial(self._body, call)
        lane = self.made.lane
        return await (body() if lane is None else lane.run(self.function, body))

    async def _body(self, call: Call) -> Outcome:
        run, made = self.made.run, self.made
        open_call = OpenCall(run.run_id, call.tool, call.plan == "flow", run.was_paused, run.verify_ownership)
        again = None if made.attempt == 1 else open_call
        async with made.crash_guard.execution(self.key, self.waits, again):
            run.begun.add(self.key)
            try:
                seen = executing(run.swarm, "tool", call.tool, made.agent.name, run.root, self.key)
                with run.budget.work.working(), seen:
                    return await self._called(call)
            finally:
                run.begun.discard(self.key)

    async def _called(self, call: Call) -> Outcome:
        if call.effect == "transactional":
            limited_by = self.made.run.budget.run_ids
            return await told(self._in_transaction(call), tell_errors=self.tell, limited_by=limited_by)
        return await call_tool(
            self.function,
            call,
            self.context,
            self._here(),
            cast=self.made.run.cast,
            tell_errors=self.tell,
            waits=self.waits,
        )

    async def _in_transaction(self, call: Call) -> Outcome:
        """Call the tool in a transaction that contains its record, too; the record of an earlier execution counts."""
        run, place = self.made.run, output_of(self.key)

        def body(connection: sqlalchemy.Connection) -> Record:
            given = {"connection": connection} if wants_connection(self.function) else {}
            change, context = Change.watch(self.made.context, is_stored=True)
            here = Inside(self.current, None, self.people, emit=self._emit, owner=run)
            made = finish(invoke(self.function, call, context, here, cast=run.cast, waits=_NoWaits(), **given))
            if made.later is not None:
                raise errors.ConfigurationError(f"tool {call.tool!r} is transactional, and cannot give later()")
            return run.record_codec.close_step(runs.outcome_record(change.read(made, context)), place)

        with engines_code(f"tool call {self.key!r}"):
            await in_thread(begin_workflow)  # The transaction asks the row of the call who owns it.
        stored = await self.waits.call(self.people.transactions.run, self.key, body, run.swarm.tool_database)
        outcome = runs.read_outcome(run.record_codec.open(stored, place, f"the transaction of tool call {self.key!r}"))
        absorb(self.context, outcome)
        return outcome

    def _here(self) -> Inside:
        people = replace(self.people, holds_thread=not is_async(self.function))
        run = self.made.run
        limited_by = run.budget.run_ids
        return Inside(
            self.current, self.recorder, people, emit=self._emit, owner=run, swarm=run.swarm, limited_by=limited_by
        )

    def _emit(self, attempt: int, data: object) -> None:
        call = self.made.call
        about = {"turn": self.made.turn, "tool": call.tool, "call_id": call.id}
        self.made.run.publisher.progress(self.key, {**about, "attempt": attempt, "progress": data})

    # A tool that is entered once

    async def _once(self, call: Call) -> Outcome:
        """Enter the tool, unless an earlier execution may have: then its check decides, or a person."""
        if settings_of(self.function).marks_itself:
            return await self._entered(call)
        number = 0
        while not await self._marks():
            outcome = await self._unknown(call, number)
            if outcome is not None:
                return outcome
            number += 1
        return await self._entered(call)

    async def _marks(self) -> bool:
        if self.recorder is None:
            raise errors.ConfigurationError(f"tool {self.made.call.tool!r} has no place for its mark")
        return await self.recorder.mark(self.waits)

    async def _unknown(self, call: Call, number: int) -> Outcome | None:
        """Find out the outcome of the call; return None if it is to be made."""
        why, check = "", settings_of(self.function).check
        if check is not None:
            try:
                found = await self._checked(check, call)
                if not isinstance(found, bool):
                    return None if found is None else read_result(found, self.made.run.cast)
                why = (
                    f"Its check gave {found}, where it must give the call's result, or None if the call did not happen"
                )
            except BaseException as error:
                failure = ends.failure_of(error)
                if failure is None:
                    raise
                why = f"Its check raised {type(failure).__name__}: {without_secrets(safe_text(failure))[:200]}"
        decision: Decision = await self.waits.call(self.people.wait, outcome_of(call, self.current, number, why))
        if decision.verdict == "approved":
            return None
        if decision.verdict == "rejected":
            return Outcome(f"Error: this call failed{f': {decision.reason}' if decision.reason else '.'}")
        return read_result(decision.value, self.made.run.cast)

    async def _checked(self, check: Callable[..., Any], call: Call) -> Any:
        arguments = {**check_arguments(self.function, call.arguments), "context_variables": self.context}
        body = functools.partial(check, **accepted(check, self.function, arguments))
        return await self.waits.call(
            retrying(body, ToolSettings(), Inside(self.current, None, self.people, owner=self.made.run))
        )

    # A result that comes later

    async def _kept(self) -> Record | None:
        """Return the record of a call whose tool returned `later` in an earlier execution, else None."""
        if self.made.attempt == 1:
            return None
        with engines_code(f"tool call {self.key!r}"):
            found = await in_thread(self.people.inbox.kept, self.key)
        return None if found is None else await self._later(found[0].id.removeprefix(TOKEN), found[1])

    async def _later(self, token: str, record: Record) -> Record:
        if self.recorder is None:
            raise errors.ConfigurationError(
                f"tool {self.made.call.tool!r} is a @step, one record, and cannot give later(); take @step off the tool"
            )
        asked = later_of(self.made.call, self.current, token)
        wait = functools.partial(self.people.wait, asked, kept=record)
        decision: Decision = await self.waits.call(wait)
        outcome = posted(decision, lambda value: read_result(value, self.made.run.cast), Outcome(""))
        return {**record, "text": codec.encode(outcome.text)}


def _gone(made: ToolCall) -> errors.ReplayMismatch:
    return errors.ReplayMismatch(
        f"agent {made.agent.name!r} has no tool {made.call.tool!r} any more, but a call of it is open; "
        "bring the tool back, or cancel the run",
        run_id=made.run.run_id,
    )
