"""The door `a2a`: agents for other agents that speak A2A 1.0, as JSON-RPC at /a2a/AGENT, each with a card.

A task is a run, and a context a session. The SDK checks and routes the messages; its store of tasks and its executors
are not used: what a task is, is read from its run, in any process. What a run asks a person is `input-required`, and
the next message to the task answers it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import NoReturn, TypeVar

from a2a.server.context import ServerCallContext
from a2a.server.jsonrpc_models import JSONParseError
from a2a.server.request_handlers.request_handler import RequestHandler
from a2a.server.request_handlers.response_helpers import agent_card_to_dict, build_error_response
from a2a.server.routes.common import DefaultServerCallContextBuilder
from a2a.server.routes.jsonrpc_dispatcher import JsonRpcDispatcher
from a2a.types.a2a_pb2 import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    CancelTaskRequest,
    GetTaskRequest,
    ListTasksRequest,
    ListTasksResponse,
    Message,
    SendMessageRequest,
    SubscribeToTaskRequest,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
    TaskStatusUpdateEvent,
)
from a2a.utils.errors import (
    InternalError,
    InvalidParamsError,
    PushNotificationNotSupportedError,
    TaskNotCancelableError,
    TaskNotFoundError,
    UnsupportedOperationError,
)
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from durable_swarm.engine.api.run import Run
from durable_swarm.errors import DurableSwarmError, RunNotFound
from durable_swarm.runs import ENDED
from durable_swarm.server.a2a_shapes import Telling, content_in, take, task_of
from durable_swarm.server.backend import INVALID_JSON, Backend, Caller, Refused, id_in, served
from durable_swarm.server.ids import encode_id
from durable_swarm.server.openapi import EVENTS, JSON, Described
from durable_swarm.server.outcome import LOOK, Outcome, last_event, outcome_of, waits
from durable_swarm.service import Query, is_unusable
from durable_swarm.service.doctor import installed

T = TypeVar("T")

LARGEST_PAGE = 100
Told = Task | Message | TaskStatusUpdateEvent | TaskArtifactUpdateEvent


class A2A:
    """The door: one endpoint and one card for each agent."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._dispatcher = JsonRpcDispatcher(_Tasks(backend), _Contexts(backend))
        logging.getLogger(JsonRpcDispatcher.__module__).addFilter(_is_a_fault)

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/a2a/{agent}", served(self.ask), methods=["POST"]),
            Route("/a2a/{agent}/.well-known/agent-card.json", served(self.card)),
        ]

    @classmethod
    def described(cls) -> Iterator[Described]:
        """Yield the description of each route."""
        method = {"enum": list(JsonRpcDispatcher.METHOD_TO_MODEL)}
        body = {"type": "object", "required": ["jsonrpc", "method"], "properties": {"method": method}}
        yield Described("POST", "/a2a/{agent}", "Ask an agent (A2A, JSON-RPC)", body, media=(JSON, EVENTS))
        yield Described("GET", "/a2a/{agent}/.well-known/agent-card.json", "Describe an agent (A2A)")

    async def ask(self, request: Request) -> Response:
        """Answer one JSON-RPC request, whose body is not larger than others."""
        self._backend.agent(id_in(request, "agent"))
        try:
            again = await self._backend.whole(request)
        except Refused as error:
            if error.kind != INVALID_JSON:
                raise
            return JSONResponse(build_error_response(None, JSONParseError(message=str(error))))
        return await self._dispatcher.handle_requests(Request(request.scope, again))

    async def card(self, request: Request) -> Response:
        """Describe an agent."""
        name = id_in(request, "agent")
        agent = self._backend.agent(name)
        url = f"{str(request.base_url).rstrip('/')}/a2a/{encode_id(name)}"
        about = agent.instructions if isinstance(agent.instructions, str) else f"The agent {name}"
        card = AgentCard(
            name=name,
            description=about.partition("\n")[0][:200],
            version=installed("durable-swarm") or "0",
            supported_interfaces=[AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version="1.0")],
            capabilities=AgentCapabilities(streaming=True, push_notifications=False),
            default_input_modes=["text/plain", "image/*"],
            default_output_modes=["text/plain"],
            skills=[AgentSkill(id="ask", name=f"Ask {name}", description="Answers a message.", tags=["chat"])],
        )
        return JSONResponse(agent_card_to_dict(card))


def _is_a_fault(record: logging.LogRecord) -> bool:
    """Return False for the SDK's report of a wrong request: it is answered, and could fill the log."""
    return not str(record.msg).startswith(("Failed to validate", "Failed to parse", "Request Error"))


class _Contexts(DefaultServerCallContextBuilder):
    """Tells the handler of tasks who asks which agent."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def build(self, request: Request) -> ServerCallContext:
        context = super().build(request)
        context.state.update(caller=self._backend.caller(request), agent=id_in(request, "agent"))
        return context


class _Tasks(RequestHandler):
    """The tasks, which are runs."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def on_message_send(self, params: SendMessageRequest, context: ServerCallContext) -> Task | Message:
        run, _ = await self._call(lambda: self._sent(params.message, context))
        patience = 0 if params.configuration.return_immediately else None
        return await self._task(run, await outcome_of(self._backend, run, patience=patience))

    async def on_message_send_stream(
        self, params: SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[Told]:
        run, after = await self._call(lambda: self._sent(params.message, context))
        async for told in self._stream(run, after):
            yield told

    async def on_subscribe_to_task(
        self, params: SubscribeToTaskRequest, context: ServerCallContext
    ) -> AsyncGenerator[Told]:
        run = await self._run(params.id, context)
        if await self._call(lambda: run.status) in ENDED:
            raise UnsupportedOperationError(f"task {params.id!r} has ended")
        async for told in self._stream(run, 0):
            yield told

    async def on_get_task(self, params: GetTaskRequest, context: ServerCallContext) -> Task | None:
        return await self._now(await self._run(params.id, context))

    async def on_list_tasks(self, params: ListTasksRequest, context: ServerCallContext) -> ListTasksResponse:
        caller: Caller = context.state["caller"]
        size = min(params.page_size if params.page_size > 0 else 50, LARGEST_PAGE)
        query = Query(agent=context.state["agent"], limit=size + 1, before=params.page_token or None)
        found = await self._call(lambda: caller.runs().list(query))
        page = found[:size]
        runs = [await self._run(view.id, context) for view in page if params.context_id in ("", view.session)]
        tasks = [await self._now(run) for run in runs]
        wanted = [task for task in tasks if params.status in (TaskState.TASK_STATE_UNSPECIFIED, task.status.state)]
        more = page[-1].id if len(found) > size else ""
        return ListTasksResponse(tasks=wanted, next_page_token=more, page_size=size, total_size=len(wanted))

    async def on_cancel_task(self, params: CancelTaskRequest, context: ServerCallContext) -> Task | None:
        run = await self._run(params.id, context)
        if await self._call(lambda: run.status) in ENDED:
            raise TaskNotCancelableError(f"task {params.id!r} has ended")
        await self._call(run.cancel)
        return await self._now(run)

    async def on_get_extended_agent_card(self, params: object, context: ServerCallContext) -> AgentCard:
        raise UnsupportedOperationError("the card is all there is")

    async def _no_push(self, params: object, context: ServerCallContext) -> NoReturn:
        raise PushNotificationNotSupportedError("webhooks are set in the program: DurableSwarm(webhooks=)")

    on_create_task_push_notification_config = _no_push
    on_get_task_push_notification_config = _no_push
    on_list_task_push_notification_configs = _no_push
    on_delete_task_push_notification_config = _no_push

    async def _call(self, function: Callable[[], T]) -> T:
        try:
            return await self._backend.call(function)
        except RunNotFound as error:
            raise TaskNotFoundError(str(error)) from None
        except DurableSwarmError as error:
            raise (InternalError if is_unusable(error) else InvalidParamsError)(str(error)) from None

    async def _run(self, task_id: str, context: ServerCallContext) -> Run:
        caller: Caller = context.state["caller"]
        return await self._call(lambda: caller.run(task_id))

    async def _now(self, run: Run) -> Task:
        return await self._task(run, await outcome_of(self._backend, run, patience=0))

    async def _task(self, run: Run, outcome: Outcome) -> Task:
        view = await self._call(lambda: self._backend.open().exactly(run.id))
        return task_of(outcome, view.session or run.id)

    def _sent(self, message: Message, context: ServerCallContext) -> tuple[Run, int]:
        """Take a message; return the run to follow, and the number of the event behind which it is followed.

        The id of a message that begins a task is the run's: sent again, it attaches.
        """
        caller: Caller = context.state["caller"]
        if message.task_id:
            run = caller.run(message.task_id)
            # A turn that is being said would otherwise be followed from its middle.
            seen = last_event(run) if waits(run) else 0
            take(caller, run, message)
            return run, seen
        said = content_in(message)
        if not said or not message.message_id:
            raise InvalidParamsError("a message needs an id and a part with text")
        agent = self._backend.agent(context.state["agent"])
        session = caller.session(message.context_id or message.message_id, agent)
        return caller.send(session, [{"role": "user", "content": said}], run_id=message.message_id), 0

    async def _stream(self, run: Run, after: int) -> AsyncGenerator[Told]:
        try:
            self._backend.check_streams()
        except Refused as error:
            raise UnsupportedOperationError(str(error)) from None
        with self._backend.streaming():
            task = await self._now(run)
            telling = Telling(run.id, task.context_id)
            state = TaskState.TASK_STATE_WORKING
            yield Task(id=task.id, context_id=task.context_id, status=TaskStatus(state=state))
            async for events in self._backend.batches(run, after, LOOK):
                for told in (told for event in events for told in telling.take(event)):
                    yield told
                if telling.over or (not events and await self._call(lambda: waits(run))):
                    end = await self._now(run)
                    yield TaskStatusUpdateEvent(task_id=run.id, context_id=task.context_id, status=end.status)
                    return
