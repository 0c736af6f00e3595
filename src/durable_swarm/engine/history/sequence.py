"""Numbering of a run's events."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from durable_swarm.events import ENDS, Event, EventType


class EventSequence:
    """Numbers the events of a run and delivers them in order.

    Most events follow from earlier ones (a turn starts where the last one ended): `follow` assigns them the next number
    in every process. Events that depend on time (pieces of text, progress, which call ended first) have the number that
    the executing process chose and recorded with them: `place`. A free number delays the events after it, because its
    own event is not recorded yet.
    """

    def __init__(self, deliver: Callable[[Event], None]) -> None:
        self.last = 0
        """The number of the last event delivered."""
        self._deliver = deliver
        self._ahead: dict[int, Event] = {}
        self._free = 1
        """No lower number is free."""
        self._reserved: set[int] = set()

    def follow(self, kind: EventType, data: dict[str, object], at: int) -> None:
        """Deliver the next event; `at` is in milliseconds since 1970."""
        self.place(self.last + 1, kind, data, at)

    def place(self, seq: int, kind: EventType, data: dict[str, object], at: int) -> None:
        """Deliver an event that has its number. Repeating it does nothing."""
        if seq <= self.last:
            return
        self._ahead[seq] = Event(seq, kind, data, datetime.fromtimestamp(at / 1000, UTC))
        while (event := self._ahead.pop(self.last + 1, None)) is not None:
            self.last += 1
            self._deliver(event)

    def close_up(self) -> None:
        """Deliver the events after a free number under the next numbers: the missing event was lost in a crash.

        Ends of the run that were delivered keep their numbers.
        """
        for seq in sorted(seq for seq, event in self._ahead.items() if event.type not in ENDS):
            event = self._ahead.pop(seq, None)
            if event is not None:  # Otherwise it was delivered after the one before.
                self.place(self.last + 1, event.type, event.data, round(event.time.timestamp() * 1000))
        self._free = 1

    def give_up(self) -> None:
        """Drop the events that wait for a free number."""
        self._ahead.clear()
        self._reserved.clear()
        self._free = 1

    def reserve(self, numbers: Iterable[int]) -> None:
        """Reserve these numbers for events that are delivered later."""
        self._reserved.update(seq for seq in numbers if seq > self.last)

    def take(self) -> int:
        """Return the lowest free number and reserve it."""
        seq = max(self._free, self.last + 1)
        while seq in self._ahead or seq in self._reserved:
            seq += 1
        self._free = seq + 1
        return seq
