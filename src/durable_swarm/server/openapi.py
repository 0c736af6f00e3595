"""The description of a server, made of what its doors say of their routes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from durable_swarm.service.doctor import installed

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}
FAILURES = {
    "400": "The body is not JSON",
    "401": "No token, or a wrong one",
    "404": "There is none of this id or name",
    "409": "It is decided, in use or ended already",
    "413": "The body is too large",
    "422": "It is well-formed, but does not fit",
}
IN_PATH = re.compile(r"{(\w+)}")


JSON, EVENTS = "application/json", "text/event-stream"


@dataclass(frozen=True)
class Described:
    """A route: its method and path, what it does, the schema of its body, and what it answers with."""

    method: str
    path: str
    summary: str
    body: dict[str, Any] | None = None
    query: tuple[str, ...] = ()
    status: int = 200
    """The status of success."""
    media: tuple[str, ...] = (JSON,)
    """The kinds of content of an answer."""


def document(routes: Iterable[Described]) -> dict[str, object]:
    """Return the OpenAPI document of these routes."""
    paths: dict[str, dict[str, object]] = {}
    for one in routes:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Durable Swarm", "version": installed("durable-swarm") or "0"},
        "paths": paths,
        "components": {
            "schemas": {"Error": ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}],
    }


def _operation(one: Described) -> dict[str, object]:
    content: dict[str, object] = {kind: {"schema": {}} for kind in one.media}
    failures = {
        code: {"description": text, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
        for code, text in FAILURES.items()
        if one.body is not None or code not in ("400", "413")
    }
    described: dict[str, Any] = {
        "summary": one.summary,
        "parameters": [
            *({"name": name, "in": "path", "required": True, "schema": {"type": "string"},
               "description": "written with ~XX for each byte but letters, digits, - and _"}
              for name in IN_PATH.findall(one.path)),
            *({"name": name, "in": "query", "schema": {"type": "string"}} for name in one.query),
        ],
        "responses": {str(one.status): {"description": "Done", "content": content}, **failures},
    }  # fmt: skip
    if one.status == 201:
        described["responses"]["200"] = {"description": "It existed already", "content": content}
    if one.media == (EVENTS,) and one.method == "GET":
        described["responses"]["204"] = {"description": "Nothing more follows"}
    if one.body is not None:
        required = bool(one.body.get("required"))
        described["requestBody"] = {"required": required, "content": {JSON: {"schema": one.body}}}
    return described
