"""The arguments of a run, and their checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from durable_swarm.agents import remember
from durable_swarm.codec import mended, mended_values
from durable_swarm.errors import ConfigurationError
from durable_swarm.guardrails import check_guardrails
from durable_swarm.limits import Limits, check_limits
from durable_swarm.loop import Ending, Start
from durable_swarm.models.verdict import output_of
from durable_swarm.schema import tool_schemas
from durable_swarm.schema.output import output_type_of
from durable_swarm.types import Message, Response
from durable_swarm.validation import check_name, check_seconds, check_text, check_whole


@dataclass(frozen=True)
class RunArguments:
    """The checked arguments of one `run`. Raises `ConfigurationError`, naming the argument and the remedy."""

    agent: Any
    messages: list[Message]
    context_variables: dict[str, Any] | None = None
    model_override: str | None = None
    stream: bool = False
    debug: bool = False
    max_turns: float = float("inf")
    execute_tools: bool = True
    provider_patience: float | None = None
    limits: Limits | None = None

    def __post_init__(self) -> None:
        check_agent(self.agent)
        check_messages(self.messages)
        if self.context_variables is not None and not isinstance(self.context_variables, Mapping):
            raise ConfigurationError("context_variables must be a dictionary")
        if self.model_override is not None:
            check_text("model_override", self.model_override)
        if (
            isinstance(self.max_turns, bool)
            or not isinstance(self.max_turns, int | float)
            or self.max_turns != self.max_turns
        ):
            raise ConfigurationError("max_turns must be a number of messages")
        if self.provider_patience is not None:
            check_seconds("provider_patience", self.provider_patience)
        check_limits(self.limits)
        remember(self.agent)

    def start(self, own: Any) -> Start:
        """Return the loop's start; `own` makes the run's own copy of the messages and the context."""
        return Start(
            agent=self.agent.name,
            messages=mended(own([plain(message) for message in self.messages])),
            context=mended_values(own(dict(self.context_variables or {}))),
            model_override=self.model_override,
            max_turns=None if self.max_turns == float("inf") else self.max_turns,
            execute_tools=bool(self.execute_tools),
        )


def check_settings(client: object, tool_concurrency: int, tool_errors: str, default_model: str | None = None) -> None:
    """Check what both swarms take. Raises `ConfigurationError`."""
    if client is not None and not hasattr(getattr(client, "chat", None), "completions"):
        raise ConfigurationError(
            f"client is a {type(client).__name__} without chat.completions.create; "
            "pass an openai client, or one of its shape"
        )
    check_whole("tool_concurrency", tool_concurrency, 1)
    if default_model is not None:
        check_name("default_model", default_model)
    if tool_errors not in ("raise", "tell"):
        raise ConfigurationError(f"tool_errors must be 'raise' or 'tell', not {tool_errors!r}")


def check_agent(agent: Any) -> None:
    """Check that the object can serve as an agent. Raises `ConfigurationError`."""
    missing = [name for name in ("name", "model", "instructions", "functions") if not hasattr(agent, name)]
    if isinstance(agent, type) or missing:
        raise ConfigurationError(
            f"agent must be an Agent, not {agent!r:.80}" + (f" (it has no {', '.join(missing)})" if missing else "")
        )
    check_name("the agent's name", agent.name)
    if not isinstance(agent.functions, list | tuple) or not all(callable(function) for function in agent.functions):
        raise ConfigurationError(f"agent {agent.name!r}: functions must be a list of functions")
    tool_schemas(agent)
    output_type_of(agent)
    check_guardrails(agent)
    if getattr(agent, "output_type", None) is not None:
        check_whole(f"agent {agent.name!r}: output_retries", getattr(agent, "output_retries", 2), 0)


def check_messages(messages: object) -> None:
    """Check that these are chat messages. Raises `ConfigurationError`."""
    if not isinstance(messages, list | tuple):
        raise ConfigurationError('messages must be a list, such as [{"role": "user", "content": "Hi"}]')
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) and not hasattr(message, "model_dump"):
            raise ConfigurationError(f"messages[{index}] must be a dictionary with 'role' and 'content'")
        if isinstance(message, Mapping) and not isinstance(message.get("role"), str):
            raise ConfigurationError(f"messages[{index}] has no 'role'")
        # Providers refuse it, and a session would send it again with each later message.
        if isinstance(message, Mapping) and message["role"] == "user" and message.get("content") is None:
            raise ConfigurationError(f"messages[{index}] is the user's and has no 'content'")


def plain(message: Any) -> Message:
    """Return the message as a dictionary; clients' message objects are accepted."""
    return dict(message) if isinstance(message, Mapping) else dict(message.model_dump(mode="json", exclude_none=True))


def respond(ending: Ending, agent: object, run_id: str | None) -> Response:
    """Convert the loop's ending to the `Response` that a program gets."""
    given, last = getattr(agent, "output_type", None), ending.messages[-1] if ending.messages else {}
    return Response(
        messages=ending.messages,
        agent=agent,
        context_variables=ending.context,
        run_id=run_id,
        usage=ending.usage,
        ended_by=ending.ended_by,
        output=output_of(last, ending.verdict, given),
    )
