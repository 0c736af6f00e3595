"""Which unfinished runs of a database the code at hand can go on with, and why not the others. Nothing is executed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from durable_swarm import roster
from durable_swarm.calls import find_tool
from durable_swarm.engine import DurableSwarm, database
from durable_swarm.engine.history import story
from durable_swarm.engine.store import Store, notes_on, state_of
from durable_swarm.engine.turns import recorded_turns
from durable_swarm.engine.visitor import visit
from durable_swarm.errors import DurableSwarmError
from durable_swarm.loop import Ask, CallAll
from durable_swarm.runs import State


@dataclass(frozen=True)
class Fit:
    """How an unfinished run and the code fit: `problem` says why it cannot go on, or is ''.

    `agent` is the one whose turn it is. `changed` says that it answers with another prompt, other tools or another
    model than it last did in this run.
    """

    run_id: str
    status: State
    agent: str
    problem: str = ""
    changed: bool = False


def check_runs(swarm: DurableSwarm) -> list[Fit]:
    """Check every unfinished run of a swarm, oldest first, against the agents defined in this process.

    The steps inside a tool under way are not known before it is called again, and not checked.
    Raises `NoRuns` where there is no database yet, `ConfigurationError` where it cannot be used.
    """
    with visit(database.choose(swarm.database), lambda: swarm.codec) as visitor:
        rows = visitor.store.rows(states=["queued", "running", "waiting"])
        return [_fit(visitor.store, row) for row in reversed(rows) if notes_on(row).get("swarm", "") == swarm.name]


def _fit(store: Store, row: Any) -> Fit:
    run_id, agent = row.workflow_id, notes_on(row).get("agent", "")
    try:
        row, state = store.found(run_id), state_of(row)
        following = story(store, row).following
        agent = following.agent if isinstance(following, Ask | CallAll) else agent
        problem = next(_problems(store, row, following), "")
        return Fit(run_id, state, agent, problem, not problem and _changed(store, row, agent))
    except DurableSwarmError as error:
        return Fit(run_id, "running", agent, str(error))


def _problems(store: Store, row: Any, following: Any) -> Iterator[str]:
    if not isinstance(following, Ask | CallAll):
        return
    agent = roster.find(following.agent)
    if isinstance(following, CallAll):
        outcomes = recorded_turns(store, row, store.start_record(row))[following.turn].outcomes
        for call, outcome in zip(following.calls, outcomes, strict=True):
            if outcome is None and call.plan != "tell" and find_tool(agent, call.tool) is None:
                yield f"agent {agent.name!r} has no tool {call.tool!r} any more, but a call of it is open"


def _changed(store: Store, row: Any, agent: str) -> bool:
    versions = [
        turn.reply.get("version") for turn in recorded_turns(store, row, store.start_record(row)) if turn.agent == agent
    ]
    known = roster.find_or_none(agent)
    return bool(versions) and known is not None and versions[-1] != roster.fingerprint(known)
