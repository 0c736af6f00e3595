"""The description of the door `api`, made of the table of its routes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

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
    "404": "There is none of this id",
    "409": "It is decided, in use or ended already",
    "413": "The body is too large",
    "422": "It is well-formed, but does not fit",
}
IN_PATH = re.compile(r"{(\w+)}")


class Described(Protocol):
    """A route, as the description needs it."""

    @property
    def method(self) -> str:
        """The HTTP method."""

    @property
    def path(self) -> str:
        """The path, with its parameters in braces."""

    @property
    def summary(self) -> str:
        """The description of it."""

    @property
    def body(self) -> str | None:
        """The name of the body's schema."""

    @property
    def query(self) -> tuple[str, ...]:
        """The names of the query's parameters."""

    @property
    def status(self) -> int:
        """The status of success."""


def document(operations: Sequence[Described], bodies: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI document of these routes."""
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, bodies)
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


def _operation(one: Described, bodies: dict[str, Any]) -> dict[str, Any]:
    streamed = one.path.endswith("/events")
    content: dict[str, Any] = {"text/event-stream" if streamed else "application/json": {"schema": {}}}
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
    if streamed:
        described["responses"]["204"] = {"description": "The run has ended, and all of it was read"}
    if one.body is not None:
        schema = bodies[one.body]
        required = bool(schema.get("required"))
        described["requestBody"] = {"required": required, "content": {"application/json": {"schema": schema}}}
    return described
