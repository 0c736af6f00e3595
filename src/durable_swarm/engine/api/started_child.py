"""A run that a tool call starts, as a child of the tool's run: what is stored of that, and the parent's events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from durable_swarm.engine.backend.deferred_calls import begin_workflow
from durable_swarm.engine.execution.budget import Budget
from durable_swarm.engine.execution.errors import engines_code
from durable_swarm.engine.execution.execution import Execution
from durable_swarm.engine.execution.tool_call import CallRequests
from durable_swarm.engine.storage.family import ChildLink, Family
from durable_swarm.runs import State
from durable_swarm.tools.context import Inside


@dataclass(frozen=True)
class StartedChild:
    """A run that a tool call starts, or attaches to."""

    link: ChildLink
    agent: str
    call: CallRequests
    belongs_to: str | None

    @classmethod
    def of(cls, here: Inside, run_id: str, agent: str) -> Self | None:
        """Return the run as a child of the run whose tool is being executed; None for a tool of a run in memory."""
        parent, call = here.owner, here.people
        if not isinstance(parent, Execution) or not isinstance(call, CallRequests):
            return None
        return cls(
            ChildLink(run_id, parent.run_id, parent.root, here.call.idempotency_key), agent, call, parent.belongs_to
        )

    @property
    def budget(self) -> Budget:
        """The budget of the parent."""
        return self.call.made.run.budget

    @property
    def keys(self) -> dict[str, str]:
        """The keys of the run's start record that name its parent and the top run of the family."""
        return {"parent": self.link.parent, "root": self.link.root}

    def enter(self, family: Family, *, new: bool) -> bool:
        """Store whose child the run is, if it is `new`; return False if it existed and is not a child of this parent.

        A child of version 0.1.0 is known by its id, and gets its row now. Raises DBOS's signals if the parent was
        cancelled, or belongs to another execution: it starts nothing any more.
        """
        self.call.made.run.verify_ownership()
        with engines_code(f"tool call {self.link.call!r}"):
            begin_workflow()  # Its row says whether the call still waits for the run.
        if new or self.link.in_id:
            family.add(self.link)
        return family.parent(self.link.run_id) == self.link.parent

    def started(self) -> None:
        """Publish among the parent's events that the call has started the run, or attached to it after a crash."""
        self.call.note("child.started", run_id=self.link.run_id, agent=self.agent)

    def finished(self, status: State) -> None:
        """Publish among the parent's events that the call has the run's result."""
        self.call.note("child.finished", run_id=self.link.run_id, agent=self.agent, status=status)
