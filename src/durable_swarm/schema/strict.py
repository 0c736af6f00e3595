"""Strict JSON schemas: the subset that providers enforce to the letter while the model writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

DEFINITIONS = "#/$defs/"

_KEPT = {
    "$ref", "anyOf", "const", "description", "enum", "exclusiveMaximum", "exclusiveMinimum", "items", "maxItems",
    "maximum", "minItems", "minimum", "multipleOf", "pattern", "properties", "title", "type",
}  # fmt: skip
_FORMATS = {"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uuid"}
_NOTED = {"default", "format", "maxLength", "maxProperties", "minLength", "minProperties", "uniqueItems"}
"""Keywords that the subset lacks, which only narrow what is allowed: the description names them instead."""

_LEFT_OUT = {"$defs", "additionalProperties", "deprecated", "discriminator", "examples", "readOnly", "required"}
_LEFT_OUT |= {"contentEncoding", "contentMediaType", "writeOnly"}


class _NotStrict(Exception):
    """The schema has a part that the subset cannot express."""


def strict_schema(schema: dict[str, Any]) -> dict[str, object] | None:
    """Return a schema as strict providers take it, or None if that is impossible, as for a `dict[str, int]`.

    All properties are required and no others allowed, so the model writes defaults out. Every value that fits the
    strict schema has the shape of the given one; some limits are left to the check of the answer.
    """
    definitions = schema.get("$defs", {})
    try:
        strict = _strict(schema)
        if definitions:
            strict["$defs"] = {name: _strict(definition) for name, definition in definitions.items()}
    except _NotStrict:
        return None
    return strict


def _strict(schema: object) -> dict[str, object]:
    if not isinstance(schema, dict):
        raise _NotStrict
    schema = _with_any_of(schema)
    if schema.keys() - _KEPT - _NOTED - _LEFT_OUT or not schema.keys() & {"$ref", "anyOf", "const", "enum", "type"}:
        raise _NotStrict
    strict = {key: value for key, value in schema.items() if key in _KEPT}
    notes = [key for key in sorted(schema.keys() & _NOTED) if schema[key] is not None]
    if schema.get("format") in _FORMATS:
        strict["format"] = schema["format"]
        notes.remove("format")
    if notes:
        noted = ", ".join(f"{key}: {json.dumps(schema[key], ensure_ascii=False)}" for key in notes)
        strict["description"] = f"{schema.get('description', '')} ({noted})".strip()
    if "anyOf" in strict:
        strict["anyOf"] = [_strict(choice) for choice in strict["anyOf"]]
    if "$ref" in strict and len(strict) > 1:  # A reference stands alone.
        strict["anyOf"] = [{"$ref": strict.pop("$ref")}]
    if strict.get("type") == "array":
        strict["items"] = _strict(strict.get("items"))
    return _closed(schema, strict) if strict.get("type") == "object" else strict


def _with_any_of(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with `anyOf` in place of `oneOf` and of an `allOf` with one entry."""
    for key in ("oneOf", "allOf"):
        if key in schema and "anyOf" not in schema and (key == "oneOf" or len(schema[key]) == 1):
            schema = {**{name: part for name, part in schema.items() if name != key}, "anyOf": schema[key]}
    return schema


def _closed(schema: Mapping[str, object], strict: dict[str, Any]) -> dict[str, object]:
    """Return an object's schema with all properties required, and no others allowed."""
    if schema.get("additionalProperties", False) is not False:
        raise _NotStrict
    properties = {name: _strict(part) for name, part in strict.get("properties", {}).items()}
    return {**strict, "properties": properties, "required": list(properties), "additionalProperties": False}
