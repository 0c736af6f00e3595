"""What lets a failed run continue, said alike in a terminal and on a page."""

from __future__ import annotations

from dataclasses import dataclass

from durable_swarm.errors import Blocked, LimitReached
from durable_swarm.models.provider_errors import is_too_long
from durable_swarm.service.views import RunDetail


@dataclass(frozen=True)
class Remedy:
    """The beginning of a sentence that ends with the way to continue: a fork from `turn`, or a resume if it is None.

    `otherwise` is what lets a resume help, too, or ''.
    """

    said: str
    turn: int | None = None
    otherwise: str = ""


def remedy_of(run: RunDetail) -> Remedy | None:
    """Return the remedy for a failed run; None for any other."""
    if run.error is None:
        return None
    if run.error.type == _name_of(Blocked):
        return Remedy("The verdict is recorded, so a resume ends it again. To continue it anyway", 0)
    if run.error.type == _name_of(LimitReached):
        return Remedy("Allow more, then")
    if is_too_long(run.error.message):
        # The last whole turn brought the content that is too long.
        turns = sum(step.kind == "model" and step.status == "done" for step in run.steps)
        said = "A resume sends the same messages. Go back to an earlier turn"
        return Remedy(said, max(turns - 1, 0), "or give the agent a model with a larger context, then")
    return Remedy("Fix the cause, then")


def _name_of(kind: type[Exception]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
