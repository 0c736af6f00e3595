"""The text of a reply that is coming in, in numbered pieces: how much is stored, and how much may be shown before."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from durable_swarm import codec
from durable_swarm.codec import storable
from durable_swarm.engine.history.projection import Piece, Row
from durable_swarm.engine.records.base import Record

AHEAD = 4
"""How many pieces beyond the stored ones may be shown here; further ones are joined until the next row is stored."""


@dataclass
class StreamedPiece:
    """A piece of a reply with the sequence number of its event."""

    seq: int
    at: int
    text: Piece

    @property
    def said(self) -> str:
        """The text of the piece, '' for a reset or a wait."""
        return self.text if isinstance(self.text, str) else ""


class StreamedText:
    """The text of a reply that is coming in: the stored part, and the pieces not confirmed as stored."""

    def __init__(self, first: int, shown: int, ahead: int = AHEAD) -> None:
        self._next = first
        self._shown = shown
        """The last number that may be shown before it is stored."""
        self._pieces: list[StreamedPiece] = []
        self._ends: list[int] = []
        """Indexes among the pieces at which unconfirmed rows end."""
        self._writing = 0
        """How many of the pieces are being written."""
        self._stored = 0
        """How many characters of the reply's text are stored."""
        self._ahead = ahead

    def skip_to(self, seq: int) -> None:
        """Number the next piece `seq`."""
        self._next = seq

    def add(self, text: Piece, at: int) -> bool:
        """Add a piece; return True if it is the first that waits to be stored."""
        first = not self.waits()
        in_a_row = self._ends[-1] if self._ends else 0
        last = self._pieces[-1] if len(self._pieces) > in_a_row else None
        if last is not None and last.seq > self._shown and isinstance(last.text, str) and isinstance(text, str):
            last.text += text
        else:
            self._pieces.append(StreamedPiece(self._next, at, text))
            self._next += 1
        return first

    def close(self, at: int) -> None:
        """Show no further piece; those shown are void."""
        if not self._pieces or self._pieces[-1].text is not None:
            self.add(None, at)
        self._ahead = 0

    def waits(self) -> bool:
        """Return True if any piece waits to be stored."""
        return len(self._pieces) > self._writing

    def size(self) -> int:
        """Return how many characters wait to be stored."""
        return sum(len(piece.said) for piece in self._pieces[self._writing :])

    def showable(self) -> list[StreamedPiece]:
        """Return the pieces that may be shown before they are stored."""
        return [piece for piece in self._pieces if piece.seq <= self._shown]

    def rows(self) -> list[Row]:
        """Return the rows to store now.

        A row stays the same at a second try, because a write that seemed to fail may have succeeded.
        """
        if not self.waits():
            return []
        self._writing = len(self._pieces)
        if self._ends[-1:] != [self._writing]:
            self._ends.append(self._writing)
        return [self._row(self._pieces[begin:end]) for begin, end in pairwise([0, *self._ends])]

    def _row(self, pieces: list[StreamedPiece]) -> Row:
        events = [[piece.at, codec.encode(piece.text)] for piece in pieces]
        return pieces[0].seq, {"upto": pieces[-1].seq + self._ahead, "events": events}

    def written(self, *, stored: bool) -> list[StreamedPiece]:
        """Receive the result of the write, and return the pieces that are stored."""
        count, self._writing = self._writing if stored else 0, 0
        done, self._pieces = self._pieces[:count], self._pieces[count:]
        for piece in done:
            self._stored = 0 if piece.text is None else self._stored + len(piece.said)
        if done:
            self._ends.clear()
            self._shown = max(self._shown, done[-1].seq + self._ahead)
        return done

    def rest(self, content: object) -> Record | None:
        """Return the unconfirmed pieces, in the form recorded with the reply, which has that content.

        Returns None if nothing was shown at all. For pieces of the content the length is enough.
        """
        if not self._pieces and not self._stored:
            return None
        void = max((index for index, piece in enumerate(self._pieces) if piece.text is None), default=-1)
        start = self._stored if void < 0 else 0
        last = "".join(piece.said for piece in self._pieces[void + 1 :])
        held = isinstance(content, str) and content[start:] == last and storable(content)
        events = [
            [piece.at, len(piece.said) if piece.said and held and index > void else codec.encode(piece.text)]
            for index, piece in enumerate(self._pieces)
        ]
        return {"at": self._pieces[0].seq if self._pieces else self._next, "from": start, "events": events}
