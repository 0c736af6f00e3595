"""`Swarm`: the loop in memory, with Swarm's own methods. `DurableSwarm` has the same and is in `engine`."""

from __future__ import annotations

import asyncio
import copy
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any, Self

from durable_swarm import ends
from durable_swarm.background import background_loop, on_background
from durable_swarm.concurrency import (
    BlockingRuntime,
    CallerThreadExecutor,
    LoopRuntime,
    Runtime,
    contained,
    finish,
    result_of,
    running_loop,
)
from durable_swarm.errors import ConfigurationError, LimitReached, qualified_name, safe_text
from durable_swarm.guardrails import guarded_turns
from durable_swarm.limits import DEFAULT_LIMITS, Limits, Spent, check_limits
from durable_swarm.loop import Ending, Start, drive, total
from durable_swarm.models.client import Clients
from durable_swarm.models.prices import Prices, check_prices
from durable_swarm.requests import Decision
from durable_swarm.requests import Request as HumanRequest
from durable_swarm.streaming import PATIENCE, Channel, Item, read, read_async
from durable_swarm.sub_agents import failed_child
from durable_swarm.swarm.answering import fits_code
from durable_swarm.swarm.arguments import RunArguments, check_settings, respond
from durable_swarm.swarm.compaction import Compaction
from durable_swarm.swarm.memory_limits import MemorySpending
from durable_swarm.swarm.memory_performer import InMemory
from durable_swarm.swarm.memory_requests import MemoryInbox
from durable_swarm.swarm.memory_sessions import MemoryConversation, MemorySession, MemoryTurn
from durable_swarm.swarm.runner import Runner
from durable_swarm.swarm.session import Session, check_session
from durable_swarm.tasks import Coro
from durable_swarm.tools.context import calling
from durable_swarm.types import AgentLike, Response
from durable_swarm.validation import LONGEST_ID, check_name, check_whole

StreamedRun = Callable[[Runtime, Any, Channel], Coro[Response]]
"""Executes a run with a way to wait and a client, and passes what its model says to a channel."""


class Swarm(Runner):
    """Runs agents in memory: OpenAI Swarm's client. Nothing is stored; see `DurableSwarm` for runs that survive.

    `client` is anything with `client.chat.completions.create(**kwargs)`, sync or async; by default `openai`'s, made at
    first use. `tool_concurrency` above 1 lets plain functions of one reply run together; `tool_errors="tell"` reports a
    tool's exception to the model, where `"raise"` ends the run with it. `default_model` is asked for agents that name
    no model, else `$DURABLE_SWARM_MODEL`, else `gpt-4o`.
    """

    def __init__(
        self,
        client: object = None,
        *,
        tool_concurrency: int = 1,
        tool_errors: str = "raise",
        default_model: str | None = None,
        limits: Limits | None = DEFAULT_LIMITS,
        prices: Prices | None = None,
    ) -> None:
        check_settings(client, tool_concurrency, tool_errors, default_model)
        self.clients = Clients(client)
        self.tool_concurrency = tool_concurrency
        self.tool_errors = tool_errors
        self.default_model = default_model
        self.limits = check_limits(limits)
        self.prices = check_prices(prices)
        self.inbox = MemoryInbox()
        self.conversations: dict[str, MemoryConversation] = {}
        """The sessions, by id."""
        self.session_lock = threading.Lock()
        self._streaming: set[asyncio.Task[object]] = set()

    def close(self) -> None:
        """Close the client, if this object made it, and release threads."""
        self.clients.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def requests(self) -> list[HumanRequest]:
        """Return the open requests of the runs in progress, oldest first."""
        return self.inbox.open_requests()

    def _decide(self, request_id: str, decision: Decision, by: str | None) -> None:
        approves = decision.verdict == "approved"
        self.inbox.decide(request_id, decision, by, (lambda asked: fits_code(asked, decision)) if approves else None)

    def _complete(self, token: str, decision: Decision, by: str | None) -> bool:
        return self.inbox.complete(token, decision, by)

    def _respond(self, asked: RunArguments, run_id: str | None) -> Response:
        return finish(self._run(asked, run_id, BlockingRuntime(), self.clients.get()))

    async def _respond_async(self, asked: RunArguments, run_id: str | None) -> Response:
        return await self._run(asked, run_id, LoopRuntime(), self.clients.get(asyncio.get_running_loop()))

    async def run_child(
        self, agent: AgentLike, message: str, context_variables: dict[str, Any], limits: Limits | None = None
    ) -> Response:
        """Run the agent for the tool call in progress and return its response. Raises `RunFailed`."""
        asked = RunArguments(agent, [{"role": "user", "content": message}], context_variables, limits=limits)
        run_id = _inner_id() or str(uuid.uuid4())
        try:
            return await self._run(asked, run_id, LoopRuntime(), self.clients.get(asyncio.get_running_loop()))
        except BaseException as error:
            failure = ends.failure_of(error)
            if failure is None or isinstance(failure, LimitReached):
                raise
            raise failed_child(run_id, agent.name, qualified_name(failure), safe_text(failure)) from failure

    def _stream(self, asked: RunArguments, run_id: str | None) -> Iterator[Item]:
        return self.streamed(lambda waits, client, channel: self._run(asked, run_id, waits, client, channel))

    def streamed(self, run: StreamedRun) -> Iterator[Item]:
        """Execute a run on the background loop, and pass the dictionaries to the calling thread."""
        if running_loop() is background_loop():
            raise ConfigurationError(
                "run(stream=True) would stop the event loop on which it is executed; in an async tool iterate "
                "run_async(..., stream=True)"
            )
        client, channel = self.clients.get(background_loop()), Channel()
        with CallerThreadExecutor(PATIENCE) as home:
            over = on_background(contained(run(LoopRuntime(home), client, channel)))
            try:
                yield from read(channel, home, over)
            finally:
                channel.close()
        yield {"response": result_of(over.result())}

    def _stream_async(self, asked: RunArguments, run_id: str | None) -> AsyncIterator[Item]:
        return self.streamed_async(lambda waits, client, channel: self._run(asked, run_id, waits, client, channel))

    async def streamed_async(self, run: StreamedRun) -> AsyncIterator[Item]:
        """Execute a run on the running loop, and pass the dictionaries to it."""
        loop, channel = asyncio.get_running_loop(), Channel()
        over = loop.create_task(contained(run(LoopRuntime(), self.clients.get(loop), channel)))
        self._streaming.add(over)
        over.add_done_callback(self._streaming.discard)
        try:
            async for item in read_async(channel, over):
                yield item
        finally:
            channel.close()
        yield {"response": result_of(over.result())}

    async def _run(
        self, asked: RunArguments, run_id: str | None, waits: Runtime, client: object, channel: Channel | None = None
    ) -> Response:
        if run_id is not None:
            check_name("run_id", run_id, LONGEST_ID)
        performer = InMemory(self, asked, run_id or _inner_id() or str(uuid.uuid4()), waits, client, channel)
        ending = await self._drive(asked.start(copy.deepcopy), performer)
        return respond(ending, performer.cast[ending.agent], run_id)

    async def respond_in_session(
        self,
        asked: RunArguments,
        turn: MemoryTurn,
        waits: Runtime,
        client: object,
        channel: Channel | None,
        compaction: Compaction | None,
    ) -> Response:
        """Run to the end in a session."""
        performer = InMemory(self, asked, turn.run_id, waits, client, channel, turn=turn)
        start = asked.start(copy.deepcopy)
        summarizing = await performer.compact(compaction, start.messages)
        performer.conversation = turn.conversation
        ending = await self._drive(turn.begin(start), performer)
        ending = replace(ending, usage=total([summarizing, ending.usage]))
        return respond(ending, performer.cast[ending.agent], turn.run_id)

    async def _drive(self, start: Start, performer: InMemory) -> Ending:
        try:
            with ends.bare():
                ending = await drive(guarded_turns(start), performer)
        except BaseException as error:
            performer.tell_end("", error)
            raise
        else:
            performer.tell_end(ending.ended_by)
            return ending
        finally:
            self.inbox.forget(performer.run_id)
            performer.guards.cancel()

    # Sessions

    def session(
        self,
        id: str,
        agent: object = None,
        *,
        context_variables: dict[str, Any] | None = None,
        limits: Limits | None = None,
        compaction: Compaction | None = None,
    ) -> Session:
        """Return the session of an id, which may be new.

        A new session needs an `agent` for its first message, and begins with a copy of `context_variables`. A session
        that exists continues with the agent and the context that its last run left. `limits` are one total over all its
        runs, beside those of each run; other ones given later replace them. With `compaction`, messages that
        this object sends are answered with a summary in place of the first messages, once they have become many. It
        exists as long as the swarm. Raises `ConfigurationError`.
        """
        check_session(id, agent, context_variables, limits, compaction)
        return MemorySession(self, id, agent, dict(context_variables or {}), limits, compaction)

    def spending_of_session(self, id: str, limits: Limits, before: MemorySpending | None) -> MemorySpending:
        """Return what a session may spend with these limits, and has spent."""
        spent = Spent() if before is None else before.spent
        return MemorySpending(id, limits, self.inbox, BlockingRuntime(), spent=spent, allowed=limits)

    def sessions(self, agent: str | None = None, limit: int = 100) -> list[Session]:
        """Return the sessions, that with the latest change first; with `agent`, those it answers next."""
        check_whole("limit", limit, 1)
        known = sorted(self.conversations.items(), key=lambda item: item[1].updated_at, reverse=True)
        found = [id for id, session in known if agent in (None, session.agent.name)]
        return [MemorySession(self, id, None, {}) for id in found[:limit]]


def _inner_id() -> str | None:
    """Return the id of a run that a tool of a run in memory starts; None outside such a tool."""
    here = calling()
    return here.next_id() if here is not None and here.owner is None else None
