"""A client for an application in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

TOKEN = "the-token-of-the-tests"
OWN = {"host": "127.0.0.1", "sec-fetch-site": "same-origin"}
BEARER = {"authorization": f"Bearer {TOKEN}"}


@dataclass
class Answer:
    """The answer to one request."""

    status: int
    headers: dict[str, str]
    text: str


def ask(
    app: Any,
    path: str,
    form: Mapping[str, str] | list[tuple[str, str]] | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    root_path: str = "",
    method: str = "",
) -> Answer:
    """Send one request to an ASGI application, a POST if there is a form, and return the answer."""
    target, _, query = path.partition("?")
    given = {"host": "127.0.0.1", **(OWN | BEARER if headers is None else headers)}
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http",
        "method": method or ("GET" if form is None else "POST"), "path": root_path + target,
        "raw_path": (root_path + target).encode(), "root_path": root_path, "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip

    bodies = iter([urlencode(form or {}).encode()])

    async def receive() -> dict[str, Any]:
        for body in bodies:
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.Event().wait()  # The reader stays.
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    body = b"".join(message.get("body", b"") for message in sent[1:])
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], answered, body.decode("utf-8", "replace"))
