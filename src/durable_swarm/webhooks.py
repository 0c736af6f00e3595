"""Webhooks: where a program tells others what happens in its runs, signed as Standard Webhooks."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import http.client
import ipaddress
import re
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args
from urllib.parse import urlsplit

from durable_swarm.errors import ConfigurationError

Kind = Literal["run.finished", "run.failed", "run.cancelled", "request.opened"]
"""What a webhook can tell."""
KINDS: tuple[Kind, ...] = get_args(Kind)
SECONDS = 10.0
"""How long a receiver may say nothing."""
MOST = 30.0
"""How long one delivery takes at most, in seconds."""
_TRANSLATED = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("2002::/16"))
"""Addresses of version 6 that stand for one of version 4."""


class Undelivered(Exception):
    """The receiver did not take a message; the text says why. With `final` it never will."""

    def __init__(self, why: str, *, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


@dataclass(frozen=True)
class Webhook:
    """An address that gets messages about events of a swarm's runs, such as "run.finished".

    `secret` signs the messages, as Standard Webhooks: `whsec_` and base64; a text that is not base64 is the key
    itself. Addresses of this machine and of private networks are refused, unless with `allow_private`: an address may
    come from a user. Raises `ConfigurationError`.
    """

    url: str
    secret: str = field(repr=False)
    events: Sequence[str] = ("run.finished", "request.opened")
    allow_private: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.url) if isinstance(self.url, str) else urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[\s\x00-\x1f]", self.url):
            raise ConfigurationError(
                f"a webhook needs the URL of a page, such as https://example.com/hook: {self.url!r:.80}"
            )
        if parts.username is not None:
            raise ConfigurationError("the URL of a webhook cannot have a name or a password; the secret signs messages")
        if not isinstance(self.secret, str) or not self.secret.removeprefix("whsec_"):
            raise ConfigurationError("a webhook needs a secret, such as 'whsec_' and 32 random bytes in base64")
        if isinstance(self.events, str):
            raise ConfigurationError(f"the events of a webhook are a list, such as [{self.events!r}]")
        if unknown := [one for one in self.events if one not in KINDS]:
            raise ConfigurationError(f"a webhook cannot tell {unknown[0]!r}; its events are {', '.join(KINDS)}")
        if not self.allow_private and _is_private_name(parts.hostname):
            raise ConfigurationError(
                f"{parts.hostname!r} is a private address; Webhook(..., allow_private=True) allows it"
            )

    def signature(self, message_id: str, timestamp: int, body: bytes) -> str:
        """Return the signature of a message, as in the header `webhook-signature`."""
        signed = hmac.new(self._key(), f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
        return f"v1,{base64.b64encode(signed.digest()).decode()}"

    def _key(self) -> bytes:
        text = self.secret.removeprefix("whsec_")
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            return text.encode()

    def send(self, message_id: str, timestamp: int, body: bytes) -> None:
        """Deliver a message. Raises `Undelivered`."""
        headers = {
            "content-type": "application/json",
            "user-agent": "durable-swarm",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": self.signature(message_id, timestamp, body),
        }
        parts = urlsplit(self.url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            connection = self._connection()
            with _ending(connection):
                connection.request("POST", path, body, headers)
                status = connection.getresponse().status
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Undelivered(f"{type(error).__name__}: {error}") from None
        if not 200 <= status < 300:  # A redirection is not followed: it could lead anywhere.
            raise Undelivered(f"status {status}", final=status == 410)

    def _connection(self) -> http.client.HTTPConnection:
        """Return a connection to an address that was checked: another look at the name could find another address."""
        parts = urlsplit(self.url)
        host, secure = parts.hostname or "", parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(entry[4][0]) for entry in found]
        private = [address for address in addresses if not is_public(address)]
        if private and not self.allow_private:
            raise Undelivered(f"{host} is at the private address {private[0]}, which is not allowed")
        made = (http.client.HTTPSConnection if secure else http.client.HTTPConnection)(host, port, timeout=SECONDS)
        plain = socket.create_connection((addresses[0], port), SECONDS)
        made.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host) if secure else plain
        return made


def check_webhooks(given: Iterable[Webhook]) -> tuple[Webhook, ...]:
    """Return the webhooks of a swarm. Raises `ConfigurationError` for what is none, and for an address named twice."""
    if isinstance(given, Webhook):
        raise ConfigurationError("webhooks must be a list: [Webhook(...)]")
    hooks = tuple(given)
    if wrong := [hook for hook in hooks if not isinstance(hook, Webhook)]:
        raise ConfigurationError(f"webhooks must be a list of durable_swarm.server.Webhook, and has {wrong[0]!r:.80}")
    if len({hook.url for hook in hooks}) < len(hooks):
        raise ConfigurationError("two webhooks have the same url; give one of them all the events")
    return hooks


@contextlib.contextmanager
def _ending(connection: http.client.HTTPConnection) -> Iterator[None]:
    """Close a connection at the end of the block, or after the longest time, which ends the block."""

    def cut() -> None:
        if connection.sock is not None:
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(MOST, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        connection.close()


def is_public(address: str) -> bool:
    """Return True if an IP address is one of the internet, and not of this machine or a private network."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return is_public(str(found.ipv4_mapped))
        if any(found in network for network in _TRANSLATED):
            return False
    return found.is_global and not found.is_multicast


def _is_private_name(host: str) -> bool:
    try:
        return not is_public(host)
    except ValueError:
        return host.lower().rstrip(".") == "localhost" or host.lower().rstrip(".").endswith(".localhost")
