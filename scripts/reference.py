"""Writes `docs/reference.md` from the docstrings: every public name with its signature. A test compares the two.

python scripts/reference.py
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"
MODULES = [
    "durable_swarm",
    "durable_swarm.testing",
    "durable_swarm.providers",
    "durable_swarm.mcp",
    "durable_swarm.server",
    "durable_swarm.bridges.openai_agents",
    "durable_swarm.bridges.langchain",
    "durable_swarm.otel",
    "durable_swarm.encryption",
]
HEAD = """# Reference of the Python names

Made from the docstrings by `make reference`; a test fails if it is not what the code says.
[API and command line](api.md) has the same names with their rules, tables and examples.
"""


class Text(str):
    """An annotation or a default as it is written."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def signature(name: str, value: Any) -> str:
    """Return a call of a function or class as its definition writes it, on several lines if it is long."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    parameters = [_written(one) for one in found.parameters.values() if one.name not in ("self", "cls")]
    result = "" if found.return_annotation in (found.empty, None, "None") else f" -> {_type(found.return_annotation)}"
    try:
        text = str(inspect.Signature(parameters))
    except ValueError:  # A required argument after one with a default, as in a bound method of two.
        text = "(...)"
    whole = f"{name}{text}{result}"
    return whole if len(whole) <= 110 else _folded(name, parameters, result)


def _folded(name: str, parameters: list[inspect.Parameter], result: str) -> str:
    """Return the signature with one argument on each line; a `*` shares the line of the first one behind it."""
    lines, previous = [], None
    for one in parameters:
        begins_keywords = one.kind is one.KEYWORD_ONLY and previous not in (one.KEYWORD_ONLY, one.VAR_POSITIONAL)
        lines.append(f"    {'*, ' if begins_keywords else ''}{one},\n")
        previous = one.kind
    return f"{name}(\n{''.join(lines)}){result}"


def _written(parameter: inspect.Parameter) -> inspect.Parameter:
    if parameter.annotation is not parameter.empty:
        parameter = parameter.replace(annotation=Text(_type(parameter.annotation)))
    default = parameter.default
    if default is not parameter.empty and not isinstance(
        default, str | int | float | bool | tuple | list | dict | None
    ):
        shown = default.name if isinstance(default, Enum) else repr(default)
        parameter = parameter.replace(default=Text("..." if " at 0x" in shown or shown[0] == "<" else shown))
    return parameter


def _type(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    return annotation.__name__ if isinstance(annotation, type) else re.sub(r"\w+\.(?=\w)", "", str(annotation))


def entry(name: str, value: Any) -> Iterator[str]:
    """Return the lines about a public name."""
    yield f"### {name}\n"
    if callable(value):
        yield f"```text\n{signature(name, value)}\n```\n"
    yield f"{inspect.getdoc(value) or ''}\n" if callable(value) else f"{_kinds(value)}\n"
    if inspect.isclass(value) and not issubclass(value, BaseException):
        yield from _members(value)


def _kinds(values: Any) -> str:
    """Return the number and the kinds of values, which themselves would fill a screen."""
    kinds = sorted({type(value).__name__ for value in values})
    return (
        f"A `{type(values).__name__}` with {len(values)} values of the type {', '.join(f'`{kind}`' for kind in kinds)}."
    )


def _members(kind: type) -> Iterator[str]:
    """Return what a class of this package adds: its methods and properties that are documented."""
    for name, member in inspect.getmembers(kind):
        if name.startswith(("_", "model_")):
            continue
        function = member.fget if isinstance(member, property) else inspect.unwrap(getattr(member, "__func__", member))
        if not str(getattr(function, "__module__", "")).startswith("durable_swarm") or not inspect.getdoc(member):
            continue
        shown = name if isinstance(member, property) else signature(name, function)
        yield f"```text\n{shown}\n```\n"
        yield f"{inspect.getdoc(member)}\n"


def reference() -> str:
    """Return the page."""
    parts = [HEAD]
    for module in MODULES:
        found = importlib.import_module(module)
        about = (inspect.getdoc(found) or "").partition("\n\n")[0]
        parts += [f"## `{module}`\n", f"{about}\n"]
        for name in sorted(found.__all__, key=str.lower):
            parts += entry(name, getattr(found, name))
    text = "\n".join(parts)
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
