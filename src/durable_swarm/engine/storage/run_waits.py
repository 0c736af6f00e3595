"""Which unfinished runs wait: for a decision, a time, a provider, or a run below them that does."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement

from durable_swarm.engine.records.rows import RunRow
from durable_swarm.engine.storage.family import Family
from durable_swarm.engine.storage.provider_outages import AWAY, ProviderOutages
from durable_swarm.engine.storage.requests import Inbox
from durable_swarm.engine.storage.rows import RowReader
from durable_swarm.engine.storage.run_state import UNFINISHED, notes_on, reason_noted, state_of


@dataclass(frozen=True)
class RunWaits:
    """The waits of the runs of one database."""

    rows: RowReader
    is_run: ColumnElement[bool]
    """True for the rows of the runs that count."""
    inbox: Inbox
    family: Family
    outages: ProviderOutages

    def note(self, rows: list[RunRow]) -> list[RunRow]:
        """Note on the rows of unfinished runs whether they wait for a decision, a time or a provider: `waiting` ones.

        So is a run with an open call that waits for such a run.
        """
        open_runs = {row.workflow_id for row in rows if row.status in UNFINISHED}
        links = self.family.below(open_runs, open_calls=True)
        these = self.rows.runs.c.workflow_uuid.in_([link.run_id for link in links])
        below = self.rows.read(self.is_run, these) if links else []
        unfinished = [*open_runs, *(row.workflow_id for row in below if row.status in UNFINISHED)]
        asking = self.inbox.asking(unfinished) | self.rows.sleeping(unfinished)
        unended = [row for row in [*rows, *below] if row.status in (*UNFINISHED, "DELAYED")]
        away = self.outages.sentences({row.workflow_id: notes_on(row).get(AWAY) for row in unended})
        for row in [*rows, *below]:
            row.away = away.get(row.workflow_id)
            row.asks = row.workflow_id in asking or row.away is not None
        waiting = {row.workflow_id: row for row in below if state_of(row) == "waiting"}
        for link in reversed(links):  # From the bottom up, so that what waits reaches every run above it.
            if link.run_id in waiting:
                waiting.setdefault(link.parent, waiting[link.run_id])
        for row in rows:
            if not row.asks and row.workflow_id in open_runs & waiting.keys():
                row.asks, row.asks_below = True, waiting[row.workflow_id]
        return rows

    def reason_below(self, row: RunRow) -> str | None:
        """Return in a sentence which run below an unfinished run it waits for, and why that waits, or None."""
        below = row.asks_below
        if below is None:
            return None
        run_id, agent = below.workflow_id, notes_on(below).get("agent", "")
        asked = self.inbox.open_requests([run_id], 1)
        why = reason_noted(below) or (f"it has an open request ({asked[0].kind})" if asked else "for a time")
        return f"child run {run_id!r} of agent {agent!r} waits: {why}"
