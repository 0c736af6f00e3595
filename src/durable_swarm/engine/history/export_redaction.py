"""Masking secrets in the document of an exported run: users' values pass through a hook, names do not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from durable_swarm import codec
from durable_swarm.errors import ConfigurationError

Redact = Callable[[str, Any], Any]
"""Receives the path of a value in the document (`start.messages[0].content`) and the value; returns the replacement."""

_FACTS = frozenset({"v", "agent", "swarm", "at", "model", "version", "usage", "type", "step", "run_id", "failed"})
_FACTS |= {"model_override", "max_turns", "execute_tools", "debug", "forked", "removed", "stream", "whole", "together"}
_FACTS |= {"make", "effect", "approval", "twin", "form", "wrapped", "passed"}
_FACTS |= {"input_guardrails", "output_guardrails"}
"""Fields of records that are needed to read a run; they contain our own names and numbers."""

_OURS = frozenset({"messages", "message", "kept", "detours", "reply", "outcomes", "plan", "raised", "own", "heard"})
_OURS |= {"verdict"}
"""Fields of records that contain further names, ours or the provider's; all other fields contain values of users."""

_NAMES = _FACTS | {"role", "id", "tool_call_id", "tool_name", "sender", "name"}


def redacted(document: dict[str, Any], redact: Redact) -> dict[str, object]:
    """Return the document with every user value replaced by the result of `redact`.

    Keys of dictionaries, and the names of agents, tools and steps, are unchanged. Raises `NotSerializable`, and
    `ConfigurationError` if `redact` returns a value that is not allowed in that place.
    """
    masked = {
        **document,
        "start": _fields(document["start"], "start", redact),
        "steps": _steps(document["steps"], "steps", redact),
        "calls": {key: _masked_call(call, f"calls.{key}", redact) for key, call in document["calls"].items()},
    }
    if "failure" in document:
        masked["failure"] = _fields(document["failure"], "failure", redact)
    return masked


def _masked_call(call: dict[str, Any], path: str, redact: Redact) -> dict[str, object]:
    masked = {**call, "steps": _steps(call["steps"], f"{path}.steps", redact)}
    return masked if "output" not in call else {**masked, "output": _fields(call["output"], path, redact)}


def _steps(steps: list[dict[str, Any]], path: str, redact: Redact) -> list[dict[str, object]]:
    masked = []
    for index, step in enumerate(steps):
        own: dict[str, object] = {
            key: _value(step[key], f"{path}[{index}].{key}", redact) for key in ("value", "error") if key in step
        }
        if "record" in step:
            own["record"] = _fields(step["record"], f"{path}[{index}]", redact)
        masked.append({**step, **own})
    return masked


def _fields(record: Mapping[str, object], path: str, redact: Redact) -> dict[str, object]:
    return {key: _field(key, value, f"{path}.{key}", redact) for key, value in record.items()}


def _field(key: str, value: object, path: str, redact: Redact) -> object:
    if key in _FACTS:
        return value
    return _ours(value, path, redact) if key in _OURS else _value(value, path, redact)


def _ours(value: object, path: str, redact: Redact) -> object:
    """Mask messages, turns and failures, but not the fields that contain names."""
    if value is None:
        return None
    if isinstance(value, list):
        plans = path.endswith(".plan")
        return [
            item if plans and isinstance(item, str) else _ours(item, f"{path}[{index}]", redact)
            for index, item in enumerate(value)
        ]
    if not isinstance(value, dict) or codec.TAG in value:
        return _value(value, path, redact)
    return {key: _member(key, item, f"{path}.{key}", redact) for key, item in value.items()}


_USERS = frozenset({"context", "updates", "changed", "text", "args", "state", "attributes"})


def _member(key: str, item: object, path: str, redact: Redact) -> object:
    if key == "arguments" and isinstance(item, str):
        return _arguments(item, path, redact)
    if key in _NAMES:
        return item
    return _value(item, path, redact) if key in _USERS else _ours(item, path, redact)


def _arguments(text: str, path: str, redact: Redact) -> object:
    """Mask the arguments of a tool call, which are JSON if the model made no mistake."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return _value(text, path, redact)
    masked = _walk(given, path, redact)
    return text if masked == given else json.dumps(masked)


def _value(value: object, path: str, redact: Redact) -> object:
    return codec.encode(_walk(codec.decode(value), path, redact), path)


def _walk(value: object, path: str, redact: Redact) -> object:
    if isinstance(value, dict):
        return {key: _walk(item, f"{path}.{key}", redact) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(_walk(item, f"{path}[{index}]", redact) for index, item in enumerate(value))
    given = redact(path, value)
    if not isinstance(given, str if isinstance(value, str) else str | int | float | None | type(value)):
        needed = "a text" if isinstance(value, str) else "a text, a number or None"
        raise ConfigurationError(f"redact gave {given!r:.40} for {path}; {needed} is needed")
    return given
