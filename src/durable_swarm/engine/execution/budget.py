"""The limits of a run while it is executed: each model call reserves its share before it is made, and is settled after.

A run without children counts from its own records, which one execution at a time writes; so a limit costs it nothing.
Its account in the database is used after a crash, at a limit (which may have been extended), and with children, who
spend from it (`engine.storage.ledger`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from decimal import Decimal

from durable_swarm.concurrency import in_thread
from durable_swarm.engine.execution.errors import engines_code
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.records.runs import read_limits_of, seconds_worked
from durable_swarm.engine.signals import RunHeld, RunSuspended, StepFailed
from durable_swarm.engine.storage.ledger import BEFORE_TURNS, Account, Key, Ledger, Refusal, of_lone_run
from durable_swarm.limits import Limits, Reached, Spent, calls_left, reached
from durable_swarm.loop import NOT_MADE, Reply
from durable_swarm.requests import Decision, RequestSpec
from durable_swarm.tools.limit_requests import amounts, limit_request
from durable_swarm.tools.worktime import WorkTime
from durable_swarm.types import Usage


@dataclass
class Budget:
    """The amounts that a run may spend and has spent, as its execution knows. Methods that read accounts may block."""

    ledger: Ledger
    run_id: str
    owner: str | None
    limits: Limits | None
    """The limits with which the run was started; None for a run without limits."""
    above: tuple[Key, ...] = ()
    """The accounts from which the run spends beside its own: those of its ancestors, the root first."""
    makes_calls: bool = True
    work: WorkTime = field(default_factory=WorkTime)
    spent: Spent = field(default_factory=Spent)
    """What the run's own records say."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _account: Account | None = None
    """The run's own account, as it was read last."""
    _shares: bool = False
    """True if calls reserve their share in accounts."""
    _turn: int = BEFORE_TURNS
    _reserved: bool = False
    _paid: Spent | None = None
    """What the turn's answer has cost, once there is one."""
    _calls: int = 0
    """How many tool calls of the last turn are made."""
    _grant: tuple[int, Refusal | None] | None = None
    """How many of them are permitted, and the account that permits no more."""
    _worked_before: float = 0.0
    """Seconds that earlier executions have worked."""
    _freed: bool = False
    """True if the account says that the turn's model call is not in flight, because one attempt has failed."""
    _begun_again: bool = False
    """True if a call in which an earlier execution may have died is counted."""
    _limits_above: list[Limits] = field(default_factory=list)
    """The limits of the accounts above; which amounts are limited never changes while a run lasts."""

    def __post_init__(self) -> None:
        self._shares = bool(self.above)

    @property
    def key(self) -> Key:
        """The key of the run's own account."""
        return Key("run", self.run_id)

    @property
    def chain(self) -> tuple[Key, ...]:
        """The accounts from which the run spends, its own last."""
        return (*self.above, self.key)

    @property
    def run_ids(self) -> frozenset[str]:
        """The ids of the runs whose limits hold for the run: its own, and those of its ancestors."""
        return frozenset(key.id for key in self.chain if key.kind == "run")

    @property
    def worked(self) -> float:
        """Seconds that the run has worked, in all executions, as far as they are recorded."""
        return self._worked_before + self.work.seconds

    def load(self, *, recovered: bool) -> None:
        """Read what limits the run from above, and the account that earlier executions of it have left."""
        above = [self.ledger.read(key) for key in self.above]
        self._limits_above = [one.allowed for one in above if one is not None and one.allowed is not None]
        if recovered:
            self._account = self.ledger.read(self.key)
            self._shares = self._shares or (self._account is not None and self._account.opened)
            if self._account is not None and not self._shares:
                self.has_worked(self._account.spent.seconds)

    def has_worked(self, seconds: float) -> None:
        """Note that earlier executions have worked so long in all."""
        self._worked_before = max(self._worked_before, seconds)

    def _known(self) -> Account:
        own = replace(self.spent, seconds=self.worked)
        if self._account is None:
            return Account(self.limits, self.limits, own)
        spent = of_lone_run(self._account, own)
        return Account(self._account.allowed or self.limits, self._account.at_first or self.limits, spent)

    # Model calls

    @contextlib.asynccontextmanager
    async def model_call(self, turn: int) -> AsyncIterator[None]:
        """Wrap a model call: if it fails, or is not made, it costs nothing; if its process dies, it stays counted."""
        self._turn, self._reserved, self._paid = turn, False, None
        try:
            yield
        except (StepFailed, RunHeld, RunSuspended):
            with contextlib.suppress(RunHeld), engines_code(f"the limits of run {self.run_id!r}"):
                await in_thread(self._give_back if self._paid is None else self._pay)
            raise

    def reserve_here(self, failing: int, *, again: bool) -> bool:
        """Reserve the model call without a look at accounts, if that is enough; return True if it is reserved."""
        self._reserved = not (self._shares or again or self._freed) and self._own_reached(failing) is None
        return self._reserved

    def reserve(self, failing: int, *, again: bool, forced: bool = False) -> Refusal | None:
        """Reserve the model call, or return the account that does not permit it.

        `failing` is how often in a row the last tool call has failed. `again` says that an earlier execution may have
        died in this call. With `forced` the call is counted in any case.
        """
        if again and not (self._shares or self._begun_again) and (forced or self._own_reached(failing) is None):
            # At a limit the earlier execution cannot have made it, unless the limit lets the run finish.
            self._account, self._begun_again = self.ledger.begin_again(self.run_id, self._turn), True
        elif self._freed and not self._shares:
            self.ledger.begin_attempt(self.run_id)
        self._freed = False
        refusal = None if forced else self._own_refusal(failing)
        if refusal is None and self._shares:
            refusal = self.ledger.reserve(self.chain, self.limits, forced=forced)
        self._reserved = refusal is None
        return refusal

    def _own_refusal(self, failing: int) -> Refusal | None:
        """Return the run's own account if it permits no further call, after a look whether it was extended."""
        if self._own_reached(failing) is None:
            return None
        self._account = self.ledger.read(self.key)
        found = self._own_reached(failing)
        return None if found is None else Refusal(self.key, found, self._known())

    def _own_reached(self, failing: int) -> Reached | None:
        known = self._known()
        if known.allowed is None:
            return None
        # Where accounts are shared they are asked; only repetitions are the run's own.
        return reached(known.allowed, Spent() if self._shares else known.spent, failing)

    def _give_back(self) -> None:
        with self._lock:
            if not self._shares and self.limits is not None:
                self.ledger.free(self.run_id, self._turn)
                self._freed = True
            elif self._shares and self._reserved:
                self.ledger.release(self.chain)
            self._reserved = False

    def answered(self, usage: Usage | None, cost: Decimal | None = None) -> None:
        """Note that the model has answered: from now on the call is paid, whatever becomes of the answer."""
        self._paid = Spent(1, usage=usage or Usage(), cost=cost)

    def _pay(self) -> None:
        """Count an answer that is not recorded, because the step has failed with it."""
        with self._lock:
            if self._paid is not None and (self._shares or self.limits is not None):
                self.ledger.pay(self.chain if self._shares else (self.key,), self._turn, self._paid)
            self._reserved, self._freed = False, not self._shares

    def leave(self) -> None:
        """Note in the account how long a run has worked that fails; what it has recorded does not say all."""
        if not self._shares and self.limits is not None and self.limits.seconds is not None:
            self.ledger.note_work(self.run_id, self.worked)

    def replied(self, turn: int, reply: Reply, record: Record, *, replayed: bool) -> Spent | None:
        """Count the reply of a turn that has its record; return what is to be settled in accounts, if anything."""
        cost, seconds = record.get("cost"), max(self.spent.seconds, seconds_worked(record))
        if replayed:
            self.has_worked(seconds)
        with self._lock:
            self._turn, self._calls, self._grant, self._reserved = turn, self._made(reply), None, False
            usage, price = reply.usage or Usage(), None if cost is None else Decimal(cost)
            more = Spent(1, self._calls, usage, price, seconds - self.spent.seconds)
            self.spent = self.spent + more
            return self._unsettled(more)

    def summarized(self, spent: Spent, *, replayed: bool) -> Spent | None:
        """Count the summary that was written before the first turn; return what is to be settled, if anything."""
        if replayed:
            self.has_worked(spent.seconds)
        with self._lock:
            self._turn, self._reserved, self.spent = BEFORE_TURNS, False, self.spent + spent
            return self._unsettled(spent) if spent.requests else None

    def _unsettled(self, more: Spent) -> Spent | None:
        is_settled = self._account is not None and self._account.has_settled(self._turn)
        return more if self._shares and not is_settled else None

    def settle(self, more: Spent) -> None:
        """Settle the last reply in the accounts."""
        self.ledger.settle(self.chain, self._turn, replace(more, tool_calls=0) if self.limits_calls() else more)

    def _made(self, reply: Reply) -> int:
        return sum(call.plan not in NOT_MADE for call in reply.calls) if self.makes_calls else 0

    # Tool calls

    def refused_call(self, turn: int, position: int) -> Refusal | None:
        """Return the account that does not permit a tool call, the `position`-th from 0 of those that a turn makes."""
        with self._lock:
            if self._grant is None:
                self._grant = self._granted(turn)
            permitted, refusal = self._grant
        return refusal if position >= permitted else None

    def _granted(self, turn: int) -> tuple[int, Refusal | None]:
        if self._shares:
            limited = self.limits_calls()
            return self.ledger.grant(self.chain, turn, self._calls) if limited else (self._calls, None)
        before = self.spent.tool_calls - self._calls
        left = self._left(before)
        if left < self._calls:  # Perhaps it was extended.
            self._account = self.ledger.read(self.key)
            left = self._left(before)
        if left >= self._calls:
            return self._calls, None
        return left, Refusal(self.key, Reached("tool_calls", before + left, before + left), self._known())

    def _left(self, before: int) -> int:
        allowed = self._known().allowed
        left = None if allowed is None else calls_left(allowed, before)
        return self._calls if left is None else left

    def limits_calls(self) -> bool:
        """Return True if tool calls reserve their share before they are made, because an account limits them."""
        return any(limits.tool_calls is not None for limits in self._all_limits())

    def limits_cost(self) -> bool:
        """Return True if an account limits the cost."""
        return any(limits.cost is not None for limits in self._all_limits())

    def _all_limits(self) -> list[Limits]:
        """Return the limits of all accounts."""
        return self._limits_above if self.limits is None else [self.limits, *self._limits_above]

    @property
    def work_to_record(self) -> float | None:
        """The seconds that the run has worked, None if nothing needs to be counted."""
        return None if self.limits is None and not self.above else self.worked

    # Requests for more

    def request(self, refusal: Refusal, agent: str, call: str = "") -> RequestSpec:
        """Return the run's request for more of what is used up, for a model call or a tool call."""
        account = self.ledger.read(self.key)
        number = 0 if account is None else account.asked
        asked = limit_request(self.run_id, number, agent, refusal.found, refusal.allowed, refusal.at_first)
        return replace(asked, call=call or asked.call)

    def decided(self, refusal: Refusal, asked: RequestSpec, decision: Decision) -> None:
        """Apply a decision, once: after an approval the account allows more."""
        more = amounts(decision, asked) if decision.verdict == "approved" else None
        number = int(asked.id.rpartition("/")[2])
        self.ledger.decide(self.key, number, refusal.key, self.limits if refusal.key == self.key else None, more)
        with self._lock:
            self._grant = None

    # Children

    def open(self) -> tuple[Key, ...]:
        """Open the run's account for a child run, and return the accounts from which that spends beside its own."""
        with self._lock:
            if not self._shares:
                permitted = self._calls if self._grant is None else self._grant[0]
                flying = Spent(1, uncertain=1) if self._reserved else Spent()
                so_far = self.spent + flying + Spent(tool_calls=permitted - self._calls)
                self.ledger.open(self.run_id, self.owner, self.limits, so_far, (self._turn, permitted))
                self._shares = True
        return self.chain


def budget_of(ledger: Ledger, run_id: str, owner: str | None, start: Record) -> Budget:
    """Return the budget of a run with that input, for its execution of the token `owner`."""
    limits, above = read_limits_of(start)
    calls = start.get("execute_tools", True)
    return Budget(ledger, run_id, owner, limits, tuple(Key(*account) for account in above), calls)
