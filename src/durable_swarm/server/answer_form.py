"""The form of the answer to a request, as JSON Schema, for clients that show one to a person."""

from __future__ import annotations

from typing import Any

from durable_swarm.requests import Request

DECISION: dict[str, Any] = {
    "type": "object",
    "properties": {"approve": {"type": "boolean"}, "reason": {"type": "string"}},
    "required": ["approve"],
}
"""The form of a decision; with `approve`, the rest may be left out."""


def answer_form(request: Request) -> dict[str, Any]:
    """Return the form of the answer: of a question its own, or a text `answer`; of everything else a decision."""
    if request.kind != "question":
        return DECISION
    one = {"type": "string", **({"enum": request.choices} if request.choices else {})}
    return request.schema or {"type": "object", "properties": {"answer": one}, "required": ["answer"]}
