"""The connection of this process to one MCP server: opened at first use, and again when it was lost.

It is on the process's own event loop, in a task of its own, because the SDK wants a connection to be opened and closed
by the same task. Callers on any loop, or in any thread, use it by `Connection.call` and `Connection.tools`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.context import ClientRequestContext
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import (
    CONNECTION_CLOSED,
    REQUEST_TIMEOUT,
    CallToolResult,
    ElicitRequestParams,
    ElicitResult,
    InputRequiredResult,
    InputResponses,
    RequestParamsMeta,
    Tool,
)

from durable_swarm.background import on_background
from durable_swarm.concurrency import block, kept
from durable_swarm.credentials import without_secrets
from durable_swarm.errors import ConfigurationError, safe_text
from durable_swarm.tasks import Coro

log = logging.getLogger("durable_swarm")

T = TypeVar("T")

Connected = Callable[[], contextlib.AbstractAsyncContextManager[Client]]
"""Opens a connection, and closes it again."""

OPENING = 30.0
"""Seconds in which a server must answer when it is connected to."""

CLOSING = 5.0
"""Seconds that `close` waits for a server to end."""

STREAMS = httpx2.Timeout(30.0, read=300.0)
"""The timeouts of the SDK's own client: a server may hold the stream of an answer open."""

PAGES = 100
"""Maximum pages of a server's tool list."""


class CallLost(Exception):
    """Nothing is known of what came of a call: its connection was lost, or the server did not answer in time."""


class Connection:
    """A connection to one server; `source` is as in `mcp_tools`."""

    def __init__(self, source: Any, auth: object, timeout: float | None) -> None:
        self._source = source
        self._auth = auth
        self._timeout = timeout
        self._open: _Open | None = None
        self.label = label_of(source)

    async def tools(self) -> list[Tool]:
        """Return the server's tools. Raises `ConfigurationError` if it cannot be reached."""
        return await _on_background(self._tools())

    async def call(
        self,
        tool: str,
        arguments: dict[str, object],
        responses: InputResponses | None,
        state: str | None,
        meta: RequestParamsMeta,
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool. Raises `CallLost`, `ConfigurationError` if nothing was sent, and `MCPError` by the server."""
        return await _on_background(self._call(tool, arguments, responses, state, meta))

    def close(self) -> None:
        """Close the connection, if it is open; a later use opens it again."""
        opened, self._open = self._open, None
        if opened is not None:
            block(opened.close())

    async def _tools(self) -> list[Tool]:
        client, found, cursor = await self._client(), list[Tool](), None
        for _ in range(PAGES):
            try:
                page = await client.list_tools(cursor=cursor)
            except Exception as error:
                await self._forget()
                raise self._unreachable(error) from error
            found += page.tools
            cursor = page.next_cursor
            if cursor is None:
                return found
        raise ConfigurationError(f"MCP server {self.label} lists its tools on more than {PAGES} pages")

    async def _call(
        self,
        tool: str,
        arguments: dict[str, object],
        responses: InputResponses | None,
        state: str | None,
        meta: RequestParamsMeta,
    ) -> CallToolResult | InputRequiredResult:
        session = (await self._client()).session
        try:
            return await session.call_tool(
                tool,
                arguments,
                read_timeout_seconds=self._timeout,
                input_responses=responses,
                request_state=state,
                meta=meta,
                allow_input_required=True,
            )
        except MCPError as error:
            if error.code == REQUEST_TIMEOUT:
                raise CallLost(f"MCP server {self.label} did not answer within {self._timeout:g} s") from error
            if error.code != CONNECTION_CLOSED:
                raise
            await self._forget()
            raise CallLost(f"the connection to MCP server {self.label} was lost") from error
        except (OSError, httpx2.HTTPError) as error:
            await self._forget()
            raise CallLost(f"the connection to MCP server {self.label} was lost: {_reason(error)}") from error

    async def _client(self) -> Client:
        if self._open is None or self._open.is_over:
            self._open = _Open(self._connected)
        opened = self._open
        try:
            return await asyncio.wait_for(asyncio.shield(opened.client), OPENING)
        except Exception as error:
            if self._open is opened:
                await self._forget()
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ConfigurationError:
        return ConfigurationError(
            f"MCP server {self.label} cannot be reached: {_reason(error)}; start it, or correct the source of mcp_tools"
        )

    async def _forget(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            opened.end()

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        async with contextlib.AsyncExitStack() as stack:
            http = None
            if self._auth is not None:  # The SDK closes only clients that it has made.
                http = await stack.enter_async_context(httpx2.AsyncClient(auth=_auth_of(self._auth), timeout=STREAMS))
            yield await stack.enter_async_context(self._new_client(http))

    def _new_client(self, http: httpx2.AsyncClient | None) -> Client:
        source = self._source
        if isinstance(source, str):
            source = streamable_http_client(source, http_client=http)
        elif isinstance(source, Sequence):
            source = StdioServerParameters(command=source[0], args=list(source[1:]))
        if isinstance(source, StdioServerParameters):
            source = stdio_client(source, errlog=sys.__stderr__ or sys.stderr)
        return Client(source, elicitation_callback=self._decline)

    async def _decline(self, context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        """Decline a question that a server of an older protocol asks in the middle of a call: it cannot wait long."""
        log.warning("MCP server %s asks in the middle of a call, which is declined: %s", self.label, params.message)
        return ElicitResult(action="decline")


class _Open:
    """One opened connection: a task that keeps it until it is told to end."""

    def __init__(self, connected: Connected) -> None:
        self.client: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        self.client.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._ends = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._work = self._loop.create_task(kept(self._keep(connected)))

    @property
    def is_over(self) -> bool:
        """True if the connection is closed."""
        return self._work.done()

    async def _keep(self, connected: Connected) -> None:
        try:
            async with connected() as client:
                self.client.set_result(client)
                await self._ends.wait()
        except BaseException as error:
            if not self.client.done():
                self.client.set_exception(error if isinstance(error, Exception) else ConnectionError(repr(error)))
            raise

    def end(self) -> None:
        """Close the connection, without waiting for it."""
        self._ends.set()
        if not self.client.done():
            self._work.cancel()

    async def close(self) -> None:
        """Close the connection, and wait for it a short time."""
        self.end()
        await asyncio.wait([self._work], timeout=CLOSING)


async def _on_background(work: Coro[T]) -> T:
    return await asyncio.wrap_future(on_background(work))


def _auth_of(auth: object) -> Any:
    if not isinstance(auth, str):
        return auth

    def bearer(request: httpx2.Request) -> httpx2.Request:
        request.headers["Authorization"] = f"Bearer {auth}"
        return request

    return bearer


def label_of(source: object) -> str:
    """Return a short name of a server for people, without credentials."""
    if isinstance(source, str):
        url = urlsplit(source)
        return repr(f"{url.scheme}://{url.hostname}{f':{url.port}' if url.port else ''}{url.path}")
    if isinstance(source, StdioServerParameters):
        source = [source.command, *source.args]
    if isinstance(source, Sequence):
        return repr(without_secrets(shlex.join(source)))
    return repr(str(getattr(source, "name", type(source).__name__)))


def _reason(error: BaseException) -> str:
    """Return the first plain cause, because the SDK wraps errors in groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return f"no answer within {OPENING:g} s"
    return without_secrets(safe_text(error))[:300] or type(error).__name__
