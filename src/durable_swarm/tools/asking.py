"""Requests from inside a tool: to a person (`ask_human`), or to a program that posts a result (`later`).

An async tool waits as a coroutine on an event loop; a plain one blocks its thread meanwhile. The engine implements the
waiting (`People`). It may end with a signal that unwinds the tool; the tool is then entered again when the answer has
arrived, as after a crash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from durable_swarm.codec import as_json, mended
from durable_swarm.concurrency import block, running_loop
from durable_swarm.errors import ConfigurationError, InvalidAnswer, NotInRun, RequestExpired
from durable_swarm.requests import Decision, RequestSpec
from durable_swarm.tools.context import Inside, calling, request_of
from durable_swarm.validation import check_name, check_seconds, check_text

_NOT_GIVEN: object = object()


def ask_human(
    question: str, *, choices: list[str] | None = None, timeout: float | None = None, default: object = _NOT_GIVEN
) -> str:
    """Ask a person and wait for the answer, for days if needed: a request `question`, answered by `Run.answer`.

    With `choices` only one of these texts is accepted. After `timeout` (in seconds, counted from the first request) it
    returns `default`, or raises `RequestExpired` if no default is given. For plain tools; an async tool awaits
    `ask_human_async`.

    The answer is a checkpoint. Code of the tool before the question may be executed again if the process ends meanwhile
    or many calls wait: put that code into a `@step`.

    Raises `NotInRun` outside a tool, and `ConfigurationError` inside a `@step` or a transactional tool, which cannot
    wait.
    """
    here, asked = _question("ask_human", question, choices, timeout)
    if running_loop() is not None:
        raise ConfigurationError(
            "ask_human() would stop the event loop; in an async tool use `await ask_human_async(...)`"
        )
    return _answer(asked, block(here.people.wait(asked)), default)


async def ask_human_async(
    question: str, *, choices: list[str] | None = None, timeout: float | None = None, default: object = _NOT_GIVEN
) -> str:
    """Ask a person as `ask_human` does, on the event loop."""
    here, asked = _question("ask_human_async", question, choices, timeout)
    return _answer(asked, await here.people.wait(asked), default)


def _question(word: str, question: str, choices: object, timeout: float | None) -> tuple[Inside, RequestSpec]:
    question, choices = check_text(f"{word}: question", mended(question)), mended(choices)
    if timeout is not None:
        check_seconds(f"{word}: timeout", timeout)
    if choices is not None and (not isinstance(choices, list | tuple) or not choices):
        raise ConfigurationError(f"{word}: choices must be a list of texts, not {choices!r:.80}")
    for choice in choices or ():
        check_text(f"{word}: a choice", choice)
    here = calling()
    if here is None:
        raise NotInRun(f"{word}() was called outside a tool; only a tool that a run has called can ask")
    if here.recorder is None:
        raise ConfigurationError(
            f"{word}() in tool {here.call.tool!r} is inside a @step, or the tool is transactional: an answer would "
            "not survive a crash there; ask outside the step, or in another tool"
        )
    here.check()
    options = None if choices is None else list(choices)
    return here, request_of(
        here.call, id=here.next_id(), kind="question", question=question, choices=options, timeout=timeout
    )


def _answer(asked: RequestSpec, decision: Decision, default: Any) -> str:
    if decision.verdict == "expired":
        if default is _NOT_GIVEN:
            raise RequestExpired(
                f"nobody answered {asked.question!r:.200} within {asked.timeout:g} s", request_id=asked.id
            )
        given: str = default
        return given
    if not isinstance(decision.value, str):
        raise InvalidAnswer(f"the recorded answer to request {asked.id!r} is not a text", request_id=asked.id)
    return decision.value


@dataclass(frozen=True)
class Later:
    """The return value of a tool whose result another program will post under `token`."""

    token: str


def later(token: str) -> Any:
    """Return a marker for a tool to return when its result arrives later.

    Any program that knows the token posts the result, once, from any process: `swarm.complete(token, result)`, or
    `durable-swarm complete TOKEN RESULT`; also before the tool has returned. Until then the run waits. A token must
    belong to one call only; `current_call().idempotency_key` is such a token.
    """
    check_name("later: token", token)
    as_json(token, "later: token")
    return Later(token)
