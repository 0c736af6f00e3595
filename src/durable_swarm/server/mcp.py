"""The door `mcp`: agents as tools of an MCP server, over streamable HTTP at /mcp, or over stdin and stdout.

A call is a run, and for a client that knows tasks (`mcp_tasks.py`) a task. What the run asks a person is asked of the
client, which ends the request: the answer may come later, from another connection, to another process of this server. A
client that cannot be asked is sent the question as text.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from mcp import MCPError
from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    InputRequiredResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from durable_swarm.engine.api.run import Run
from durable_swarm.engine.records.names import is_call
from durable_swarm.errors import AlreadyAnswered, ConfigurationError, DurableSwarmError, RequestExpired
from durable_swarm.fields import unknown_field
from durable_swarm.requests import Request as HumanRequest
from durable_swarm.runs import ENDED
from durable_swarm.server.answer_form import answer_form, answer_in, verdict_in
from durable_swarm.server.backend import Backend, Caller, Refused, failed
from durable_swarm.server.mcp_tasks import Tasks, knows_tasks
from durable_swarm.server.openapi import EVENTS, JSON, Described
from durable_swarm.server.outcome import Outcome, outcome_of
from durable_swarm.service.doctor import installed
from durable_swarm.sub_agents import snake_case

KEY = "durable-swarm/idempotency-key"
"""Where a client names the run, in the `_meta` of a call: a repeated call with it attaches to the run."""
PATIENCE = 25.0
"""Seconds after which a call returns the id of a run that is still in progress."""
MESSAGE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "message": {"type": "string", "description": "what to ask the agent"},
        "session": {"type": "string", "description": "a conversation to continue"},
    },
    "required": ["message"],
    "additionalProperties": False,
}
RUN: dict[str, Any] = {
    "type": "object",
    "properties": {"run_id": {"type": "string"}},
    "required": ["run_id"],
    "additionalProperties": False,
}


class Mcp:
    """The door, and its server."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        version = installed("durable-swarm") or ""
        self.server: Server[object] = Server("durable-swarm", version=version, on_list_tools=self._tools)
        # The type of `on_call_tool` has no results of extensions, which the handler may return.
        self.server.add_request_handler("tools/call", CallToolRequestParams, self._called)
        self._tasks = Tasks(backend, self.server, self._caller, self._decide, _elicitation, _result)
        self._manager: StreamableHTTPSessionManager | None = None
        self._work: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route("/mcp", _Endpoint(self), methods=["POST", "DELETE"])]

    @classmethod
    def described(cls) -> Iterator[Described]:
        """Yield the description of each route."""
        body = {"type": "object", "required": ["jsonrpc"]}
        yield Described("POST", "/mcp", "Send a message to the MCP server", body, media=(JSON, EVENTS))
        yield Described("DELETE", "/mcp", "End a session of the MCP server")

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        try:
            again = await self._backend.whole(Request(scope, receive))
            self._backend.check_streams()
        except Refused as error:
            await failed(error)(scope, receive, send)
        else:
            with self._backend.streaming():  # An answer is a stream that stays open while the run goes on.
                await (await self._started()).handle_request(scope, again, send)

    async def _started(self) -> StreamableHTTPSessionManager:
        """Return the SDK's manager of connections, which works as long as this event loop."""
        if self._manager is None or self._work is None or self._work.done():
            self._manager, self._ready = StreamableHTTPSessionManager(self.server, stateless=True), asyncio.Event()
            self._work = asyncio.get_running_loop().create_task(_keep(self._manager, self._ready))
        manager = self._manager
        await self._ready.wait()  # Each of the first requests: several may come at once.
        return manager

    async def serve_stdio(self) -> None:
        """Serve one client over stdin and stdout, until it leaves."""
        async with stdio_server() as (read, write):
            await self.server.run(read, write, self.server.create_initialization_options())

    # Tools

    async def _tools(self, _: ServerRequestContext[object], __: PaginatedRequestParams | None) -> ListToolsResult:
        asks = [
            Tool(name=tool, description=f"Ask the agent {name!r} and get its answer.", input_schema=MESSAGE)
            for tool, name in self._names().items()
        ]
        read = Tool(name="get_run", description="Get the answer of a run by its id.", input_schema=RUN)
        return ListToolsResult(tools=[*asks, read])

    def _names(self) -> dict[str, str]:
        """Return the agents by the names of their tools."""
        return {f"ask_{snake_case(name) or 'agent'}"[:64]: name for name in self._backend.agent_names()}

    async def _called(
        self, context: ServerRequestContext[object], params: CallToolRequestParams
    ) -> CallToolResult | InputRequiredResult | dict[str, object]:
        try:
            caller = self._caller(context)
            run = await self._run(caller, context, params)
            if knows_tasks(context) and params.name != "get_run" and not params.request_state:
                return await self._tasks.created(run)
            if params.input_responses:
                await self._decide(caller, run, params.input_responses)
            outcome = await self._awaited(run)
        except DurableSwarmError as error:
            return _text(f"{type(error).__name__}: {error}", failed=True)
        if outcome.waits_for and _can_be_asked(context):
            return InputRequiredResult(
                input_requests={request.id: _elicitation(request) for request in outcome.waits_for},
                request_state=outcome.run_id,
            )
        return _result(outcome)

    def _caller(self, context: ServerRequestContext[object]) -> Caller:
        caller = self._backend.caller(context.request)
        return replace(caller, name=caller.name or "mcp")

    async def _run(self, caller: Caller, context: ServerRequestContext[object], params: CallToolRequestParams) -> Run:
        given, name = params.arguments or {}, self._names().get(params.name)
        if name is None and params.name != "get_run":
            known = [*self._names(), "get_run"]
            raise MCPError(INVALID_PARAMS, unknown_field("this server", params.name, known, "tool"))
        _check_names(params.name, given, RUN if name is None else MESSAGE)
        if params.request_state or name is None:
            run_id = params.request_state or str(given.get("run_id", ""))
            return await self._backend.call(lambda: caller.run(run_id))
        if not isinstance(given.get("message"), str):
            raise ConfigurationError("message must be a text")
        run_id, messages = _run_id(context), [{"role": "user", "content": given["message"]}]

        def begin() -> Run:
            agent = self._backend.agent(name)
            if given.get("session"):
                return caller.send(caller.session(str(given["session"]), agent), messages, run_id=run_id)
            return caller.start(agent, messages, run_id=run_id)

        return await self._backend.call(begin)

    async def _awaited(self, run: Run) -> Outcome:
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(outcome_of(self._backend, run), PATIENCE)
        return await outcome_of(self._backend, run, patience=0)

    async def _decide(self, caller: Caller, run: Run, responses: Mapping[str, object]) -> None:
        """Take the answers of the client to what a run asks now; others are left out, as the specification says."""
        asked = {request.id for request in await self._backend.call(run.requests)}
        for request_id, response in responses.items():
            if request_id not in asked:
                continue
            with contextlib.suppress(AlreadyAnswered, RequestExpired):
                await self._backend.call(functools.partial(_answer, caller, request_id, response))


def _answer(caller: Caller, request_id: str, said: object) -> None:
    request, fields = caller.request(request_id), said.content or {} if isinstance(said, ElicitResult) else {}
    accepted = isinstance(said, ElicitResult) and said.action == "accept"
    if request.kind == "question":
        if accepted:
            caller.answer(request.id, answer_in(request, fields) if request.schema is None else fields)
        elif request.schema is not None:
            caller.reject(request.id)
    elif accepted and verdict_in(request, fields):
        caller.approve(request.id)
    else:
        caller.reject(request.id, str(fields.get("reason") or ""))


def _check_names(tool: str, given: Mapping[str, object], schema: Mapping[str, Any]) -> None:
    """Check that a tool has all arguments of a call. Raises `ConfigurationError`."""
    known = list(schema["properties"])
    for name in given:
        if name not in known:
            raise ConfigurationError(unknown_field(f"the tool {tool!r}", name, known, "argument"))


def _run_id(context: ServerRequestContext[object]) -> str:
    """Return the id of a new run, or of the one that the client names; a key of our own client is that of a call."""
    meta = context.meta or {}
    key = str(meta.get(KEY) or uuid.uuid4())
    return f"{key}/mcp" if is_call(key) else key


class _Endpoint:
    """The door as an ASGI application: a route takes a class of its own as one."""

    def __init__(self, door: Mcp) -> None:
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._door.serve(scope, receive, send)


async def _keep(manager: StreamableHTTPSessionManager, ready: asyncio.Event) -> None:
    async with manager.run():
        ready.set()
        await asyncio.Event().wait()


def _can_be_asked(context: ServerRequestContext[object]) -> bool:
    capabilities = context.session.client_capabilities
    asked = capabilities is not None and capabilities.elicitation is not None
    return asked and context.protocol_version in MODERN_PROTOCOL_VERSIONS


def _elicitation(request: HumanRequest) -> ElicitRequest:
    schema = answer_form(request)
    shown = f"\n{json.dumps(request.arguments, indent=2)}" if request.arguments else ""
    return ElicitRequest(params=ElicitRequestFormParams(message=f"{request.question}{shown}", requested_schema=schema))


def _result(outcome: Outcome) -> CallToolResult:
    if outcome.status in ENDED:
        failed = outcome.status != "done"
        return _text(outcome.text or outcome.error or f"the run is {outcome.status}", failed=failed)
    text = outcome.text or f"Run {outcome.run_id} is in progress; get_run has its answer later."
    return _text(text, failed=False)


def _text(text: str, *, failed: bool) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=text)], is_error=failed)
