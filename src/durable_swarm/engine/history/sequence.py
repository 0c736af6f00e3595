"""Numbers the events of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from durable_swarm.events import Event, EventType


class EventSequence:
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
