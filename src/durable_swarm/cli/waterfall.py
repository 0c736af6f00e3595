"""The timeline of a run as characters: a column of bars beside its steps, under an axis."""

from __future__ import annotations

from datetime import UTC, datetime

from durable_swarm.display import duration
from durable_swarm.runs import ENDED
from durable_swarm.service import RunDetail, Timeline, timeline

EIGHTHS = " ▏▎▍▌▋▊▉█"
FOLD, CRASH = "≈", "✕"
"""Marks of a long stretch in which nothing happened, and of the death of a process."""
LEAST, MOST, BESIDE = 14, 36, 84
"""The width of the column: at least, at most, and the room that a line needs beside it."""


class Waterfall:
    """The bars of a run in a column; without any room or any bar, the column has no width."""

    def __init__(self, found: Timeline, width: int) -> None:
        room = min(width - BESIDE, MOST)
        self.width = room if room >= LEAST and found.bars else 0
        self._timeline = found
        self._bars = {bar.number: bar for bar in found.bars}

    @classmethod
    def of(cls, run: RunDetail, width: int) -> Waterfall:
        """Return the bars of a run's steps, for lines of a width."""
        last = run.executions[-1] if run.executions else None
        died = last.ended_at if last is not None else None
        now = max(run.created_at, datetime.now(UTC))
        until = run.updated_at if run.status in ENDED else died or now
        return cls(timeline(run.steps, until, run.executions), width)

    def bar(self, number: int) -> str:
        """Return the cells of a step."""
        bar, cells = self._bars.get(number), [" "] * self.width
        if not cells:
            return ""
        self._mark_crashes(cells)
        if bar is not None:
            first = min(int(bar.at * self.width), self.width - 1)
            eighths = max(round(bar.width * self.width * 8), 1)
            for place in range(first, self.width):
                if eighths <= 0:
                    break
                cells[place] = EIGHTHS[min(eighths, 8)]
                eighths -= 8
            self._mark_folds(cells, bar.at, bar.at + bar.width)
        return "".join(cells)

    def axis(self) -> str:
        """Return the line above: the length of the whole, what is folded, and where a process died."""
        if not self.width:
            return ""
        stretches, cells = self._timeline.stretches, [" "] * self.width
        shown = sum(stretch.seconds for stretch in stretches if not stretch.folded)
        self._write(cells, 0, "0 s")
        self._write(cells, self.width, duration(shown), right=True)
        for stretch in stretches:
            if stretch.folded:
                text = f"{FOLD}{duration(stretch.seconds)}{FOLD}"
                middle = int((stretch.at + stretch.width / 2) * self.width)
                if not self._write(cells, max(middle - len(text) // 2, 0), text):
                    self._write(cells, middle, FOLD)
        self._mark_crashes(cells)
        return "".join(cells)

    def _write(self, cells: list[str], at: int, text: str, *, right: bool = False) -> bool:
        """Write a text, unless it would cover another one."""
        first = at - len(text) if right else at
        free = first >= 0 and first + len(text) <= len(cells)
        if free and all(cell == " " for cell in cells[max(first - 1, 0) : first + len(text) + 1]):
            cells[first : first + len(text)] = text
            return True
        return False

    def _mark_folds(self, cells: list[str], begins: float, ends: float) -> None:
        for stretch in self._timeline.stretches:
            middle = stretch.at + stretch.width / 2
            if stretch.folded and begins < middle < ends:
                cells[min(int(middle * self.width), self.width - 1)] = FOLD

    def _mark_crashes(self, cells: list[str]) -> None:
        for at in self._timeline.crashes:
            cells[min(int(at * self.width), self.width - 1)] = CRASH
