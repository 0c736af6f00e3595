"""What this process knows of single runs: one entry for each that it has something to remember of."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from durable_swarm.engine.execution.execution import Execution
from durable_swarm.engine.records.lives import Life
from durable_swarm.tools.calls import Cast

DECLINE, LONGEST = 60.0, 3600.0
"""Seconds for which a run that could not continue here is left to others: the first time, and at most."""


@dataclass
class LocalRun:
    """One run, as this process knows it."""

    cast: Cast = field(default_factory=dict)
    """Agents that the run uses here when it continues: those given with its id, or those it was suspended with."""
    before: Life | None = None
    """The execution in another process that ended with a takeover by this one, until an execution begins here."""
    stood: bool = False
    """True if that process lives, but was paused."""
    pause: float = 0.0
    """Seconds for which the run was left to others last."""
    until: float = 0.0
    """The time until which it is left to others, by the monotonic clock."""

    @property
    def is_declined(self) -> bool:
        """Return True if the run is left to others at present."""
        return time.monotonic() < self.until


class LocalRuns:
    """The runs of which this process knows something. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._known: dict[str, LocalRun] = {}

    def of(self, run_id: str) -> LocalRun:
        """Return what is known of a run, to be read only."""
        return self._known.get(run_id) or LocalRun()

    @contextlib.contextmanager
    def _entry(self, run_id: str) -> Iterator[LocalRun]:
        """Change an entry: one that says nothing more afterwards is removed."""
        with self._lock:
            known = self._known.setdefault(run_id, LocalRun())
            try:
                yield known
            finally:
                if known == LocalRun():
                    del self._known[run_id]

    def begin(self, run: Execution) -> None:
        """Note that an execution of a run begins here, and pass on to it what was kept for it."""
        with self._entry(run.run_id) as known:
            run.before, run.stood = known.before, known.stood
            known.before, known.stood = None, False

    def expect(self, run_id: str, before: Life | None, *, stood: bool) -> None:
        """Keep, for the execution that is to begin here, what ended with the takeover."""
        with self._entry(run_id) as known:
            known.before, known.stood = before or known.before, stood or known.stood

    def not_taken(self, run_id: str) -> None:
        """Note that a run was not taken over after all."""
        with self._entry(run_id) as known:
            known.before, known.stood = None, False

    def lend(self, run_id: str, cast: Cast) -> None:
        """Make the next execution of a run here use these agents, even if others share their names."""
        with self._entry(run_id) as known:
            known.cast = known.cast | cast

    def take_cast(self, run_id: str) -> Cast:
        """Return the agents kept for a run, for the execution that uses them."""
        with self._entry(run_id) as known:
            cast, known.cast = known.cast, {}
        return cast

    def decline(self, run_id: str) -> None:
        """Leave a run to others, longer each time, so that processes that lack something do not pass it around."""
        with self._entry(run_id) as known:
            known.pause = min(2 * known.pause or DECLINE, LONGEST)
            known.until = time.monotonic() + known.pause

    def decline_none(self) -> None:
        """Leave no run to others any more: what was lacking may be here now."""
        with self._lock:
            for run_id in list(self._known):
                with self._entry(run_id) as known:
                    known.pause = known.until = 0.0
