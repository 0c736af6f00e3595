"""Requests of kind `limit`: a run that has reached a limit with `on_limit="ask"` asks for more."""

from __future__ import annotations

from durable_swarm.errors import ConfigurationError
from durable_swarm.limits import EXTENDABLE, Amount, Limits, Reached, extended, words_of
from durable_swarm.requests import Decision, RequestSpec

_COUNT = {"type": "integer", "minimum": 1}
_FORMS = {
    "seconds": {"type": "number", "exclusiveMinimum": 0},
    "cost": {"type": ["number", "string"], "exclusiveMinimum": 0, "pattern": r"^\d+(\.\d+)?$"},
}
"""The JSON schemas of the amounts that are not whole numbers."""


def limit_request(
    run_id: str, number: int, agent: str, found: Reached, allowed: Limits, at_first: Amount
) -> RequestSpec:
    """Return the request of a run for more of what it has used up; `number` counts the requests of that limit's run.

    `approve()` adds `at_first`, `approve(arguments={"requests": 10})` adds these amounts.
    """
    request_id = f"{run_id}/limit/{number}"
    limited = [name for name in EXTENDABLE if getattr(allowed, name) is not None]
    return RequestSpec(
        id=request_id,
        kind="limit",
        run_id=run_id,
        call=request_id,
        agent=agent,
        tool="",
        question=(
            f"The run has used {found.used} of {found.allowed} {words_of(found.limit)}. Approve {at_first} more (or "
            "other amounts, as arguments), or reject: then it ends with LimitReached"
        ),
        arguments={found.limit: str(at_first) if found.limit == "cost" else at_first},
        schema={"type": "object", "properties": {name: _FORMS.get(name, _COUNT) for name in limited}},
    )


def amounts(decision: Decision, asked: RequestSpec) -> dict[str, object]:
    """Return the amounts that an approval adds."""
    return (asked.arguments or {}) if decision.arguments is None else decision.arguments


def unfit(decision: Decision, asked: RequestSpec, allowed: Limits) -> str:
    """Return what is wrong with the amounts of an approval, or ''."""
    if decision.verdict != "approved":
        return ""
    try:
        extended(allowed, amounts(decision, asked), asked.run_id)
    except ConfigurationError as error:
        return str(error)
    return ""
