"""What a function says of itself: name, docstring, and parameters with their annotations resolved."""

from __future__ import annotations

import contextlib
import functools
import inspect
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import docstring_parser

from durable_swarm.errors import ConfigurationError
from durable_swarm.types import settings_of, tool_name

CONTEXT = "context_variables"
"""The parameter that a run fills itself; the model neither sees nor gives it."""

CONNECTION = "connection"
"""The parameter of a transactional tool that gets its database connection; the model neither sees nor gives it."""

ABSENT = inspect.Parameter.empty
"""Stands for an annotation where there is none, or none that can be resolved."""


@dataclass(frozen=True)
class Parameter:
    """A named parameter: `annotation` is resolved, or `ABSENT`."""

    name: str
    annotation: Any
    required: bool
    may_be_null: bool
    """Its default is None, which `x: str = None` means to allow."""
    positional_only: bool


class Signature:
    """What a function says of itself. It does not refer to the function, so that it can be kept as long as that lives.

    Raises ValueError if Python cannot tell the function's signature.
    """

    def __init__(self, f: Any) -> None:
        self.name = tool_name(f)
        docstring = _docstring(f)
        override = settings_of(f).description
        self.description = docstring if override is None else override
        self.documented = _documented_parameters(docstring)
        found = _signature(f, self.name).parameters.values()
        bound = _bound_keywords(f)
        self.parameters = _parameters(f, [p for p in _named(found) if p.name not in bound])
        names = {parameter.name for parameter in self.parameters}
        self.wants_context = CONTEXT in names
        self.wants_connection = CONNECTION in names and settings_of(f).effect == "transactional"
        given = {CONTEXT, CONNECTION} if self.wants_connection else {CONTEXT}
        self.open = [parameter for parameter in self.parameters if parameter.name not in given]
        self.takes_more = any(p.kind is p.VAR_KEYWORD for p in found)
        # Through **kwargs the model could give `self` a second time, or replace what the program has bound.
        self.closed = {*given, *bound, *_inner_names(f)}

    def require_keywords(self) -> None:
        """Raise `ConfigurationError` for a parameter that cannot be given by name."""
        for parameter in self.parameters:
            if parameter.positional_only:
                raise ConfigurationError(
                    f"tool {self.name}: the parameter {parameter.name} is positional-only, and tools are called with "
                    "keyword arguments; remove the '/' from the signature, or wrap the function in one of your own"
                )


def _signature(f: Any, name: str) -> inspect.Signature:
    try:
        return inspect.signature(f)
    except (ValueError, TypeError) as error:
        raise ValueError(f"Failed to get signature for function {name}: {error}") from error


def _named(parameters: Iterable[inspect.Parameter]) -> list[inspect.Parameter]:
    """Leave out `*args` and `**kwargs`."""
    return [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _unbound(f: Any) -> Any:
    """Give what a `functools.partial` was made of."""
    while isinstance(f, functools.partial):
        f = f.func
    return f


def _inner(f: Any) -> Any:
    """Give the function that was written with `def`, below partials, methods, wrappers and callable objects."""
    f = inspect.unwrap(_unbound(f))
    if inspect.isclass(f):
        return inspect.unwrap(f.__init__)
    if not inspect.isroutine(f):
        f = inspect.unwrap(type(f).__call__)
    return inspect.unwrap(getattr(f, "__func__", f))


def _inner_names(f: Any) -> list[str]:
    try:
        return [parameter.name for parameter in _named(inspect.signature(_inner(f)).parameters.values())]
    except (ValueError, TypeError):
        return []


def _bound_keywords(f: Any) -> set[str]:
    names: set[str] = set()
    while isinstance(f, functools.partial):
        names.update(f.keywords)
        f = f.func
    return names


def _docstring(f: Any) -> str:
    f = _unbound(f)
    if inspect.isroutine(f) or inspect.isclass(f) or hasattr(f, "__wrapped__"):
        return f.__doc__ or ""
    return type(f).__call__.__doc__ or f.__doc__ or ""


def _documented_parameters(docstring: str) -> dict[str, str]:
    """Give the descriptions by parameter name; numpy's style may document several at once, as in `x, y : int`."""
    try:
        parsed = docstring_parser.parse(docstring)
    # At odd text the library fails with other errors than its own.
    except Exception:
        return {}
    described = [(entry.arg_name, " ".join((entry.description or "").split())) for entry in parsed.params]
    return {name.strip(): text for names, text in described for name in names.split(",")}


def _parameters(f: Any, described: Iterable[inspect.Parameter]) -> list[Parameter]:
    inner = _inner(f)
    names = (getattr(inner, "__globals__", {}), _closure(inner))
    return [
        Parameter(
            name=parameter.name,
            annotation=_resolve(parameter.annotation, *names),
            required=parameter.default is ABSENT,
            may_be_null=parameter.default is None,
            positional_only=parameter.kind is parameter.POSITIONAL_ONLY,
        )
        for parameter in described
    ]


def _closure(function: Any) -> dict[str, Any]:
    code = getattr(function, "__code__", None)
    names: dict[str, Any] = {}
    for name, cell in zip(code.co_freevars if code else (), getattr(function, "__closure__", None) or (), strict=False):
        # The cell is empty while the enclosing function has not yet come to the name.
        with contextlib.suppress(ValueError):
            names[name] = cell.cell_contents
    return names


def _resolve(annotation: Any, global_names: dict[str, Any], local_names: dict[str, Any]) -> Any:
    """Evaluate annotations that are text. As in Swarm, `None` and text that gives no type count as no annotation."""

    def carrier() -> None: ...

    carrier.__annotations__ = {"it": annotation}
    # Annotations may hold any text and any code, so any exception is possible.
    try:
        if annotation is ABSENT or annotation in (None, "None"):
            return ABSENT
        return typing.get_type_hints(carrier, global_names, local_names, include_extras=True)["it"]
    except Exception:
        return ABSENT
