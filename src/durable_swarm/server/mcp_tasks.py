"""Tasks of the door `mcp`: for a client that knows them, a call is a task, whose id is that of its run.

The task of a run that asks a person waits for input, and `tasks/update` answers it. Nothing is kept: what a task is, is
read from its run, so any process of the server answers for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from mcp import MCPError
from mcp.server import Server, ServerRequestContext
from mcp_types import INVALID_PARAMS, CallToolResult, ElicitRequest, ElicitResult, RequestParams
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from durable_swarm.engine.api.run import Run
from durable_swarm.errors import DurableSwarmError
from durable_swarm.requests import Request as HumanRequest
from durable_swarm.runs import ENDED
from durable_swarm.server.backend import Backend, Caller
from durable_swarm.server.outcome import outcome_of

TASKS = "io.modelcontextprotocol/tasks"
"""The name of the extension (SEP-2663)."""
POLL = 1000
"""Milliseconds after which a client may ask again."""
STATES = {"done": "completed", "failed": "failed", "cancelled": "cancelled"}
"""The statuses of tasks whose runs have ended; any other is working, or waits for input."""
FAILED = -32603
"""JSON-RPC's code for a task that failed."""


class TaskParams(RequestParams):
    """The parameters of a request about a task."""

    task_id: str


class UpdateParams(TaskParams):
    """The answers to what a task asks, by the id of each request."""

    input_responses: dict[str, ElicitResult]


class Tasks:
    """The methods about tasks. How requests are asked and decided, and results look, is the door's."""

    def __init__(
        self,
        backend: Backend,
        server: Server[object],
        caller: Callable[[ServerRequestContext[Any]], Caller],
        decide: Callable[[Caller, Run, dict[str, ElicitResult]], Awaitable[None]],
        asked: Callable[[HumanRequest], ElicitRequest],
        result: Callable[..., CallToolResult],
    ) -> None:
        self._backend = backend
        self._caller, self._decide, self._asked, self._result = caller, decide, asked, result
        server.extensions[TASKS] = {}
        server.add_request_handler("tasks/get", TaskParams, self._get)
        server.add_request_handler("tasks/update", UpdateParams, self._update)
        server.add_request_handler("tasks/cancel", TaskParams, self._cancel)

    async def created(self, run: Run) -> dict[str, object]:
        """Return the result of a call that is a task."""
        return {"resultType": "task", **await self._backend.call(lambda: _about(run, "working"))}

    async def _get(self, context: ServerRequestContext[object], params: TaskParams) -> dict[str, object]:
        run = await self._run(context, params)
        outcome = await outcome_of(self._backend, run, patience=0)
        state = STATES.get(outcome.status, "input_required" if outcome.waits_for else "working")
        answer = await self._backend.call(lambda: _about(run, state))
        if state == "completed":
            answer["result"] = _plain(self._result(outcome))
        elif state == "failed":
            answer["error"] = {"code": FAILED, "message": outcome.error}
        elif state == "input_required":
            answer["inputRequests"] = {request.id: _plain(self._asked(request)) for request in outcome.waits_for}
        return answer

    async def _update(self, context: ServerRequestContext[object], params: UpdateParams) -> dict[str, object]:
        run = await self._run(context, params)
        try:
            await self._decide(self._caller(context), run, params.input_responses)
        except DurableSwarmError as error:
            raise _refused(error) from None
        return {}

    async def _cancel(self, context: ServerRequestContext[object], params: TaskParams) -> dict[str, object]:
        run = await self._run(context, params)
        await self._backend.call(lambda: None if run.status in ENDED else run.cancel())
        return {}

    async def _run(self, context: ServerRequestContext[object], params: TaskParams) -> Run:
        caller = self._caller(context)
        try:
            run = await self._backend.call(lambda: caller.run(params.task_id))
        except DurableSwarmError as error:
            raise _refused(error) from None
        return run


def knows_tasks(context: ServerRequestContext[object]) -> bool:
    """Return True if the client takes a task as the result of a call."""
    capabilities = context.session.client_capabilities
    known = capabilities is not None and TASKS in (capabilities.extensions or {})
    return known and context.protocol_version in MODERN_PROTOCOL_VERSIONS


def _about(run: Run, state: str) -> dict[str, object]:
    times = {"createdAt": run.created_at.isoformat(), "lastUpdatedAt": run.updated_at.isoformat()}
    return {"taskId": run.id, "status": state, **times, "ttlMs": None, "pollIntervalMs": POLL}


def _plain(model: CallToolResult | ElicitRequest) -> dict[str, object]:
    return model.model_dump(by_alias=True, mode="json", exclude_none=True)


def _refused(error: DurableSwarmError) -> MCPError:
    return MCPError(INVALID_PARAMS, f"{type(error).__name__}: {error}")
