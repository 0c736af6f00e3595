"""Reader of a run's events: from this process if it executes the run, else from the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from durable_swarm import codec, errors
from durable_swarm.engine.history.projection import EventProjection
from durable_swarm.engine.history.recorded_errors import shown_failure
from durable_swarm.engine.records import base, names, runs
from durable_swarm.engine.records.encoding import Unreadable
from durable_swarm.engine.records.rows import RunRow
from durable_swarm.engine.records.turns import TurnRecords, turns_in
from durable_swarm.engine.storage.events import NewRow, place_of
from durable_swarm.engine.storage.run_state import state_of
from durable_swarm.engine.storage.runs import Store
from durable_swarm.events import Event, EventType
from durable_swarm.guardrails import guarded_turns
from durable_swarm.loop import NOT_MADE, Ask, CallAll, Close, Effect, Guard, Outcome, Reply, Turns
from durable_swarm.runs import ENDED
from durable_swarm.types import Block, EndedBy

SOONEST, LATEST = 0.02, 0.25
"""Seconds between polls of the database: after a new event, and after a long time without one."""


class RecordedEvents:
    """The events of a run in the database; each `read` returns the new ones."""

    def __init__(self, store: Store, run_id: str) -> None:
        self._store = store
        self.run_id = run_id
        self._found: list[Event] = []
        self._narrator = EventProjection(self._found.append)
        self._loop: Turns | None = None
        self._effect: Effect | None = None
        self._agent = ""
        self._ended_by: EndedBy = "answer"
        self._asked = -1
        self._returned: set[int] = set()
        self._passed = 0
        """The number of the run's steps that need not be read again."""
        self._first = 0
        """The turn of the first step that is read."""
        self._blocked = False
        """True if a guardrail has stopped the run."""
        self.ended = False
        self._ended_at: int | None = None
        self._kept: set[int] = set()
        """The times at which the run ended, one for each end whose row was read."""

    def read(self) -> list[Event]:
        """Return the events added since the last call. Raises `RunNotFound`, `ReplayMismatch`, `Unreadable`."""
        # The state before the records, the records before the rows: anything that a state or record refers to is then
        # stored.
        row = self._store.found(self.run_id)
        state = state_of(row)
        if state == "queued" and self._loop is None:
            return []
        with base.reading(f"the events of run {self.run_id!r}"):
            told, passed = self._turns(row)
            rows = self._store.events.read(self.run_id, self._store.record_codec(row), self._narrator.journal.last)
            self._kept |= {record["of"] for _, record in rows if "of" in record}
            self._narrator.add(rows)
            self._passed, self._first = passed  # Last, so that an interrupted read is repeated.
            self._advance(told, over=state in ENDED)
            if state in ENDED and not self.ended:
                self.ended, self._ended_at = True, row.completed_at
                if row.completed_at not in self._kept:  # Otherwise a concurrent `resume` has just stored this end.
                    self._narrator.ended(row.completed_at or row.updated_at, *self._ending(row, state))
        found, self._found[:] = list(self._found), []
        return found

    def _turns(self, row: RunRow) -> tuple[dict[int, TurnRecords], tuple[int, int]]:
        """Return the turns from the last open one on, and the numbers of steps and turns that precede them."""
        if self._loop is None:
            start = self._store.start_record(row)
            self._narrator.begin(start)
            self._loop, self._first = guarded_turns(runs.read_start(start)), len(start.get("kept", []))
            self._go_on(None)
        steps = self._store.steps(self.run_id, after=self._passed)
        made = [step.child_workflow_id for step in steps if step.function_name == names.TOOL]
        keys = [key for key in made if key is not None]
        calls = {call.workflow_id: call for call in self._store.calls(keys)}
        first = self._first
        told = dict(enumerate(turns_in(steps, calls, self._store, row, first), first))
        replies = [at for at, step in enumerate(steps) if step.function_name.startswith("model:")]
        if not replies or (len(replies) == 1 and told[first].guards.get("input")):
            return told, (
                self._passed,
                first,
            )  # The input guardrails stand before the reply, and may be recorded later.
        return told, (self._passed + replies[-1], first + len(replies) - 1)

    def _advance(self, told: dict[int, TurnRecords], *, over: bool) -> None:
        """Emit events as far as the records reach."""
        while self._effect is not None:
            answer: Reply | list[Outcome] | Block | bool | None
            if isinstance(self._effect, Close):
                answer = True if self._effect.turn + 1 in told else False if over else None
            else:
                answer = self._answer(self._effect, told.get(self._effect.turn))
            if answer is None:
                return
            self._go_on(answer)

    def _go_on(self, answer: object) -> None:
        assert self._loop is not None  # Begun by the first read.
        try:
            self._effect = self._loop.send(answer)
            self._agent = getattr(self._effect, "agent", self._agent)
        except StopIteration as end:
            self._effect, self._agent, self._ended_by = None, end.value.agent, end.value.ended_by

    def _answer(
        self, effect: Ask | CallAll | Guard, told: TurnRecords | None
    ) -> Reply | list[Outcome] | Block | Literal[False] | None:
        if isinstance(effect, CallAll):
            return self._outcomes(effect, told)
        if isinstance(effect, Guard):
            return None if told is None else self._verdict(told.verdict(effect.kind))
        if self._asked != effect.turn:
            self._asked, self._returned = effect.turn, set()
            self._narrator.asked(effect.turn, effect.agent)
        if told is None:
            return None
        self._narrator.replied(told.reply)
        return told.read()

    def _verdict(self, verdict: Block | Literal[False] | None) -> Block | Literal[False] | None:
        if not isinstance(verdict, Block):
            return verdict
        if not self._blocked:
            self._blocked = True
            self._narrator.blocked(verdict.reply)
        return None if verdict.reply is None else verdict  # Without a reply the run has failed.

    def _outcomes(self, effect: CallAll, told: TurnRecords | None) -> list[Outcome] | None:
        found: list[base.Record | None] = [None] * len(effect.calls) if told is None else told.outcomes
        for call, record in zip(effect.calls, found, strict=True):
            if record is not None and call.index not in self._returned:
                self._returned.add(call.index)
                self._narrator.returned(call.index, record)
        made = zip(effect.calls, found, strict=True)
        if any(record is None and call.plan not in NOT_MADE for call, record in made):
            return None
        return runs.outcomes_of(effect.calls, found)

    def _ending(self, row: RunRow, state: str) -> tuple[EventType, dict[str, object]]:
        if state == "done":
            written = {"written": self._narrator.written} if self._narrator.written else {}
            return "run.finished", {"agent": self._agent, "ended_by": self._ended_by, **written}
        if state == "cancelled":
            return "run.cancelled", {}
        return "run.failed", self._failure(row)

    def _failure(self, row: RunRow) -> dict[str, object]:
        record = shown_failure(self._store, row)
        if record is None:
            return {"error_type": type(row.error).__name__, "error_message": str(row.error)}
        return {"error_type": record["type"], "error_message": codec.decode(record.get("message", ""))}

    def keep_end(self) -> None:
        """Store the event of a run's end, which `resume` is about to undo: it was delivered, so it must stay.

        If the run's records cannot be read here, nothing is stored.
        """
        try:
            events = self.read()
        except (Unreadable, errors.ReplayMismatch):
            return
        row = self._store.found(self.run_id)
        if not self.ended or state_of(row) not in ENDED or row.completed_at != self._ended_at:
            return
        if self._ended_at in self._kept:
            return
        # Records of an interrupted execution that follow a gap may be numbered after the end.
        last = next(event for event in reversed(events) if event.type.startswith("run."))
        turn = self._narrator.asking
        at = round(last.time.timestamp() * 1000)
        record = {"v": names.VERSION, "ended": [at, last.type, codec.encode(last.data)]}
        record |= {} if turn is None else {"turn": turn}
        record |= {} if self._ended_at is None else {"of": self._ended_at}
        stored = self._store.record_codec(row).close(record, place_of(self.run_id, last.seq))
        self._store.events.keep(NewRow(self.run_id, last.seq, stored, None))


class Published(Protocol):
    """The events that a run executing here has published so far."""

    def since(self, after: int) -> list[Event] | None:
        """Return the events after a number, or None if they are no longer in memory."""


class EventReader:
    """One reader of a run: returns the events after number `after`, each once."""

    def __init__(self, store: Callable[[], Store], run_id: str, after: int) -> None:
        self._store = store
        self.run_id = run_id
        self._after = after
        self._recorded: RecordedEvents | None = None
        self.pause = SOONEST
        """Seconds until the next poll of the database."""

    def live(self, published: Published) -> list[Event] | None:
        """Return the new events of the process that executes the run; None if the reader is too far behind."""
        return self._given(published.since(self._after))

    def read(self) -> list[Event]:
        """Return the new events in the database."""
        if self._recorded is None:
            self._recorded = RecordedEvents(self._store(), self.run_id)
        events = [event for event in self._recorded.read() if event.seq > self._after]
        self.pause = SOONEST if events else min(self.pause * 1.5, LATEST)
        self._given(events)
        return events

    @property
    def over(self) -> bool:
        """Return True if the run has ended and all of it was read."""
        return self._recorded is not None and self._recorded.ended

    def _given(self, events: list[Event] | None) -> list[Event] | None:
        if events:
            self._after = events[-1].seq
        return events


def check_after(after: int) -> None:
    """Check the number of an event. Raises `ConfigurationError`."""
    if isinstance(after, bool) or not isinstance(after, int) or after < 0:
        raise errors.ConfigurationError(
            f"after must be the number of the last event that was read, 0 or more, not {after!r:.80}"
        )
