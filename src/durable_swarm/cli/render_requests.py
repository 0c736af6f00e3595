"""The display of requests: the question, and the commands that answer it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.text import Text

from durable_swarm.display import as_call, clock, duration, one_line, value
from durable_swarm.limits import words_of
from durable_swarm.requests import TOKEN, Decision, Request

Command = Callable[..., str]
"""Returns the command line for some words, for the same database."""

DIM = "bright_black"

_ANSWERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "question": (("answer", "ID", "TEXT"),),
    "approval": (("approve", "ID"), ("reject", "ID", "--reason", "TEXT")),
    "unknown_outcome": (("answer", "ID", "RESULT"), ("approve", "ID"), ("reject", "ID", "--reason", "TEXT")),
    "result": (("complete", "ID", "RESULT"),),
    "limit": (("approve", "ID"), ("reject", "ID", "--reason", "TEXT")),
}
_MEANS = {"answer": "answer", "approve": "approve", "reject": "reject", "complete": "post the result"}
_MEANS_ONE = {
    "question": "answer it",
    "approval": "approve it, or reject it",
    "unknown_outcome": "say what became of it",
    "result": "post its result",
    "limit": "allow more, or end it",
}
_OF_UNKNOWN = {"answer": "it happened", "approve": "repeat it", "reject": "it failed"}


def requests_lines(
    found: Sequence[Request], command: Command, *, runs: bool = False, ended: bool = False
) -> Iterator[Text]:
    """Yield the lines of requests: open ones with the commands that answer them, unless their run has `ended`.

    With `runs` each names its run.
    """
    for request in found:
        yield Text()
        yield _head(request, ended=ended)
        yield from _body(request, runs=runs)
        if request.status == "open" and not ended:
            yield from _how(request, command)


def _head(request: Request, *, ended: bool) -> Text:
    state: str = request.status
    style = "yellow" if state == "open" else "green"
    if ended and request.status == "open":
        state, style = "closed with its run", DIM
    kind = request.kind.replace("_", " ")
    return Text.assemble((f"{one_line(request.id)}  ", "bold"), (f"{kind}, {state}", style))


def _body(request: Request, *, runs: bool) -> Iterator[Text]:
    if runs:
        yield _fact("run", f"{request.run_id} of agent {request.agent}")
    if request.parents:
        yield _fact("asked by", " → ".join(f"{run.run_id} ({run.agent})" for run in request.parents))
    yield _fact("asked", f"{clock(request.created_at)}{_age(request)}  {request.question}")
    if request.kind == "limit" and request.arguments is not None:
        yield _fact("more", ", ".join(f"{amount} {words_of(name)}" for name, amount in request.arguments.items()))
    elif request.arguments is not None:
        yield _fact("call", as_call(request.tool, request.arguments))
    if request.same_as is not None:
        yield _fact("repeats", f"the same call as step {request.same_as} of this run")
    if request.choices is not None:
        yield _fact("choices", ", ".join(request.choices))
    if request.expires_at is not None and request.status == "open":
        yield _fact("expires", clock(request.expires_at))
    if request.decision is not None and request.answered_at is not None:
        by = f" by {request.answered_by}" if request.answered_by else ""
        yield _fact("decided", f"{clock(request.answered_at)}  {_decided(request.decision)}{by}")


def _age(request: Request) -> str:
    """Return the age of an open request, else ''."""
    if request.status != "open":
        return ""
    return f" ({duration((datetime.now(UTC) - request.created_at).total_seconds())} ago)"


def _fact(name: str, text: str) -> Text:
    return Text.assemble((f"  {name:9}", DIM), one_line(text))


def _decided(decision: Decision) -> str:
    if decision.verdict == "answered":
        return f"answered {value(decision.value)}".rstrip()
    if decision.arguments is not None:
        return f"approved with {json.dumps(decision.arguments, ensure_ascii=False, default=str)}"
    return f"{decision.verdict}: {decision.reason}" if decision.reason else decision.verdict


def _how(request: Request, command: Command) -> Iterator[Text]:
    for words in _ways(request.kind, request.id):
        means = (_OF_UNKNOWN if request.kind == "unknown_outcome" else _MEANS)[words[0]]
        yield _fact(f"{means}: ", command(*words))


def _ways(kind: str, request_id: str) -> Iterator[list[str]]:
    """Yield the words of each command that decides about a request."""
    name = request_id.removeprefix(TOKEN) if kind == "result" else request_id
    for words in _ANSWERS[kind]:
        yield [name if word == "ID" else word for word in words]


def event_text(event: str, data: dict[str, Any], command: Command) -> str:
    """Return an event of a request as text."""
    if event == "request.opened":
        return f"asks: {data['question']} [{data['request_id']}]"
    if event == "run.waiting" and data["kind"] == "provider":
        return f"waits for the provider of model {data['model']}: {data['reason']}"
    if event == "run.waiting":
        return f"waits; {_MEANS_ONE[data['kind']]}: {command(*next(_ways(data['kind'], data['request_id'])))}"
    return f"{data['verdict']} by {data['answered_by']}" if data.get("answered_by") else str(data["verdict"])
