"""Reads what a run has spent: from its account if it shares one, else from its own records."""

from __future__ import annotations

from decimal import Decimal

from durable_swarm.engine.history.story import summary_of
from durable_swarm.engine.records import base
from durable_swarm.engine.records.rows import RunRow
from durable_swarm.engine.records.runs import read_limits_of, seconds_worked
from durable_swarm.engine.records.turns import Rows, TurnRecords, recorded_turns
from durable_swarm.engine.storage.ledger import Key, of_lone_run
from durable_swarm.engine.storage.runs import Store
from durable_swarm.limits import Limits, Spent
from durable_swarm.loop import NOT_MADE, total
from durable_swarm.types import Usage


def spending(store: Store, row: RunRow, records: Rows | None = None, turns: list[TurnRecords] | None = None) -> Spent:
    """Return what a run and its child runs have spent so far. Turns that a fork keeps do not count.

    `records` is the source of the run's own records, and `turns` are these by turn, if they were read already.
    """
    account = store.ledger.read(Key("run", row.workflow_id))
    if account is not None and account.opened:
        return account.spent
    start = store.start_record(row)
    rows = records or store
    summary = summary_of(rows, row)
    before = Spent() if summary is None else summary.spent
    turns = recorded_turns(rows, row, start) if turns is None else turns
    own = own_spending(turns[len(start.get("kept", [])) :], before)
    return own if account is None else of_lone_run(account, own)


def limits_now(store: Store, row: RunRow) -> Limits | None:
    """Return the limits of a run, with their extensions; None for a run without limits."""
    account = store.ledger.read(Key("run", row.workflow_id))
    extended = None if account is None else account.allowed
    return extended or read_limits_of(store.start_record(row))[0]


def own_spending(turns: list[TurnRecords], before: Spent) -> Spent:
    """Return what the turns of a run have spent, by their records, and what was spent before them."""
    with base.reading("what a run has spent"):
        made = (pair for turn in turns for pair in zip(turn.read().calls, turn.outcomes, strict=True))
        calls = sum(call.plan not in NOT_MADE and _counts(record) for call, record in made)
        usage = total(turn.read().usage for turn in turns)
        costs = [Decimal(turn.reply["cost"]) for turn in turns if turn.reply.get("cost") is not None]
        records = (record for turn in turns for record in (turn.reply, *turn.outcomes) if record is not None)
        worked = max(map(seconds_worked, records), default=0.0)
        cost = sum(costs, Decimal()) if costs else None
        own = Spent(len(turns), calls, usage or Usage(), cost, max(worked - before.seconds, 0.0))
    return before + own


def _counts(outcome: base.Record | None) -> bool:
    """Return True for a call that has its outcome, unless a limit did not permit it."""
    return outcome is not None and "limit" not in outcome
