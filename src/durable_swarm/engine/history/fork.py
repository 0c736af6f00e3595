"""Forks: a new run that begins with the first turns of another and continues with the current code.

The start record of a fork contains the kept turns, so a fork does not depend on the run it comes from: it resumes, is
exported and is forked like any other.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from durable_swarm import codec, errors
from durable_swarm.agents import remember
from durable_swarm.engine.history.conversation import standalone
from durable_swarm.engine.records import base, names, runs
from durable_swarm.engine.records.owners import BELONGS_TO, person
from durable_swarm.engine.records.rows import RunRow
from durable_swarm.engine.records.turns import Rows, TurnRecords, recorded_turns
from durable_swarm.engine.storage.run_state import notes_on
from durable_swarm.engine.storage.runs import Store
from durable_swarm.guardrails import guarded_turns
from durable_swarm.loop import Ask, CallAll, Close, Guard, Reply, Start, correction
from durable_swarm.swarm.arguments import check_agent, check_messages, plain
from durable_swarm.tools.context import calling
from durable_swarm.types import AgentLike, Message
from durable_swarm.validation import check_name, check_whole


class Host(Protocol):
    """The parts of a process that a fork needs, if the process can execute runs."""

    @property
    def version(self) -> str:
        """The application version of the runs that DBOS executes here."""

    def lend(self, run_id: str, agent: AgentLike) -> None:
        """Bind a run id to this agent object, even if other agents share its name."""

    def queue_for(self, agent: str, swarm: str) -> str:
        """Return the queue on which a new run of the agent starts soonest."""


@dataclass(frozen=True)
class ForkArguments:
    """The checked arguments of one `fork`. Raises `ConfigurationError` with the argument and the remedy."""

    turn: int
    agent: AgentLike | str | None = None
    messages: Sequence[Message] | None = None
    run_id: str | None = None

    def __post_init__(self) -> None:
        check_whole("turn", self.turn, 0)
        if self.messages is not None:
            check_messages(self.messages)
        if self.run_id is not None:
            names.check_id(self.run_id)
        if isinstance(self.agent, str):
            check_name("agent", self.agent)
        elif self.agent is not None:
            check_agent(self.agent)
            remember(self.agent)

    @property
    def agent_name(self) -> str | None:
        """The name of the agent to continue with, if one was given."""
        return self.agent if self.agent is None or isinstance(self.agent, str) else str(self.agent.name)


@dataclass(frozen=True)
class Planned:
    """A fork to be recorded: its start record, and the agent whose turn it is."""

    record: base.Record
    agent: str

    @property
    def swarm(self) -> str:
        """The name of its swarm."""
        return str(self.record.get("swarm", ""))

    def about(self) -> dict[str, object]:
        """Return the notes on the run, readable without the codec."""
        forked = self.record["forked"]
        notes = {"agent": self.agent, "swarm": self.swarm, "at": self.record["at"]}
        notes |= {BELONGS_TO: self.record[BELONGS_TO]} if BELONGS_TO in self.record else {}
        return {**notes, "forked_from": forked["run"], "turn": forked["turn"]}


def fork(store: Store, host: Host | None, row: RunRow, asked: ForkArguments, swarm: str | None) -> str:
    """Record a fork of the run in `row`, to be executed where its agent is defined, and return its id.

    Raises `ConfigurationError` for a turn that cannot be forked at, `RunConflict` for an id that is taken.
    """
    own = swarm if swarm is not None else notes_on(row).get("swarm", "")
    planned = plan(store, row, asked, own)
    fork_id = asked.run_id or _inner_id() or str(uuid.uuid4())
    known = store.row(fork_id, load_output=False) is not None
    stored = {} if known else store.closed_like(row, fork_id, planned.record, own)
    if known:
        _check_same(store, fork_id, planned)
    if host is not None and asked.agent is not None and not isinstance(asked.agent, str):
        host.lend(fork_id, asked.agent)
    if not known:
        if planned.record.get("limits"):
            # Its first execution takes it from a queue, as that of a run whose process has died in a model call.
            store.ledger.free(fork_id, asked.turn)
        _record(store, host, fork_id, planned, stored, row.app_version)
    return fork_id


def _inner_id() -> str | None:
    """Return the id of a fork made by a tool. It is the same in every execution."""
    here = calling()
    if here is None:
        return None
    from durable_swarm.engine.backend import steps  # With DBOS, which programs that execute nothing do without.

    return here.next_id() if steps.in_workflow() else None


def _record(
    store: Store, host: Host | None, fork_id: str, planned: Planned, stored: base.Record, version: str | None
) -> None:
    about = planned.about()
    queue = names.UNCLAIMED if host is None else host.queue_for(planned.agent, planned.swarm)
    if store.enqueue(fork_id, stored, about, queue, version if host is None else host.version):
        return
    if store.row(fork_id, load_output=False) is None:
        text = f"the id {fork_id!r} is taken by something else in this database; use another run_id"
        raise errors.RunConflict(text, run_id=fork_id)
    _check_same(store, fork_id, planned)


def _check_same(store: Store, fork_id: str, planned: Planned) -> None:
    """Check that the existing run of this id is the requested fork."""
    recorded = store.start_record(store.found(fork_id))
    if _asked(recorded) != _asked(store.settled(fork_id, planned.record, planned.swarm)):
        raise errors.RunConflict(
            f"run {fork_id!r} exists already, and is not this fork; use a new run_id, or none", run_id=fork_id
        )


def _asked(record: base.Record) -> str:
    return codec.dumps({key: value for key, value in record.items() if key not in ("v", "at", "swarm", "debug")})


def plan(store: Rows, row: RunRow, asked: ForkArguments, swarm: str) -> Planned:
    """Return the start record of a fork. Raises `ConfigurationError` for a turn that cannot be forked at."""
    start, turn = standalone(store, row), asked.turn
    turns = recorded_turns(store, row, start)
    kept = _kept(row.workflow_id, turns, turn, calls=start.get("execute_tools", True))
    detours = {at: detour for at, detour in start.get("detours", {}).items() if int(at) <= turn}
    here = detours.pop(str(turn), {})
    messages = here.get("messages", []) if asked.messages is None else _plain_data(asked.messages)
    agent = asked.agent_name or here.get("agent")
    if agent or messages:
        detours[str(turn)] = runs.detour_record(agent, messages)
    forked = {"run": row.workflow_id, "turn": turn}
    belongs = {BELONGS_TO: start.get(BELONGS_TO) or person()}
    record = runs.fork_record(start, kept, detours, swarm=swarm, at=time.time(), forked=forked, **belongs)
    if kept and _is_answer(turns[turn - 1].read()) and not messages:
        raise errors.ConfigurationError(
            f"run {row.workflow_id!r} ended with turn {turn - 1}; give messages to continue after it, or fork it at an "
            "earlier turn"
        )
    return Planned(record, _next(row.workflow_id, runs.read_start(record)).agent)


def _is_answer(reply: Reply) -> bool:
    """Return True if a run may have ended with this reply."""
    return not reply.calls and not correction(reply)


def _plain_data(messages: Sequence[Message]) -> list[base.Record]:
    return [codec.encode(codec.mended(plain(message)), f"messages[{index}]") for index, message in enumerate(messages)]


def _kept(run_id: str, turns: list[TurnRecords], turn: int, *, calls: bool) -> list[base.Record]:
    """Return the turns before `turn`; `calls` is False if the run does not make the calls of its replies."""
    whole = next((at for at, one in enumerate(turns) if not (one.whole if calls else not one.read().calls)), len(turns))
    if turn > whole:
        open_ = "is not finished" if calls else "has tool calls that were not made (execute_tools=False)"
        reason = f"turn {whole} {open_}" if whole < len(turns) else f"it has {len(turns)} turns, counted from 0"
        take = f"0 to {whole}" if whole else "0"
        raise errors.ConfigurationError(f"run {run_id!r} cannot be forked at turn {turn}: {reason}; take {take}")
    return [runs.turn_record(record.agent, record.reply, record.outcomes) for record in turns[:turn]]


def _next(run_id: str, start: Start) -> Ask | CallAll:
    """Return the fork's first effect."""
    loop = guarded_turns(start)
    found = next(loop, None)
    loop.close()
    if found is None or isinstance(found, Close | Guard):
        bound = "" if start.max_turns is None else f" its max_turns of {start.max_turns:g} messages"
        raise errors.ConfigurationError(
            f"run {run_id!r} has reached{bound or ' its end'} there; fork it at an earlier turn"
        )
    return found
