"""Functions as tools: their JSON schema for the model, and the model's argument text as keyword arguments.

`function_to_json` and `tool_schema` describe the arguments of a function. `check_arguments` reads the model's text and
returns Python values, or raises `BadArguments` with a text that the model can learn from. The results for a function
are cached as long as the function exists, so decorate it before its first use. No tool is called here.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Container, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from pydantic.fields import FieldInfo

from durable_swarm.awaitables import is_generator
from durable_swarm.errors import ConfigurationError
from durable_swarm.schema.arguments import BadArguments, Reader
from durable_swarm.schema.descriptions import Adapters, adapters_of, describe
from durable_swarm.schema.given import GivenReader, checked_schema
from durable_swarm.schema.signatures import Signature
from durable_swarm.toolsets import functions_of
from durable_swarm.types import TOOL_NAME, AgentLike, tool_name

__all__ = [
    "BadArguments",
    "accepted",
    "check_arguments",
    "checked_schema",
    "function_to_json",
    "tool_schema",
    "tool_schemas",
    "wants_connection",
    "wants_context",
]


def function_to_json(f: Callable[..., object]) -> dict[str, Any]:
    """Describe a function as OpenAI's Swarm does: `{"type": "function", "function": {name, description, parameters}}`.

    For parameters without annotation or of a plain type the result equals Swarm's. Other annotations become JSON
    schema, with `parameters["$defs"]` for types that are used more than once. A parameter that the docstring documents
    gets a `description`. `*args`, `**kwargs` and keywords that a `functools.partial` has bound are left out. The caller
    may change the result. Raises ValueError if the signature cannot be read, and `ConfigurationError` if an annotation
    has no JSON schema.
    """
    tool = _tool_of(f)
    if tool.signature.given is not None:
        return copy.deepcopy(tool.schema)
    return describe(tool.signature, tool.signature.parameters, tool.adapters)


def tool_schema(f: Callable[..., object]) -> dict[str, Any]:
    """Return `function_to_json(f)` without the parameter `context_variables`, as it is sent to the model.

    It is the same dictionary every time, so treat it as read-only. Raises as `function_to_json` does, and
    `ConfigurationError` for a positional-only parameter, since tools are called with keyword arguments.
    """
    return _tool_of(f).schema


def wants_context(f: Callable[..., object]) -> bool:
    """Return True if the function has a parameter `context_variables`. Raises ValueError as `function_to_json` does."""
    return _tool_of(f).signature.wants_context


def wants_connection(f: Callable[..., object]) -> bool:
    """Return True for a transactional tool with a parameter named `connection`. Raises as `wants_context`."""
    return _tool_of(f).signature.wants_connection


def check_arguments(f: Callable[..., object], text: str) -> dict[str, Any]:
    """Read the model's argument text for the tool `f` and return its keyword arguments.

    Values are converted to the annotated types (an Enum member, a dataclass, a datetime, …); parameters without
    annotation get the plain JSON value. An empty text counts as `{}`. `context_variables` is never in the result.
    Raises `BadArguments` for any fault of the text, and `ConfigurationError` as `tool_schema` does.
    """
    return _tool_of(f).reader.read(text)


def accepted(rule: Callable[..., object], f: Callable[..., object], arguments: Mapping[str, object]) -> dict[str, Any]:
    """Return the call's arguments that `rule` takes by name; arguments the model omitted get the tool's defaults."""
    takes = inspect.signature(rule).parameters
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(f).parameters.items()
        if parameter.default is not parameter.empty and not isinstance(parameter.default, FieldInfo)
    }
    given = {**defaults, **arguments}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        return given
    return {name: value for name, value in given.items() if name in takes}


def tool_schemas(agent: AgentLike) -> list[dict[str, Any]]:
    """Return the schemas of the agent's tools, each as `tool_schema` returns it.

    Raises `ConfigurationError` for functions that cannot be an agent's tools: names that providers refuse, two of one
    name, generators, unreadable signatures.
    """
    schemas: dict[str, dict[str, object]] = {}
    for function in functions_of(agent):
        name = tool_name(function)
        problem = _problem(function, name, schemas)
        if problem:
            raise ConfigurationError(f"agent {agent.name!r}: {problem}")
        try:
            schemas[name] = tool_schema(function)
        except ValueError as error:
            raise ConfigurationError(f"agent {agent.name!r}: {error}") from error
    return list(schemas.values())


def _problem(function: object, name: str, others: Container[str]) -> str:
    if not TOOL_NAME.fullmatch(name):
        return (
            f"a tool is named {name!r:.100}, and providers take 1 to 64 letters, digits, _ or - of ASCII only; "
            'name it by @tool(name="...")'
        )
    if name in others:
        return f'two tools are named {name!r}, and a call would not say which; name one of them by @tool(name="...")'
    if is_generator(function):
        return (
            f"tool {name!r} is a generator, and nobody would take what it yields; return the whole result, and report "
            "progress by emit()"
        )
    return ""


class _Tool:
    """Cached facts about one function, each computed at first use."""

    def __init__(self, f: object) -> None:
        self.signature = Signature(f)

    @functools.cached_property
    def adapters(self) -> Adapters:
        return adapters_of(self.signature)

    @functools.cached_property
    def schema(self) -> dict[str, object]:
        signature = self.signature
        if signature.given is not None:
            function = {"name": signature.name, "description": signature.description, "parameters": signature.given}
            return {"type": "function", "function": function}
        signature.require_keywords()
        return describe(self.signature, self.signature.open, self.adapters)

    @functools.cached_property
    def reader(self) -> Reader | GivenReader:
        if self.signature.given is not None:
            return GivenReader(self.signature.name, self.signature.given)
        return Reader(self.signature, self.adapters)


_tools: WeakKeyDictionary[object, _Tool] = WeakKeyDictionary()


def _tool_of(f: object) -> _Tool:
    # A callable that is not hashable, or takes no weak reference, is read anew each time: both raise a TypeError.
    try:
        return _tools[f]
    except (KeyError, TypeError):
        tool = _Tool(f)
    with contextlib.suppress(TypeError):
        _tools[f] = tool
    return tool
