"""Sessions in memory, which live as long as their `Swarm`. `engine` has the durable ones."""

from __future__ import annotations

import asyncio
import copy
import threading
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from durable_swarm.concurrency import BlockingRuntime, LoopRuntime, Runtime, finish
from durable_swarm.errors import ConfigurationError, RunCancelled, RunConflict, safe_text
from durable_swarm.loop import Close, Effect, Start, total
from durable_swarm.models.provider_errors import is_too_long
from durable_swarm.models.wire import Conversation
from durable_swarm.streaming import Channel, Item
from durable_swarm.swarm.arguments import RunArguments
from durable_swarm.swarm.compaction import SessionHistory
from durable_swarm.swarm.memory_limits import MemorySpending
from durable_swarm.swarm.session import FORK_LATER, SEND_LATER, Sent, Session, answered, busy, newest
from durable_swarm.types import AgentLike, Message, Response, Usage
from durable_swarm.validation import LONGEST_ID, check_name

if TYPE_CHECKING:
    from durable_swarm.swarm.memory import Swarm


@dataclass
class MemoryTurn:
    """A run in a session, in progress or ended: what it begins with, and what others do to it."""

    run_id: str
    history: SessionHistory = field(default_factory=SessionHistory)
    conversation: Conversation = field(default_factory=Conversation)
    agent: Any = None
    context: dict[str, Any] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    """Its messages once it has ended, those it was sent included; empty if they do not count."""
    usage: Usage | None = None
    tokens: int = 0
    """The tokens of its last model call, if the provider counts them."""
    its_turn: Future[None] = field(default_factory=Future)
    left: SessionHistory = field(default_factory=SessionHistory)
    """The history after it."""
    response: Future[Response] = field(default_factory=Future)
    cancelled: bool = False
    spending: MemorySpending | None = None
    """What the session has spent and may spend; None for a session without limits."""
    results: dict[int, str] = field(default_factory=dict)
    """The results of the last reply's calls so far, by the number of the call."""
    _last: Effect | None = None
    _said: list[Message] = field(default_factory=list)
    _closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, start: Start) -> Start:
        """Return the start with the messages before it."""
        self.messages = start.messages
        return replace(start, messages=[*self.before, *start.messages])

    @property
    def before(self) -> list[Message]:
        """The messages that the model is sent before its own."""
        return self.history.sent

    def at(self, effect: Effect) -> None:
        """Note how far the run has come. Raises `RunCancelled`."""
        self._last, self.results = effect, {}
        if self.cancelled:
            raise RunCancelled(f"run {self.run_id!r} was cancelled", run_id=self.run_id)

    def say(self, messages: list[Message]) -> bool:
        """Add messages before the next model call; return False if the run has ended."""
        with self._lock:
            if not self._closed:
                self._said += copy.deepcopy(messages)
            return not self._closed

    def hear(self) -> list[Message]:
        """Return the messages added since the last call."""
        with self._lock:
            said, self._said = self._said, []
            return said

    def close(self, effect: Close) -> bool:
        """Take no more messages, unless some have not been heard; return True if the run ends."""
        with self._lock:
            self._closed = effect.at_limit or not self._said
            return self._closed

    def failed(self, error: BaseException) -> None:
        """Keep what the run has done until it failed."""
        with self._lock:
            self._closed = True
        if is_too_long(safe_text(error)):
            self.messages = []
        elif self._last is not None:
            self.messages = answered(self._last.history[len(self.before) :], self.results)


@dataclass
class MemoryConversation:
    """A session of a `Swarm`."""

    agent: AgentLike
    context: dict[str, Any]
    turns: list[MemoryTurn] = field(default_factory=list)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    updated_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    conversation: Conversation = field(default_factory=Conversation)
    history: SessionHistory = field(default_factory=SessionHistory)
    spending: MemorySpending | None = None

    @property
    def messages(self) -> list[Message]:
        """All messages that count."""
        return [message for turn in self.turns for message in turn.messages]

    line: deque[MemoryTurn] = field(default_factory=deque)
    """The run in progress, and those that wait for their turn, in order of arrival."""

    @property
    def ahead(self) -> MemoryTurn | None:
        """The run in progress."""
        return self.line[0] if self.line else None

    def begin(self) -> None:
        """Begin the first run of the line that was not given up."""
        while self.line and not self.line[0].its_turn.set_running_or_notify_cancel():
            self.line.popleft()
        if self.line:
            turn = self.line[0]
            turn.history, turn.conversation, turn.agent, turn.context = (
                *(self.history, self.conversation),
                *(self.agent, self.context),
            )
            turn.its_turn.set_result(None)

    def end(self, turn: MemoryTurn) -> None:
        """Note the end of a run, or that it was given up while it waited."""
        was_first = self.ahead is turn
        self.line.remove(turn)
        if was_first:
            self.turns.append(turn)
            self.updated_at = datetime.now(UTC)
            self.begin()


class MemorySession(Session):
    """A conversation in the memory of its `Swarm`."""

    _swarm: Swarm

    def _known(self) -> MemoryConversation | None:
        return self._swarm.conversations.get(self.id)

    @property
    def agent(self) -> str:
        known = self._known()
        agent = self._agent if known is None else known.agent
        return "" if agent is None else str(agent.name)

    @property
    def context_variables(self) -> dict[str, Any]:
        known = self._known()
        return copy.deepcopy(self._context if known is None else known.context)

    @property
    def usage(self) -> Usage | None:
        known = self._known()
        return total(turn.usage for turn in (known.turns if known else []))

    @property
    def created_at(self) -> datetime | None:
        known = self._known()
        return None if known is None else known.created_at

    @property
    def updated_at(self) -> datetime | None:
        known = self._known()
        return None if known is None else known.updated_at

    def messages(self, limit: int | None = None) -> list[Message]:
        known = self._known()
        ahead = [] if known is None or known.ahead is None else known.ahead.messages
        return copy.deepcopy(newest([] if known is None else [*known.messages, *ahead], limit))

    def fork(self, id: str, *, run: object = None) -> MemorySession:
        name, known = check_name("the id of a session", id), self._known()
        if known is None:
            raise ConfigurationError(f"session {self.id!r} has no messages, so there is nothing to fork")
        with self._swarm.session_lock:
            if name in self._swarm.conversations:
                raise RunConflict(f"session {name!r} exists already; give the fork another id")
            if run is None and not known.turns and known.ahead is not None:
                raise busy(self.id, known.ahead.run_id, FORK_LATER)
            kept = known.turns if run is None else _through(known, self.id, run)
            agent, context = (kept[-1].agent, kept[-1].context) if kept else (known.agent, known.context)
            history = kept[-1].left if kept else SessionHistory()
            forked = MemoryConversation(agent, copy.deepcopy(context), list(kept), history=history)
            self._swarm.conversations[name] = forked
        return MemorySession(self._swarm, name, self._agent, {}, self._limits, self._compaction)

    def delete(self) -> None:
        with self._swarm.session_lock:
            known = self._known()
            if known is not None and known.ahead is not None:
                raise busy(self.id, known.ahead.run_id)
            self._swarm.conversations.pop(self.id, None)

    # Sending

    def _respond(self, sent: Sent) -> Response:
        return finish(self._run(sent, BlockingRuntime(), self._swarm.clients.get()))

    async def _respond_async(self, sent: Sent) -> Response:
        return await self._run(sent, LoopRuntime(), self._swarm.clients.get(asyncio.get_running_loop()))

    def _stream(self, sent: Sent) -> Iterator[Item]:
        return self._swarm.streamed(lambda waits, client, channel: self._run(sent, waits, client, channel))

    def _stream_async(self, sent: Sent) -> AsyncIterator[Item]:
        return self._swarm.streamed_async(lambda waits, client, channel: self._run(sent, waits, client, channel))

    async def _run(self, sent: Sent, waits: Runtime, client: object, channel: Channel | None = None) -> Response:
        run_id = str(uuid.uuid4()) if sent.run_id is None else check_name("run_id", sent.run_id, LONGEST_ID)
        known, turn, joined = self._arrive(sent, run_id)
        if joined:
            response: Response = await _result(turn.response, waits)
            return response
        try:
            await _result(turn.its_turn, waits)
            return await self._take_turn(known, turn, sent, waits, client, channel)
        finally:
            with self._swarm.session_lock:
                known.end(turn)

    def _arrive(self, sent: Sent, run_id: str) -> tuple[MemoryConversation, MemoryTurn, bool]:
        """Return the run that answers a message, and True if that is the one in progress, which was given it."""
        with self._swarm.session_lock:
            known = self._known()
            if known is None:
                if self._agent is None:
                    raise ConfigurationError(
                        f"session {self.id!r} is new, so it needs an agent: swarm.session({self.id!r}, agent)"
                    )
                known = MemoryConversation(self._agent, copy.deepcopy(self._context))
                self._swarm.conversations[self.id] = known
            ahead = known.ahead
            if ahead is not None and sent.when_busy == "reject":
                raise busy(self.id, ahead.run_id, SEND_LATER)
            if ahead is not None and sent.when_busy == "join" and ahead.say(sent.messages):
                return known, ahead, True
            if ahead is not None and sent.when_busy == "interrupt":
                ahead.cancelled = True
                self._swarm.inbox.close(ahead.run_id)
            if self._limits is not None and (known.spending is None or known.spending.at_first != self._limits):
                known.spending = self._swarm.spending_of_session(self.id, self._limits, known.spending)
            turn = MemoryTurn(run_id, spending=known.spending)
            known.line.append(turn)
            if ahead is None:
                known.begin()
            return known, turn, False

    async def _take_turn(
        self,
        known: MemoryConversation,
        turn: MemoryTurn,
        sent: Sent,
        waits: Runtime,
        client: object,
        channel: Channel | None,
    ) -> Response:
        asked = RunArguments(
            known.agent, sent.messages, known.context, sent.model_override, sent.stream, sent.debug, sent.max_turns,
            sent.execute_tools, sent.provider_patience, sent.limits,
        )  # fmt: skip
        try:
            response = await self._swarm.respond_in_session(asked, turn, waits, client, channel, self._compaction)
        except BaseException as error:
            turn.failed(error)
            known.history = turn.left = turn.history.grown(turn.messages, 0)
            known.conversation = Conversation()
            turn.response.set_exception(error)
            turn.response.exception()  # Raised to the sender; a run joined by nobody has no other reader.
            raise
        turn.messages = answered([*turn.messages, *copy.deepcopy(response.messages)])
        known.history = turn.left = turn.history.grown(turn.messages, turn.tokens)
        turn.agent = known.agent = response.agent
        turn.context = known.context = copy.deepcopy(response.context_variables)
        turn.usage = response.usage
        turn.response.set_result(response)
        return response


def _through(known: MemoryConversation, session: str, run_id: object) -> list[MemoryTurn]:
    at = next((index for index, turn in enumerate(known.turns) if turn.run_id == run_id), None)
    if at is None:
        if known.ahead is not None and known.ahead.run_id == run_id:
            raise busy(session, known.ahead.run_id)
        raise ConfigurationError(f"run {run_id!r} is not part of session {session!r}")
    return known.turns[: at + 1]


async def _result(future: Future[Any], waits: Runtime) -> Any:
    return future.result() if isinstance(waits, BlockingRuntime) else await asyncio.wrap_future(future)
