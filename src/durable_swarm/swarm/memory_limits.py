"""The limits of runs in memory. A run that a tool starts spends from the limits of the tool's run, too."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

from durable_swarm.concurrency import Runtime
from durable_swarm.limits import Limits, Reached, Spent, calls_left, extended, limit_error, reached
from durable_swarm.requests import Decision
from durable_swarm.swarm.memory_requests import MemoryInbox
from durable_swarm.tools.limit_requests import amounts, limit_request, unfit
from durable_swarm.tools.worktime import WorkTime

_lock = threading.Lock()
"""Guards the counts of all runs: a call fits the limits of its run and of the run's ancestors, or is not made."""

Refusal = tuple["MemorySpending", Reached]
"""The run whose limit permits no further call, and the limit."""


@dataclass(eq=False)
class MemorySpending:
    """The amounts that one run in memory may spend and has spent, its child runs included."""

    run_id: str
    at_first: Limits | None
    """What was allowed at first."""
    inbox: MemoryInbox
    waits: Runtime
    parent: MemorySpending | None = None
    session: MemorySpending | None = None
    """That of the session, over all its runs."""
    work: WorkTime = field(default_factory=WorkTime)
    spent: Spent = field(default_factory=Spent)
    allowed: Limits | None = None
    asked: int = 0
    """How often more was asked for."""
    finishes: str = ""
    """The limit because of which the next model call is the run's last."""

    @classmethod
    def of(
        cls,
        run_id: str,
        given: Limits | None,
        default: Limits | None,
        inbox: MemoryInbox,
        waits: Runtime,
        session: MemorySpending | None,
    ) -> Self:
        """Return that of a run that begins in this context; a child that is given no limits has those of its parent."""
        parent = _parent.get()
        if given is None and parent is not None:
            default = None if parent.at_first is None else parent.at_first.of_child()
        limits = default if given is None else given
        return cls(run_id, limits, inbox, waits, parent, session, allowed=limits)

    @property
    def family(self) -> Iterator[MemorySpending]:
        """The run, its session and its ancestors, with their sessions."""
        one: MemorySpending | None = self
        while one is not None:
            yield one
            if one.session is not None:
                yield one.session
            one = one.parent

    @property
    def run_ids(self) -> frozenset[str]:
        """The ids of the run and its ancestors."""
        return frozenset(one.run_id for one in self.family)

    def limits_cost(self) -> bool:
        """Return True if the cost is limited."""
        return any(one.at_first is not None and one.at_first.cost is not None for one in self.family)

    def add(self, more: Spent) -> None:
        """Count what was spent, in the run and its ancestors."""
        with _lock:
            self._add(more)

    def _add(self, more: Spent) -> None:
        for one in self.family:
            one.spent = one.spent + more

    async def reserve(self, agent: str, failing: int) -> str:
        """Reserve a model call; return the limit because of which it is the run's last, or ''. Raises `LimitReached`.

        `failing` is how often in a row the last tool call has failed.
        """
        while not self.finishes and (refusal := self._reserve(failing)) is not None:
            await self._at_limit(agent, *refusal)
        if self.finishes:
            self.add(Spent(1))
        return self.finishes

    def _reserve(self, failing: int) -> Refusal | None:
        with _lock:
            for one in self.family:
                spent = replace(one.spent, seconds=one.spent.seconds + one.work.seconds)
                found = None if one.allowed is None else reached(one.allowed, spent, failing if one is self else 0)
                if found is not None:
                    return one, found
            self._add(Spent(1))
        return None

    @contextlib.contextmanager
    def model_call(self) -> Iterator[None]:
        """Wrap a model call that was reserved; one that fails costs nothing."""
        try:
            with self.work.working(), contextlib.nullcontext() if self.session is None else self.session.work.working():
                yield
        except BaseException:
            self.add(Spent(-1))
            raise

    async def reserve_call(self, agent: str) -> str:
        """Reserve a tool call; return the limit because of which it is not made, or ''. Raises `LimitReached`."""
        while (refusal := self._reserve_call()) is not None:
            await self._at_limit(agent, *refusal)
            if self.finishes:
                return self.finishes
        return ""

    def _reserve_call(self) -> Refusal | None:
        with _lock:
            for one in self.family:
                made = one.spent.tool_calls
                if one.allowed is not None and calls_left(one.allowed, made) == 0:
                    return one, Reached("tool_calls", made, made)
            self._add(Spent(tool_calls=1))
        return None

    async def _at_limit(self, agent: str, whose: MemorySpending, found: Reached) -> None:
        """Do what the limits say: extend them after an approval, or let the run finish. Raises `LimitReached`."""
        allowed = whose.allowed or Limits()
        at_first = getattr(whose.at_first, found.limit)
        if allowed.on_limit == "finish":
            self.finishes = found.limit
            return
        decision = Decision("rejected")
        if allowed.on_limit == "ask":
            whose.asked += 1
            asked = limit_request(self.run_id, whose.asked, agent, found, allowed, at_first)
            decision = await self.waits.call(self.inbox.wait, asked, partial(unfit, asked=asked, allowed=allowed))
        if decision.verdict != "approved":
            raise limit_error(found, whose.run_id, at_first, of="run in memory")
        whose.extend(amounts(decision, asked))

    def extend(self, more: Mapping[str, object]) -> None:
        """Allow more."""
        with _lock:
            self.allowed = extended(self.allowed, more, self.run_id)


_parent: ContextVar[MemorySpending | None] = ContextVar("durable_swarm_memory_spending", default=None)


@contextlib.contextmanager
def spending_from(run: MemorySpending) -> Iterator[None]:
    """Let runs that begin in this context spend from the run's limits, too."""
    token = _parent.set(run)
    try:
        yield
    finally:
        _parent.reset(token)
