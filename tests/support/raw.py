"""An HTTP server that sends a provider's odd bytes as they are written in a test; nothing is made nicer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Reply = dict[str, Any] | list[Any] | tuple[Any, ...] | str
"""A whole body, the events of a stream, (status, body[, headers]), or a text that is sent as it is."""

DONE = "data: [DONE]"


class RawServer:
    """Gives the replies in order, one for each POST, the last one again and again; `requests` are the bodies."""

    def __init__(self, *replies: Reply | Callable[[dict[str, Any]], Reply]) -> None:
        self.requests: list[dict[str, Any]] = []
        self._replies = replies
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        take = self._take

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status, data, headers = take(body)
                self.send_response(status)
                for name, value in {"content-length": str(len(data)), "connection": "close", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler

    def _take(self, body: dict[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        with self._lock:
            self.requests.append(body)
            reply = self._replies[min(len(self.requests), len(self._replies)) - 1]
        given = reply(body) if callable(reply) else reply
        status, given, headers = (*given, {})[:3] if isinstance(given, tuple) else (200, given, {})
        if isinstance(given, list):
            events = [event if isinstance(event, str) else f"data: {json.dumps(event)}" for event in given]
            return status, ("\n\n".join(events) + "\n\n").encode(), {"content-type": "text/event-stream", **headers}
        text = given if isinstance(given, str) else json.dumps(given)
        return status, text.encode(), {"content-type": "application/json", **headers}

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def whole(content: Any = None, calls: list[Any] | None = None, finish: str = "", **more: Any) -> dict[str, Any]:
    """Return a whole answer; `more` are further fields of its message."""
    message = {"role": "assistant", "content": content, **({} if calls is None else {"tool_calls": calls}), **more}
    choice = {"index": 0, "message": message, "finish_reason": finish or ("tool_calls" if calls else "stop")}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def called(name: str, arguments: Any = "{}", id: Any = "call_a", **more: Any) -> dict[str, Any]:
    """Return a tool call as a whole answer has it."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def piece(delta: dict[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """Return a chunk of a stream."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}
