"""How many turns, tokens and dollars runs have taken, for lists: from the readable parts of the records of replies.

Only these parts leave the database, because a list of runs with long replies would read all of them otherwise.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import sqlalchemy
from sqlalchemy import Column, ColumnElement, func, or_, select

from durable_swarm.engine.database.diagnosis import reporting_errors
from durable_swarm.engine.database.reconnecting import read
from durable_swarm.engine.database.urls import is_sqlite, schema_of
from durable_swarm.engine.records.names import COMPACT, model_step

USAGE, COST = '"usage":[', '"cost":"'
"""The texts in a record before the counts of tokens, and before the cost."""
_COUNTS, _COST = re.compile(rf"{re.escape(USAGE)}\d+,\d+,\d+,(\d+)\]"), re.compile(rf'{COST}([^"]+)"')
LONGEST = 120
"""The number of characters that are read from there."""


@dataclass(frozen=True)
class Tally:
    """The amounts that runs have taken: turns, tokens and US dollars; None where no reply tells of any."""

    turns: int = 0
    tokens: int | None = None
    cost: Decimal | None = None

    @classmethod
    def total(cls, tallies: Iterable[Tally]) -> Tally:
        """Return the sum of tallies."""
        added = [*tallies]
        counts = [one.tokens for one in added if one.tokens is not None]
        costs = [one.cost for one in added if one.cost is not None]
        turns = sum(one.turns for one in added)
        return cls(turns, sum(counts) if counts else None, sum(costs, Decimal()) if costs else None)


class Tallies:
    """The tallies of one database. Raises `ConfigurationError` if it cannot be used."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine) -> None:
        self._url, self._engine = url, engine
        columns = [Column(name, sqlalchemy.Text) for name in ("workflow_uuid", "function_name", "output")]
        self._steps = sqlalchemy.Table("operation_outputs", sqlalchemy.MetaData(schema=schema_of(url)), *columns)

    def of(self, run_ids: Iterable[str]) -> dict[str, Tally]:
        """Return the tally of each of these runs that has any, without the runs below it."""
        steps, found = self._steps.c, defaultdict[str, list[Tally]](list)
        replies = steps.function_name.startswith(model_step(""))
        asked = or_(replies, steps.function_name.startswith(COMPACT))
        wanted = select(steps.workflow_uuid, replies, self._beginning_at(USAGE), self._beginning_at(COST))
        with reporting_errors(self._url):
            rows = read(self._engine, wanted.where(steps.workflow_uuid.in_(list(run_ids)), asked))
        for run_id, is_turn, counts, cost in rows:
            found[run_id].append(Tally(int(is_turn), _total(counts), _decimal(cost)))
        return {run_id: Tally.total(tallies) for run_id, tallies in found.items()}

    def _beginning_at(self, sign: str) -> ColumnElement[str]:
        """The part of a record that begins with a sign, or NULL.

        To parse records as JSON would fail the list at one damaged row. Inside the texts of a record, quotes are
        escaped, so no text contains the sign.
        """
        output = self._steps.c.output
        find = func.instr if is_sqlite(self._url) else func.strpos
        return func.substr(output, func.nullif(find(output, sign), 0), LONGEST)


def _total(counts: str | None) -> int | None:
    found = _COUNTS.match(counts or "")
    return None if found is None else int(found[1])


def _decimal(cost: str | None) -> Decimal | None:
    found = _COST.match(cost or "")
    try:
        return None if found is None else Decimal(found[1])
    except InvalidOperation:
        return None
