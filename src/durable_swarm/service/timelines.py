"""Lays the steps of a run out on an axis, for a page and for a terminal alike.

A run that waited for two hours and worked for a second would be one bar and a row of dots. So a long stretch in which
nothing begins or ends is folded: it has the same width however long it is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from durable_swarm.engine.records.executions import DIED, STOPPED
from durable_swarm.runs import StepInfo
from durable_swarm.service.executions import ExecutionView

LONG = 60.0
"""Seconds from which on a stretch in which nothing happens may be folded."""

FOLDED, ALL_FOLDED = 0.1, 0.5
"""The width of a folded stretch, and of all together at most, as parts of the axis."""


@dataclass(frozen=True)
class Stretch:
    """A part of the axis between two moments: where it begins and how wide it is, as parts of the axis from 0 to 1."""

    begins: datetime
    ends: datetime
    folded: bool
    at: float
    width: float

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return (self.ends - self.begins).total_seconds()


@dataclass(frozen=True)
class Bar:
    """The bar of a step, by the step's number; `open` is true for a step in progress."""

    number: int
    at: float
    width: float
    open: bool


@dataclass(frozen=True)
class Timeline:
    """Steps on an axis. Steps without times, such as those that a fork keeps, have no bar.

    `stretches` are the parts of the axis, in order. `crashes` are the places at which a process that executed the run
    died or stood still.
    """

    stretches: list[Stretch]
    bars: list[Bar]
    crashes: list[float]

    @property
    def folds(self) -> list[Stretch]:
        """The folded stretches."""
        return [stretch for stretch in self.stretches if stretch.folded]


def timeline(steps: Sequence[StepInfo], until: datetime, executions: Sequence[ExecutionView] = ()) -> Timeline:
    """Return the steps of a run on an axis; those in progress last `until` then."""
    spans = {
        step.number: (step.started_at, max(step.finished_at or until, step.started_at))
        for step in steps
        if step.started_at is not None
    }
    if not spans:
        return Timeline([], [], [])
    died = [one.ended_at for one in executions if one.end in (DIED, STOPPED) and one.ended_at is not None]
    first, last = min(begun for begun, _ in spans.values()), max(ended for _, ended in spans.values())
    moments = sorted({moment for span in spans.values() for moment in span} | {at for at in died if first < at < last})
    axis = _Axis(moments)
    open_ones = {step.number for step in steps if step.finished_at is None}
    bars = [
        Bar(number, axis.place(begun), axis.place(ended) - axis.place(begun), number in open_ones)
        for number, (begun, ended) in spans.items()
    ]
    return Timeline(axis.stretches, bars, [axis.place(min(max(at, first), last)) for at in died])


class _Axis:
    def __init__(self, moments: list[datetime]) -> None:
        gaps = [(before, after, (after - before).total_seconds()) for before, after in pairwise(moments)]
        busy = sum(seconds for *_, seconds in gaps if seconds < LONG)
        long = [seconds >= LONG and seconds > busy for *_, seconds in gaps]
        shown = sum(seconds for (*_, seconds), folds in zip(gaps, long, strict=True) if not folds)
        fold = min(FOLDED, ALL_FOLDED / max(sum(long), 1)) if shown else 1 / max(sum(long), 1)
        rest = 1 - fold * sum(long)
        self.stretches: list[Stretch] = []
        at = 0.0
        for (before, after, seconds), folds in zip(gaps, long, strict=True):
            width = fold if folds else rest * seconds / shown
            self.stretches.append(Stretch(before, after, folds, at, width))
            at += width

    def place(self, moment: datetime) -> float:
        """Return where a moment between the first and the last one is on the axis."""
        number = bisect_right(self.stretches, moment, key=lambda stretch: stretch.begins) - 1
        if number < 0:
            return 0.0
        stretch = self.stretches[number]
        part = (moment - stretch.begins).total_seconds() / stretch.seconds if stretch.seconds else 0.0
        return stretch.at + stretch.width * min(part, 1.0)
