"""Runs that this process has claimed, and that nobody executes: the claim was committed, and the word of it was lost.

And the other way round: runs that this process executes, and that are another's.

DBOS claims a queued run in one transaction, and executes it then. If the connection breaks while that commits, DBOS
takes the claim for failed. But the run's row names a process that lives, so nobody else would ever look at it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from durable_swarm.engine.backend import queues
from durable_swarm.engine.backend.awaited_calls import LOOKS
from durable_swarm.engine.storage.ownership import UNFINISHED

if TYPE_CHECKING:
    from durable_swarm.engine.execution.execution import Execution
    from durable_swarm.engine.processes.process import Process

log = logging.getLogger("durable_swarm")


class LostClaims:
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
        self._look_for_lost(set(claims))
        executed = queues.executing() | here.runs.keys() | here.orphans.interrupted
        self._seen = {claim: self._seen.get(claim, 0) + 1 for claim in claims if claim[0] not in executed}
        lost = {run_id for (run_id, _), looks in self._seen.items() if looks >= LOOKS}
        if lost:
            self._take(lost)

    def _look_for_lost(self, claims: set[tuple[str, str]]) -> None:
        """Find the runs that are executed here and are another's: their tools may take long yet to notice."""
        here = self._process
        for run in list(here.runs.values()):
            if run.entered and (run.run_id, str(run.owner)) not in claims:
                status, owner, _ = here.store.mailbox.stand(run.run_id)
                if status in UNFINISHED and owner != run.owner:
                    self.lose(run)

    def lose(self, run: Execution) -> None:
        """Tell that another execution has a run, and have who waits for it here follow it there."""
        here = self._process
        if not run.lost and run.entered and not here.is_closed:
            log.warning(
                "run %r goes on elsewhere: it was resumed, or taken over while this process stood still or had lost "
                "its connections. What this execution of it still does is not recorded.",
                run.run_id,
            )
        run.lose()
        here.leave(run, lost=True)
        run.end()

    def fetch_call(self, run: Execution, key: str) -> None:
        """Have a tool call that a run of this process waits for, and nobody executes, be made here."""
        here = self._process
        here.keeper.expect()
        here.store.claims.fetch_call(key, run.run_id, run.owner, here.queue)

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
