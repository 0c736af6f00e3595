"""Events of a run, numbered, for its readers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

EventType = Literal[
    "run.started",
    "turn.started",
    "text.delta",
    "text.reset",
    "tool.started",
    "tool.progress",
    "tool.finished",
    "handoff",
    "child.started",
    "child.finished",
    "request.opened",
    "request.closed",
    "run.waiting",
    "run.recovered",
    "run.finished",
    "run.failed",
    "run.cancelled",
]
ENDS: tuple[EventType, ...] = ("run.finished", "run.failed", "run.cancelled")
"""The events that end a run, unless it is resumed."""


@dataclass(frozen=True)
class Event:
    """One thing that happened in a run.

    `seq` counts the run's events from 1, without a gap, the same for every reader. `data` is plain JSON data, by type:

        run.started    agent
        turn.started   turn, agent: a model call begins; `turn` counts from 0
        text.delta     turn, text: the next piece of the agent's text
        text.reset     turn: the model is asked again; the text of this turn starts again, its earlier text is void
        tool.started   turn, tool, call_id, arguments (the model's text)
        tool.progress  turn, tool, call_id, attempt, progress: the data that the tool passed to `emit`
        tool.finished  turn, tool, call_id, result: the text for the model
        handoff        turn, from, to: names of agents
        child.started  turn, tool, call_id, run_id, agent: the call has started a run, or attached to one
        child.finished turn, tool, call_id, run_id, agent, status (done, failed, cancelled): the call has its result
        request.opened turn, tool, call_id, request_id, kind, question: a call waits for a person or a program
        request.closed turn, tool, call_id, request_id, kind, verdict (answered, approved, rejected, expired),
                       answered_by
        run.waiting    turn, tool, call_id, request_id, kind: the run waits for this request; or turn, kind
                       ("provider"), model, reason: it waits for a provider that is away. A request about a limit that
                       the model call itself has reached has no tool and no call_id
        run.recovered  turn, process, before, how: the run continues in this process, because its execution in the
                       process `before` has ended: "died", "stopped" (it stands still) or "handed over"
        run.finished   agent: the last agent; ended_by, as in `Response`
        run.failed     error_type, error_message
        run.cancelled

    `time` is in UTC. `run_id` is the id of the run below to which the event belongs, in `Run.events(children=True)`;
    None for the run's own events. `seq` counts the events of the run to which the event belongs.
    """

    seq: int
    type: EventType
    data: dict[str, Any]
    time: datetime
    run_id: str | None = None
