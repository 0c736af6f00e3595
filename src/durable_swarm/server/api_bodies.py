"""The bodies that the door `api` takes, as JSON schemas: they are checked, and they are its description."""

from __future__ import annotations

from typing import Any

from durable_swarm.errors import ConfigurationError
from durable_swarm.limits import Limits

TEXT = {"type": "string"}
OBJECT = {"type": "object"}
MESSAGES = {"type": "array", "items": {"type": "object", "required": ["role"], "properties": {"role": TEXT}}}
LIMITS = {"type": "object", "description": "as `Limits`: requests, tool_calls, total_tokens, cost, seconds, …"}


def _body(required: list[str], **properties: object) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


BODIES = {
    "start": _body(
        ["agent"], agent=TEXT, message={"type": ["string", "object"]}, messages=MESSAGES, context_variables=OBJECT,
        run_id=TEXT, session=TEXT, when_busy={"enum": ["queue", "join", "interrupt", "reject"]}, limits=LIMITS,
    ),
    "say": _body(["text"], text=TEXT),
    "fork": _body(["turn"], turn={"type": "integer", "minimum": 0}, run_id=TEXT, agent=TEXT, messages=MESSAGES),
    "extend": LIMITS,
    "decide": _body(
        ["verdict"], verdict={"enum": ["approve", "reject", "answer"]}, arguments=OBJECT, reason=TEXT, value={}
    ),
    "complete": _body(["result"], result={}),
    "none": _body([]),
}  # fmt: skip


def limits_of(given: dict[str, Any] | None) -> Limits | None:
    """Return the limits in a body. Raises `ConfigurationError`."""
    try:
        return None if given is None else Limits(**given)
    except TypeError as error:
        raise ConfigurationError(f"limits: {error}") from None
