"""Agents as tools: the tool that runs an agent as a child run of the run that calls it."""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Protocol

from pydantic_core import to_json

from durable_swarm.errors import NotInRun, RunFailed


class ChildRunner(Protocol):
    """The swarm that executes the tool call in progress."""

    async def run_child(self, agent: Any, message: str, context_variables: dict[str, Any], limits: Any) -> Any:
        """Run the agent as a child run of the run in progress and return its `Response`.

        Raises `RunFailed` and `RunCancelled` with the child's id, and the errors of `run_async` before it begins.
        """


_runner: ContextVar[ChildRunner | None] = ContextVar("durable_swarm_child_runner", default=None)


@contextlib.contextmanager
def children_run_by(runner: ChildRunner | None) -> Iterator[None]:
    """Let the tools called in this block run agents by this swarm."""
    token = _runner.set(runner)
    try:
        yield
    finally:
        _runner.reset(token)


def agent_tool(agent: Any, limits: object) -> Callable[..., object]:
    """Return the function that asks the agent, in a child run, and returns its answer."""

    async def ask(message: str, context_variables: dict[str, object] | None = None) -> str:
        runner = _runner.get()
        if runner is None:
            raise NotInRun(
                f"agent {agent.name!r} was asked as a tool outside a run; give the tool to an agent, or run this agent "
                "itself with run()"
            )
        return answer_of(agent, await runner.run_child(agent, message, context_variables or {}, limits))

    return ask


def answer_of(agent: Any, response: Any) -> str:
    """Return the answer of a child run: the value as JSON if it has one, else its last text, or why it has none."""
    if response.output is not None:
        return to_json(response.output).decode()
    last = response.messages[-1] if response.messages else {}
    text = last.get("content") if last.get("role") == "assistant" else None
    why = "its last reply is empty" if response.ended_by == "answer" else response.ended_by
    return text or f"Error: agent {agent.name!r} ended without an answer: {why}."


def failed_child(run_id: str, agent: str, error_type: str, error_message: str, traceback: str = "") -> RunFailed:
    """Return the error with which a tool ends whose child run has failed."""
    text = f"child run {run_id!r} of agent {agent!r} failed: {error_type}: {error_message}".removesuffix(": ")
    return RunFailed(text, run_id=run_id, error_type=error_type, error_message=error_message, traceback=traceback)


def snake_case(name: str) -> str:
    """Return an agent's name in the form of a function's name, in ASCII; '' if no letter or digit is left."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", plain)
    return re.sub(r"[^a-zA-Z0-9]+", "_", words).strip("_").lower()
