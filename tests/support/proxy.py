"""A proxy before PostgreSQL that cuts connections: after a random number of bytes, and round a COMMIT.

The worst place is its own kind: the server has committed, and the answer that says so is lost.
"""

from __future__ import annotations

import contextlib
import random
import re
import selectors
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

RESET = struct.pack("ii", 1, 0)
"""What makes closing a socket a reset (SO_LINGER with no time)."""
COMMIT = b"COMMIT\0"
WROTE = re.compile(rb"(INSERT 0|UPDATE) [1-9]\d*\0")
"""The server's word for rows that were written."""
PATIENCE = 20.0
ANYWHERE, BEFORE, BEHIND = "anywhere", "before a commit", "behind a commit"


@dataclass
class Plan:
    """When connections are cut: nowhere until `cutting` is set.

    `mean` is how many bytes go through on average until a connection is cut. Of the commits of what was written, one of
    `commits` on average is cut off, in turn before the server has got it and before its answer is back.
    """

    chance: random.Random
    mean: int
    commits: int
    cutting: bool = False
    cuts: Counter[str] = field(default_factory=Counter)
    """How many connections were cut, by where."""
    _due: int = 1

    def judge_commit(self) -> str:
        """Give where this commit is to be cut off, '' if it is not."""
        self._due -= 1
        if self._due:
            return ""
        self._due = self.chance.randint(1, 2 * self.commits - 1)
        return BEFORE if self.cuts[BEFORE] <= self.cuts[BEHIND] else BEHIND


class _Link:
    """One connection: from the client to the proxy, and from there to the server."""

    def __init__(self, client: socket.socket, server: socket.socket, plan: Plan) -> None:
        self.client, self.server = client, server
        self._plan = plan
        self._left: float | None = None
        self._wrote = False
        self._mute = False
        """Whether the server's next answer is to be lost."""

    def forward(self, source: socket.socket) -> bool:
        """Forward what one side has sent; False if the connection is over then."""
        asks = source is self.client
        try:
            data = source.recv(65_536)
            where, allowed = self._judge(data, asks)
            (self.server if asks else self.client).sendall(data[:allowed])
        except OSError:
            return False
        if where:
            self._plan.cuts[where] += 1
        return bool(data) and not where

    def _judge(self, data: bytes, asks: bool) -> tuple[str, int]:
        """Give where the connection is to be cut, '' if nowhere, and how many of these bytes go through."""
        plan, length = self._plan, len(data)
        if not plan.cutting:
            return "", length
        if self._mute:
            return BEHIND, 0
        if self._is_commit(data, asks) and (where := plan.judge_commit()):
            self._mute = where == BEHIND
            return ("", length) if self._mute else (BEFORE, 0)
        if self._left is None:
            self._left = plan.chance.expovariate(1 / plan.mean)
        self._left -= length
        return ("", length) if self._left > 0 else (ANYWHERE, max(0, length + int(self._left)))

    def _is_commit(self, data: bytes, asks: bool) -> bool:
        if not asks:
            self._wrote = self._wrote or WROTE.search(data) is not None
            return False
        wrote, self._wrote = self._wrote, self._wrote and COMMIT not in data
        return wrote and COMMIT in data

    def end(self) -> None:
        """Close both sides, in half of the cases without a farewell."""
        rudely = self._plan.cutting and self._plan.chance.random() < 0.5
        for side in (self.client, self.server):
            if rudely:
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            side.close()


class Proxy:
    """Forwards the connections that come to `port` to a server, in one thread."""

    def __init__(self, server: tuple[str, int], plan: Plan) -> None:
        self._server = server
        self._plan = plan
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._bell, self._ringer = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._links: set[_Link] = set()
        self.port: int = self._listening.getsockname()[1]

    def serve(self) -> None:
        """Take connections and forward, until `ring` is called."""
        for own in (self._listening, self._bell):
            self._selector.register(own, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._bell:
                    return self._close()
                self._take() if key.data is None else self._forward(key.data, key.fileobj)

    def ring(self) -> None:
        """Have `serve` end."""
        self._ringer.send(b"!")

    def _take(self) -> None:
        client, _ = self._listening.accept()
        try:
            server = socket.create_connection(self._server, PATIENCE)
        except OSError:
            client.close()
            return
        client.settimeout(PATIENCE)
        link = _Link(client, server, self._plan)
        self._links.add(link)
        for side in (client, server):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(side, selectors.EVENT_READ, link)

    def _forward(self, link: _Link, source: object) -> None:
        if link in self._links and isinstance(source, socket.socket) and not link.forward(source):
            self._drop(link)

    def _drop(self, link: _Link) -> None:
        self._links.discard(link)
        for side in (link.client, link.server):
            self._selector.unregister(side)
        link.end()

    def _close(self) -> None:
        for link in list(self._links):
            self._drop(link)
        self._selector.close()
        for own in (self._listening, self._bell, self._ringer):
            own.close()


@contextlib.contextmanager
def proxied(url: str, plan: Plan) -> Iterator[str]:
    """Give the database's URL by way of a proxy; the proxy ends with the block."""
    parts = urlsplit(url)
    proxy = Proxy((parts.hostname or "", parts.port or 5432), plan)
    thread = threading.Thread(target=proxy.serve, name="proxy", daemon=True)
    thread.start()
    user, _, _ = parts.netloc.rpartition("@")
    try:
        yield urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{proxy.port}"))
    finally:
        proxy.ring()
        thread.join(PATIENCE)
