"""Tells the events of a run from its records: as they are made, or as a database has them. Both tell the same.

What follows from the records is stored nowhere else. Rows of events hold the rest: the pieces in which a text came,
progress, and an end that `resume` took back. A row of text says up to which number pieces may have been shown in its
process before they were stored; a life that asks the model again goes on behind that, and what lies between is told as
`text.reset`. So nobody is ever told something else under a number that was seen. Numbers that tools had drawn for what
was lost in a crash may stay free: what waits behind them was told to nobody, and closes up when the batch has ended.

    text      {turn, upto, events: [[at, text], [at, null], ...]}   numbered from the row's own number; null is a reset
    progress  {progress: [[seq, at, data], ...]}                    an entry of another type has it as its fourth part
    end       {ended: [at, type, data], turn, of}                   `turn` if its model call was under way, else absent;
                                                                    `of`: when the run's row says that it ended
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from durable_swarm import codec, errors
from durable_swarm.engine.history.sequence import EventSequence
from durable_swarm.engine.records import runs
from durable_swarm.engine.records.base import Record
from durable_swarm.events import Event, EventType
from durable_swarm.loop import NOT_MADE, Call

UNSTORED = 1
"""How many pieces of a streamed reply may be shown before its first row is stored."""

LONGEST_VOID = 1000
"""More numbers than any row lets be shown ahead of it."""

Row = tuple[int, Record]
"""A row of events with its number, the row's first event's."""


class EventProjection:
    """Tells one run. Times are milliseconds since 1970."""

    def __init__(self, deliver: Callable[[Event], None]) -> None:
        self.journal = EventSequence(deliver)
        self.asking: int | None = None
        """The turn whose model call is under way."""
        self.shown = 0
        """The last number under which a piece of that turn may have been shown."""
        self.in_pieces = False
        """Whether the text of a reply is told while it comes in."""
        self._makes_calls = self._together = False
        self._time = 0
        self._rows: defaultdict[int, list[Row]] = defaultdict(list)
        """Rows that tell of turns to come."""
        self._progress: defaultdict[int, list[list[Any]]] = defaultdict(list)
        """Progress in turns to come."""
        self._turn = -1
        self._begun = 0
        self._agent = ""
        self._calls: list[Call] = []
        self._results: dict[int, str] = {}
        """What the calls of this turn gave, by their place."""
        self.written = ""
        """The tool whose call the last reply seems to have written as text."""

    def begin(self, start: Record) -> None:
        """Tell that the run has started, and the turns that a fork has kept."""
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
        """Take in rows of events, in the order of their numbers."""
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
        """Tell that a turn has started: the model is asked."""
        self.journal.close_up()
        self._turn, self._agent, self.asking = turn, agent, turn
        self._follow("turn.started", turn=turn, agent=agent)
        self._begun = self.journal.last + UNSTORED
        self.shown = self.journal.last + (UNSTORED if self.in_pieces else 0)
        for seq, row in self._rows.pop(turn, ()):
            self._row(seq, row)

    def text(self, seq: int, pieces: Iterable[tuple[int, str | None]]) -> None:
        """Tell pieces of text, numbered from `seq`; what is missing before them was void."""
        for number, (at, text) in enumerate(pieces, seq):
            self._void(number - 1, at)
            if text is None:
                self.journal.place(number, "text.reset", {"turn": self._turn}, at)
            else:
                self.journal.place(number, "text.delta", {"turn": self._turn, "text": text}, at)

    def replied(self, reply: Record) -> None:
        """Tell what the reply says beyond what was told of it already, and that calls begin."""
        content = codec.decode(reply["message"].get("content"))
        if "shown" in reply:
            self.text(reply["shown"]["at"], _pieces(reply["shown"], content))
        elif isinstance(content, str) and content:
            if self.in_pieces and self.shown > self._begun:
                # A version that does not stream went on with it.
                self._void(max(self.shown, self.journal.last) + 1, self._time)
            self._follow("text.delta", turn=self._turn, text=content)
        self.asking, self._time = None, max(self._time, reply.get("at", 0))
        self._add_progress(self._progress.pop(self._turn, ()))
        read = runs.read_reply(reply)
        self.written, self._results = read.written, {}
        self._calls, self._together = read.calls if self._makes_calls else [], read.together
        if not self._together:
            self._begin_calls(0)
            return
        for call in self._calls:
            self._follow("tool.started", **self._about(call), arguments=call.arguments)
        for call in self._calls:
            self._tell(call)

    def returned(self, index: int, outcome: Record) -> None:
        """Tell what came of a call, and that the next one begins."""
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

    def ended(self, at: int, kind: EventType, data: dict[str, Any]) -> None:
        """Tell that the run has ended. What waits for a lost place is told once the run goes on, if it does."""
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
            return  # Damaged: no row stands so far ahead.
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
        """One after the other: tell that the next call begins, and what needs no call."""
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

    def _about(self, call: Call) -> dict[str, Any]:
        return {"turn": self._turn, "tool": call.tool, "call_id": call.id}

    def _place(self, seq: int | None, at: int, kind: EventType, **data: Any) -> None:
        self.journal.place(self.journal.last + 1 if seq is None else seq, kind, data, at)

    def _follow(self, kind: EventType, **data: Any) -> None:
        self.journal.follow(kind, data, self._time)


def numbers_in(outcome: Record) -> list[int]:
    """Give the numbers of events that the record of a call's outcome has."""
    return [*outcome.get("seq", ()), *(entry[0] for entry in outcome.get("progress", ()))]


def noted_in(row: Record) -> Iterator[tuple[str, str]]:
    """Give what a row tells that is told once, by its type and what it is about."""
    for _, _, encoded, *kind in row.get("progress", ()):
        if kind:
            yield kind[0], codec.decode(encoded)["request_id"]


def _pieces(shown: Record, content: Any) -> Iterator[tuple[int, str | None]]:
    """Give the pieces of a reply's end: the lengths of those that the reply holds, the text of those that were void."""
    position = shown["from"]
    for at, piece in shown["events"]:
        if isinstance(piece, int):
            yield at, content[position : position + piece]
            position += piece
        else:
            yield at, codec.decode(piece)
