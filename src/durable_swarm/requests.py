"""Requests of a run to a person or another program, and the allowed answers. Data and rules only.

kind               opened by                  accepted answers
question           `ask_human`                answer(text), one of the choices if there are any
question, schema   an MCP server              answer(the fields), approve(arguments=the fields), reject(reason)
approval           a tool with `approval`     approve(), approve(arguments=...), reject(reason)
unknown_outcome    a `once` tool that died    answer(its result): it happened; approve(): repeat it; reject(reason)
result             a tool with `later(token)` answer(result), or `complete(token, result)` by another program
limit              a run at a limit           approve(): as much again; approve(arguments={"requests": 10}); reject()
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from durable_swarm import codec
from durable_swarm.errors import AlreadyAnswered, InvalidAnswer, RequestExpired

TOKEN = "token:"
"""Prefix of a request's id if its result is posted under a token."""

Kind = Literal["question", "approval", "unknown_outcome", "result", "limit"]
Status = Literal["open", "answered", "expired"]
Verdict = Literal["answered", "approved", "rejected", "expired"]

_TAKES: dict[Kind, tuple[Verdict, ...]] = {
    "question": ("answered",),
    "approval": ("approved", "rejected"),
    "unknown_outcome": ("answered", "approved", "rejected"),
    "result": ("answered", "rejected"),
    "limit": ("approved", "rejected"),
}
_METHODS = {"answered": "answer", "approved": "approve", "rejected": "reject"}


@dataclass(frozen=True)
class RequestSpec:
    """The content of a request: everything that is shown for a decision, and the form of the answer.

    `call` is the id of the tool call that asks. `arguments` are those of the call as plain JSON, `schema` the JSON
    schema they must fit. `timeout` is in seconds. `same_as` is the number of the step whose call this one repeats.
    """

    id: str
    kind: Kind
    run_id: str
    call: str
    agent: str
    tool: str
    question: str
    call_id: str = ""
    choices: list[str] | None = None
    arguments: dict[str, Any] | None = None
    schema: dict[str, Any] | None = None
    timeout: float | None = None
    same_as: int | None = None


@dataclass(frozen=True)
class Decision:
    """A decision: `value` answers, `arguments` are the approver's changed arguments, `reason` rejects."""

    verdict: Verdict
    value: Any = None
    arguments: dict[str, Any] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Action:
    """Something that a person did to a run, such as "cancelled"; `by` is the person's name, None if it is not known."""

    run_id: str
    action: str
    by: str | None
    at: datetime


@dataclass(frozen=True)
class Ancestor:
    """A run above a child run, with the name of the agent it was started with."""

    run_id: str
    agent: str


@dataclass(frozen=True)
class Request:
    """One request of a run, as it is shown for a decision.

    `kind` is `question`, `approval`, `unknown_outcome`, `result` (a result that another program will post) or `limit`
    (more of what a run has used up), `status` `open`, `answered` or `expired`. `arguments` are those of the tool call,
    exactly as it would be executed, or the amounts that `approve()` adds to a limit. `same_as` is the number of the
    step whose call this one repeats, or None. `decision`, `answered_by` and `answered_at` record its outcome. `parents`
    are the runs above the one that asks, the top one first; empty unless that is a child run. Times are aware UTC.
    """

    id: str
    run_id: str
    kind: Kind
    agent: str
    tool: str
    question: str
    created_at: datetime
    status: Status = "open"
    call_id: str = ""
    choices: list[str] | None = None
    arguments: dict[str, Any] | None = None
    expires_at: datetime | None = None
    decision: Decision | None = None
    answered_by: str | None = None
    answered_at: datetime | None = None
    schema: dict[str, Any] | None = field(default=None, repr=False)
    same_as: int | None = None
    parents: list[Ancestor] = field(default_factory=list)


def closed_error(request: Request) -> AlreadyAnswered | RequestExpired | None:
    """Return the error for a decision about a request that takes none any more, or None if it is open."""
    if request.status == "answered":
        by = f" by {request.answered_by}" if request.answered_by else ""
        return AlreadyAnswered(f"request {request.id!r} was answered already{by}", request_id=request.id)
    if request.status == "expired" or (request.expires_at is not None and request.expires_at <= datetime.now(UTC)):
        return RequestExpired(f"request {request.id!r} has expired", request_id=request.id)
    return None


def check_decision(asked: RequestSpec | Request, decision: Decision) -> None:
    """Check that the decision fits the request. Raises `InvalidAnswer`, which names the allowed answers."""
    problem = _problem(asked, decision)
    if problem:
        raise InvalidAnswer(problem, request_id=asked.id)


def fields_of(asked: RequestSpec | Request, given: object) -> dict[str, Any]:
    """Return the fields that answer a question with a schema: an object, its JSON text, or the text of its one field.

    Raises `InvalidAnswer` if they do not fit the schema.
    """
    schema = asked.schema or {}
    fields = _object_in(given) or _one_field(schema.get("properties", {}), given)
    if fields is None:
        wanted = ", ".join(schema.get("properties", {}))
        raise InvalidAnswer(f"request {asked.id!r} takes an object with the fields {wanted}", request_id=asked.id)
    if problems := _problems_of(schema, fields):
        raise InvalidAnswer(f"this answer does not fit request {asked.id!r}: {problems}", request_id=asked.id)
    return fields


def _object_in(given: object) -> dict[str, object] | None:
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            return None
    return given if isinstance(given, dict) else None


def _one_field(properties: dict[str, Any], given: object) -> dict[str, object] | None:
    """Return the only field of a form with this value, a text as the field's type; of a form without fields, none."""
    if not properties or isinstance(given, dict):
        return {}
    if len(properties) > 1:
        return None
    [(name, described)] = properties.items()
    kind = described.get("type")
    if isinstance(given, str) and kind == "boolean":
        given = {"yes": True, "true": True, "y": True, "no": False, "false": False, "n": False}.get(
            given.lower(), given
        )
    elif isinstance(given, str) and kind in ("integer", "number"):
        with contextlib.suppress(ValueError):
            given = int(given) if kind == "integer" else float(given)
    return {name: given}


def _problem(asked: RequestSpec | Request, decision: Decision) -> str:
    """Return the problem with the decision, or ''."""
    if asked.kind == "question" and asked.schema is not None:
        return _unfit_fields(asked, decision)
    if decision.verdict not in _TAKES[asked.kind]:
        takes = " or ".join(_METHODS[verdict] for verdict in _TAKES[asked.kind])
        return f"request {asked.id!r} is of kind {asked.kind!r} and takes {takes}, not {_METHODS[decision.verdict]}"
    if asked.kind == "question" and not isinstance(decision.value, str):
        return f"the answer to request {asked.id!r} must be a text, not a {type(decision.value).__name__}"
    if asked.choices is not None and decision.value not in asked.choices:
        choices = ", ".join(map(repr, asked.choices))
        return f"request {asked.id!r} takes one of {choices}, not {decision.value!r:.100}"
    return "" if decision.arguments is None else _misfit(asked, decision.arguments)


def _unfit_fields(asked: RequestSpec | Request, decision: Decision) -> str:
    if decision.verdict == "rejected":
        return ""
    try:
        fields_of(asked, decision.value if decision.verdict == "answered" else decision.arguments or {})
    except InvalidAnswer as error:
        return str(error)
    return ""


def _misfit(asked: RequestSpec | Request, arguments: object) -> str:
    """Return the problem with an approver's changed arguments, or ''."""
    if asked.kind not in ("approval", "limit"):
        return f"request {asked.id!r} is not an approval, so its arguments cannot be changed"
    if not isinstance(arguments, dict):
        return f"arguments must be a dictionary, not a {type(arguments).__name__}"
    if asked.schema is None:
        return ""
    of = (
        "these amounts do not fit the limits"
        if asked.kind == "limit"
        else f"these arguments do not fit tool {asked.tool!r}"
    )
    problems = _problems_of(asked.schema, arguments)
    return f"{of}: {problems}" if problems else ""


def _problems_of(schema: Mapping[str, object], arguments: Mapping[str, object]) -> str:
    """Return what does not fit the schema, or ''."""
    from jsonschema import Draft202012Validator

    found = Draft202012Validator({"additionalProperties": False, **schema}).iter_errors(arguments)
    problems = sorted(found, key=lambda problem: [str(part) for part in problem.path])[:5]
    reasons = [f"{'.'.join(map(str, problem.path)) or 'arguments'}: {problem.message:.200}" for problem in problems]
    return "; ".join(reasons)


def decision_record(decision: Decision) -> dict[str, Any]:
    """Return a decision as plain JSON. Raises `NotSerializable`."""
    fields = {
        "value": None if decision.value is None else codec.encode(decision.value, "the answer"),
        "arguments": None if decision.arguments is None else codec.encode(decision.arguments, "arguments"),
        "reason": codec.encode(decision.reason) or None,
    }
    return {
        "v": 1,
        "verdict": decision.verdict,
        **{key: value for key, value in fields.items() if value is not None},
    }


def read_decision(record: dict[str, Any]) -> Decision:
    """Return the decision from its record."""
    return Decision(
        record["verdict"],
        codec.decode(record.get("value")),
        codec.decode(record.get("arguments")),
        codec.decode(record.get("reason", "")),
    )
