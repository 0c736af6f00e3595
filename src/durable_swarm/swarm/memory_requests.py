"""The requests of runs in memory, which end with the process. `engine` has the durable ones."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from durable_swarm.errors import ConfigurationError
from durable_swarm.requests import TOKEN, Decision, Request, RequestSpec, check_decision, closed_error
from durable_swarm.tools.worktime import WorkTime
from durable_swarm.validation import check_text


@dataclass(frozen=True)
class WaitingAtWork:
    """The inbox for a tool that is being executed: while it waits, the run does not work."""

    inbox: MemoryInbox
    work: WorkTime

    async def wait(self, asked: RequestSpec, unfit: Callable[[Decision], str] | None = None) -> Decision:
        """Open the request, unless it was opened before, and wait for the decision."""
        with self.work.waiting():
            return await self.inbox.wait(asked, unfit)


class MemoryInbox:
    """Requests and their waiters. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[str, Request] = {}
        self._decisions: dict[str, Future[Decision]] = {}

    async def wait(self, asked: RequestSpec, unfit: Callable[[Decision], str] | None = None) -> Decision:
        """Open the request, unless it was opened before, and wait for the decision."""
        while True:
            future = self.open(asked)
            try:
                # Shielded, because a waiter that gives up must not take the answer from later ones.
                async with asyncio.timeout(asked.timeout):
                    decision = await asyncio.shield(asyncio.wrap_future(future))
            except TimeoutError:
                decision = self._expire(asked.id)
            problem = unfit(decision) if unfit is not None else ""
            if not problem:
                return decision
            self._reopen(asked.id, problem)

    def open(self, asked: RequestSpec) -> Future[Decision]:
        """Open a request, unless it was opened before; return the future of its decision."""
        with self._lock:
            future = self._decisions.setdefault(asked.id, Future())
            known = self._requests.get(asked.id)
            if known is None or not known.run_id:
                self._requests[asked.id] = _request(asked, known)
            elif known.status == "answered" and known.kind == "question" and _differ(asked, known):
                # A further attempt of the tool asks something else, so the earlier answer does not apply.
                self._requests[asked.id] = _request(asked, None)
                future = self._decisions[asked.id] = Future()
            return future

    def _expire(self, request_id: str) -> Decision:
        with self._lock:
            future = self._decisions[request_id]
            if not future.done():
                self._settle(request_id, "expired", Decision("expired"), None)
        return future.result()

    def close(self, call: str) -> None:
        """Close the requests of a tool call that has ended, for example by its timeout."""
        with self._lock:
            for request in list(self._requests.values()):
                if request.status == "open" and request.id.startswith(f"{call}/"):
                    self._settle(request.id, "expired", Decision("expired"), None)

    def _reopen(self, request_id: str, why: str) -> None:
        with self._lock:
            self._decisions[request_id] = Future()
            request = self._requests[request_id]
            again = replace(request, status="open", decision=None, answered_by=None, answered_at=None)
            self._requests[request_id] = replace(again, question=f"{request.question} ({why})")

    def decide(
        self, request_id: str, decision: Decision, by: str | None, check: Callable[[Request], None] | None = None
    ) -> Request:
        """Take a decision. Raises `AlreadyAnswered`, `RequestExpired`, `InvalidAnswer`, `ConfigurationError`."""
        if by is not None:
            check_text("by", by)
        with self._lock:
            request = self._requests.get(request_id)
            if request is None:
                raise ConfigurationError(f"there is no request {request_id!r}")
            if (closed := closed_error(request)) is not None:
                raise closed
            check_decision(request, decision)
            if check is not None:
                check(request)
            return self._settle(request_id, "answered", decision, by)

    def complete(self, token: str, decision: Decision, by: str | None) -> bool:
        """Post a result under a token; return True if a call waits for it. Raises `AlreadyAnswered`."""
        with self._lock:
            waits = TOKEN + token in self._requests
            if not waits:
                asked = RequestSpec(TOKEN + token, "result", "", "", "", "", "")
                self._decisions[asked.id] = Future()
                self._requests[asked.id] = _request(asked, None)
        self.decide(TOKEN + token, decision, by)
        return waits

    def _settle(self, request_id: str, status: str, decision: Decision, by: str | None) -> Request:
        settled = replace(
            self._requests[request_id],
            status="expired" if status == "expired" else "answered",
            decision=decision,
            answered_by=by,
            answered_at=datetime.now(UTC),
        )
        self._requests[request_id] = settled
        self._decisions[request_id].set_result(decision)
        return settled

    def open_requests(self) -> list[Request]:
        """Return the open requests, oldest first."""
        with self._lock:
            return [request for request in self._requests.values() if request.status == "open"]

    def found(self, request_id: str) -> Request:
        """Return a request. Raises `ConfigurationError` if no request has that id."""
        with self._lock:
            if request_id not in self._requests:
                raise ConfigurationError(f"there is no request {request_id!r}")
            return self._requests[request_id]

    def forget(self, run_id: str) -> None:
        """Remove the requests of a run that has ended."""
        with self._lock:
            for request in [one for one in self._requests.values() if one.run_id == run_id]:
                del self._requests[request.id]
                with contextlib.suppress(KeyError):
                    del self._decisions[request.id]


def _differ(asked: RequestSpec, known: Request) -> bool:
    return (asked.question, asked.choices) != (known.question, known.choices)


def _request(asked: RequestSpec, early: Request | None) -> Request:
    now = datetime.now(UTC)
    request = Request(
        id=asked.id,
        run_id=asked.run_id,
        kind=asked.kind,
        agent=asked.agent,
        tool=asked.tool,
        question=asked.question,
        created_at=now,
        call_id=asked.call_id,
        choices=asked.choices,
        arguments=asked.arguments,
        schema=asked.schema,
        same_as=asked.same_as,
        expires_at=None if asked.timeout is None else now + timedelta(seconds=min(asked.timeout, 1e9)),
    )
    if early is None:
        return request
    return replace(
        request,
        status=early.status,
        decision=early.decision,
        answered_by=early.answered_by,
        answered_at=early.answered_at,
    )
