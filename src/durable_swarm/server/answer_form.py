"""The form of the answer to a request, as JSON Schema, for clients that show one to a person, and its reading.

A decision is final, so a form without its field decides nothing: a misspelt `approve` must not count as a rejection.
"""

from __future__ import annotations

from collections.abc import Mapping

from durable_swarm.errors import InvalidAnswer
from durable_swarm.requests import Request

DECISION: dict[str, object] = {
    "type": "object",
    "properties": {"approve": {"type": "boolean"}, "reason": {"type": "string"}},
    "required": ["approve"],
}
"""The form of a decision; with `approve`, the rest may be left out."""


def answer_form(request: Request) -> dict[str, object]:
    """Return the form of the answer: of a question its own, or a text `answer`; of everything else a decision."""
    if request.kind != "question":
        return DECISION
    one = {"type": "string", **({"enum": request.choices} if request.choices else {})}
    return request.schema or {"type": "object", "properties": {"answer": one}, "required": ["answer"]}


def verdict_in(request: Request, fields: Mapping[str, object]) -> bool:
    """Return True if the filled form approves, False if it rejects. Raises `InvalidAnswer` if it does neither."""
    verdict = fields.get("approve", fields.get("approved"))
    if not isinstance(verdict, bool):
        raise InvalidAnswer(
            f'request {request.id!r} takes {{"approve": true}} or {{"approve": false}}, not {fields!r:.80}'
        )
    return verdict


def answer_in(request: Request, fields: Mapping[str, object]) -> object:
    """Return the answer in the filled form of a question. Raises `InvalidAnswer` if there is none."""
    if "answer" not in fields:
        raise InvalidAnswer(f'request {request.id!r} takes {{"answer": TEXT}}, not {fields!r:.80}')
    return fields["answer"]
