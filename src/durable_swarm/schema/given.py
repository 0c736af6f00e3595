"""Tools with a given JSON schema: it is sent as it is, and arguments are checked against it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from durable_swarm.errors import ConfigurationError
from durable_swarm.schema.arguments import ObjectReader, cut
from durable_swarm.schema.descriptions import label
from durable_swarm.schema.references import referred

_DATA = ("const", "default", "enum", "examples")
"""Keywords that hold data and contain no schemas."""


def checked_schema(name: str, parameters: object) -> dict[str, object]:
    """Return a copy of a tool's JSON schema, as providers take it. Raises `ConfigurationError` for an invalid one."""
    from jsonschema.exceptions import SchemaError  # Imported at use: most programs have no such tool.
    from jsonschema.validators import validator_for

    where = f"tool_from_schema: the parameters of {name!r}"
    if not isinstance(parameters, dict):
        raise ConfigurationError(f"{where} must be a JSON schema, a dictionary, not {parameters!r:.80}")
    try:
        schema: dict[str, object] = json.loads(json.dumps(parameters, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{where} must be plain JSON: {error}") from error
    schema.setdefault("type", "object")
    if schema["type"] != "object":
        raise ConfigurationError(f"{where} must describe an object, not {schema['type']!r:.80}: arguments have names")
    schema.setdefault("properties", {})
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        raise ConfigurationError(
            f"{where} are not a valid JSON schema: {_path(error.absolute_path)}: {error.message[:200]}"
        ) from error
    for reference in _references(schema):
        if not isinstance(referred(schema, reference), dict | bool):
            raise ConfigurationError(
                f"{where} refer to {reference!r:.200}, which is not in the schema; put it under $defs, as "
                '{"$ref": "#/$defs/NAME"}'
            )
    return schema


def _references(node: object) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from _references(item)
    elif isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for key, value in node.items():
            if key not in _DATA:
                yield from _references(value)


def _path(path: Any) -> str:
    return ".".join(map(str, path)) or "the schema"


class GivenReader(ObjectReader):
    """Reads arguments for a tool with a given schema."""

    def __init__(self, name: str, schema: dict[str, Any]) -> None:
        from jsonschema.validators import validator_for

        super().__init__(name)
        self._schema = schema
        self._validator = validator_for(schema)(schema)

    def read(self, text: str | None) -> dict[str, object]:
        """Return the arguments in the text. Raises `BadArguments`."""
        given = self.read_object(text)
        try:
            problems = [
                f"{cut(_path(error.absolute_path), 100)}: {cut(error.message, 200)}"
                for error in islice(self._validator.iter_errors(given), 20)
            ]
        except RecursionError:
            self.refuse("are nested too deep")
        if problems:
            self.refuse(f"do not fit: {'; '.join(problem.removeprefix('the schema: ') for problem in problems)}")
        return given

    def expected(self) -> str:
        """Describe the allowed arguments."""
        required = self._schema.get("required", [])
        notes = [
            f"{name} ({cut(label(schema if isinstance(schema, dict) else {}), 60)}"
            f"{', optional' * (name not in required)})"
            for name, schema in self._schema["properties"].items()
        ]
        return cut(f"Expected is a JSON object with: {', '.join(notes) or 'no parameters'}", 400)
