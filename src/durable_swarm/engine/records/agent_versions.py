"""Agents that changed while a run was unfinished: the hold (`DurableSwarm(changed_agents="hold")`) and its release.

The fingerprint of each agent is stored in the records of its replies, so replay knows which version answered last. The
database is read only when a different version is about to answer.
"""

from __future__ import annotations

import shlex
from typing import NamedTuple

from durable_swarm import agents, errors
from durable_swarm.types import AgentLike

HELD_FOR, ACCEPTED = "held_for", "accepted"
"""Notes on a run: the change that holds it, and the change that a person accepted by resuming it."""


class Answered(NamedTuple):
    """The turn in which an agent last answered in a run, and the version that answered.

    `by_tool` is true if its answer was asked for by a final tool.
    """

    turn: int
    version: str
    by_tool: bool = False


def changed(run_id: str, agent: AgentLike, last: Answered | None) -> errors.AgentChanged | None:
    """Return the error to raise if another version of the agent would answer now; None if the agent never answered."""
    if last is None:
        return None
    version = agents.fingerprint(agent)
    if version == last.version:
        return None
    return errors.AgentChanged(
        f"agent {agent.name!r} has changed since turn {last.turn} of this run; `durable-swarm resume "
        f"{shlex.quote(run_id)}` (Run.resume()) continues it with the code that runs now",
        run_id=run_id,
        agent=agent.name,
        turn=last.turn,
        version=version,
    )


def mark(change: errors.AgentChanged) -> str:
    """Return the mark of a change. It differs for another version, and once the new version has answered."""
    return f"{change.turn}:{change.version}"
