"""Plausible values for a JSON schema, taken from what a user said where it fits: the arguments of an offline model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from durable_swarm.schema.references import referred

DEEPEST = 8
"""Levels of nested schemas that are filled; deeper ones get null."""

_WRITTEN = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
WORDS = {word: str(number) for number, word in enumerate(_WRITTEN, start=2)}
"""Numbers as they are written in words; "one" is not among them, because it stands for much else."""

NUMBER = re.compile(rf"(?<![\w.])-?\d+(?:\.\d+)?|\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)

TEXTS = ("body", "content", "description", "message", "prompt", "query", "question", "reason", "request", "text")
"""Names of parameters that take what the user said, as it is."""


class Examples:
    """Makes values for schemas; `text` is what the user said, `seed` varies what is not in it.

    The same text and seed give the same values.
    """

    def __init__(self, text: str, seed: int = 0) -> None:
        self._text = text
        self._seed = seed
        self._numbers = [WORDS.get(found.lower(), found) for found in NUMBER.findall(text)]
        quoted = [
            group for groups in re.findall(r"\"([^\"]+)\"|“([^”]+)”|'([^']+)'", text) for group in groups if group
        ]
        # Names, which begin with a capital inside a sentence; the first word of a text begins with one in any case.
        self._names = quoted + re.findall(r"(?<=[\w,] )[A-Z][\w-]*(?: [A-Z][\w-]*)*", text)

    def arguments(self, schema: object) -> dict[str, Any]:
        """Return arguments for a tool with these parameters: those required, and others that the user's text names."""
        root = schema if isinstance(schema, dict) else {}
        made = self._object(root, root, 0)
        return made if isinstance(made, dict) else {}

    def value(self, schema: object) -> Any:
        """Return a value for any schema."""
        root = schema if isinstance(schema, dict) else {}
        return self._value("value", root, root, 0)

    def _object(self, schema: Mapping[str, object], root: dict[str, object], depth: int) -> dict[str, object]:
        properties = schema.get("properties")
        known = properties if isinstance(properties, dict) else {}
        required = schema.get("required")
        wanted = required if isinstance(required, list) else []
        return {
            name: self._value(name, part if isinstance(part, dict) else {}, root, depth + 1)
            for name, part in known.items()
            if name in wanted or name.lower() in self._text.lower()
        }

    def _value(self, name: str, schema: dict[str, Any], root: dict[str, object], depth: int) -> object:
        schema = _resolved(schema, root)
        if depth > DEEPEST:
            return None
        for fixed in ("const", "default"):
            if fixed in schema:
                return schema[fixed]
        for several in ("enum", "examples"):
            if isinstance(schema.get(several), list) and schema[several]:
                return self._chosen(schema[several])
        for kind in ("anyOf", "oneOf", "allOf"):
            if isinstance(schema.get(kind), list) and schema[kind]:
                parts = [part for part in schema[kind] if isinstance(part, dict) and part.get("type") != "null"]
                return self._value(name, parts[0], root, depth + 1) if parts else None
        return self._by_type(name, schema, root, depth)

    def _by_type(self, name: str, schema: dict[str, Any], root: dict[str, object], depth: int) -> object:
        kind = schema.get("type")
        kind = next((one for one in kind if one != "null"), "null") if isinstance(kind, list) else kind
        match kind:
            case "integer" | "number":
                return self._number(schema, whole=kind == "integer")
            case "boolean":
                return True
            case "null":
                return None
            case "array":
                items = schema.get("items")
                count = max(1, int(schema.get("minItems") or 0))
                part = items if isinstance(items, dict) else {}
                return [self._value(name, part, root, depth + 1) for _ in range(min(count, 10))]
            case "object":
                return self._object(schema, root, depth)
            case _ if "properties" in schema:
                return self._object(schema, root, depth)
            case _:
                return self._string(name, schema)

    def _chosen(self, values: Sequence[object]) -> object:
        """Return the value that the user named, else one by the seed."""
        said = [value for value in values if str(value).lower() in self._text.lower()]
        return said[0] if said else values[self._seed % len(values)]

    def _number(self, schema: Mapping[str, object], *, whole: bool) -> int | float:
        found = float(self._numbers.pop(0)) if self._numbers else 1.0 + self._seed % 7
        least = schema.get("minimum", schema.get("exclusiveMinimum"))
        most = schema.get("maximum", schema.get("exclusiveMaximum"))
        if isinstance(most, int | float):
            found = min(found, most - ("exclusiveMaximum" in schema))
        if isinstance(least, int | float):
            found = max(found, least + ("exclusiveMinimum" in schema))
        return int(found) if whole else found

    def _string(self, name: str, schema: dict[str, Any]) -> str:
        made = self._formatted(str(schema.get("format", ""))) or self._named(name)
        longest = schema.get("maxLength")
        made = made[:longest] if isinstance(longest, int) else made
        return made.ljust(int(schema.get("minLength") or 0), ".")

    def _formatted(self, form: str) -> str | None:
        day = datetime(2030, 1, 1, 9, tzinfo=UTC) + timedelta(days=self._seed % 365)
        return {
            "date": day.date().isoformat(),
            "date-time": day.isoformat(),
            "time": day.time().isoformat(),
            "duration": "PT1H",
            "email": "someone@example.com",
            "uri": "https://example.com/",
            "uuid": f"00000000-0000-4000-8000-{self._seed % 16**12:012x}",
            "ipv4": "192.0.2.1",
        }.get(form)

    def _named(self, name: str) -> str:
        """Return a text for a parameter of this name."""
        words = name.lower().split("_")
        if name.lower() in TEXTS or words[-1] in TEXTS:
            return self._text or f"some {name}"
        if words[-1] in ("id", "number", "code") and self._numbers:
            return f"{'_'.join(words[:-1]) or 'item'}_{self._numbers.pop(0)}"
        if "email" in words:
            return next(iter(re.findall(r"[\w.+-]+@[\w-]+\.[\w.]+", self._text)), "someone@example.com")
        return self._names.pop(0) if self._names else f"some {name.replace('_', ' ')}"


def _resolved(schema: dict[str, object], root: Mapping[str, object]) -> dict[str, Any]:
    """Return the schema that a reference inside the root schema leads to."""
    for _ in range(DEEPEST):
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        found = referred(root, reference)
        schema = found if isinstance(found, dict) else {}
    return schema
