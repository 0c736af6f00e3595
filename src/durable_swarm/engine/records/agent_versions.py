"""Agents that were changed under a run: what holds it (`DurableSwarm(changed_agents="hold")`), and what lets it go on.

The fingerprint of each agent stands in the records of its replies, so that a run which goes on knows from its replay
which version answered last; the database is asked only where another one is to answer now.
"""

from __future__ import annotations

import shlex
from typing import Any, NamedTuple

from durable_swarm import agents, errors

HELD_FOR, ACCEPTED = "held_for", "accepted"
"""Notes on a run: the change that it is held for, and the one that a person has accepted by resuming it."""


class Answered(NamedTuple):
    """The turn in which an agent answered last in a run, and the version that did."""

    turn: int
    version: str


def changed(run_id: str, agent: Any, last: Answered | None) -> errors.AgentChanged | None:
    """Give what there is to say where another version of the agent would answer now; None where it never answered."""
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
    """Give how a change is noted: once the new version has answered, or for another one, it has another mark."""
    return f"{change.turn}:{change.version}"
