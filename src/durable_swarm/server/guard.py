"""Checks each request before the application sees it, and adds the headers that keep pages closed.

The order is that of cost: the Host list, where a change comes from, then who asks. What answers without a name is told
to the guard by its application: static files, `/healthz`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import inspect
from collections.abc import Callable, Collection, Container
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from durable_swarm.display import one_line

USER = "durable_swarm.user"
"""The key of a request's scope with the name of who asks, or None."""
OWN = "durable_swarm.own"
"""The key of a request's scope with the name of the person whose runs alone it may see, or None for all runs."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
WRONG_ONES = 5
"""After this many wrong tokens, each further one is answered a second later."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Access:
    """The rules of who may ask, and under which name.

    `token` is what every request must show, or None where `user` decides, and refuses by returning None. `hosts` are
    the names a request may use for this server; None for any. `name` stands for whoever shows the token, unless a
    proxy at one of the addresses `proxies` names somebody in the header `header`. With `owners`, whoever `user` names
    sees only runs of its own, unless it is one of the `operators`.
    """

    token: str | None = None
    user: Callable[[Request], object] | None = None
    hosts: Collection[str] | None = None
    name: str | None = None
    header: str | None = None
    proxies: Collection[str] = ()
    owners: bool = False
    operators: Container[str] = ()


class Guard:
    """The outermost layer of an application.

    `free` tells by the path what needs no name; `refuse` makes the answer to a request without one, `deny` those of
    other statuses, of a status and a sentence.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        free: Callable[[str], bool],
        refuse: Callable[[Request, bool], Response],
        deny: Callable[[Request, int, str], Response] | None = None,
    ) -> None:
        self._app = app
        self._access = access
        self._free = free
        self._refuse = refuse
        self._deny = deny or _in_words
        self._wrong = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, and pass it on or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":

            async def closed(message: Message) -> None:
                if message["type"] == "http.response.start":
                    headers = MutableHeaders(scope=message)
                    headers.update(HEADERS)
                    headers.setdefault("cache-control", "no-store")
                await send(message)

            answer = await self._check(scope, receive)
            with contextlib.suppress(ClientDisconnect):  # Nobody is left to be answered.
                await (answer or self._app)(scope, receive, closed)

    async def _check(self, scope: Scope, receive: Receive) -> Response | None:
        """Return the answer to a request that may not pass, or None."""
        request, path = Request(scope, receive), route_path(scope)
        host = host_of(request.headers.get("host", ""))
        if self._access.hosts is not None and host not in self._access.hosts:
            name = one_line(host)[:200]
            return self._deny(request, 421, f"This server does not answer under the name {name!r}; add --host {name}.")
        if scope["method"] not in SAFE and not self._is_own(request):
            return self._deny(request, 403, "A change must come from a page of this server.")
        if self._free(path):
            return None
        if self._access.token is None:
            return await self._by_application(scope, request)
        return await self._by_token(self._access.token, scope, request)

    def _is_own(self, request: Request) -> bool:
        """Return True unless a page of another origin may have sent this change.

        Every browser of today names the site; older ones name the origin. Whoever names neither is not a browser, and
        has no cookie, which would prove nothing about the sender: it must show the token itself.
        """
        headers = request.headers
        if "sec-fetch-site" in headers:
            return headers["sec-fetch-site"] == "same-origin"
        if "origin" in headers:
            return headers["origin"].partition("://")[2].lower() == headers.get("host", "").lower() != ""
        return self._access.token is None or "cookie" not in headers

    async def _by_application(self, scope: Scope, request: Request) -> Response | None:
        """Ask the program that this application is part of."""
        found = None if self._access.user is None else self._access.user(request)
        scope[USER] = await found if inspect.isawaitable(found) else found
        if self._access.user is not None and not scope[USER]:
            return self._deny(request, 401, "Nobody is signed in.")
        if self._access.owners and scope[USER] not in self._access.operators:
            scope[OWN] = scope[USER]
        return None

    async def _by_token(self, token: str, scope: Scope, request: Request) -> Response | None:
        shown = _bearer(request.headers)
        asked = request.query_params.get("token") if scope["method"] in SAFE else None
        if shown is None and asked is not None and equal(asked, token):
            return self._remember(request, token)
        given = [(shown, token), (request.cookies.get(cookie_name(token)), cookie_value(token))]
        if not any(value is not None and equal(value, wanted) for value, wanted in given):
            return await self._turn_away(request, wrong=bool(shown or asked))
        self._wrong = 0
        scope[USER] = self._named(request)
        return None

    def _named(self, request: Request) -> str | None:
        """Return who asks: in the words of a proxy that is trusted, else the one name there is."""
        access, peer = self._access, request.client.host if request.client else ""
        named = request.headers.get(access.header, "") if access.header and peer in access.proxies else ""
        return one_line(named) or access.name

    async def _turn_away(self, request: Request, *, wrong: bool) -> Response:
        if wrong:
            await self.slow_down()
        return self._refuse(request, wrong)

    async def slow_down(self) -> None:
        """Count a wrong token; answer a second later once there were several."""
        self._wrong += 1
        if self._wrong > WRONG_ONES:
            await asyncio.sleep(1)

    def _remember(self, request: Request, token: str) -> Response:
        """Keep the token in a cookie, and out of the address bar."""
        query = [(name, value) for name, value in parse_qsl(request.url.query, True) if name != "token"]
        return signed_in(request, token, f"{quote(request.scope['path'])}{'?' * bool(query)}{urlencode(query)}")


def _in_words(_: Request, status: int, text: str) -> Response:
    return PlainTextResponse(f"{text}\n", status)


def signed_in(request: Request, token: str, path: str) -> Response:
    """Return the way to a page, with the cookie that stands for the token."""
    answer = RedirectResponse(path if path.startswith("/") and path[1:2] not in ("/", "\\") else "/", 303)
    root = request.scope.get("root_path") or "/"
    secure = request.scope["scheme"] == "https"
    answer.set_cookie(
        cookie_name(token), cookie_value(token), path=root, httponly=True, samesite="strict", secure=secure
    )
    return answer


def route_path(scope: Scope) -> str:
    """Return the path of a request inside its application, wherever that is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def cookie_name(token: str) -> str:
    """Return the cookie's name, which differs by token: ports of one machine share their cookies."""
    return f"durable_swarm_{_keyed(token, 'name')[:8]}"


def cookie_value(token: str) -> str:
    """Return what the cookie proves the token with."""
    return _keyed(token, "value")


def host_of(value: str) -> str:
    """Return the name in a Host header, without its port."""
    name, _, port = value.rpartition(":")
    return (name if name and port.isdigit() else value).lower().rstrip(".")


def _bearer(headers: Headers) -> str | None:
    kind, _, value = headers.get("authorization", "").partition(" ")
    return value.strip() if kind.lower() == "bearer" else None


def _keyed(token: str, use: str) -> str:
    return hmac.new(token.encode(), use.encode(), hashlib.sha256).hexdigest()


def equal(given: str, wanted: str) -> bool:
    """Return True if two secrets are the same, in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())
