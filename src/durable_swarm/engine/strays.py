"""Runs that this process has claimed, and that nobody executes: the claim was committed, and the word of it was lost.

DBOS claims a queued run in one transaction, and executes it then. If the connection breaks while that commits, DBOS
takes the claim for failed. But the run's row names a process that lives, so nobody else would ever look at it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from durable_swarm.engine import internals

if TYPE_CHECKING:
    from durable_swarm.engine.process import Process

log = logging.getLogger("durable_swarm")

LOOKS = 3
"""How many looks in a row must find a claim without its execution, which begins a moment after it.

Looks, not seconds: a process that was stopped in that moment has not waited.
"""


class Strays:
    """Looks for runs that were claimed here and are not executed, and takes them over from itself."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._seen: dict[tuple[str, str], int] = {}
        """How many looks in a row have found a claim idle: a run, and the token of who has it."""

    def look(self) -> None:
        """Take over what has been found idle often enough."""
        here = self._process
        if here.is_closed:  # What its runs have left is for others.
            return
        claims = here.store.claims.claims(here.identity.name)
        executed = internals.executing() | here.runs.keys() | here.orphans.interrupted
        self._seen = {claim: self._seen.get(claim, 0) + 1 for claim in claims if claim[0] not in executed}
        lost = {run_id for (run_id, _), looks in self._seen.items() if looks >= LOOKS}
        if lost:
            self._take(lost)

    def _take(self, lost: set[str]) -> None:
        orphans = self._process.orphans
        log.info("runs were claimed here and have not begun, and are taken once more: %s", ", ".join(sorted(lost)))
        orphans.interrupted |= lost
        try:
            orphans.take(*lost)
            orphans.offer(lost)  # What cannot go on here.
        except BaseException:
            orphans.interrupted -= lost  # The next look finds them again.
            raise
