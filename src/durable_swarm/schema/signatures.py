"""A function's name, docstring, and parameters with resolved annotations."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic.fields import FieldInfo

from durable_swarm.errors import ConfigurationError
from durable_swarm.types import settings_of, tool_name

CONTEXT = "context_variables"
"""The parameter that a run fills itself; the model neither sees nor sets it."""

CONNECTION = "connection"
"""The parameter of a transactional tool for its database connection; the model neither sees nor sets it."""

ABSENT = inspect.Parameter.empty
"""Marks a missing annotation, or one that cannot be resolved: see `Parameter.problem`."""


@dataclass(frozen=True)
class Parameter:
    """A named parameter: `annotation` is resolved, or `ABSENT`."""

    name: str
    annotation: object
    required: bool
    may_be_null: bool
    """Its default is None, which `x: str = None` means to allow."""
    positional_only: bool
    filled: FieldInfo | None = None
    """Returns the default of a pydantic `Field(...)`; Python would pass the `Field` itself to the function."""
    problem: str = ""
    """Why the parameter cannot be described to the model: an unresolvable annotation, an invalid default."""


class Signature:
    """A function's name, docstring and parameters. It holds no reference to the function, so it can be cached with it.

    Raises ValueError if Python cannot read the function's signature.
    """

    def __init__(self, f: object) -> None:
        self.name = tool_name(f)
        docstring = _docstring(f)
        override = settings_of(f).description
        self.description = docstring if override is None else override
        self.documented = _documented_parameters(docstring)
        found = _signature(f, self.name).parameters.values()
        bound = _bound_keywords(f)
        self.parameters = _parameters(f, [p for p in _named(found) if p.name not in bound])
        names = {parameter.name for parameter in self.parameters}
        self.given = settings_of(f).parameters
        names -= {*(self.given or {}).get("properties", {})}
        self.wants_context = CONTEXT in names
        self.wants_connection = CONNECTION in names and settings_of(f).effect == "transactional"
        given = {CONTEXT, CONNECTION} if self.wants_connection else {CONTEXT}
        self.open = [parameter for parameter in self.parameters if parameter.name not in given]
        self.takes_more = any(p.kind is p.VAR_KEYWORD for p in found)
        # Through **kwargs the model could set `self` a second time, or replace what the program has bound.
        self.closed = {*given, *bound, *_inner_names(f)}

    def require_keywords(self) -> None:
        """Raise `ConfigurationError` for a parameter that cannot be passed by name."""
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


def _unbound(f: object) -> Any:
    """Return the function of a `functools.partial`."""
    while isinstance(f, functools.partial):
        f = f.func
    return f


def _inner(f: Any) -> Any:
    """Return the function written with `def`, below partials, methods, wrappers and callable objects."""
    f = inspect.unwrap(_unbound(f))
    if inspect.isclass(f):
        return inspect.unwrap(f.__init__)
    if not inspect.isroutine(f):
        f = inspect.unwrap(type(f).__call__)
    return inspect.unwrap(getattr(f, "__func__", f))


def _inner_names(f: object) -> list[str]:
    try:
        return [parameter.name for parameter in _named(inspect.signature(_inner(f)).parameters.values())]
    except (ValueError, TypeError):
        return []


def _bound_keywords(f: object) -> set[str]:
    names: set[str] = set()
    while isinstance(f, functools.partial):
        names.update(f.keywords)
        f = f.func
    return names


def _docstring(f: object) -> str:
    f = _unbound(f)
    if inspect.isroutine(f) or inspect.isclass(f) or hasattr(f, "__wrapped__"):
        return f.__doc__ or ""
    return type(f).__call__.__doc__ or f.__doc__ or ""


def _documented_parameters(docstring: str) -> dict[str, str]:
    """Return the descriptions by parameter name; numpy's style may document several at once, as in `x, y : int`."""
    import docstring_parser

    try:
        parsed = docstring_parser.parse(docstring)
    # Unusual texts make the library fail with errors other than its own.
    except Exception:
        return {}
    described = [(entry.arg_name, " ".join((entry.description or "").split())) for entry in parsed.params]
    return {name.strip(): text for names, text in described for name in names.split(",")}


def _parameters(f: object, described: Iterable[inspect.Parameter]) -> list[Parameter]:
    spaces = _namespaces(f)
    return [_parameter(parameter, spaces) for parameter in described]


def _parameter(parameter: inspect.Parameter, spaces: list[Namespace]) -> Parameter:
    default = parameter.default
    annotation, problem = _resolve(parameter.annotation, spaces)
    if isinstance(default, FieldInfo):
        annotation = Annotated[Any if annotation is ABSENT else annotation, default]
    notes = [note for note in getattr(annotation, "__metadata__", ()) if isinstance(note, FieldInfo)]
    if any(note.alias or note.validation_alias for note in notes):
        problem = "its Field has an alias, and tools are called by the names of their parameters; rename the parameter"
    if isinstance(default, dataclasses.Field):
        problem = "its default is a dataclasses.field(), which only a dataclass takes; use pydantic's Field"
    filled = default if isinstance(default, FieldInfo) else None
    if default is ABSENT:
        filled = next((note for note in notes if not note.is_required()), None)
    return Parameter(
        name=parameter.name,
        annotation=annotation,
        required=filled.is_required() if filled else default is ABSENT,
        may_be_null=(filled.default if filled else default) is None,
        positional_only=parameter.kind is parameter.POSITIONAL_ONLY,
        filled=filled,
        problem=problem,
    )


Namespace = tuple[dict[str, Any], dict[str, Any]]
"""Global and local names."""


def _namespaces(f: object) -> list[Namespace]:
    """Return the namespaces for names in annotations: the innermost function's first, then its wrappers'."""
    f = _unbound(f)
    owner = getattr(f, "__self__", None) if inspect.ismethod(f) else None
    if inspect.isclass(f):
        owner, f = f, f.__init__
    elif not inspect.isroutine(f) and not hasattr(f, "__wrapped__"):
        owner, f = f, type(f).__call__
    layers = [f]
    while hasattr(layers[-1], "__wrapped__"):
        layers.append(layers[-1].__wrapped__)
    functions = [getattr(_unbound(layer), "__func__", _unbound(layer)) for layer in reversed(layers)]
    spaces = []
    for function in functions:
        names = getattr(function, "__globals__", {})
        spaces.append((names, {**_class_names(function, names, owner), **_closure(function)}))
    return spaces


def _class_names(function: object, names: Mapping[str, object], owner: object) -> dict[str, object]:
    """Return the names of the classes in which a method was written."""
    classes = [] if owner is None else [owner if inspect.isclass(owner) else type(owner)]
    outer: object = None
    for part in str(getattr(function, "__qualname__", "")).split(".")[:-1]:
        outer = names.get(part) if outer is None else vars(outer).get(part)
        if not inspect.isclass(outer):
            break
        classes.append(outer)
    found: dict[str, object] = {}
    for kind in classes:
        for base in reversed(kind.__mro__[:-1]):
            found |= {base.__name__: base, **vars(base)}
    return found


def _closure(function: object) -> dict[str, object]:
    code = getattr(function, "__code__", None)
    names: dict[str, object] = {}
    for name, cell in zip(code.co_freevars if code else (), getattr(function, "__closure__", None) or (), strict=False):
        # The cell is empty until the enclosing function has assigned the name.
        with contextlib.suppress(ValueError):
            names[name] = cell.cell_contents
    return names


def _resolve(annotation: object, spaces: list[Namespace]) -> tuple[object, str]:
    """Evaluate annotations that are text; return the reason if that fails. `None` counts as none, as in Swarm."""

    def carrier() -> None: ...

    carrier.__annotations__ = {"it": annotation}
    problems = []
    for names in spaces:
        # Annotations may hold any text and any code, so any exception is possible.
        try:
            if annotation is ABSENT or annotation in (None, "None"):
                return ABSENT, ""
            return typing.get_type_hints(carrier, *names, include_extras=True)["it"], ""
        except Exception as error:
            problems.append(str(error).partition("\n")[0] or type(error).__name__)
    return ABSENT, (
        f"its annotation {annotation!r:.200} cannot be resolved ({problems[0][:200]}); define or import what it names "
        "at the top of its module, not under TYPE_CHECKING and not in a function, or take the quotes off"
    )
