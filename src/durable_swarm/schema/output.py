"""The type of an agent's answer: its JSON schema for the provider, and the model's text as a value of it.

A value that is not a JSON object is sent wrapped, as `{"value": ...}`, because providers take only schemas of objects.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from durable_swarm.errors import ConfigurationError
from durable_swarm.schema.arguments import cut, decoded, reasons
from durable_swarm.schema.descriptions import Schemas, lenient_adapter
from durable_swarm.schema.strict import DEFINITIONS, strict_schema
from durable_swarm.types import AgentLike

VALUE = "value"
"""The key of a wrapped value."""

LONGEST_SCHEMA = 4000
"""Bytes of a schema that are shown to a model whose answer does not fit."""


class BadOutput(ValueError):
    """A text is not a value of the type; `problems` says why, a line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class OutputType:
    """A type of answers: its name and schema as providers take them; `wraps` if its values are sent wrapped."""

    name: str
    schema: dict[str, object]
    strict: bool
    """True if the schema is one that providers can enforce to the letter."""
    wraps: bool
    adapter: TypeAdapter[Any]

    @property
    def response_format(self) -> dict[str, object]:
        """The argument `response_format` of a request."""
        described = {"name": self.name, "schema": self.schema, "strict": self.strict}
        return {"type": "json_schema", "json_schema": described}

    def read(self, text: str) -> tuple[object, bool]:
        """Return the value in a model's text, and whether it was wrapped there. Raises `BadOutput`.

        A value that should be wrapped is accepted without, because not every provider enforces the schema.
        """
        if not text.strip():
            raise BadOutput(["the reply is empty"])
        try:
            data = decoded(text)
        except (ValueError, RecursionError) as error:
            raise BadOutput([f"the reply is not one JSON value: {cut(str(error), 200)}"]) from error
        wrapped = self.wraps and isinstance(data, dict) and data.keys() == {VALUE}
        return self.value(data[VALUE] if wrapped else data), wrapped

    def value(self, data: object) -> object:
        """Return the value that plain JSON data describe. Raises `BadOutput`."""
        try:
            # From text, because pydantic accepts more for JSON than for Python values, as in a model that is strict.
            return self.adapter.validate_json(json.dumps(data))
        except ValueError as error:
            raise BadOutput([reason.lstrip(".: ") for reason in reasons("", error)]) from error

    def correction(self, problems: list[str]) -> str:
        """Return what to tell a model whose answer does not fit."""
        schema = cut(json.dumps(self.schema, ensure_ascii=False), LONGEST_SCHEMA)
        return (
            f"Error: your answer does not fit: {'; '.join(problems)}. Answer again with one JSON value that fits this "
            f"JSON schema, and with no other text: {schema}"
        )


def output_type_of(agent: AgentLike) -> OutputType | None:
    """Return the type of an agent's answers, or None if it answers in text.

    Raises `ConfigurationError` for a type that has no JSON schema.
    """
    given = getattr(agent, "output_type", None)
    if given is None:
        return None
    try:
        return read_type(given)
    except ConfigurationError as error:
        raise ConfigurationError(f"agent {agent.name!r}: {error}") from error


def read_type(given: object) -> OutputType:
    """Return a type of answers. Raises `ConfigurationError` if it has no JSON schema."""
    try:
        hash(given)
    except TypeError:
        return _read_type(given)
    return _remembered_type(given)


def _read_type(given: object) -> OutputType:
    try:
        if inspect.isroutine(given):
            raise TypeError("it is a function")  # Pydantic would take it for the type of its arguments.
        adapter = lenient_adapter(given)
        schema = adapter.json_schema(schema_generator=Schemas)
    # Also raised by the hooks of a user's own type.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(
            f"output_type {given!r:.200} has no JSON schema ({reason}); use a pydantic model, a dataclass, a TypedDict "
            "or plain types"
        ) from error
    whole, wraps = _as_object(schema)
    strict = strict_schema(whole)
    name = re.sub(r"[^a-zA-Z0-9_-]+", "_", given.__name__ if isinstance(given, type) else "output")[:64]
    return OutputType(name, whole if strict is None else strict, strict is not None, wraps, adapter)


# Bounded, because each entry keeps its type, which may be a local class.
_remembered_type = functools.lru_cache(maxsize=256, typed=True)(_read_type)


def _as_object(schema: dict[str, Any]) -> tuple[dict[str, object], bool]:
    """Return a schema of an object, and whether the value is wrapped in it."""
    inner = {key: part for key, part in schema.items() if key != "$defs"}
    definitions = schema.get("$defs", {})
    named = definitions.get(inner.get("$ref", "").removeprefix(DEFINITIONS))
    root = inner if named is None else named  # A type that contains itself is a reference.
    wraps = root.get("type") != "object"
    if wraps:
        root = {"type": "object", "properties": {VALUE: inner}, "required": [VALUE], "additionalProperties": False}
    return {**root, **({"$defs": definitions} if definitions else {})}, wraps
