"""Checks which unfinished runs of a database the present code can continue, and why not the others.

It executes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from durable_swarm import agents
from durable_swarm.engine.api.durable import DurableSwarm
from durable_swarm.engine.api.inspector import inspect_database
from durable_swarm.engine.database import urls
from durable_swarm.engine.history.story import story
from durable_swarm.engine.records.agent_versions import ACCEPTED, Answered, changed, mark
from durable_swarm.engine.records.rows import RunRow
from durable_swarm.engine.records.turns import recorded_turns
from durable_swarm.engine.storage.run_state import notes_on, state_of
from durable_swarm.engine.storage.runs import Store
from durable_swarm.errors import AgentChanged, DurableSwarmError
from durable_swarm.loop import NOT_MADE, Ask, CallAll, Effect
from durable_swarm.runs import State
from durable_swarm.tools.calls import find_tool


@dataclass(frozen=True)
class Compatibility:
    """How an unfinished run and the code fit: `problem` says why the run cannot continue, or is ''.

    `agent` is the agent whose turn it is. `changed` is true if it answers with another prompt, other tools or another
    model than it last did in this run. `held` is true if the swarm's `changed_agents="hold"` holds the run for that
    before the agent's next reply. A handoff before that reply is not foreseen.
    """

    run_id: str
    status: State
    agent: str
    problem: str = ""
    changed: bool = False
    held: bool = False


def check_runs(swarm: DurableSwarm) -> list[Compatibility]:
    """Check every unfinished run of a swarm, oldest first, against the agents defined in this process.

    The steps inside a tool call in progress are known only when it is called again, so they are not checked. Raises
    `NoRuns` if there is no database yet, `ConfigurationError` if it cannot be used.
    """
    with inspect_database(urls.choose(swarm.database), lambda: swarm.codec) as visitor:
        rows = visitor.store.rows(states=["queued", "running", "waiting"])
        own = [row for row in reversed(rows) if notes_on(row).get("swarm", "") == swarm.name]
        return [_fit(visitor.store, row, holds=swarm.changed_agents == "hold") for row in own]


def unchecked_runs(swarm: DurableSwarm) -> Counter[str]:
    """Return how many unfinished runs the database has of swarms with other names, which `check_runs` leaves out."""
    with inspect_database(urls.choose(swarm.database), lambda: swarm.codec) as visitor:
        rows = visitor.store.rows(states=["queued", "running", "waiting"])
        names = Counter(str(notes_on(row).get("swarm", "")) for row in rows)
    del names[swarm.name]
    return names


def _fit(store: Store, row: RunRow, *, holds: bool) -> Compatibility:
    run_id, agent = row.workflow_id, notes_on(row).get("agent", "")
    try:
        row, state = store.found(run_id), state_of(row)
        following = story(store, row).following
        agent = following.agent if isinstance(following, Ask | CallAll) else agent
        problem = next(_problems(store, row, following), "")
        change = None if problem or not isinstance(following, Ask | CallAll) else _change(store, row, agent)
        held = holds and change is not None and notes_on(row).get(ACCEPTED) != mark(change)
        return Compatibility(run_id, state, agent, problem, change is not None, held)
    except DurableSwarmError as error:
        return Compatibility(run_id, "running", agent, str(error))


def _problems(store: Store, row: RunRow, following: Effect | None) -> Iterator[str]:
    if not isinstance(following, Ask | CallAll):
        return
    agent = agents.find(following.agent)
    if isinstance(following, CallAll):
        outcomes = recorded_turns(store, row, store.start_record(row))[following.turn].outcomes
        for call, outcome in zip(following.calls, outcomes, strict=True):
            if outcome is None and call.plan not in NOT_MADE and find_tool(agent, call.tool) is None:
                yield f"agent {agent.name!r} has no tool {call.tool!r} any more, but a call of it is open"


def _change(store: Store, row: RunRow, agent: str) -> AgentChanged | None:
    start = store.start_record(row)
    turns = list(enumerate(recorded_turns(store, row, start)))[len(start.get("kept", [])) :]
    answered = [Answered(turn, record.reply.get("version", "")) for turn, record in turns if record.agent == agent]
    return changed(row.workflow_id, agents.find(agent), answered[-1] if answered else None)
