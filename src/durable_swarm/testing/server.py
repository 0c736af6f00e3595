"""`serve_scripted`: a scripted model behind a real, OpenAI-compatible HTTP server on this machine.

    with serve_scripted([rate_limited(), "Hello"]) as server, server.client(max_retries=1) as client:
        client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hi"}])

A client in any language can use it. It serves `POST /v1/chat/completions` and `POST /v1/responses`, streamed or whole,
and `GET /v1/models`; for responses in the background also `GET /v1/responses/ID`, streamed with
`?stream=true&starting_after=N`, and `POST /v1/responses/ID/cancel`. One script answers both APIs: its rules and
callables see a request of the Responses API as the equivalent chat request.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, urlsplit

from durable_swarm.errors import ConfigurationError
from durable_swarm.testing.faults import BROKEN_JSON, Page
from durable_swarm.testing.provider_rules import ProviderError
from durable_swarm.testing.request_reader import messages_of
from durable_swarm.testing.responses_reader import as_chat
from durable_swarm.testing.responses_shapes import Scripted, scripted
from durable_swarm.testing.scripted import Play, ScriptedModel
from durable_swarm.testing.shapes import as_completion

if TYPE_CHECKING:
    import openai

COMPLETIONS, RESPONSES, MODELS = "/v1/chat/completions", "/v1/responses", "/v1/models"
JSON_BODY = {"content-type": "application/json"}


@dataclass(frozen=True)
class HttpRequest:
    """One request as it arrived; header names are in lower case, `body` is what the JSON in `raw` held, or None."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    raw: bytes = b""


def serve_scripted(
    replies: Sequence[object] | Callable[[dict[str, Any]], object],
    *,
    strict: bool = True,
    latency: float = 0.0,
    pace: float = 0.0,
    port: int = 0,
    refuses: Collection[str] = (),
) -> ScriptedServer:
    """Make a server that answers like `ScriptedModel(replies, ...)`, to be used in `with`, or by `start` and `stop`.

    It listens on 127.0.0.1 only, on `port`, or if that is 0 on a free one. Any API key is accepted. Errors have
    openai's JSON form: the script's own, status 400 for a request that a strict provider refuses or with an argument of
    `refuses`, for a script that ran out and for an exception of its callables, 404 for other paths.

    Raises `ConfigurationError` as `ScriptedModel` does.
    """
    return ScriptedServer(ScriptedModel(replies, strict=strict, latency=latency, pace=pace, refuses=refuses), port)


class ScriptedServer:
    """The server that `serve_scripted` makes.

    `requests` lists what arrived, oldest first; `model` is the `ScriptedModel` that answers; `connections` counts the
    connections ever made; `api_key` is a key to use; `responses` are those that can be retrieved, by id.
    """

    api_key = "sk-test"

    def __init__(self, model: ScriptedModel, port: int) -> None:
        self.model = model
        self.requests: list[HttpRequest] = []
        self.connections = 0
        self.responses: dict[str, Scripted] = {}
        self._numbers = count(1)
        self._port = port
        self._server: _Server | None = None

    @property
    def base_url(self) -> str:
        """The value for `openai.OpenAI(base_url=...)`. Raises `ConfigurationError` before the first start."""
        if not self._port:
            raise ConfigurationError("the scripted server has no address yet; use it in `with`, or call start()")
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def calls(self) -> list[dict[str, Any]]:
        """The chat requests that reached the script, oldest first: one for each call that a provider would charge."""
        return self.model.calls

    def inject(self, *replies: object) -> None:
        """Answer the next requests with these replies first, as `ScriptedModel.inject` does."""
        self.model.inject(*replies)

    def new_id(self) -> str:
        """Return the id of a new response."""
        return f"resp_{next(self._numbers)}"

    def client(self, **options: object) -> openai.OpenAI:
        """Return a real `openai.OpenAI` of this server, without retries unless `options` set them; close it."""
        import openai

        return openai.OpenAI(**self._options() | options)

    def async_client(self, **options: object) -> openai.AsyncOpenAI:
        """Return a real `openai.AsyncOpenAI` of this server, without retries unless `options` set them; close it."""
        import openai

        return openai.AsyncOpenAI(**self._options() | options)

    def _options(self) -> dict[str, Any]:
        return {"base_url": self.base_url, "api_key": self.api_key, "max_retries": 0}

    def start(self) -> Self:
        """Listen and answer until `stop`. Started again, the server takes the same port.

        Raises `ConfigurationError` for a running server, and for a port that is taken.
        """
        if self._server is not None:
            raise ConfigurationError("the scripted server runs already; stop() it first")
        try:
            self._server = _Server(self, self._port)
        except (OSError, OverflowError, TypeError) as error:
            raise ConfigurationError(
                f"the scripted server cannot listen on port {self._port!r}: {error}; give another port=, or none for a "
                "free one"
            ) from error
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Close the port and every connection; an answer in progress ends at once."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    def __init__(self, owner: ScriptedServer, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.owner = owner
        self.open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: object) -> None:
        self.open.add(request)
        self.owner.connections += 1
        super().process_request(request, client_address)

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self.open):
            _shut(connection)

    def handle_error(self, request: Any, client_address: object) -> None:
        # A client that left in the middle of an answer is not an error of ours.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Left(ConnectionError):
    """The client, or the whole server, is gone."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        self._recorded(b"")
        path = urlsplit(self.path).path
        if path == MODELS:
            listed = [{"id": "scripted", "object": "model", "created": 0, "owned_by": "durable-swarm"}]
            self._send(200, json.dumps({"object": "list", "data": listed}))
        elif path.startswith(f"{RESPONSES}/"):
            self._retrieve(path.removeprefix(f"{RESPONSES}/"))
        else:
            self._refuse(ProviderError(f"no such path: GET {self.path}", 404))

    def do_POST(self) -> None:
        length = self.headers.get("content-length", "")
        path = urlsplit(self.path).path
        if not length.isdecimal() and path.endswith("/cancel"):
            length = "0"
        if not length.isdecimal():
            self.close_connection = True
            self._refuse(ProviderError("the request needs a Content-Length; a chunked body is not read here", 411))
            return
        body = self._recorded(self.rfile.read(int(length))).body
        if path.startswith(f"{RESPONSES}/") and path.endswith("/cancel"):
            self._cancel(path.removeprefix(f"{RESPONSES}/").removesuffix("/cancel"))
        elif path not in (COMPLETIONS, RESPONSES):
            self._refuse(ProviderError(f"no such path: POST {self.path}", 404))
        elif not isinstance(body, dict):
            self._refuse(ProviderError("the body must be a JSON object", 400))
        elif path == RESPONSES:
            self._respond(body)
        else:
            self._answer(body)

    def _recorded(self, raw: bytes) -> HttpRequest:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = HttpRequest(self.command, self.path, headers, _parsed(raw), raw)
        self.server.owner.requests.append(request)
        return request

    def _answer(self, body: Mapping[str, object]) -> None:
        sent = self._played(body)
        self._wait(sent.latency)
        if self._went_wrong(sent, body):
            return
        if body.get("stream"):
            self._stream(sent, body)
        else:
            self._send(200, json.dumps(sent.answer.model_dump()), cut=sent.cut_after is not None)

    def _played(self, body: Mapping[str, object]) -> Play:
        """Return the script's answer to a chat request: an exception, a page, or a response of ours."""
        try:
            play = self.server.owner.model.play(body)
            return play if isinstance(play.answer, BaseException | Page) else _as_ours(play)
        except Exception as error:
            return Play(error)

    def _went_wrong(self, sent: Play, body: Mapping[str, object]) -> bool:
        """Send anything that is not an answer; return True if it was sent."""
        match sent.answer:
            case BaseException():
                self._fail(sent.answer, streamed=bool(body.get("stream")))
            case Page():
                self._send(sent.answer.status, sent.answer.text, {"content-type": "text/html"})
            case _:
                return False
        return True

    def _respond(self, body: dict[str, object]) -> None:
        """Answer a request of the Responses API; a background one continues even if its client leaves."""
        try:
            asked = as_chat(body)
        except ProviderError as error:
            self._refuse(error)
            return
        sent, waits = self._played(asked), not body.get("background")
        if waits or isinstance(sent.answer, BaseException | Page):
            self._wait(sent.latency)
        if self._went_wrong(sent, body):
            return
        turn = 1 + sum(message.get("role") == "assistant" for message in messages_of(asked))
        made = scripted(sent.answer, body, self.server.owner.new_id(), turn)
        made.latency, made.pace = (0.0 if waits else sent.latency), sent.pace
        if body.get("background"):
            self.server.owner.responses[made.id] = made
        if body.get("stream"):
            self._tell(made, 0, sent.cut_after)
        else:
            self._send(200, json.dumps(made.whole if waits else made.now()), cut=sent.cut_after is not None)

    def _retrieve(self, name: str) -> None:
        made = self.server.owner.responses.get(name)
        if made is None:
            self._refuse(ProviderError(f"Response with id '{name}' not found.", 404))
            return
        query = parse_qs(urlsplit(self.path).query)
        if query.get("stream") != ["true"]:
            self._send(200, json.dumps(made.now()))
        else:
            self._tell(made, 1 + int(query.get("starting_after", ["-1"])[0]), None)

    def _cancel(self, name: str) -> None:
        made = self.server.owner.responses.get(name)
        if made is None:
            self._refuse(ProviderError(f"Response with id '{name}' not found.", 404))
            return
        made.cancel()
        self._send(200, json.dumps(made.now()))

    def _tell(self, made: Scripted, first: int, cut_after: int | None) -> None:
        """Stream the events of a response from number `first` on; the connection breaks after `cut_after` of them."""
        self._begin(200, {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"})
        for number, event in enumerate(made.events[first:cut_after], first):
            self._wait(made.due(number))
            self._event(json.dumps(event), event["type"])
        if cut_after is None:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True

    def _fail(self, error: BaseException, streamed: bool) -> None:
        match error:
            case ProviderError():
                self._refuse(error)
            case TimeoutError():
                self._wait(None)
            case json.JSONDecodeError() if streamed:
                self._send(200, f"data: {BROKEN_JSON}\n\n", {"content-type": "text/event-stream"})
            case json.JSONDecodeError():
                self._send(200, BROKEN_JSON)
            case ConnectionError():
                self._reset()
            case _:
                self._refuse(ProviderError(f"{type(error).__name__}: {error}", 400))

    def _refuse(self, error: ProviderError) -> None:
        self._send(error.status_code, _error_body(error), JSON_BODY | error.response.headers)

    def _send(self, status: int, text: str, headers: Mapping[str, str] = JSON_BODY, cut: bool = False) -> None:
        body = text.encode()
        self._begin(status, {**headers, "content-length": str(len(body))})
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut

    def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _stream(self, play: Play, body: Mapping[str, object]) -> None:
        tape = play.tape(body)
        self._begin(200, {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"})
        for chunk in tape.chunks:
            self._wait(tape.pace)
            self._event(json.dumps(chunk.as_sent()))
        if tape.error is not None:
            self.close_connection = True
            return
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, data: str, kind: str = "") -> None:
        event = (f"event: {kind}\n" if kind else "").encode() + f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))

    def _wait(self, seconds: float | None) -> None:
        """Let time pass, forever if it is None. Raises `_Left` if the client no longer waits for the answer."""
        # The client sends nothing before it has its answer, so readable data can only be the end of the connection.
        readable, _, _ = select.select([self.connection], [], [], seconds) if seconds != 0 else ([], [], [])
        if readable:
            self.close_connection = True
            raise _Left

    def _reset(self) -> None:
        # Lingering for 0 seconds makes the close a reset; the reader holds the socket open until it is closed too.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


def _as_ours(play: Play) -> Play:
    return Play(as_completion(play.answer), play.latency, play.pace, play.cut_after)


def _error_body(error: ProviderError) -> str:
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    return json.dumps({"error": {"message": error.message, "type": kind, "param": None, "code": error.code}})


def _parsed(text: bytes) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
