"""Runs in the database: looking them up, listing them, reading their records, cancelling and resuming.

Needs no agents and launches nothing, so the command line can inspect the runs of a program that is not running.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy import ColumnElement

from durable_swarm import errors
from durable_swarm.codec import Codec, storable
from durable_swarm.engine.database.connection import let_go
from durable_swarm.engine.database.notices import notify_now
from durable_swarm.engine.database.urls import is_sqlite
from durable_swarm.engine.records import base, names
from durable_swarm.engine.records.agent_versions import ACCEPTED, HELD_FOR, mark
from durable_swarm.engine.records.encoding import is_sealed
from durable_swarm.engine.records.executions import EndedExecution, with_ended
from durable_swarm.engine.records.rows import RunRow, StepRow
from durable_swarm.engine.records.sessions import place_in
from durable_swarm.engine.storage.actions import Actions
from durable_swarm.engine.storage.changes import Changes
from durable_swarm.engine.storage.deliveries import Deliveries
from durable_swarm.engine.storage.events import EventLog
from durable_swarm.engine.storage.family import Family
from durable_swarm.engine.storage.ledger import Ledger
from durable_swarm.engine.storage.messages import Messages
from durable_swarm.engine.storage.own_table import create_all
from durable_swarm.engine.storage.ownership import Claims
from durable_swarm.engine.storage.process_facts import ProcessTable
from durable_swarm.engine.storage.provider_outages import AWAY, ProviderOutages, wait_noted
from durable_swarm.engine.storage.requests import Inbox
from durable_swarm.engine.storage.rows import RowReader
from durable_swarm.engine.storage.run_records import RunRecords, no_codec, stored_start
from durable_swarm.engine.storage.run_state import (
    NEEDS,
    PAUSES,
    STATES_OF,
    TRIED,
    UNFINISHED,
    notes_on,
    owner_of,
    state_of,
)
from durable_swarm.engine.storage.run_waits import RunWaits
from durable_swarm.engine.storage.schedules import Schedules
from durable_swarm.engine.storage.sessions import Sessions
from durable_swarm.engine.storage.tallies import Tallies
from durable_swarm.engine.storage.visible import seen_by
from durable_swarm.runs import State

if TYPE_CHECKING:
    from durable_swarm.engine.backend.client import Client

PAGE = 500
"""The number of runs that one statement reads."""

PROGRAM = "durable_swarm.program"
"""Name of the row that holds notes about a program; it is never executed."""


class Store(RunRecords):
    """The runs of one database. Every method raises `ConfigurationError` if the database cannot be used."""

    _whole: Store | None = None
    """The store of which this is a view."""

    def __init__(
        self,
        url: sqlalchemy.URL,
        engine: sqlalchemy.Engine,
        codec_for: Callable[[str], Codec | None] = no_codec,
        *,
        owns: bool = True,
        guesses: bool = False,
    ) -> None:
        super().__init__(codec_for, guesses=guesses)
        self.url = url
        self.engine = engine
        self._owns = owns
        self.events = EventLog(url, engine)
        """The rows of events of its runs."""
        self.family = Family(url, engine)
        """Which run started which."""
        self.claims = Claims(url, engine)
        self.ledger = Ledger(url, engine)
        """What its runs may spend and have spent, where that does not follow from their records."""
        self.inbox = Inbox(url, engine, self.codec_for, self.family)
        """The requests of its runs."""
        self.mailbox = Messages(url, engine, self.codec_for)
        """The messages to its runs."""
        self.sessions = Sessions(url, engine, self.codec_for)
        """Its sessions."""
        self.outages = ProviderOutages(url, engine)
        """The providers for which its runs wait."""
        self.actions = Actions(url, engine)
        """What people did to its runs."""
        self.processes = ProcessTable(url, engine)
        """The facts about the processes that work on it."""
        self.tallies = Tallies(url, engine)
        """How many turns, tokens and dollars its runs have taken."""
        self.schedules = Schedules(url, engine)
        """What is to be run at which times."""
        self.changes = Changes(url, engine, self.inbox)
        """Whether anything has changed in it."""
        self._rows = RowReader(url, engine)
        self.columns = self._runs = self._rows.runs.c
        """The columns of the rows of runs, for conditions."""
        self._is_run, self._is_call = self._rows.is_run, self._runs.name == names.TOOL
        self.waits = RunWaits(self._rows, self._is_run, self.inbox, self.family, self.outages)
        """Which of its runs wait."""

    def seen_by(self, person: str) -> Store:
        """Return this store without the runs, requests and sessions that belong to others than this person.

        It is a view: it is not closed, and of what it has beside them nothing is left out.
        """
        seen = copy.copy(self)
        seen._whole = self
        seen._is_run = self._is_run & seen_by(person, self._runs.attributes, lite=is_sqlite(self.url))
        seen.inbox, seen.sessions = self.inbox.seen_by(person), self.sessions.seen_by(person)
        seen.waits = replace(self.waits, is_run=seen._is_run, inbox=seen.inbox)
        return seen

    @cached_property
    def _writer(self) -> Client:
        """DBOS's client, which writes. Made at first use, because a program that only reads need not import DBOS."""
        if self._whole is not None:
            return self._whole._writer
        from durable_swarm.engine.backend.client import Client

        return Client(self.url, self.engine)

    @cached_property
    def deliveries(self) -> Deliveries:
        """Return the messages of webhooks."""
        return Deliveries(self.url, self.engine)

    def create_tables(self) -> None:
        """Create the tables and indexes of this package that do not exist."""
        own = [self.inbox, self.family, self.sessions, self.outages, self.ledger, self.processes]
        create_all(own, self.mailbox.table)
        self._rows.create_indexes()

    def row(self, run_id: str, *, load_output: bool = True, waits: bool = False) -> RunRow | None:
        """Return the row of a run, or None; with `waits`, noted whether the run waits, which takes more statements."""
        if not storable(run_id):
            return None
        this = self._runs.workflow_uuid == run_id
        rows = self._rows.read(self._is_run, this, load_input=True, load_output=load_output)
        return next(iter(self.waits.note(rows) if waits else rows), None)

    def found(self, run_id: str, *, load_output: bool = True, waits: bool = False) -> RunRow:
        """Return the row of a run, as `row` does. Raises `RunNotFound`."""
        row = self.row(run_id, load_output=load_output, waits=waits)
        if row is None:
            raise errors.RunNotFound(f"there is no run {run_id!r} in this database", run_id=run_id)
        return row

    def some(self, run_ids: list[str]) -> list[RunRow]:
        """Return the rows of these runs."""
        these = self._runs.workflow_uuid.in_(run_ids)
        return self._rows.read(self._is_run, these, load_input=True, load_output=True)

    def parts_of(self, run_ids: list[str]) -> tuple[list[StepRow], list[RunRow]]:
        """Return the steps of these runs, those of each in order, and the rows of their undecorated tool calls."""
        theirs = self._runs.parent_workflow_id.in_(run_ids)
        return self._rows.steps_of(run_ids), self._rows.read(self._is_call, theirs, load_output=True)

    def rows(
        self,
        *,
        states: Iterable[State] | None = None,
        prefix: str | None = None,
        limit: int | None = None,
    ) -> list[RunRow]:
        """Return the rows of runs, newest first, without their inputs and outputs.

        `prefix` selects runs by the beginning of their ids.
        """
        if prefix is not None and not storable(prefix):
            return []
        wanted = [status for status, state in STATES_OF.items() if states is None or state in set(states)]
        # A run being taken over is ENQUEUED in the database and running to us; a waiting run may be in any of three
        # states.
        if states is not None and "running" in set(states):
            wanted.append("ENQUEUED")
        if states is not None and "waiting" in set(states):
            wanted += ["PENDING", "ENQUEUED", "DELAYED"]
        begins = [] if prefix is None else [self._runs.workflow_uuid.startswith(prefix, autoescape=True)]
        chosen = (self._is_run, self._runs.status.in_(wanted), *begins)
        return self.waits.note(self._rows.read(*chosen, newest=True, limit=limit))

    def page(
        self, *wanted: ColumnElement[bool], limit: int, by_index: bool = False
    ) -> tuple[list[RunRow], RunRow | None]:
        """Return the rows of the newest runs that meet all conditions, without their inputs and outputs.

        `by_index` is right for conditions on the id. The second value is the last row that was read, if there may be
        more. Runs of a status that this version does not know are left out.
        """
        rows = self._rows.read(self._is_run, *wanted, newest=True, limit=limit, by_index=by_index)
        known = self.waits.note([row for row in rows if row.status in STATES_OF])
        return known, rows[-1] if len(rows) == limit else None

    def ends(self, rows: list[RunRow]) -> dict[str, RunRow]:
        """Return the rows of the done or failed runs among these by id, with the output or error that ended them."""
        over = [row.workflow_id for row in rows if state_of(row) in ("done", "failed")]
        found: dict[str, RunRow] = {}
        for first in range(0, len(over), PAGE):
            these = self._runs.workflow_uuid.in_(over[first : first + PAGE])
            found |= {row.workflow_id: row for row in self._rows.read(self._is_run, these, load_output=True)}
        return found

    def unfinished(self, version: str) -> list[RunRow]:
        """Return the rows of all unfinished runs of one application version, because DBOS executes only its own.

        Runs that wait for a worker are left out: they may be many, and have no process that could be dead.
        """
        runs, ids = self._runs, self.claims.unfinished()
        still = runs.status.in_(UNFINISHED) & (runs.application_version == version)
        return self._rows.read(self._is_run, runs.workflow_uuid.in_(ids), still) if ids else []

    def to_begin(self, queue: str) -> list[RunRow]:
        """Return the rows of runs that wait for any process with their agents, and of all that waits on `queue`."""
        runs = self._runs
        ours = runs.queue_name.in_([names.UNCLAIMED, queue]) & (self._is_run | (runs.queue_name == queue))
        return self._rows.read(ours, runs.status == "ENQUEUED")

    def children(self, run_id: str, *, load_output: bool = False) -> list[RunRow]:
        """Return the rows of a run's undecorated tool calls."""
        return self._rows.read(self._is_call, self._runs.parent_workflow_id == run_id, load_output=load_output)

    def calls(self, keys: Iterable[str]) -> list[RunRow]:
        """Return the existing rows of these undecorated tool calls."""
        ids = list(keys)
        return self._rows.read(self._is_call, self._runs.workflow_uuid.in_(ids), load_output=True) if ids else []

    def steps(self, workflow_id: str, *, after: int = 0) -> list[StepRow]:
        """Return the recorded steps of a run or a tool call, in order, without the first `after` ones."""
        return self._rows.steps(workflow_id, after=after)

    def steps_in_calls(self, run_id: str) -> list[StepRow]:
        """Return the recorded steps of a run's undecorated tool calls, those of each in order."""
        return self._rows.steps_in_calls(run_id)

    def holds_sealed(self, swarm: str) -> bool:
        """Return True if a swarm's newest run among the newest 100 runs is readable only with its codec."""
        for row in self.rows(limit=100):
            if isinstance(row.attributes, dict) and row.attributes.get("swarm") == swarm:
                return is_sealed(stored_start(self.row(row.workflow_id, load_output=False)))
        return False

    def enqueue(
        self,
        run_id: str,
        stored: base.Record,
        about: dict[str, object],
        queue: str,
        version: str | None,
        priority: int = 0,
        delay: float = 0.0,
    ) -> bool:
        """Record a new run for the processes that serve `queue`; `about` are its notes, `stored` its input.

        It begins after `delay` seconds. Return False if the id is taken.
        """
        new = self._writer.enqueue(run_id, stored, about, queue, version, priority, delay)
        if queue.startswith(names.QUEUE):  # Workers look at their queue several times a second.
            notify_now(self.engine)
        return new

    def annotate(self, run_id: str, **attributes: object) -> None:
        """Add JSON values to the notes on a run."""
        self._writer.annotate(run_id, attributes)

    def note_waiting(self, run_id: str, reason: errors.DurableSwarmError | None) -> None:
        """Note why a run is held, and how to release it; None removes the hold."""
        needs = reason.agent if isinstance(reason, errors.UnknownAgent) else None
        change = mark(reason) if isinstance(reason, errors.AgentChanged) else None
        self.annotate(run_id, waits_for=str(reason) if reason else None, **{NEEDS: needs, HELD_FOR: change})

    def accepted(self, run_id: str) -> str | None:
        """Return the change of an agent that a person has accepted for a run."""
        return notes_on(self.found(run_id, load_output=False)).get(ACCEPTED)

    def accept(self, row: RunRow) -> None:
        """Accept the change for which a run is held. The process that holds an unfinished run continues it."""
        change, owner = notes_on(row).get(HELD_FOR), owner_of(row)
        self.annotate(row.workflow_id, **{ACCEPTED: change, HELD_FOR: None, "waits_for": None})
        if row.status in UNFINISHED and owner:
            self.claims.transfer([row], names.QUEUE + owner)

    def rest(
        self, run_id: str, owner: str | None, conditions: list[tuple[str | None, int | None]], away: str | None
    ) -> None:
        """Suspend a run until it is woken: by the decision of a request, at a time, or by the end of an outage.

        Each condition is a request, a time in milliseconds since 1970, or both; `away` is the key of the outage.
        """
        asked = [request for request, _ in conditions if request is not None]
        until = min((at for _, at in conditions if at is not None), default=None)
        self.inbox.rest(
            run_id, owner, asked, until, lambda held: away is None or self.outages.may_rest(held, away, run_id)
        )

    def try_now(self, row: RunRow) -> None:
        """Make the next try due, if the run waits for its provider, or has ended while it did."""
        waits = wait_noted(notes_on(row).get(AWAY))
        if waits is not None:
            self.outages.hasten(waits[0])

    def cancel(self, run_id: str) -> None:
        """Cancel a run, its tool calls in progress and its child runs; an ended run is unchanged."""
        self.claims.cancel(run_id, self.family.within)

    def resume(self, row: RunRow, queue: str) -> bool:
        """Let a cancelled or failed run continue from its first unfinished step, on `queue`, with its open calls.

        Return False if its row changed since it was read, because another caller resumed it first. Raises `RunConflict`
        if newer runs of its session stand on it.
        """
        run_id = row.workflow_id
        open_still = ("PENDING", "CANCELLED", "ENQUEUED", "DELAYED")
        calls = [child.workflow_id for child in self.children(run_id) if child.status in open_still]
        failed = {call: number for call in calls if (number := self._failed_step(call)) is not None}
        ended = EndedExecution(str(row.executor_id or ""), row.completed_at or row.updated_at, state_of(row))
        place = place_in(self.start_record(row)) if notes_on(row).get("session") else None
        reopen = None if place is None else lambda connection: self.sessions.reopen(connection, place, run_id)
        return self.claims.resume(
            row,
            queue,
            failed,
            lambda name: name in (PAUSES, AWAY) or name.startswith(TRIED),
            reopen=reopen,
            notes=with_ended(notes_on(row), ended),
        )

    def _failed_step(self, call: str) -> int | None:
        """Return the number of the step with whose error a tool has ended: its record would repeat that error for ever.

        No process records a step of an ended run, so the number stays valid until the run continues.
        """
        steps = self.steps(call)
        last = steps[-1].output if steps else None
        # `failed` is stored in records since they can be encrypted; `raised` is in the older ones.
        failed = isinstance(last, dict) and ("failed" in last or "raised" in last)
        return int(steps[-1].function_id) if failed else None

    def notes(self, program: str) -> dict[str, Any]:
        """Return the notes about the program of this id; empty if there are none."""
        rows = self._rows.read(self._runs.workflow_uuid == program, self._runs.name == PROGRAM)
        return notes_on(rows[0]) if rows else {}

    def note(self, program: str, notes: dict[str, object]) -> None:
        """Store notes about a program as plain JSON data, in place of the earlier ones."""
        self._writer.note(PROGRAM, program, notes)

    def close(self) -> None:
        """Close the connections, if this store opened them."""
        if "_writer" in vars(self):
            self._writer.close()
        if self._owns:
            let_go(self.engine)
