"""Swarm's data: Agent, Result, Response, the token usage, and the options that `@tool` and `@step` keep on a function.

Data only. Fields, defaults and mutability are those of OpenAI's Swarm; `docs/compatibility.md` lists the additions.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import TypeVar

from durable_swarm.errors import ConfigurationError
from durable_swarm.fields import named_fields, unknown_field
from durable_swarm.sub_agents import agent_tool, snake_case

if TYPE_CHECKING:
    from types import UnionType

    from typing_extensions import TypeForm

log = logging.getLogger("durable_swarm")

Message = dict[str, Any]
"""One chat message as the provider's API spells it, plus Swarm's `sender` and `tool_name`."""


class AgentLike(Protocol):
    """The attributes of every agent: an `Agent`, one of OpenAI's Swarm, or any other object that has them."""

    @property
    def name(self) -> str:
        """The name by which a run finds it again."""

    @property
    def model(self) -> str:
        """The model that answers."""

    @property
    def instructions(self) -> str | Callable[..., Any]:
        """The system prompt, or the function of the context variables that returns it."""

    @property
    def functions(self) -> Sequence[Callable[..., Any]]:
        """Its tools."""


agent_defined: list[Callable[[AgentLike], None]] = []
"""Called with every `Agent` that is constructed; the registry of agents adds itself here."""


T = TypeVar("T", default=Any)
"""The type of an agent's output; plain `Agent` and `Response` leave it open."""


class _Strict(BaseModel):
    """A model that refuses unknown fields: a tool list under a wrong name would leave an agent without tools."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, given: Any) -> Any:
        known = list(cls.model_fields)
        aliases = [field.alias for field in cls.model_fields.values()]
        if isinstance(given, dict) and cls.model_config.get("extra", "ignore") == "ignore":
            for name in [name for name in given if name not in known and name not in aliases]:
                _unknown_field(cls.__name__, str(name), known)
        return given


class Agent(_Strict, Generic[T]):
    """An agent: a name, instructions, a model and plain functions as tools.

    `instructions` is a string or a callable that takes the context variables. A function that returns an agent is a
    handoff. After a crash agents and tools are found again by name, so define agents at the program's start.

    With an `output_type` the agent answers with a value of that type: see `docs/structured-output.md`.
    """

    name: str = "Agent"
    model: str = "gpt-4o"
    instructions: str | Callable[..., Any] = "You are a helpful agent."
    functions: list[Callable[..., Any]] = []
    tool_choice: Any = None
    parallel_tool_calls: bool = True
    model_settings: dict[str, Any] = {}
    """More arguments for the model client (temperature, seed, …), passed on as they are."""
    if TYPE_CHECKING:
        output_type: TypeForm[T] | UnionType | None = None
    else:
        output_type: Any = None
    """The type of the agent's answer, anything that pydantic validates; None for text."""
    output_retries: int = Field(default=2, ge=0)
    """How often the model is told what is wrong with an answer that does not fit, before the run fails."""
    input_guardrails: list[Callable[..., Any]] = []
    """Functions of the run's messages that may stop the run: see `docs/guardrails.md`."""
    output_guardrails: list[Callable[..., Any]] = []
    """Functions of the agent's answer that may stop the run."""

    def as_tool(
        self, name: str | None = None, description: str | None = None, *, limits: Any = None
    ) -> Callable[..., Any]:
        """Return a tool `(message: str)` that runs this agent as a child run and returns its answer.

        The child run gets the message and a copy of the context variables; after a crash it continues, or its recorded
        answer is taken. An agent with an `output_type` answers with the value as JSON. If the child run fails, the tool
        raises `RunFailed` with its id; called outside a run, `NotInRun`. `name` is the tool's name, by default the
        agent's in snake_case; `description` tells the model when to ask this agent. `limits` (a `Limits`) are those of
        each child run, beside those of the run that asks. Raises `ConfigurationError` for a name that providers refuse.
        """
        named = snake_case(self.name) if name is None else name
        if not isinstance(named, str) or not TOOL_NAME.fullmatch(named):
            raise ConfigurationError(
                f"as_tool: a tool's name must be 1 to 64 letters, digits, _ or -, not {named!r:.80}; give another name="
            )
        if description is not None and not isinstance(description, str):
            raise ConfigurationError(f"as_tool: the description must be a text, not a {type(description).__name__}")
        if limits is not None and not hasattr(limits, "on_limit"):
            raise ConfigurationError(f"as_tool: limits must be Limits(...), not {limits!r:.80}")
        tool = agent_tool(self, limits)
        tool.__name__ = named
        tool.__doc__ = description or f"Ask the agent {self.name!r} and get its answer."
        note_settings(tool, ToolSettings(name=named, description=description))
        return tool

    def model_post_init(self, _context: Any) -> None:
        for notify in agent_defined:
            notify(self)


_lenient = False


def ignore_unknown_fields(ignore: bool) -> None:
    """Ignore unknown fields of agents and results with a warning, as Swarm ignores them, or refuse them again."""
    global _lenient
    _lenient = ignore


def _unknown_field(kind: str, name: str, known: list[str]) -> None:
    message = unknown_field(kind, name, known)
    if not _lenient:
        raise ConfigurationError(message)
    log.warning("%s; the field is ignored, as in Swarm", message)


@named_fields
@dataclass(frozen=True)
class Block:
    """The verdict of a guardrail that stops the run: it ends with `reply` as its answer, or without one with `Blocked`.

    `reason` is for people and programs; the model and the user do not see it.
    """

    reason: str
    reply: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.reason, str) or not isinstance(self.reply, str | None):
            raise ConfigurationError(f"Block takes texts: Block(reason, reply=None), not {self!r:.200}")


class Result(_Strict):
    """A tool's result with more than text: a handoff and changes of the context variables."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    value: str = ""
    agent: Any = None
    context_variables: dict[str, Any] = {}


class Usage(BaseModel):
    """Tokens of all model calls of a run, as the provider counted them, and the number of calls it counted.

    `cached_tokens` and `cache_write_tokens` are part of `prompt_tokens`, `reasoning_tokens` of `completion_tokens`.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in Usage.model_fields})


EndedBy = Literal["answer", "max_turns", "limit", "length", "content_filter", "guardrail"]
"""Why a run ended: an answer, `max_turns`, a limit, the provider (which cut the reply), or a guardrail."""


class Response(BaseModel, Generic[T]):
    """The result of a run: its new messages, its last agent, and the final context variables.

    `usage` is None if the provider reported none. `ended_by` is "answer" if the last message is one; "max_turns";
    "length" or "content_filter" if the provider cut the last reply at its token limit or for its content.

    `output` is the answer as a value of the last agent's `output_type`; None without one, and if there is no answer.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    messages: list[Message] = []
    agent: Any = None
    context_variables: dict[str, Any] = Field(default_factory=dict)
    run_id: str | None = None
    usage: Usage | None = None
    ended_by: EndedBy = "answer"
    output: T | None = None


Repeat = Literal["allow", "reuse", "refuse"]
"""How to treat a call that the model makes again after it has succeeded."""

Effect = Literal["read", "idempotent", "once", "transactional"]
"""The meaning of a crash in the middle of a call: `docs/effects.md` has the table."""


@dataclass(frozen=True)
class ToolSettings:
    """The options that `@tool` (or `@step`, with `is_step`) set for a function."""

    name: str | None = None
    description: str | None = None
    retries: int = 0
    timeout: float | None = None
    """Seconds for one attempt."""
    backoff: float = 1.0
    """Seconds before the first retry, doubled for each further one."""
    is_step: bool = False
    effect: Effect = "idempotent"
    check: Callable[..., Any] | None = None
    """Checks a `once` call whose process died: returns its result, or None if the call did not happen."""
    approval: bool | Callable[..., Any] = False
    approval_timeout: float | None = None
    """Seconds after which an undecided approval counts as rejected."""
    parameters: dict[str, Any] | None = None
    """The JSON schema of the arguments, if it was given instead of read from the function's signature."""
    repeat: Repeat = "allow"
    marks_itself: bool = False
    """True for a `once` tool that may be entered again, because it marks the parts of it that must not be repeated."""


_SETTINGS = "__durable_swarm__"
_PLAIN = ToolSettings()


def note_settings(function: object, settings: ToolSettings) -> None:
    """Store `settings` on the function for `settings_of`; for a bound method, on its function."""
    setattr(getattr(function, "__func__", function), _SETTINGS, settings)


def settings_of(function: object) -> ToolSettings:
    """Return the function's settings, also through a bound method or a `functools.partial`."""
    while True:
        found = getattr(function, _SETTINGS, None)
        if isinstance(found, ToolSettings):
            return found
        if not isinstance(function, functools.partial):
            return _PLAIN
        function = function.func


TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""Names that all providers accept."""


def tool_name(function: object) -> str:
    """Return the name by which the model calls the function, and by which it is found after a crash.

    It is the outermost name: a `functools.partial` may have one of its own.
    """
    while True:
        settings = getattr(function, _SETTINGS, None)
        name = settings.name if isinstance(settings, ToolSettings) else None
        if name is None:
            name = getattr(function, "__name__", None)
        if name is not None:
            return str(name)
        if not isinstance(function, functools.partial):
            return type(function).__name__
        function = function.func
