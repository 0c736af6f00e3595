"""Runs in the database: looking them up, listing them, reading their records, cancelling and resuming.

Needs no agents and launches nothing, so the command line can inspect the runs of a program that is not running.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy import ColumnElement

from durable_swarm import errors
from durable_swarm.codec import Codec, Place, storable
from durable_swarm.engine.database.connection import let_go
from durable_swarm.engine.database.urls import is_sqlite
from durable_swarm.engine.records import base, names
from durable_swarm.engine.records.agent_versions import ACCEPTED, HELD_FOR, mark
from durable_swarm.engine.records.encoding import RecordCodec, failure_of, input_of, is_sealed, output_of
from durable_swarm.engine.records.lives import Life, with_life
from durable_swarm.engine.records.rows import RunRow, StepRow
from durable_swarm.engine.records.runs import read_reply
from durable_swarm.engine.records.sessions import place_in
from durable_swarm.engine.storage.actions import Actions
from durable_swarm.engine.storage.changes import Changes
from durable_swarm.engine.storage.deliveries import Deliveries
from durable_swarm.engine.storage.events import EventLog
from durable_swarm.engine.storage.family import Family
from durable_swarm.engine.storage.ledger import Ledger
from durable_swarm.engine.storage.messages import Messages
from durable_swarm.engine.storage.ownership import Claims
from durable_swarm.engine.storage.process_facts import ProcessTable
from durable_swarm.engine.storage.provider_outages import AWAY, ProviderOutages, wait_noted
from durable_swarm.engine.storage.requests import Inbox
from durable_swarm.engine.storage.rows import RowReader
from durable_swarm.engine.storage.run_state import (
    NEEDS,
    STATES_OF,
    STOOD,
    TRIED,
    UNFINISHED,
    notes_on,
    owner_of,
    reason_noted,
    state_of,
)
from durable_swarm.engine.storage.schedules import Schedules
from durable_swarm.engine.storage.sessions import Sessions
from durable_swarm.engine.storage.tallies import Tallies
from durable_swarm.engine.storage.visible import seen_by
from durable_swarm.loop import Reply
from durable_swarm.runs import State

if TYPE_CHECKING:
    from durable_swarm.engine.backend.client import Client

PAGE = 500
"""The number of runs that one statement reads."""

PROGRAM = "durable_swarm.program"
"""Name of the row that holds notes about a program; it is never executed."""


def _argument(row: RunRow | None) -> object:
    """Return a run's start record as it is stored, or None if there is none."""
    return row.input[0] if row is not None and isinstance(row.input, list) and row.input else None


def _no_codec(_swarm: str) -> None:
    return None


class Store:
    """The runs of one database. Every method raises `ConfigurationError` if the database cannot be used.

    `codec_for` returns the codec of the swarm of a name. Methods that decode records raise `Unreadable` if it does not
    decode them. `guesses` says that this codec may differ from the program's: new records are then written in the form
    of the existing ones.
    """

    def __init__(
        self,
        url: sqlalchemy.URL,
        engine: sqlalchemy.Engine,
        codec_for: Callable[[str], Codec | None] = _no_codec,
        *,
        owns: bool = True,
        guesses: bool = False,
    ) -> None:
        self.url = url
        self.engine = engine
        self._codec_for = codec_for
        self._owns = owns
        self._guesses = guesses
        self.events = EventLog(url, engine)
        """The rows of events of its runs."""
        self.family = Family(url, engine)
        """Which run started which."""
        self.claims = Claims(url, engine)
        self.ledger = Ledger(url, engine)
        """What its runs may spend and have spent, where that does not follow from their records."""
        self.inbox = Inbox(url, engine, lambda swarm: RecordCodec(self._codec_for(swarm)), self.family)
        """The requests of its runs."""
        self.mailbox = Messages(url, engine, lambda swarm: RecordCodec(self._codec_for(swarm)))
        """The messages to its runs."""
        self.sessions = Sessions(url, engine, lambda swarm: RecordCodec(self._codec_for(swarm)))
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
        self._whole: Store | None = None

    def seen_by(self, person: str) -> Store:
        """Return this store without the runs, requests and sessions that belong to others than this person.

        It is a view: it is not closed, and of what it has beside them nothing is left out.
        """
        seen = copy.copy(self)
        seen._whole = self
        seen._is_run = self._is_run & seen_by(person, self._runs.attributes, lite=is_sqlite(self.url))
        seen.inbox, seen.sessions = self.inbox.seen_by(person), self.sessions.seen_by(person)
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
        """Create the tables of this package that do not exist."""
        for rows in (self.inbox, self.mailbox, self.family, self.sessions, self.outages, self.ledger):
            rows.create()
        self._rows.create_index()

    def row(self, run_id: str, *, load_output: bool = True, waits: bool = False) -> RunRow | None:
        """Return the row of a run, or None; with `waits`, noted whether the run waits, which takes more statements."""
        if not storable(run_id):
            return None
        this = self._runs.workflow_uuid == run_id
        rows = self._rows.read(self._is_run, this, load_input=True, load_output=load_output)
        return next(iter(self._asking(rows) if waits else rows), None)

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
        return self._asking(self._rows.read(*chosen, newest=True, limit=limit))

    def page(
        self, *wanted: ColumnElement[bool], limit: int, by_index: bool = False
    ) -> tuple[list[RunRow], RunRow | None]:
        """Return the rows of the newest runs that meet all conditions, without their inputs and outputs.

        `by_index` is right for conditions on the id. The second value is the last row that was read, if there may be
        more. Runs of a status that this version does not know are left out.
        """
        rows = self._rows.read(self._is_run, *wanted, newest=True, limit=limit, by_index=by_index)
        known = self._asking([row for row in rows if row.status in STATES_OF])
        return known, rows[-1] if len(rows) == limit else None

    def _asking(self, rows: list[RunRow]) -> list[RunRow]:
        """Note on the rows of unfinished runs whether they wait for a decision, a time or a provider: `waiting` ones.

        So is a run with an open call that waits for such a run.
        """
        open_runs = {row.workflow_id for row in rows if row.status in UNFINISHED}
        links = self.family.below(open_runs, open_calls=True)
        these = self._runs.workflow_uuid.in_([link.run_id for link in links])
        below = self._rows.read(self._is_run, these) if links else []
        asking = self.inbox.waiting([*open_runs, *(row.workflow_id for row in below if row.status in UNFINISHED)])
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

    def unclaimed(self) -> list[RunRow]:
        """Return the rows of runs that wait for any process with their agents."""
        runs = self._runs
        return self._rows.read(self._is_run, runs.queue_name == names.UNCLAIMED, runs.status == "ENQUEUED")

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

    def seal(self, row: RunRow) -> RecordCodec:
        """Return the codec of a run's records, by its row."""
        return RecordCodec(self._codec_for(notes_on(row).get("swarm", "")))

    def start_record(self, row: RunRow) -> base.Record:
        """Return a run's input."""
        run_id = row.workflow_id
        stored = _argument(row)
        if stored is None:
            raise errors.ReplayMismatch(f"the input of run {run_id!r} cannot be read", run_id=run_id)
        return self.seal(row).open(stored, input_of(run_id), f"the input of run {run_id!r}")

    def step_record(self, step: StepRow, row: RunRow) -> base.Record:
        """Return the record of a step of a run or of an undecorated tool call in it; `row` is the run's."""
        place = Place(step.workflow_id, step.function_name, step.function_id)
        what = f"step {step.function_id} ({step.function_name}) of run {step.workflow_id!r}"
        return self.seal(row).open(step.output, place, what)

    def reply(self, step: StepRow, row: RunRow) -> Reply:
        """Return the reply in the record of a model's step."""
        return read_reply(self.step_record(step, row))

    def output_record(self, child: RunRow, row: RunRow) -> base.Record:
        """Return the output of an undecorated tool call; `row` is its run's."""
        call = child.workflow_id
        return self.seal(row).open(child.output, output_of(call), f"tool call {call!r}")

    def failure_record(self, row: RunRow) -> base.Record | None:
        """Return the error that ended a failed run; None if it is not a record of this package."""
        stored, run_id = row.failure, row.workflow_id
        if stored is None:
            return None
        record = self.seal(row).open({"v": 1, **stored}, failure_of(run_id), f"the error of run {run_id!r}")
        return {"run_id": run_id, **record}

    def holds_sealed(self, swarm: str) -> bool:
        """Return True if a swarm's newest run among the newest 100 runs is readable only with its codec."""
        for row in self.rows(limit=100):
            if isinstance(row.attributes, dict) and row.attributes.get("swarm") == swarm:
                return is_sealed(_argument(self.row(row.workflow_id, load_output=False)))
        return False

    def closed_like(self, row: RunRow, run_id: str, record: base.Record, swarm: str) -> base.Record:
        """Return the start record of a fork as it is stored: by its swarm's codec, in the form of its source in `row`.

        Raises `ConfigurationError` if the source is encoded and the fork would not be.
        """
        sealed = is_sealed(_argument(row))
        seal = RecordCodec(None if self._guesses and not sealed else self._codec_for(swarm))
        stored = seal.close(record, input_of(run_id))
        if sealed and not is_sealed(stored):
            raise errors.ConfigurationError(
                f"run {row.workflow_id!r} was stored through a codec, such as encryption, and its fork would be stored "
                f"in the clear, since swarm {swarm!r} has no such codec; fork it with the DurableSwarm it belongs to"
            )
        return stored

    def settled(self, run_id: str, record: base.Record, swarm: str) -> base.Record:
        """Return a run's start record as it will be read back through the swarm's codec."""
        return RecordCodec(self._codec_for(swarm)).settle(record, input_of(run_id))

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
        return self._writer.enqueue(run_id, stored, about, queue, version, priority, delay)

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
        life = Life(str(row.executor_id or ""), row.completed_at or row.updated_at, state_of(row))
        place = place_in(self.start_record(row)) if notes_on(row).get("session") else None
        reopen = None if place is None else lambda connection: self.sessions.reopen(connection, place, run_id)
        return self.claims.resume(
            row,
            queue,
            failed,
            lambda name: name in (STOOD, AWAY) or name.startswith(TRIED),
            reopen=reopen,
            notes=with_life(notes_on(row), life),
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
