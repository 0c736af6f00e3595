"""A model provider on this machine: a real HTTP server for tests of the real `openai` client.

    with Provider(["Hello"]) as provider, provider.client() as client:
        provider.inject(status(429, retry_after=1))     # strikes the next request, and uses up no reply
        client.chat.completions.create(...)

Replies are those of `ScriptedModel`, checked as strictly. Faults strike in the order they were injected, one a
request, before the script is asked: an `Answer` (made by `status`, `html`, `bad_json`, `empty_choices`), a `Cut`,
a `Reset` or a `Stall`; None lets a request pass.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import openai

from durable_swarm.testing import ProviderError, ScriptedModel

PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Answer:
    """A whole HTTP response."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"content-type": "application/json"})


@dataclass(frozen=True)
class Cut:
    """The connection ends in the middle of a body that began well."""


@dataclass(frozen=True)
class Reset:
    """The connection is reset before any header."""


@dataclass(frozen=True)
class Stall:
    """Nothing comes for `seconds`, then the script's answer, unless the client has left."""

    seconds: float


Fault = Answer | Cut | Reset | Stall | None


def status(code: int, message: str = "", retry_after: float | str | None = None, **headers: str) -> Answer:
    """Give the provider's own error answer. `headers` are further ones, with `_` for `-`."""
    given = {"content-type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
    if retry_after is not None:
        given["retry-after"] = str(retry_after)
    kind = "invalid_request_error" if code < 500 else "server_error"
    error = {"message": message or f"injected {code}", "type": kind, "param": None, "code": None}
    return Answer(code, json.dumps({"error": error}).encode(), given)


def html(code: int = 502) -> Answer:
    """Give the page of a proxy that stands before the provider."""
    return Answer(code, b"<html><body><h1>Bad gateway</h1></body></html>", {"content-type": "text/html"})


def bad_json() -> Answer:
    """Give a success whose body is no JSON."""
    return Answer(200, b'{"id": "chatcmpl-0", "choices": [')


def empty_choices() -> Answer:
    """Give a success that holds no choice."""
    body = {"id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": "gpt-4o", "choices": []}
    return Answer(200, json.dumps(body).encode())


@dataclass(frozen=True)
class Request:
    """One request as it arrived; header names are in lower case, `body` is what the JSON held."""

    path: str
    headers: dict[str, str]
    body: Any


class Provider:
    """The server: `start()` and `stop()`, or a `with` block. Started again, it takes the same port.

    `requests` lists what arrived, faults included; `connections` counts the connections ever made; `model` is the
    `ScriptedModel` that answers.
    """

    def __init__(self, replies: Sequence[Any] | Callable[[dict[str, Any]], Any], *, strict: bool = True) -> None:
        self.model = ScriptedModel(replies, strict=strict)
        self.requests: list[Request] = []
        self.connections = 0
        self._faults: deque[Fault] = deque()
        self._port = 0
        self._server: _Server | None = None

    @property
    def base_url(self) -> str:
        """What `openai.OpenAI(base_url=...)` takes; known after the first start."""
        return f"http://127.0.0.1:{self._port}/v1"

    def inject(self, *faults: Fault) -> None:
        """Let the coming requests meet these faults, one each."""
        self._faults.extend(faults)

    def client(self, **options: Any) -> openai.OpenAI:
        """Give a real client of this server, without retries unless `options` say otherwise."""
        given: dict[str, Any] = {"base_url": self.base_url, "api_key": "sk-test", "max_retries": 0}
        return openai.OpenAI(**given | options)

    def start(self) -> Self:
        """Listen and answer until `stop`."""
        self._server = _Server(self, self._port)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Close the port and every connection; a stalled request ends at once."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def take(self, request: Request) -> Fault:
        """Record the request and give the fault it meets."""
        self.requests.append(request)
        return self._faults.popleft() if self._faults else None

    def answer(self, request: Request) -> Answer:
        """Give the script's answer. An exception of the script that is no `ProviderError` becomes a status 400."""
        if request.path != PATH:
            return status(404, f"no such path: {request.path}")
        if not isinstance(request.body, dict):
            return status(400, "the body must be a JSON object")
        try:
            completion = self.model.chat.completions.create(**request.body)
        except ProviderError as error:
            return status(error.status_code, error.message, **error.response.headers)
        except Exception as error:
            return status(400, f"{type(error).__name__}: {error}")
        return Answer(200, completion.model_dump_json().encode())


class _Server(ThreadingHTTPServer):
    def __init__(self, provider: Provider, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.provider = provider
        self.stopping = threading.Event()
        self.open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        self.provider.connections += 1
        super().process_request(request, client_address)

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()
        for connection in list(self.open):
            _shut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        super().finish()

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("content-length", 0)))
        request = Request(self.path, {name.lower(): value for name, value in self.headers.items()}, _parsed(text))
        fault = self.server.provider.take(request)
        match fault:
            case Answer():
                self._send(fault)
            case Cut():
                self._send(empty_choices(), cut=True)
            case Reset():
                self._reset()
            case Stall(seconds) if self._left_during(seconds):
                self.close_connection = True
            case _:
                self._send(self.server.provider.answer(request))

    def _send(self, answer: Answer, cut: bool = False) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
        self.close_connection = self.close_connection or cut

    def _left_during(self, seconds: float) -> bool:
        """Wait, and say whether the client or the server has gone meanwhile."""
        stopped = self.server.stopping.wait(seconds)
        readable, _, _ = select.select([self.connection], [], [], 0)
        return stopped or bool(readable)

    def _reset(self) -> None:
        # Lingering for 0 seconds makes the close a reset; the reader holds the socket open until it is closed too.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
