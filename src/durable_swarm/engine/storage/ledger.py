"""What runs have spent together, and may spend: one account for each tree of runs, and for each session with limits.

A run without children needs no account: its own records are the ledger, because one execution at a time adds to them.
Its row exists only where something does not follow from the records: calls that were in flight at a crash, and limits
that were extended. With its first child run the account is opened (`open`): from then on each model call of the tree
reserves its share before it is made, in one transaction over all accounts it belongs to, and is settled once its answer
is recorded. A crash before the record leaves the reservation, which is then an uncertain call; a crash after it leaves
the settlement to the next execution, which finds the record. The run's own account counts the settled turns, so none is
settled twice.

    requests - answered   the uncertain calls (and those in progress)
    allowed, at_first     the limits now and at the start, as JSON; null if the records of the run have them
    milliseconds          the time worked; of a row that is not opened all of it, which its records may not say
    free_turn             the turn whose model call is known not to be in flight, in a row that is not opened
    settled               which turns of the run are settled: those below this number less one (a summary is turn -1)
    turn, granted         the last turn of the run whose tool calls have reserved their share, and how many have
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, NamedTuple

import sqlalchemy
from sqlalchemy import BigInteger, Boolean, Column, Integer, Text, case, column, select, table, update

from durable_swarm.engine.database.dialects import insert_into
from durable_swarm.engine.database.urls import is_sqlite, schema_of
from durable_swarm.engine.storage.own_table import OwnTable
from durable_swarm.engine.storage.ownership import UNFINISHED
from durable_swarm.errors import LimitReached
from durable_swarm.limits import (
    Limits,
    OnLimit,
    Reached,
    Spent,
    calls_left,
    extended,
    limit_error,
    limits_record,
    reached,
    read_limits,
)
from durable_swarm.types import Usage

TOKENS = tuple(name for name in Usage.model_fields if name.endswith("_tokens"))
BEFORE_TURNS = -1
"""The turn of a model call that is made before the first turn, for a summary."""

PICO = Decimal(10) ** 12
"""Costs are stored in whole millionths of a millionth of a dollar, so that the database can add them."""


class Key(NamedTuple):
    """The key of an account: of the tree below a run (kind `run`), or of a session."""

    kind: str
    id: str


class AccountRow(NamedTuple):
    """The row of an account, in the order of its table's columns, which the module's docstring explains."""

    kind: str
    id: str
    opened: bool
    requests: int
    answered: int
    counted: int
    tool_calls: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    milliseconds: int
    cost: int | None
    allowed: str | None
    at_first: str | None
    free_turn: int | None
    settled: int
    turn: int | None
    granted: int
    asked: int


class Account(NamedTuple):
    """An account: what it allows and allowed at first, what is spent, and True if spending is kept in it."""

    allowed: Limits | None
    at_first: Limits | None
    spent: Spent
    opened: bool = False
    settled: int = 0
    """One more than the number of turns of the run that are settled, in its own account; 0 if no call is."""
    asked: int = 0
    """The number of the run's requests for more that are decided, in its own account."""

    def has_settled(self, turn: int) -> bool:
        """Return True if the model call of a turn is settled, in the run's own account."""
        return turn + 1 < self.settled


@dataclass(frozen=True)
class Refusal:
    """The account that permits no further call."""

    key: Key
    found: Reached
    account: Account

    @property
    def on_limit(self) -> OnLimit:
        """The action at the limit."""
        return "fail" if self.account.allowed is None else self.account.allowed.on_limit

    @property
    def allowed(self) -> Limits:
        """The limits of the account."""
        return self.account.allowed or Limits()

    @property
    def at_first(self) -> Any:
        """The amounts that the account allowed at first."""
        return getattr(self.account.at_first, self.found.limit, None)

    def error(self, run_id: str) -> LimitReached:
        """Return the error that ends the run of that id."""
        ends = run_id if self.key.kind == "session" else ""
        return limit_error(self.found, self.key.id, self.at_first, of=self.key.kind, run_id=ends)


class Ledger(OwnTable):
    """The accounts of one database. Every method raises `ConfigurationError` if the database cannot be used."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine) -> None:
        self._lite = is_sqlite(url)
        schema = schema_of(url)
        counts = ("requests", "answered", "counted", "tool_calls", *TOKENS, "milliseconds")
        rows = sqlalchemy.Table(
            "durable_swarm_ledger",
            sqlalchemy.MetaData(schema=schema),
            Column("kind", Text, primary_key=True),
            Column("id", Text, primary_key=True),
            Column("opened", Boolean, nullable=False),
            *(Column(name, BigInteger, nullable=False, default=0) for name in counts),
            Column("cost", BigInteger),
            Column("allowed", Text),
            Column("at_first", Text),
            Column("free_turn", Integer),
            Column("settled", Integer, nullable=False, default=0),
            Column("turn", Integer),
            Column("granted", Integer, nullable=False, default=0),
            Column("asked", Integer, nullable=False, default=0),
        )
        super().__init__(url, engine, rows)
        self._runs = table("workflow_status", *map(column, ("workflow_uuid", "status", "owner_xid")), schema=schema)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlalchemy.Connection]:
        if not self._there:
            self.create()
        with super()._writing() as connection:
            yield connection

    def _where(self, key: Key) -> sqlalchemy.ColumnElement[bool]:
        return (self._rows.c.kind == key.kind) & (self._rows.c.id == key.id)

    def _locked(self, connection: sqlalchemy.Connection, key: Key, first: Limits | None, *, opened: bool) -> AccountRow:
        """Return the row of an account, locked; it is made if it does not exist, with these limits."""
        stored = json.dumps(limits_record(first)) if first is not None else None
        values = {"kind": key.kind, "id": key.id, "opened": opened, "allowed": stored, "at_first": stored}
        made = insert_into(self._engine, self._rows).values(**values)
        wanted = select(self._rows).where(self._where(key)).with_for_update()
        row = connection.execute(wanted).first()
        if row is None:
            connection.execute(made.on_conflict_do_nothing())
            row = connection.execute(wanted).one()
        return AccountRow(*row)

    # Looking

    def read(self, key: Key) -> Account | None:
        """Return an account, or None."""
        found = next(iter(self._read(select(self._rows).where(self._where(key)))), None)
        return None if found is None else account_of(AccountRow(*found))

    # A run without children

    def begin_again(self, run_id: str, turn: int) -> Account:
        """Note that a model call is made whose earlier execution may have died in it; return the run's account.

        That call counts as uncertain, unless it is known not to have been in flight. Nothing changes in an account that
        is opened, because calls reserve their share there.
        """
        key, rows = Key("run", run_id), self._rows
        with self._writing() as connection:
            row = self._locked(connection, key, None, opened=False)
            if not row.opened:
                free = rows.c.free_turn.is_not_distinct_from(turn)
                values = {"requests": rows.c.requests + case((free, 0), else_=1), "free_turn": None}
                connection.execute(update(rows).where(self._where(key)).values(**values))
            return account_of(AccountRow(*connection.execute(select(rows).where(self._where(key))).one()))

    def free(self, run_id: str, turn: int) -> None:
        """Note that the model call of a turn is not in flight: it failed, or was not made."""
        with self._writing() as connection:
            self._locked(connection, Key("run", run_id), None, opened=False)
            connection.execute(update(self._rows).where(self._where(Key("run", run_id))).values(free_turn=turn))

    def pay(self, keys: Iterable[Key], turn: int, more: Spent) -> None:
        """Add the answer of a turn's model call that is not recorded, to a run's own account or to those it shares."""
        rows = self._rows
        with self._writing() as connection:
            for key in keys:
                row = self._locked(connection, key, None, opened=False)
                values = self._added(more)
                if not row.opened:  # Otherwise it was reserved.
                    values |= {"requests": rows.c.requests + more.requests, "free_turn": turn}
                connection.execute(update(rows).where(self._where(key)).values(**values))

    def note_work(self, run_id: str, seconds: float) -> None:
        """Note how many seconds a run without children has worked in all."""
        with self._writing() as connection:
            self._locked(connection, Key("run", run_id), None, opened=False)
            mine = update(self._rows).where(self._where(Key("run", run_id)), ~self._rows.c.opened)
            connection.execute(mine.values(milliseconds=round(seconds * 1000)))

    def begin_attempt(self, run_id: str) -> None:
        """Note that the model call of the run's turn may be in flight again."""
        with self._writing() as connection:
            connection.execute(update(self._rows).where(self._where(Key("run", run_id))).values(free_turn=None))

    def open(
        self, run_id: str, owner: str | None, limits: Limits | None, so_far: Spent, granted: tuple[int, int]
    ) -> None:
        """Open the account of a run that is about to have children; `so_far` is what its own records say.

        `granted` is its turn, and how many tool calls of that are part of `so_far`. Does nothing if the account is
        open. Raises `OwnershipLost` if the execution of the token `owner` no longer owns the run.
        """
        key, runs, rows = Key("run", run_id), self._runs.c, self._rows
        with self._writing() as connection:
            row = self._locked(connection, key, None, opened=False)
            mine = (runs.workflow_uuid == run_id) & (runs.owner_xid == owner) & runs.status.in_(UNFINISHED)
            if connection.execute(select(runs.status).where(mine)).first() is None:
                # Not above, because it imports DBOS, which reading does without.
                from durable_swarm.engine.backend.ownership import OwnershipLost

                raise OwnershipLost(run_id)
            if row.opened:
                return
            stored = json.dumps(limits_record(limits))
            kept = {"allowed": row.allowed or stored, "at_first": row.at_first or stored, "opened": True}
            values = self._added(so_far) | {"requests": rows.c.requests + so_far.requests}
            values["milliseconds"] = round(so_far.seconds * 1000)
            values |= {"turn": granted[0], "granted": granted[1], "settled": granted[0] + 2}
            connection.execute(update(rows).where(self._where(key)).values(**kept, **values))

    # Runs that share accounts

    def open_for(self, key: Key, limits: Limits) -> None:
        """Open an account with these limits; those of one that exists are replaced, unless it had them at first."""
        stored = json.dumps(limits_record(limits))
        with self._writing() as connection:
            if self._locked(connection, key, limits, opened=True).at_first != stored:
                changed = update(self._rows).where(self._where(key))
                connection.execute(changed.values(allowed=stored, at_first=stored))

    def reserve(self, chain: Iterable[Key], own: Limits | None, *, forced: bool = False) -> Refusal | None:
        """Reserve one model call in all accounts of the chain, or return the account that does not permit it.

        The chain leads from the root of the tree to the run itself, whose own limits are `own`: so all runs lock the
        accounts in one order. With `forced` the call is counted although it exceeds a limit.
        """
        keys, rows = list(chain), self._rows
        with self._writing() as connection:
            for key in keys:
                row = self._locked(connection, key, own if key == keys[-1] else None, opened=True)
                account = account_of(row)
                found = None if account.allowed is None else reached(account.allowed, account.spent)
                if found is not None and not forced:
                    return Refusal(key, found, account)
            for key in keys:
                connection.execute(update(rows).where(self._where(key)).values(requests=rows.c.requests + 1))
        return None

    def release(self, chain: Iterable[Key]) -> None:
        """Take the reservation of a model call back that was not answered, and is known to have ended."""
        rows = self._rows
        with self._writing() as connection:
            for key in chain:
                connection.execute(update(rows).where(self._where(key)).values(requests=rows.c.requests - 1))

    def settle(self, chain: Iterable[Key], turn: int, more: Spent) -> None:
        """Add a reserved model call, whose answer is recorded, to the accounts; once, however often it is repeated."""
        keys, rows = list(chain), self._rows
        with self._writing() as connection:
            found = [self._locked(connection, key, None, opened=True) for key in keys]
            if account_of(found[-1]).has_settled(turn):
                return
            for key in keys:
                connection.execute(update(rows).where(self._where(key)).values(**self._added(more)))
            connection.execute(update(rows).where(self._where(keys[-1])).values(settled=turn + 2))

    def grant(self, chain: Iterable[Key], turn: int, calls: int) -> tuple[int, Refusal | None]:
        """Reserve the tool calls of a reply; return how many are permitted, and the account that permits no more.

        The run's own account, the last of the chain, remembers the turn, so that a repetition reserves nothing twice.
        """
        keys, rows, refusal = list(chain), self._rows, None
        with self._writing() as connection:
            found = [self._locked(connection, key, None, opened=True) for key in keys]
            before = found[-1].granted if found[-1].turn == turn else 0
            more = calls - before if turn >= (found[-1].turn or 0) else 0
            for key, row in zip(keys, found, strict=True):
                account = account_of(row)
                left = None if account.allowed is None else calls_left(account.allowed, row.tool_calls)
                if account.allowed is not None and left is not None and left < more:
                    more, allowed = left, account.allowed.tool_calls or 0
                    refusal = Refusal(key, Reached("tool_calls", row.tool_calls + left, allowed), account)
            for key in keys:
                connection.execute(update(rows).where(self._where(key)).values(tool_calls=rows.c.tool_calls + more))
            own = update(rows).where(self._where(keys[-1]))
            connection.execute(own.values(turn=turn, granted=before + more))
        return before + more, refusal

    def _added(self, more: Spent) -> dict[str, object]:
        rows = self._rows.c
        values: dict[str, object] = {
            "answered": rows.answered + (more.requests - more.uncertain),
            "counted": rows.counted + more.usage.requests,
            "tool_calls": rows.tool_calls + more.tool_calls,
            "milliseconds": rows.milliseconds + round(more.seconds * 1000),
            **{name: rows[name] + getattr(more.usage, name) for name in TOKENS},
        }
        if more.cost is not None:
            values["cost"] = sqlalchemy.func.coalesce(rows.cost, 0) + math.ceil(more.cost * PICO)
        return values

    # People

    def extend(self, key: Key, at_first: Limits | None, more: Mapping[str, object], session: Key | None = None) -> None:
        """Add amounts to the limits of a run's account, and to those of its session, where they are limited.

        `at_first` are the limits of a run that has no row yet. Raises `ConfigurationError` for what neither limits.
        """
        with self._writing() as connection:
            shared: dict[str, object] = {}
            if session is not None:
                limited = account_of(self._locked(connection, session, None, opened=True)).allowed
                shared = {name: amount for name, amount in more.items() if getattr(limited, name, None) is not None}
                if shared:
                    self._extend(connection, session, None, shared)
            own = account_of(self._locked(connection, key, at_first, opened=False)).allowed or at_first
            rest = {name: more[name] for name in more if name not in shared or getattr(own, name, None) is not None}
            if rest or not shared:
                self._extend(connection, key, at_first, rest)

    def _extend(
        self, connection: sqlalchemy.Connection, key: Key, at_first: Limits | None, more: Mapping[str, object]
    ) -> None:
        row = self._locked(connection, key, at_first, opened=False)
        after = extended(account_of(row).allowed or at_first, more, key.id)
        first = row.at_first or json.dumps(limits_record(at_first))
        values = {"allowed": json.dumps(limits_record(after)), "at_first": first}
        connection.execute(update(self._rows).where(self._where(key)).values(**values))

    def decide(
        self, run: Key, number: int, key: Key, at_first: Limits | None, more: Mapping[str, object] | None
    ) -> None:
        """Apply the decision about a run's request for more, once: `more` is added to the account; None rejects.

        `number` counts the requests of the run, whose own account remembers how many are decided.
        """
        with self._writing() as connection:
            locked = {}
            for one in dict.fromkeys((key, run)):  # In the order of all chains: an ancestor's account comes first.
                locked[one] = self._locked(connection, one, at_first if one == key else None, opened=False)
            if locked[run].asked != number:
                return
            if more is not None:
                self._extend(connection, key, at_first, more)
            connection.execute(update(self._rows).where(self._where(run)).values(asked=number + 1))


def account_of(row: AccountRow) -> Account:
    """Return an account from its row."""
    usage = Usage(requests=row.counted, **{name: getattr(row, name) for name in TOKENS})
    cost = None if row.cost is None else Decimal(row.cost) / PICO
    spent = Spent(row.requests, row.tool_calls, usage, cost, row.milliseconds / 1000, row.requests - row.answered)
    return Account(_limits(row.allowed), _limits(row.at_first), spent, row.opened, row.settled, row.asked)


def _limits(stored: str | None) -> Limits | None:
    return None if stored is None else read_limits(json.loads(stored))


def of_lone_run(account: Account, own: Spent) -> Spent:
    """Return what a run without children has spent: what its records say, and what only its account knows."""
    both = own + account.spent
    return replace(both, seconds=max(own.seconds, account.spent.seconds))
