"""The data that interfaces show: a run in a list, a run in full, and both as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from pydantic import BaseModel

from durable_swarm import codec
from durable_swarm.limits import Limits, Spent
from durable_swarm.requests import Action, Request
from durable_swarm.runs import State, StepInfo
from durable_swarm.service.executions import ExecutionView
from durable_swarm.types import EndedBy, Message, Usage

INTERRUPTED = "interrupted"
"""The displayed status of a run in progress that no living process executes."""


@dataclass(frozen=True)
class Failure:
    """The error that ended a run: its qualified type, text, originating step and traceback, all as text."""

    type: str
    message: str
    step: str = ""
    traceback: str = ""

    @property
    def line(self) -> str:
        """The type and the text."""
        return f"{self.type}: {self.message}" if self.message else self.type


@dataclass(frozen=True)
class RunView:
    """A run in a list. Times are aware UTC; `agent` is the one it was started with.

    `idle` is true if the run is unfinished and no living process executes it: it continues in the next process that
    defines its agent. `waits_for` is a sentence with the reason why an unfinished run does not continue, or None. A
    fork keeps the turns before `turn` of the run `forked_from`; both are None for other runs. `ended_by` is the reason
    a finished run is done, as in `Response.ended_by`; None for any other, and in a list for runs of versions that did
    not record it. `failure` is the error of a failed run, in one line, or None. `parent` is the id of the run whose
    tool call started it, or None; `children` are the ids of the runs that its own tool calls started. `session` and
    `number` are the session of the run and its number in it; both are None for other runs.

    `turns` counts the turns of the run, those that a fork keeps included. `tokens` and `cost`, in US dollars, are what
    the run and the runs below it took, without the turns that a fork keeps; None where no provider or price tells.
    `open_requests` counts the open requests of the run and of the runs below it.
    """

    id: str
    status: State
    agent: str
    created_at: datetime
    updated_at: datetime
    idle: bool
    waits_for: str | None
    forked_from: str | None
    turn: int | None
    ended_by: EndedBy | None
    failure: str | None
    parent: str | None
    children: list[str]
    session: str | None
    number: int | None
    swarm: str
    turns: int
    tokens: int | None
    cost: Decimal | None
    open_requests: int

    @property
    def shown_status(self) -> str:
        """The status that people are shown."""
        return INTERRUPTED if self.idle else self.status

    @property
    def shown_progress(self) -> str:
        """The state that people are shown of a step without an outcome."""
        return INTERRUPTED if self.idle else "waits" if self.status == "waiting" else "in progress"


@dataclass(frozen=True)
class RunDetail(RunView):
    """A run in full: its input (`asked`, the messages it was given), and its progress so far.

    `added` are the messages that a fork added, by the turn, as text, that they precede. `worker` is the name of the
    process that owns the unfinished run, living or not, or ''. `closed` is a sentence with the reason why no message
    can be read here, such as encryption, or None. `requests` are all requests of the run and of the runs below it,
    oldest first, with the decisions. `usage` counts the runs below it, too. `limits` are those that hold now, `spent`
    is what the run and the runs below it have spent; both are None if they cannot be read here. `actions` are what
    people did to the run, `executions` the processes that worked on it, both oldest first.
    """

    asked: list[Message]
    context_variables: dict[str, Any]
    model_override: str | None
    max_turns: float | None
    messages: list[Message]
    steps: list[StepInfo]
    usage: Usage | None
    last_agent: str | None
    error: Failure | None
    added: dict[str, list[Message]]
    limits: Limits | None = None
    spent: Spent | None = None
    worker: str = ""
    closed: str | None = None
    requests: list[Request] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    executions: list[ExecutionView] = field(default_factory=list)


@dataclass(frozen=True)
class SessionView:
    """A session in a list. Times are aware UTC; `agent` answers its next message.

    `status` is that of the run in progress, or "idle". `interrupted` is true if no living process executes that run.
    `runs` counts its runs, `waiting` those that wait for their turn.
    """

    id: str
    status: str
    agent: str
    swarm: str
    runs: int
    waiting: int
    created_at: datetime
    updated_at: datetime
    interrupted: bool

    @property
    def shown_status(self) -> str:
        """The status that people are shown."""
        return INTERRUPTED if self.interrupted else self.status


@dataclass(frozen=True)
class SessionDetail(SessionView):
    """A session in full. `closed` is a sentence with the reason why it cannot be read here, or None."""

    messages: list[Message]
    context_variables: dict[str, Any]
    usage: Usage | None
    all_runs: list[RunView]
    closed: str | None = None


def to_json(view: object) -> Any:
    """Return a view as plain JSON data: times as ISO 8601 in UTC, values of tools in their stored form."""
    if is_dataclass(view) and not isinstance(view, type):
        return {one.name: to_json(getattr(view, one.name)) for one in fields(view)}
    if isinstance(view, Decimal):
        return str(view)
    if isinstance(view, datetime):
        return view.isoformat()
    if isinstance(view, BaseModel):
        return view.model_dump(mode="json")
    if isinstance(view, list) and any(is_dataclass(item) for item in view):
        return [to_json(item) for item in view]
    return codec.encode(view)
