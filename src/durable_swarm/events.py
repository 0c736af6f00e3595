"""Events: what happens in a run, numbered, for whoever follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

EventType = Literal[
    "run.started",
    "turn.started",
    "text.delta",
    "text.reset",
    "tool.started",
    "tool.progress",
    "tool.finished",
    "handoff",
    "request.opened",
    "request.closed",
    "run.waiting",
    "run.finished",
    "run.failed",
    "run.cancelled",
]


@dataclass(frozen=True)
class Event:
    """One thing that happened in a run.

    `seq` counts the run's events from 1, without a gap, the same for every reader. `data` is plain JSON data, by type:

        run.started    agent
        turn.started   turn, agent: a model call begins; `turn` counts from 0
        text.delta     turn, text: the next piece of what the agent says
        text.reset     turn: the model is asked again; the text of this turn begins anew, what came of it is void
        tool.started   turn, tool, call_id, arguments (the model's text)
        tool.progress  turn, tool, call_id, attempt, progress: what the tool gave to `emit`
        tool.finished  turn, tool, call_id, result: the text for the model
        handoff        turn, from, to: names of agents
        request.opened turn, tool, call_id, request_id, kind, question: a call waits for a person or a program
        request.closed turn, tool, call_id, request_id, kind, verdict (answered, approved, rejected, expired),
                       answered_by
        run.waiting    turn, tool, call_id, request_id: the run waits for this request
        run.finished   agent: who spoke last; ended_by, as in `Response`
        run.failed     error_type, error_message
        run.cancelled

    `time` is in UTC.
    """

    seq: int
    type: EventType
    data: dict[str, Any]
    time: datetime


class Journal:
    """Numbers the events of a run and hands them on in order.

    Most follow from what came before (a turn starts where the last one ended): `follow` gives them the next number in
    every process that tells them. Those that depend on time (pieces of text, progress, which call ended first) have
    the number that the executing process chose and recorded with them: `place`. A place left free lets what is behind
    it wait: what belongs there is not recorded yet.
    """

    def __init__(self, deliver: Callable[[Event], None]) -> None:
        self.last = 0
        """The number of the last event handed on."""
        self._deliver = deliver
        self._ahead: dict[int, Event] = {}
        self._free = 1
        """No lower number is free."""
        self._reserved: set[int] = set()

    def follow(self, kind: EventType, data: dict[str, Any], at: int) -> None:
        """Tell what happens next; `at` is in milliseconds since 1970."""
        self.place(self.last + 1, kind, data, at)

    def place(self, seq: int, kind: EventType, data: dict[str, Any], at: int) -> None:
        """Tell an event that has its number. Telling it again does nothing."""
        if seq <= self.last:
            return
        self._ahead[seq] = Event(seq, kind, data, datetime.fromtimestamp(at / 1000, UTC))
        while (event := self._ahead.pop(self.last + 1, None)) is not None:
            self.last += 1
            self._deliver(event)

    def close_up(self) -> None:
        """Tell what waits behind a free place, and give it the next number: what belonged there was lost in a crash.

        Ends of the run that were told keep their numbers.
        """
        for seq in sorted(seq for seq, event in self._ahead.items() if not event.type.startswith("run.")):
            event = self._ahead.pop(seq, None)
            if event is not None:  # Else it was told behind the one before.
                self.place(self.last + 1, event.type, event.data, round(event.time.timestamp() * 1000))
        self._free = 1

    def give_up(self) -> None:
        """Forget what waits behind a free place."""
        self._ahead.clear()
        self._reserved.clear()
        self._free = 1

    def reserve(self, numbers: Iterable[int]) -> None:
        """Give these numbers to nobody: what has them will be told."""
        self._reserved.update(seq for seq in numbers if seq > self.last)

    def take(self) -> int:
        """Give the lowest number that is free; nobody else gets it."""
        seq = max(self._free, self.last + 1)
        while seq in self._ahead or seq in self._reserved:
            seq += 1
        self._free = seq + 1
        return seq
