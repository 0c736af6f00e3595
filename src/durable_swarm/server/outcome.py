"""The state of a run as one answer: its text, or what it waits for, as doors that know one reply tell it."""

from __future__ import annotations

from dataclasses import dataclass

from durable_swarm.engine.api.run import Run
from durable_swarm.requests import Request
from durable_swarm.runs import ENDED
from durable_swarm.server.backend import Backend
from durable_swarm.types import Usage

LOOK = 0.5
"""Seconds of silence after which it is seen whether a run waits."""


@dataclass(frozen=True)
class Outcome:
    """A run that has ended, or waits, or is in progress. `created` is in seconds since 1970."""

    run_id: str
    agent: str
    status: str
    created: int
    text: str = ""
    ended_by: str | None = None
    error: str = ""
    usage: Usage | None = None
    waits_for: tuple[Request, ...] = ()


async def outcome_of(backend: Backend, run: Run, *, patience: float | None = None) -> Outcome:
    """Return the outcome of a run, when it ends or waits for a person; with `patience=0` as it is now."""
    if patience is None:
        async for events in backend.batches(run, 0, LOOK):
            if not events and await backend.call(lambda: waits(run)):
                break
    return await backend.call(lambda: _read(run))


def waits(run: Run) -> bool:
    """Return True if a run waits for a person."""
    return run.status == "waiting" and bool(run.requests())


def last_event(run: Run) -> int:
    """Return the number of the last event of a run, behind which an answer to it is followed; 0 if it has none."""
    return max((event.seq for event in run.follower(0).read()), default=0)


def _read(run: Run) -> Outcome:
    status = run.status
    requests = tuple(run.requests()) if status == "waiting" else ()
    text = _last_text(run.messages()) if status in ENDED else waiting_text(requests)
    error = next((step.error for step in reversed(run.steps()) if step.error), "") if status == "failed" else ""
    created = int(run.created_at.timestamp())
    ended_by = run.ended_by if status == "done" else None
    return Outcome(run.id, run.agent, status, created, text, ended_by, error or "", run.usage, requests)


def _last_text(messages: list[dict[str, object]]) -> str:
    last = messages[-1] if messages else {}
    content = last.get("content") if last.get("role") == "assistant" else None
    return content if isinstance(content, str) else ""


def waiting_text(requests: tuple[Request, ...]) -> str:
    """Return what a run waits for as text: doors without a form for requests tell it so."""
    return "\n".join(f"{request.question} (waiting for a decision about request {request.id})" for request in requests)
