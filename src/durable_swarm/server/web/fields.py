"""The form of a request: a field for each argument, and the decision that a filled-in form makes.

A form carries the digest of what it showed. If that has changed meanwhile, nothing is decided.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from durable_swarm.display import harmless, value
from durable_swarm.requests import Request

PLAIN = "field."  # The prefix of a field's name in a form.


@dataclass(frozen=True)
class Field:
    """One argument in a form: `text` is what is in it, as it is if `plain`, else as JSON."""

    name: str
    text: str
    plain: bool
    choices: list[str] | None
    hint: str

    def read(self, text: str) -> object:
        """Return the value of what was typed; what is not JSON is left to the schema to refuse."""
        if self.plain:
            return text
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text


class Form:
    """The form of one open request."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.digest = digest_of(request)
        named = (request.schema or {}).get("properties")
        known = named if isinstance(named, dict) else {}
        given = request.arguments or {}
        names = [*given, *(name for name in known if name not in given)]
        editable = request.kind in ("approval", "limit") and request.arguments is not None
        self.fields = [_field(name, given, known.get(name)) for name in names] if editable else []
        self.ways = _WAYS[request.kind]

    def arguments(self, form: Mapping[str, str]) -> dict[str, object] | None:
        """Return the arguments that a person has changed, or None if they are as they were asked."""
        given = self.request.arguments or {}
        found: dict[str, object] = {}
        for field in self.fields:
            text = form.get(PLAIN + field.name, field.text).replace("\r\n", "\n")
            if text != field.text:
                found[field.name] = field.read(text)
            elif field.name in given:
                found[field.name] = given[field.name]
        return None if found == given else found


_WAYS: dict[str, tuple[str, ...]] = {
    "question": ("answer",),
    "approval": ("approve", "reject"),
    "unknown_outcome": ("answer", "approve", "reject"),
    "result": ("answer", "reject"),
    "limit": ("approve", "reject"),
}


def _field(name: str, given: Mapping[str, object], schema: object) -> Field:
    rule = schema if isinstance(schema, dict) else {}
    now = given.get(name)
    # Text with characters that a page or a browser would change is edited as JSON, which can write each of them.
    plain = rule.get("type") == "string" and (now is None or (isinstance(now, str) and _is_typable(now)))
    text = "" if name not in given else value(now) if plain else json.dumps(now, default=str)
    if not plain and name in given and _is_typable(json.dumps(now, ensure_ascii=False, default=str)):
        text = json.dumps(now, ensure_ascii=False, default=str)
    choices = ["true", "false"] if rule.get("type") == "boolean" else rule.get("enum")
    fits = isinstance(choices, list) and all(isinstance(choice, str) for choice in choices) and text in choices
    kind = str(rule.get("type", "")) if isinstance(rule.get("type"), str) else ""
    words = kind if plain else f"{kind}, as JSON" if kind in ("", "string", "object", "array") else kind
    return Field(name, text, plain, choices if fits else None, words.removeprefix(", "))


def _is_typable(text: str) -> bool:
    return harmless(text) == text


def digest_of(request: Request) -> str:
    """Return the digest of what a request shows: a decision is about exactly this."""
    shown = [request.id, request.kind, request.tool, request.question, request.arguments, request.schema]
    text = json.dumps([*shown, request.choices], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
