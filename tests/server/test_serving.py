"""The server by itself, on a socket."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse

from durable_swarm.server import serving


class Served:
    """An application that reads the body of a request, and answers with "ok"; at /busy it reads after a while."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            if scope["path"] == "/busy":
                await asyncio.sleep(1)
            with contextlib.suppress(ClientDisconnect):
                await Request(scope, receive).body()
                await PlainTextResponse("ok")(scope, receive, send)

    def stop(self) -> None:
        """End all streams."""


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Serve, with half a second for the head of a request, as for its body."""
    monkeypatch.setattr(serving, "HEAD", 0.5)
    monkeypatch.setattr(serving, "BODY", 0.5)
    servers: list[Any] = []
    monkeypatch.setattr(serving._Server, "startup", _noting(servers, serving._Server.startup))
    ready, found = threading.Event(), []

    def known(port: int) -> None:
        found.append(port)
        ready.set()

    thread = threading.Thread(target=serving.serve, args=(Served(), "127.0.0.1", 0, "", known))
    thread.start()
    ready.wait(30)
    yield found[0]
    servers[0].should_exit = True
    thread.join(30)


def _noting(servers: list[Any], startup: Any) -> Any:
    async def noted(self: Any, **options: Any) -> None:
        servers.append(self)
        await startup(self, **options)

    return noted


def is_closed(slow: socket.socket) -> bool:
    """Return True once a connection is closed, on which a byte is sent now and then; False if it stays open."""
    slow.settimeout(0.05)
    try:
        for _ in range(200):
            with contextlib.suppress(TimeoutError):
                return slow.recv(4096) == b""
            slow.sendall(b"a")
    except ConnectionError:
        return True
    return False


HALF_A_HEAD = b"GET / HTTP/1.1\r\nx: "
HALF_A_BODY = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"


@pytest.mark.parametrize(
    ("half", "first"),
    [
        (HALF_A_HEAD, b""),
        (HALF_A_HEAD, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"),
        (HALF_A_BODY, b""),
        (HALF_A_BODY, b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nab"),
    ],
    ids=["head", "head after a request", "body", "body after a request"],
)
def test_half_a_request_is_not_waited_for(port: int, half: bytes, first: bytes) -> None:
    """A connection on which a request begins and does not go on is closed, also after a request that was answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
        slow.sendall(first)
        if first:
            answer = b""
            while not answer.endswith(b"ok"):
                answer += slow.recv(4096)
        slow.sendall(half)
        assert is_closed(slow)


@pytest.mark.parametrize("path", ["/", "/busy"])
def test_a_long_body_has_its_time(port: int, path: str) -> None:
    """A body that comes at a fair pace is waited for, also where the application is slow to read it."""
    body = b"x" * 200_000
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {10 * len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as fair:
        fair.sendall(head.encode())
        for _ in range(10):
            fair.sendall(body)
            time.sleep(0.1)
        assert fair.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_connection_is_used_again(port: int) -> None:
    """Requests that follow each other on one connection are answered, however long it lasts."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for _ in range(4):
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"ok"
        time.sleep(0.3)
    connection.close()
