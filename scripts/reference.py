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
MODULES: dict[str, list[str]] = {
    "durable_swarm": [],
    "durable_swarm.testing": [],
    "durable_swarm.providers": [],
    "durable_swarm.mcp": [],
    "durable_swarm.server": [],
    "durable_swarm.bridges.openai_agents": [],
    "durable_swarm.bridges.langchain": [],
    "durable_swarm.otel": [],
    "durable_swarm.encryption": [],
    "durable_swarm.redaction": [],
    "durable_swarm.codec": ["Codec", "Place"],
    "durable_swarm.schema": ["BadArguments", "check_arguments", "function_to_json", "tool_schema", "wants_context"],
    "durable_swarm.compat": [],
    "durable_swarm.repl": ["pretty_print_messages", "process_and_print_streaming_response"],
}
"""The public modules, each with the names to show; none: those of its `__all__`."""
RETURNED = {
    "durable_swarm.requests": ["Request", "Decision"],
    "durable_swarm.runs": ["StepInfo"],
    "durable_swarm.types": ["Usage"],
    "durable_swarm.limits": ["Spent"],
    "durable_swarm.engine.api.schedules": ["Schedule"],
    "durable_swarm.tools.context": ["CurrentCall"],
}
"""Types of values that a program gets and does not make."""
NOT_MADE = {"Codec", "Run", "Session", "Schedule", "ScriptedServer"}
"""Classes that a program does not call, so that their signature is not its concern."""
INTERNAL = {
    *("begin_occurrence", "run_child", "respond_in_session", "spending_of_session", "streamed", "counted", "of_child"),
    *("bearing", "check_open", "executor", "follower", "live", "lives_elsewhere", "look"),
    *("play", "new_id", "client_for", "ready", "max_retries"),
}
"""Members that packages of this project use of one another."""
HEAD = """# Python names

Every public name with its signature and docstring. The page is made from the code by `make reference`, and a test
fails if it is not what the code says. All durations are in seconds, and all times are aware UTC `datetime`s.
Signatures follow Swarm's; [compatibility](compatibility.md) lists the differences. Names that are not on this page are
implementation details.

The rules, tables and examples are on these pages:

| names | page |
|---|---|
| `Agent`, `Result`, `Response`; `tool`, `step`, `sleep`, `emit`, `current_call` | [agents and tools](agents.md) |
| `Swarm`, `DurableSwarm`, `Run`, errors | [runs](runs.md) |
| `ask_human`, `later`, `Request`, `Run.approve`, `answer`, `reject`, `say` | [ask a person](approvals.md) |
| `Event`, `Run.events`, `run(stream=True)` | [streaming and events](events.md) |
| `Run.fork`, `export`, `import_run`, `replay`, `assert_replays` | [forks, exports and replay](forks.md) |
| `Session`, `Compaction`, `run_demo_loop` | [sessions](sessions.md) |
| `Limits`, `Spent`, `Run.extend` | [limits](limits.md) |
| `Block` | [guardrails](guardrails.md) |
| `Agent.as_tool`, `Run.children` | [sub-agents](sub-agents.md) |
| `DurableSwarm.schedule`, `Schedule` | [schedules](schedules.md) |
| `DurableSwarm.enqueue`, `serve`, `drain` | [workers](workers.md) |
| `durable_swarm.testing` | [testing](testing.md), [crash testing](crash-testing.md) |
| `durable_swarm.providers` | [providers](providers.md) |
| `Codec`, `EncryptionCodec`, `Redacting` | [encryption](encryption.md), [security](security.md#codecs) |
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
    if callable(value) and name not in NOT_MADE:
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
    """Return what a class of this package adds: its methods and properties that are documented.

    A method's twin to await, which has the same arguments, is only named.
    """
    members = dict(_documented(kind))
    twins = [name for name in members if name.removesuffix("_async") != name and name.removesuffix("_async") in members]
    for name, member in members.items():
        if name not in twins:
            shown = name if isinstance(member, property) else signature(name, _function(member))
            yield f"```text\n{shown}\n```\n"
            yield f"{inspect.getdoc(member)}\n"
    if twins:
        yield f"To await, with the same arguments: {', '.join(f'`{name}`' for name in twins)}.\n"


def _documented(kind: type) -> Iterator[tuple[str, Any]]:
    for name, member in inspect.getmembers(kind):
        ours = str(getattr(_function(member), "__module__", "")).startswith("durable_swarm")
        if ours and inspect.getdoc(member) and name not in INTERNAL and not name.startswith(("_", "model_")):
            yield name, member


def _function(member: Any) -> Any:
    return member.fget if isinstance(member, property) else inspect.unwrap(getattr(member, "__func__", member))


def reference() -> str:
    """Return the page."""
    parts = [HEAD]
    for module, names in MODULES.items():
        found = importlib.import_module(module)
        about = (inspect.getdoc(found) or "").partition("\n\n")[0]
        parts += [f"## `{module}`\n", f"{about}\n"]
        for name in sorted(names or found.__all__, key=str.lower):
            parts += entry(name, getattr(found, name))
    parts.append("## Values that methods return\n")
    for module, names in RETURNED.items():
        for name in names:
            parts += entry(name, getattr(importlib.import_module(module), name))
    text = "\n".join(parts)
    return re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
