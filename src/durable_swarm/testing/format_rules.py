"""The rules of a strict provider for `response_format`, as OpenAI's structured outputs have them."""

from __future__ import annotations

import re
from collections.abc import Iterator

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_KEYWORDS = {
    "$defs", "$ref", "additionalProperties", "anyOf", "const", "description", "enum", "exclusiveMaximum",
    "exclusiveMinimum", "format", "items", "maxItems", "maximum", "minItems", "minimum", "multipleOf", "pattern",
    "properties", "required", "title", "type",
}  # fmt: skip
"""Keywords of a strict schema."""


def format_problem(given: object) -> str:
    """Return why a strict provider refuses this `response_format`, or ''."""
    form = given if isinstance(given, dict) else {}
    kind = form.get("type")
    if kind in ("text", "json_object"):
        return ""
    if kind != "json_schema":
        return f"response_format.type must be text, json_object or json_schema, not {kind!r}"
    described = form.get("json_schema")
    if not isinstance(described, dict) or not _NAME.fullmatch(str(described.get("name"))):
        return "response_format.json_schema needs a name of 1 to 64 of the characters a-z A-Z 0-9 _ -"
    schema = described.get("schema")
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return "response_format.json_schema.schema must be a schema of type 'object'"
    problems = _problems(schema, "schema") if described.get("strict") else iter(())
    return next((f"Invalid schema for response_format: {problem}" for problem in problems), "")


def _problems(schema: object, where: str) -> Iterator[str]:
    if not isinstance(schema, dict) or not schema:
        yield f"{where} must be a schema that says a type"
        return
    if unknown := sorted(schema.keys() - _KEYWORDS):
        yield f"{where} has {unknown[0]!r}, which is not permitted"
    if "$ref" in schema and len(schema) > 1:
        yield f"{where} has a $ref with other keywords"
    properties = schema.get("properties", {})
    if schema.get("type") == "object":
        if schema.get("additionalProperties") is not False:
            yield f"{where}: additionalProperties must be false"
        if set(schema.get("required", ())) != set(properties):
            yield f"{where}: required must name every property"
    if schema.get("type") == "array":
        yield from _problems(schema.get("items"), f"{where}.items")
    for name, part in {**properties, **schema.get("$defs", {})}.items():
        yield from _problems(part, f"{where}.{name}")
    for part in schema.get("anyOf", ()):
        yield from _problems(part, f"{where}.anyOf")
