"""Runs that this process has claimed but does not execute: the claim was committed, its confirmation was lost.

And the reverse: runs that this process executes, or remembers as interrupted, while another execution owns them.

DBOS claims a queued run in one transaction, then executes it. If the connection breaks during the commit, DBOS takes
the claim for failed. But the run's row names a living process, so no other process would ever look at it.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING

from durable_swarm.engine.backend import queues
from durable_swarm.engine.backend.awaited_calls import LOOKS
from durable_swarm.engine.processes.local_runs import INTERRUPTED
from durable_swarm.engine.storage.ownership import UNFINISHED

if TYPE_CHECKING:
    from durable_swarm.engine.execution.execution import Execution
    from durable_swarm.engine.processes.process import Process

log = logging.getLogger("durable_swarm")

AT_ONCE = 200
"""How many of the suspended and the declined runs are looked for at once."""


class LostClaims:
    """Finds runs that were claimed here and are not executed, and takes them over from this process itself."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._seen: dict[tuple[str, str], int] = {}
        """How many looks in a row have found a claim idle, by run and token of its execution."""
        self._executed: set[str] = set()
        """The runs in progress here at the last look."""

    def _executed_here(self) -> set[str]:
        here = self._process
        interrupted = here.local.in_state(*INTERRUPTED).keys()
        return queues.executing() | here.local.executions.keys() | here.sessions.beginning | interrupted

    def wants(self) -> bool:
        """Return True if a look may find what the last one did not, though the database has not changed."""
        return bool(self._seen) or self._executed != self._executed_here()

    def look(self) -> None:
        """Take over the claims that were found idle often enough."""
        here = self._process
        if here.is_closed:  # The runs it leaves are for other processes.
            return
        claims = here.store.claims.claims(here.identity.name)
        self._look_for_lost(set(claims))
        self._forget_gone({run_id for run_id, _ in claims})
        self._executed = executed = self._executed_here()
        self._seen = {claim: self._seen.get(claim, 0) + 1 for claim in claims if claim[0] not in executed}
        lost = {run_id for (run_id, _), looks in self._seen.items() if looks >= LOOKS}
        if lost:
            self._take(lost)

    def _look_for_lost(self, claims: set[tuple[str, str]]) -> None:
        """Find the runs executed here that another execution owns: their tools may take long to notice."""
        here = self._process
        for run in list(here.local.executions.values()):
            # One that is being suspended has given up its claim by itself.
            if run.entered and not run.released and (run.run_id, str(run.owner)) not in claims:
                status, owner, _ = here.store.mailbox.stand(run.run_id)
                if status in UNFINISHED and owner != run.owner:
                    self.lose(run)

    def _forget_gone(self, claimed: set[str]) -> None:
        """Forget the interrupted and the declined runs that have ended, or that another process has."""
        here = self._process
        some = here.local.in_state("held", "retrying", "stopped").keys() - claimed
        # Of these there may be many, and nobody is told anything wrong for as long as they are remembered.
        others = sorted(here.local.in_state("elsewhere", "suspended").keys() - claimed)
        some |= set(random.sample(others, min(AT_ONCE, len(others))))
        for run_id, ended in here.store.claims.elsewhere(some, here.identity.name).items():
            here.local.forget(run_id, ended=ended)

    def lose(self, run: Execution) -> None:
        """Report that another execution owns a run, and make its waiters here follow it there."""
        here = self._process
        if not run.lost and run.entered and not here.is_closed:
            log.warning(
                "run %r continues elsewhere: it was resumed, or taken over while this process was stopped or had lost "
                "its connections. What this execution of it still does is not recorded.",
                run.run_id,
            )
        run.lose()
        here.leave(run, lost=True)
        run.end()

    def fetch_call(self, run: Execution, key: str) -> None:
        """Fetch a tool call that a run of this process waits for and no process executes, so that it is made here."""
        here = self._process
        here.maintenance.expect()
        here.store.claims.fetch_call(key, run.run_id, run.owner, here.queue)

    def _take(self, lost: set[str]) -> None:
        recovery, local = self._process.recovery, self._process.local
        log.info("runs were claimed here and have not begun, and are taken once more: %s", ", ".join(sorted(lost)))
        for run_id in lost:
            local.move(run_id, "interrupted")
        try:
            recovery.take(*lost)
            recovery.offer(lost)  # Calls that cannot continue here.
        except BaseException:
            for run_id in lost:
                local.move(run_id, "offered")  # The next look finds them again.
            raise
