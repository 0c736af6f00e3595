"""Publishes a run's events while this process executes it: to readers here at once, to others in rows of events."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from durable_swarm import codec
from durable_swarm.engine.execution.event_writer import SIZE, Writer
from durable_swarm.engine.execution.streamed_text import StreamedPiece, StreamedText
from durable_swarm.engine.history.projection import EventProjection, Piece, Row, noted_in, subject_of
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.records.encoding import RecordCodec
from durable_swarm.engine.records.names import VERSION
from durable_swarm.engine.storage.events import NewRow, place_of
from durable_swarm.engine.storage.ownership import now
from durable_swarm.events import Event, EventType
from durable_swarm.streaming import Channel
from durable_swarm.types import Block

RECENT, KEPT = 500, 1_000_000
"""How many events, and characters in them, are kept for readers here; a reader further behind reads the database."""


def _copied(event: Event) -> Event:
    """Return a copy of an event, which its reader may change."""
    data = copy.deepcopy(event.data) if event.type == "tool.progress" else dict(event.data)
    return Event(event.seq, event.type, data, event.time)


def _size(event: Event) -> int:
    """Return the approximate number of characters of an event."""
    return 100 + sum(len(value) if isinstance(value, str) else len(repr(value)) for value in event.data.values())


class EventPublisher:
    """The events of one run in progress. Any thread may call it; its callbacks must not block."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._recent: deque[Event] = deque()
        self._listeners: list[Callable[[], None]] = []
        self._channels: list[Channel] = []
        self._so_far = Channel(waiting=0)
        """The dictionaries of the reply that is coming in, for readers who join in the middle of it."""
        self._kept = 0
        self._narrator = EventProjection(self._keep)
        self._text: StreamedText | None = None
        self._progress: dict[str, list[list[Any]]] = {}
        """Progress not confirmed as stored, by its call."""
        self._batches: list[list[list[Any]]] = []
        """The unconfirmed rows of progress."""
        self._stamped: set[str] = set()
        """Calls that have ended."""
        self._noted: set[tuple[str, str]] = set()
        """Events published once only, by type and subject."""
        self._writer: Writer | None = None
        self._run_id = ""
        self._owner: str | None = None
        self._record_codec = RecordCodec(None)
        self._writing: tuple[StreamedText | None, int] = (None, 0)
        """The write in progress: pieces of this text, and the number of rows of progress."""
        self._again = False
        self._over = False
        """True if nothing more may be stored: the run is about to end, or belongs to another execution."""

    # Events of the run

    def open(
        self, start: Record, writer: Writer, run_id: str, owner: str | None, record_codec: RecordCodec, *, again: bool
    ) -> None:
        """Begin to publish the run of that id.

        `owner` is DBOS's token of this execution; `again` is true if it is not the first.
        """
        with self._telling():
            self._writer, self._run_id, self._owner, self._record_codec = writer, run_id, owner, record_codec
            self._again = again
            self._narrator.begin(start)

    def add(self, rows: list[Row], numbers: Iterable[int] = ()) -> None:
        """Add the rows of earlier executions, and the numbers in their outcomes, before the first turn starts."""
        with self._telling():
            self._narrator.add(rows)
            self._narrator.journal.reserve(numbers)
            self._noted |= {noted for _, row in rows for noted in noted_in(row)}

    def asked(self, turn: int, agent: str) -> None:
        """Publish that a turn has started."""
        with self._telling():
            self._narrator.asked(turn, agent)

    def asking(self, agent: str, turn: int) -> None:
        """Show that the agent's reply of that turn begins to come in."""
        with self._telling():
            last, shown = self._narrator.journal.last, self._narrator.shown
            self._text = StreamedText(last + 1, shown) if self._narrator.in_pieces else None
            self._so_far = Channel(waiting=0)
            for channel in (self._so_far, *self._channels):
                channel.begin(agent, turn)
            again, self._again = self._again, False
            if self._text is not None and again and shown > last:
                self._text.skip_to(shown + 1)
                self._say(None)

    def delta(self, delta: dict[str, Any]) -> None:
        """Show a piece of the reply."""
        text = delta.get("content")
        with self._telling():
            for channel in (self._so_far, *self._channels):
                channel.delta(delta)
            if isinstance(text, str) and text and self._narrator.in_pieces:
                self._say(text)

    def reset(self) -> None:
        """Show that the part of the reply shown so far is void."""
        with self._telling():
            for channel in (self._so_far, *self._channels):
                channel.reset()
            if self._narrator.in_pieces:
                self._say(None)

    def waiting(self, event: EventType, **data: object) -> None:
        """Publish an event of a model call that waits, for its provider or for a decision, after it is stored.

        An event of a request is published once across all executions.
        """
        with self._telling():
            if "request_id" in data:
                noted = event, subject_of(data)
                if noted in self._noted:
                    return
                self._noted.add(noted)
            if self._text is None:
                last = self._narrator.journal.last
                self._text = StreamedText(last + 1, last, ahead=0)
            self._say({"event": event, **data})

    def said(self, content: object) -> Record | None:
        """Return how the end of the reply came in, to be recorded with it because no row follows.

        The reply has that content.
        """
        with self._lock:
            text, self._text = self._text, None
            return None if text is None else text.rest(content)

    def replied(self, reply: Record) -> None:
        """Publish the parts of the reply that were not yet published, now that it is recorded."""
        with self._telling():
            self._narrator.replied(reply)
            if not reply.get("input_guardrails") and not reply.get("output_guardrails"):
                self._end_reply()

    def guarded(self, block: Block | None, *, last: bool = True) -> None:
        """Publish that guardrails of the reply have passed, or that one has taken it back; `last` if no other waits."""
        with self._telling():
            if block is not None:
                self._narrator.blocked(block.reply)
                self._take_back(block.reply)
            if last or block is not None:
                self._end_reply()

    def _take_back(self, reply: str | None) -> None:
        for channel in (self._so_far, *self._channels) if self._so_far.look() else ():
            channel.reset()
            if reply:
                channel.delta({"role": "assistant", "content": reply})

    def _end_reply(self) -> None:
        if self._so_far.look():
            self._so_far = Channel(waiting=0)
            for channel in self._channels:
                channel.end()

    def progress(self, key: str, data: dict[str, Any]) -> None:
        """Add a value emitted by a tool in the call `key`; it is published once stored. Raises `NotSerializable`.

        Values that code left behind by the tool emits after the call's end are discarded.
        """
        self._add(key, codec.encode(data, "emit()"), [])

    def note(self, key: str, kind: EventType, data: dict[str, Any]) -> None:
        """Publish an event of a request or child run of the call `key`, once across all executions, once stored."""
        with self._lock:
            noted = kind, subject_of(data)
            if noted not in self._noted:
                self._noted.add(noted)
                self._add(key, codec.encode(data), [kind])

    def recovered(self, key: str, data: dict[str, Any]) -> None:
        """Publish that the run was taken over, before the call `key` is made, once stored."""
        self._add(key, codec.encode(data), ["run.recovered"])

    def _add(self, key: str, encoded: object, kind: list[EventType]) -> None:
        with self._lock:
            if key in self._stamped or self._over:
                return
            self._progress.setdefault(key, []).append([self._narrator.journal.take(), now(), encoded, *kind])
            self._schedule(soon=bool(self._listeners))

    def stamped(self, key: str, outcome: Record) -> Record:
        """Return the record of a call's outcome with its events' data: numbers, the time, progress not yet stored."""
        with self._lock:
            take, noted = self._narrator.journal.take, self._progress.pop(key, [])
            self._stamped.add(key)
            numbers = [take() for _ in range(1 if outcome.get("agent") is None else 2)]
        return {**outcome, "seq": numbers, "at": now(), **({"progress": noted} if noted else {})}

    def has_stamped(self, key: str) -> bool:
        """Return True if the outcome of a call was made by this execution, not read from its record."""
        with self._lock:
            return key in self._stamped

    def returned(self, index: int, outcome: Record) -> None:
        """Publish the outcome of a call, now that it is recorded."""
        with self._telling():
            self._narrator.returned(index, outcome)

    def settle(self) -> None:
        """Store the events shown, before a failure ends the run, and nothing afterwards. Waits for the database."""
        with self._telling():
            if self._text is not None and self._narrator.in_pieces:
                self._text.close(now())
        if self._writer is not None:
            self._writer.flush([self])
        with self._lock:
            self._over = True

    # Storage

    def rows(self) -> list[NewRow]:
        """Return the rows to write now."""
        with self._lock:
            if self._over:
                return []
            known = {one[0] for batch in self._batches for one in batch}
            noted = [one for some in self._progress.values() for one in some if one[0] not in known]
            if noted:
                batch = {"v": VERSION, "progress": sorted(noted, key=lambda one: one[0])}
                # In the form in which it will be read, because a codec may mask.
                self._batches.append(self._record_codec.settle(batch, place_of(self._run_id, 0))["progress"])
            found: list[Row] = [(batch[0][0], {"progress": batch}) for batch in self._batches]
            if self._text is not None:
                found += [(seq, {"turn": self._narrator.asking, **row}) for seq, row in self._text.rows()]
            self._writing = self._text, len(self._batches)
        return [self._closed(seq, {"v": VERSION, **record}) for seq, record in found]

    def _closed(self, seq: int, record: Record) -> NewRow:
        return NewRow(self._run_id, seq, self._record_codec.close(record, place_of(self._run_id, seq)), self._owner)

    def written(self, refused: bool | None) -> None:
        """Receive the result of the write: stored, refused because another execution owns the run, or not possible."""
        with self._telling():
            self._over = self._over or refused is True
            stored = refused is False and not self._over
            text, count = self._writing
            if text is not None and text is self._text:
                self._tell(text.written(stored=stored))
            if stored:
                done, self._batches = self._batches[:count], self._batches[count:]
                noted = [one for batch in done for one in batch]
                self._narrator.add([(0, {"progress": noted})])
                known = {one[0] for one in noted}
                for key, waiting in self._progress.items():
                    self._progress[key] = [one for one in waiting if one[0] not in known]

    # Readers

    def since(self, after: int) -> list[Event] | None:
        """Return the published events after number `after`; None if some of them are not kept here."""
        with self._lock:
            first = self._recent[0].seq if self._recent else self._narrator.journal.last + 1
            if after + 1 < first:
                return None
            known = after + 1 - first
            return [_copied(event) for event in islice(self._recent, known, None)]

    @contextlib.contextmanager
    def listening(self, wake: Callable[[], None]) -> Iterator[None]:
        """Call `wake` for each new event while the block runs; it must not block."""
        with self._lock:
            self._listeners.append(wake)
            self._schedule(soon=True)
        try:
            yield
        finally:
            with self._lock:
                self._listeners.remove(wake)

    def join(self, channel: Channel) -> None:
        """Send Swarm's dictionaries of incoming text to the channel, too, from the beginning of this reply."""
        with self._lock:
            if channel not in self._channels:
                channel.join(self._so_far)
                self._channels.append(channel)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        with self._lock:
            last = self._narrator.journal.last
            yield
            if self._narrator.journal.last > last:
                for wake in self._listeners:
                    wake()

    def _keep(self, event: Event) -> None:
        self._recent.append(event)
        self._kept += _size(event)
        while self._kept > KEPT or len(self._recent) > RECENT:
            self._kept -= _size(self._recent.popleft())

    def _say(self, text: Piece) -> None:
        if self._text is None or self._over:
            return
        first = self._text.add(text, now())
        self._tell([])
        if first or self._text.size() >= SIZE:
            self._schedule(soon=bool(self._listeners))

    def _tell(self, stored: list[StreamedPiece]) -> None:
        """Publish the stored pieces, and those that may be shown before they are stored."""
        shown = self._text.showable() if self._text is not None else []
        for piece in [*stored, *shown]:
            if piece.seq > self._narrator.journal.last:
                self._narrator.text(piece.seq, [(piece.at, piece.text)])

    def _schedule(self, *, soon: bool) -> None:
        waits = any(self._progress.values()) or (self._text is not None and self._text.waits())
        if self._writer is not None and not self._over and waits:
            much = self._text is not None and self._text.size() >= SIZE
            self._writer.schedule(self, soon=soon, much=much)
