"""Derives the events of a run from its records, live or from a database. Both give the same events.

Events that follow from the records are not stored. Rows of events store the rest: the pieces in which a text arrived,
progress, and an end that `resume` undid. A row of text states the highest number under which pieces may have been shown
before they were stored. An execution that asks the model again continues after that number, and the gap is filled with
`text.reset`, so a number never carries two different texts. Numbers that tools reserved for events lost in a crash may
stay free: events that waited behind them were not delivered, and close up when the batch has ended.

    text      {turn, upto, events: [[at, text], [at, null], ...]}   numbered from the row's own number; null is a reset,
                                                                    an object an event of a wait
    progress  {progress: [[seq, at, data], ...]}                    an entry of another type has it as its fourth part
    end       {ended: [at, type, data], turn, of}                   `turn` only if its model call was in progress;
                                                                    `of`: when the run's row says that it ended
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from durable_swarm import codec, errors
from durable_swarm.engine.history.sequence import EventSequence
from durable_swarm.engine.records import runs
from durable_swarm.engine.records.base import Record
from durable_swarm.events import Event, EventType
from durable_swarm.loop import NOT_MADE, Call

UNSTORED = 1
"""The number of pieces of a streamed reply that may be shown before its first row is stored."""

LONGEST_VOID = 1000
"""An upper bound on the numbers that a row lets be shown ahead of it."""

Piece = str | dict[str, Any] | None
"""A piece of a reply that is coming in: a text, None for a reset, or an event of a call that waits to be made."""

Row = tuple[int, Record]
"""A row of events with its number, which is that of the row's first event."""


class EventProjection:
    """The projection of one run. Times are milliseconds since 1970."""

    def __init__(self, deliver: Callable[[Event], None]) -> None:
        self.journal = EventSequence(deliver)
        self.asking: int | None = None
        """The turn whose model call is in progress."""
        self.shown = 0
        """The last number under which a piece of that turn may have been shown."""
        self.in_pieces = False
        """True if the text of a reply is emitted while it arrives."""
        self._makes_calls = self._together = False
        self._time = 0
        self._rows: defaultdict[int, list[Row]] = defaultdict(list)
        """Rows of later turns."""
        self._progress: defaultdict[int, list[list[object]]] = defaultdict(list)
        """Progress in later turns."""
        self._turn = -1
        self._begun = 0
        self._agent = ""
        self._calls: list[Call] = []
        self._results: dict[int, str] = {}
        """The outcomes of this turn's calls, by position."""
        self._said = False
        """True if the last reply has a text."""
        self.written = ""
        """The tool whose call the last reply seems to have written as text."""

    def begin(self, start: Record) -> None:
        """Emit the start of the run, and the turns that a fork has kept."""
        self._time = round(start.get("at", 0) * 1000)
        self.in_pieces = start.get("stream") is True and not start.get("whole")
        self._makes_calls = start.get("execute_tools", True)
        self._follow("run.started", agent=start["agent"])
        for turn, kept in enumerate(start.get("kept", [])):
            self.asked(turn, kept["agent"])
            self.replied(kept["reply"])
            for index, outcome in enumerate(kept["outcomes"]):
                if outcome is not None:
                    self.returned(index, outcome)

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows of events, in the order of their numbers."""
        for seq, row in rows:
            self._add_progress(row.get("progress", ()))
            turn = row.get("turn")
            if turn is None and "ended" in row:
                at, kind, data = row["ended"]
                self.journal.place(seq, kind, codec.decode(data), at)
            elif turn is not None and turn == self.asking:
                self._row(seq, row)
            elif turn is not None:
                self._rows[turn].append((seq, row))

    def asked(self, turn: int, agent: str) -> None:
        """Emit the start of a turn: the model is asked."""
        self.journal.close_up()
        self._turn, self._agent, self.asking = turn, agent, turn
        self._follow("turn.started", turn=turn, agent=agent)
        self._begun = self.journal.last + UNSTORED
        self.shown = self.journal.last + (UNSTORED if self.in_pieces else 0)
        for seq, row in self._rows.pop(turn, ()):
            self._row(seq, row)

    def text(self, seq: int, pieces: Iterable[tuple[int, Piece]]) -> None:
        """Emit pieces of text, numbered from `seq`; missing pieces before them were void."""
        for number, (at, text) in enumerate(pieces, seq):
            self._void(number - 1, at)
            if text is None:
                self.journal.place(number, "text.reset", {"turn": self._turn}, at)
            elif isinstance(text, dict):
                data = {"turn": self._turn, **text}
                self.journal.place(number, data.pop("event"), data, at)
            else:
                self.journal.place(number, "text.delta", {"turn": self._turn, "text": text}, at)

    def replied(self, reply: Record) -> None:
        """Emit the rest of the reply, beyond the pieces emitted already, and the start of its calls."""
        content = codec.decode(reply["message"].get("content"))
        if "shown" in reply:
            self.text(reply["shown"]["at"], _pieces(reply["shown"], content))
        if isinstance(content, str) and content and not ("shown" in reply and self.in_pieces):
            if self.in_pieces and self.shown > self._begun:
                # A version that does not stream continued the run.
                self._void(max(self.shown, self.journal.last) + 1, self._time)
            self._follow("text.delta", turn=self._turn, text=content)
        self.asking, self._time = None, max(self._time, reply.get("at", 0))
        self._add_progress(self._progress.pop(self._turn, ()))
        read = runs.read_reply(reply)
        self.written, self._results = read.written, {}
        self._said = isinstance(content, str) and bool(content)
        self._calls, self._together = read.calls if self._makes_calls else [], read.together
        if not self._together:
            self._begin_calls(0)
            return
        for call in self._calls:
            self._follow("tool.started", **self._about(call), arguments=call.arguments)
        for call in self._calls:
            self._tell(call)

    def returned(self, index: int, outcome: Record) -> None:
        """Emit the outcome of a call, and the start of the next one."""
        self._add_progress(outcome.get("progress", ()))
        call, numbers = self._calls[index], iter(outcome.get("seq", ()))
        at = outcome.get("at", self._time)
        text = codec.decode(outcome.get("text", ""))
        self._place(next(numbers, None), at, "tool.finished", **self._about(call), result=text)
        if outcome.get("agent") is not None:
            names = {"from": self._agent, "to": outcome["agent"]}
            self._place(next(numbers, None), at, "handoff", turn=self._turn, **names)
        self._time = max(self._time, at)
        self._results[index] = text
        if not self._together:
            self._begin_calls(index + 1)

    def blocked(self, reply: str | None) -> None:
        """Emit that a guardrail has taken the turn's text back, and the text in its place, if there is one."""
        if self._said:
            self._follow("text.reset", turn=self._turn)
        if reply:
            self._follow("text.delta", turn=self._turn, text=reply)

    def ended(self, at: int, kind: EventType, data: dict[str, object]) -> None:
        """Emit the end of the run. Events after a lost number are emitted if the run continues."""
        if kind == "run.finished":
            self.journal.close_up()
        self.journal.give_up()
        at = max(self._time, at)
        if self.asking is not None and self.shown > self.journal.last:
            self._void(self.shown + 1, at)
        self.journal.follow(kind, data, at)

    # Parts

    def _add_progress(self, progress: Iterable[list[Any]]) -> None:
        for number, at, encoded, *kind in progress:
            data = codec.decode(encoded)
            if data["turn"] > self._turn or (data["turn"] == self.asking):
                self._progress[data["turn"]].append([number, at, encoded, *kind])
            elif data["turn"] == self._turn:
                self.journal.place(number, kind[0] if kind else "tool.progress", data, at)

    def _row(self, seq: int, row: Record) -> None:
        if seq - self.journal.last > LONGEST_VOID:
            return  # Damaged: a row is never so far ahead.
        if "ended" in row:
            at, kind, data = row["ended"]
            self._void(seq - 1, at)
            self.journal.place(seq, kind, codec.decode(data), at)
            self.shown = self.journal.last
            return
        self.text(seq, [(at, codec.decode(text)) for at, text in row["events"]])
        self.shown = max(min(row["upto"], self.journal.last + LONGEST_VOID // 2), self.journal.last)

    def _void(self, upto: int, at: int) -> None:
        if upto - self.journal.last > LONGEST_VOID:
            raise errors.ReplayMismatch(f"the events of a run are damaged: {upto} comes after {self.journal.last}")
        while self.journal.last < upto:
            self.journal.follow("text.reset", {"turn": self._turn}, at)

    def _begin_calls(self, index: int) -> None:
        """Emit the start of the next call, one after the other, and the calls that need no execution."""
        for call in self._calls[index:]:
            self._follow("tool.started", **self._about(call), arguments=call.arguments)
            if not self._tell(call):
                return

    def _tell(self, call: Call) -> bool:
        if call.plan not in NOT_MADE:
            return False
        text = call.text if call.twin is None else self._results[call.twin]
        self._follow("tool.finished", **self._about(call), result=text)
        return True

    def _about(self, call: Call) -> dict[str, int | str]:
        return {"turn": self._turn, "tool": call.tool, "call_id": call.id}

    def _place(self, seq: int | None, at: int, kind: EventType, **data: object) -> None:
        self.journal.place(self.journal.last + 1 if seq is None else seq, kind, data, at)

    def _follow(self, kind: EventType, **data: object) -> None:
        self.journal.follow(kind, data, self._time)


def numbers_in(outcome: Record) -> list[int]:
    """Return the event numbers in the record of a call's outcome."""
    return [*outcome.get("seq", ()), *(entry[0] for entry in outcome.get("progress", ()))]


def noted_in(row: Record) -> Iterator[tuple[str, str]]:
    """Yield the row's events that are emitted only once, as type and subject."""
    for _, _, encoded, *kind in row.get("progress", ()):
        if kind:
            yield kind[0], subject_of(codec.decode(encoded))
    for _, encoded in row.get("events", ()):
        data = codec.decode(encoded)
        if isinstance(data, dict) and "request_id" in data:
            yield data["event"], subject_of(data)


def subject_of(data: Mapping[str, object]) -> str:
    """Return what an event that is emitted only once is about: a request, or a child run and how it ended."""
    return str(data.get("request_id") or f"{data.get('run_id')} {data.get('status', '')}")


def _pieces(shown: Record, content: Any) -> Iterator[tuple[int, Piece]]:
    """Yield the pieces at a reply's end: as lengths if the reply contains them, as text if they were void."""
    position = shown["from"]
    for at, piece in shown["events"]:
        if isinstance(piece, int):
            yield at, content[position : position + piece]
            position += piece
        else:
            yield at, codec.decode(piece)
