"""Serves an application by itself: the address, the token, the end."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import socket
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any, Protocol
from urllib.parse import quote

import h11
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from durable_swarm.errors import ConfigurationError
from durable_swarm.server.guard import LOOPBACK

VARIABLE = "DURABLE_SWARM_SERVER_TOKEN"
EVERYWHERE = {"0.0.0.0", "::", "[::]"}
"""Names under which a server listens at all addresses of its machine."""
HEAD = 10.0
"""Seconds in which the head of a request must come, from its first byte or the beginning of the connection."""
BODY = 30.0
"""Seconds in which the body of a request must come, and one more for each `SLOWEST` bytes that have come."""
SLOWEST = 10_000
LAST = 1
"""Seconds that requests in progress have when the server ends."""


def token_for(host: str) -> str:
    """Return the token of a server: that of the environment, else a new one, which only this machine may use.

    Raises `ConfigurationError` for another address without a token in the environment: a new one is printed, and what
    is printed on a server ends up in its log.
    """
    token = os.environ.get(VARIABLE)
    if token:
        return token
    if bracketed(host) not in LOOPBACK:
        raise ConfigurationError(
            f"{host!r} can be reached from other machines, so the token must be one of your own: set {VARIABLE}"
        )
    return secrets.token_urlsafe(24)


def names_of(hosts: Iterable[str]) -> frozenset[str]:
    """Return the names by which requests may call this server."""
    return LOOPBACK | {bracketed(host).lower() for host in hosts}


def called(hosts: Sequence[str]) -> str:
    """Return the first of the names of a server that somebody can call: not that of all addresses of the machine."""
    names = [host for host in hosts if host not in EVERYWHERE]
    return names[0] if names else "::1" if ":" in hosts[0] else "127.0.0.1"


def bracketed(host: str) -> str:
    """Return a host as addresses write it."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


class Served(Protocol):
    """An application that can be told that the server ends."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

    def stop(self) -> None:
        """End all streams."""


class _Protocol(H11Protocol):
    """A connection on which each request must come in time: half of one would keep a connection for ever."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._receiving: object = None
        """The request whose body comes."""
        self._began = 0.0
        self._came = 0
        """Bytes that have come since its head was whole."""
        self._due: asyncio.TimerHandle | None = self.loop.call_later(HEAD, self._close)

    def data_received(self, data: bytes) -> None:
        if self._due is None and self._is_idle():
            self._due = self.loop.call_later(HEAD, self._close)
        super().data_received(data)
        if not self._is_idle():
            self._stop_timer()
            if self.conn.their_state is h11.SEND_BODY:
                self._await_body(len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_body(self, came: int) -> None:
        if self._receiving is not self.cycle:
            self._receiving, self._began, self._came = self.cycle, self.loop.time(), 0
        self._came += came
        self._due = self.loop.call_at(self._began + BODY + self._came / SLOWEST, self._close)

    def _stop_timer(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _close(self) -> None:
        if self.flow.read_paused:  # The client waits for the application, which has not read what came.
            self._due = self.loop.call_later(BODY, self._close)
        else:
            self.transport.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop = stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._stop()
        super().handle_exit(sig, frame)


def serve(app: Served, host: str, port: int, root_path: str, ready: Callable[[int], None]) -> None:
    """Serve until SIGTERM or Ctrl+C; `ready` gets the port once connections are taken.

    Raises `ConfigurationError` if the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"port {port} of {host} cannot be used: {error.strerror}; name another by --port"
        ) from error
    config = uvicorn.Config(
        app, log_level="error", access_log=False, root_path=root_path, timeout_graceful_shutdown=LAST,
        server_header=False, date_header=False, proxy_headers=False, ws="none", lifespan="on", http=_Protocol,
    )  # fmt: skip
    with listener:
        gc.freeze()  # What was imported stays. A pass over it would cost each long page more than the page.
        ready(listener.getsockname()[1])
        _Server(config, app.stop).run(sockets=[listener])


def address(host: str, port: int, root_path: str, token: str) -> str:
    """Return the one address that signs in."""
    return f"http://{bracketed(host)}:{port}{root_path}/runs?token={quote(token, safe='')}"
