"""`Swarm`: the loop in memory, with Swarm's own methods. `DurableSwarm` has the same and is in `engine`."""

from __future__ import annotations

import asyncio
import copy
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, overload

from durable_swarm import ends
from durable_swarm.answering import Answering, fits_code
from durable_swarm.calls import (
    Cast,
    Lane,
    call_in_order,
    call_together,
    call_tool,
    find_tool,
    plan_calls,
    read_result,
    runs_together,
)
from durable_swarm.checks import LONGEST_ID, check_name, check_text, check_whole
from durable_swarm.codec import mended
from durable_swarm.errors import ConfigurationError
from durable_swarm.gates import approval_of, approved, later_of, posted
from durable_swarm.inbox import MemoryInbox
from durable_swarm.inside import CurrentCall, Inside
from durable_swarm.loop import Ask, Call, CallAll, Effect, Ending, Outcome, Reply, Start, drive, turns
from durable_swarm.models import Clients, ModelCall, complete
from durable_swarm.repeats import same_before, step_number
from durable_swarm.requests import Asked, Decision
from durable_swarm.requests import Request as HumanRequest
from durable_swarm.roster import remember
from durable_swarm.schema import tool_schemas
from durable_swarm.streaming import PATIENCE, Channel, Item, Stream, read, read_async
from durable_swarm.tools import IN_MEMORY
from durable_swarm.types import Message, Response
from durable_swarm.waits import (
    Blocking,
    Home,
    OnLoop,
    Waits,
    background_loop,
    beside,
    contained,
    finish,
    on_background,
    result_of,
    running_loop,
)
from durable_swarm.wire import Conversation


class Runner(Answering, ABC):
    """The methods by which programs run agents and answer them, the same in memory and durably."""

    @overload
    def run(
        self,
        agent: Any,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        *,
        stream: Literal[True],
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        run_id: str | None = None,
    ) -> Iterator[Item]: ...
    @overload
    def run(
        self,
        agent: Any,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        stream: Literal[False] = False,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        *,
        run_id: str | None = None,
    ) -> Response: ...
    @overload
    def run(
        self,
        agent: Any,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        stream: bool = False,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        *,
        run_id: str | None = None,
    ) -> Response | Iterator[Item]: ...
    def run(
        self,
        agent: Any,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        stream: bool = False,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        *,
        run_id: str | None = None,
    ) -> Response | Iterator[Item]:
        """Run the agents until one answers without calling a tool; gives the new messages and the last agent.

        `max_turns` counts messages, tool results included. With `stream=True` it gives Swarm's dictionaries:
        `{"delim": "start"}`, the deltas of a reply (the first with `sender`), `{"delim": "end"}`, at last
        `{"response": Response}`; after `{"delim": "reset"}`, what came since the last `start` is void, since the model
        is asked again. The run begins with the first reading, and goes on when nobody reads any more. What is
        recorded already is not streamed again.

        With `DurableSwarm` a crash in between loses nothing, and the same `run_id` again gives the recorded response,
        or goes on with the run where it stands.

        Raises `ModelError`, `ConfigurationError`, what a tool raised; `DurableSwarm` also `RunConflict`,
        `RunCancelled`, `NotSerializable`.
        """
        asked = Request(agent, messages, context_variables, model_override, stream, debug, max_turns, execute_tools)
        return self._stream(asked, run_id) if stream else self._respond(asked, run_id)

    @overload
    def run_async(
        self,
        agent: Any,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        *,
        stream: Literal[True],
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        run_id: str | None = None,
    ) -> Stream: ...
    @overload
    def run_async(
        self,
        agent: Any,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        stream: Literal[False] = False,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        *,
        run_id: str | None = None,
    ) -> Coroutine[Any, Any, Response]: ...
    @overload
    def run_async(
        self,
        agent: Any,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        stream: bool = False,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        *,
        run_id: str | None = None,
    ) -> Coroutine[Any, Any, Response] | Stream: ...
    def run_async(
        self,
        agent: Any,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        stream: bool = False,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        *,
        run_id: str | None = None,
    ) -> Coroutine[Any, Any, Response] | Stream:
        """Run as `run` does, on the event loop; plain functions run in threads. Await it; with `stream`, iterate it."""
        asked = Request(agent, messages, context_variables, model_override, stream, debug, max_turns, execute_tools)
        return Stream(self._stream_async(asked, run_id)) if stream else self._respond_async(asked, run_id)

    @abstractmethod
    def _respond(self, asked: Request, run_id: str | None) -> Response:
        """Run to the end in the calling thread."""

    @abstractmethod
    def _stream(self, asked: Request, run_id: str | None) -> Iterator[Item]:
        """Run, and hand the dictionaries to the calling thread."""

    @abstractmethod
    async def _respond_async(self, asked: Request, run_id: str | None) -> Response:
        """Run to the end on the running loop."""

    @abstractmethod
    def _stream_async(self, asked: Request, run_id: str | None) -> AsyncIterator[Item]:
        """Run on the running loop, and hand the dictionaries to it."""


class Swarm(Runner):
    """Runs agents in memory: OpenAI Swarm's client. Nothing is stored; see `DurableSwarm` for runs that survive.

    `client` is anything with `client.chat.completions.create(**kwargs)`, sync or async; by default `openai`'s, made at
    first use. `tool_concurrency` above 1 lets plain functions of one reply run together; `tool_errors="tell"` reports a
    tool's exception to the model, where `"raise"` ends the run with it.
    """

    def __init__(self, client: Any = None, *, tool_concurrency: int = 1, tool_errors: str = "raise") -> None:
        check_settings(client, tool_concurrency, tool_errors)
        self.clients = Clients(client)
        self.tool_concurrency = tool_concurrency
        self.tool_errors = tool_errors
        self.inbox = MemoryInbox()
        self._streaming: set[asyncio.Task[Any]] = set()

    def close(self) -> None:
        """Close the client, if this object made it, and give back threads."""
        self.clients.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def requests(self) -> list[HumanRequest]:
        """Give the open requests of the runs under way, oldest first."""
        return self.inbox.open_requests()

    def _decide(self, request_id: str, decision: Decision, by: str | None) -> None:
        approves = decision.verdict == "approved"
        self.inbox.decide(request_id, decision, by, (lambda asked: fits_code(asked, decision)) if approves else None)

    def _complete(self, token: str, decision: Decision, by: str | None) -> bool:
        return self.inbox.complete(token, decision, by)

    def _respond(self, asked: Request, run_id: str | None) -> Response:
        return finish(self._run(asked, run_id, Blocking(), self.clients.get()))

    async def _respond_async(self, asked: Request, run_id: str | None) -> Response:
        return await self._run(asked, run_id, OnLoop(), self.clients.get(asyncio.get_running_loop()))

    def _stream(self, asked: Request, run_id: str | None) -> Iterator[Item]:
        if running_loop() is background_loop():
            raise ConfigurationError(
                "run(stream=True) would stop the event loop on which it is executed; in an async tool iterate "
                "run_async(..., stream=True)"
            )
        client, channel = self.clients.get(background_loop()), Channel()
        with Home(PATIENCE) as home:
            run = contained(self._run(asked, run_id, OnLoop(home), client, channel))
            over = on_background(run)
            try:
                yield from read(channel, home, over)
            finally:
                channel.close()
        yield {"response": result_of(over.result())}

    async def _stream_async(self, asked: Request, run_id: str | None) -> AsyncIterator[Item]:
        loop, channel = asyncio.get_running_loop(), Channel()
        run = contained(self._run(asked, run_id, OnLoop(), self.clients.get(loop), channel))
        over = loop.create_task(run)
        self._streaming.add(over)
        over.add_done_callback(self._streaming.discard)
        try:
            async for item in read_async(channel, over):
                yield item
        finally:
            channel.close()
        yield {"response": result_of(over.result())}

    async def _run(
        self, asked: Request, run_id: str | None, waits: Waits, client: Any, channel: Channel | None = None
    ) -> Response:
        if run_id is not None:
            check_name("run_id", run_id, LONGEST_ID)
        performer = _InMemory(self, asked, run_id or str(uuid.uuid4()), waits, client, channel)
        try:
            with ends.bare():
                ending = await drive(turns(asked.start(copy.deepcopy)), performer)
        finally:
            self.inbox.forget(performer.run_id)
        return respond(ending, performer.cast[ending.agent], run_id)


@dataclass(frozen=True)
class Request:
    """The arguments of one `run`, checked. Raises `ConfigurationError`, naming the argument and the remedy."""

    agent: Any
    messages: list[Message]
    context_variables: dict[str, Any] | None = None
    model_override: str | None = None
    stream: bool = False
    debug: bool = False
    max_turns: float = float("inf")
    execute_tools: bool = True

    def __post_init__(self) -> None:
        check_agent(self.agent)
        check_messages(self.messages)
        if self.context_variables is not None and not isinstance(self.context_variables, Mapping):
            raise ConfigurationError("context_variables must be a dictionary")
        if self.model_override is not None:
            check_text("model_override", self.model_override)
        if (
            isinstance(self.max_turns, bool)
            or not isinstance(self.max_turns, int | float)
            or self.max_turns != self.max_turns
        ):
            raise ConfigurationError("max_turns must be a number of messages")
        remember(self.agent)

    def start(self, own: Any) -> Start:
        """Give what the loop starts with; `own` makes the run's own copy of the messages and the context."""
        return Start(
            agent=self.agent.name,
            messages=mended(own([plain(message) for message in self.messages])),
            context=mended(own(dict(self.context_variables or {}))),
            model_override=self.model_override,
            max_turns=None if self.max_turns == float("inf") else self.max_turns,
            execute_tools=bool(self.execute_tools),
        )


def check_settings(client: Any, tool_concurrency: int, tool_errors: str) -> None:
    """Check what both swarms take. Raises `ConfigurationError`."""
    if client is not None and not hasattr(getattr(client, "chat", None), "completions"):
        raise ConfigurationError(
            f"client is a {type(client).__name__} without chat.completions.create; "
            "pass an openai client, or one of its shape"
        )
    check_whole("tool_concurrency", tool_concurrency, 1)
    if tool_errors not in ("raise", "tell"):
        raise ConfigurationError(f"tool_errors must be 'raise' or 'tell', not {tool_errors!r}")


def check_agent(agent: Any) -> None:
    """Check that the object can serve as an agent. Raises `ConfigurationError`."""
    missing = [name for name in ("name", "model", "instructions", "functions") if not hasattr(agent, name)]
    if isinstance(agent, type) or missing:
        raise ConfigurationError(
            f"agent must be an Agent, not {agent!r:.80}" + (f" (it has no {', '.join(missing)})" if missing else "")
        )
    check_name("the agent's name", agent.name)
    if not isinstance(agent.functions, list | tuple) or not all(callable(function) for function in agent.functions):
        raise ConfigurationError(f"agent {agent.name!r}: functions must be a list of functions")
    tool_schemas(agent)


def check_messages(messages: Any) -> None:
    """Check that these are chat messages. Raises `ConfigurationError`."""
    if not isinstance(messages, list | tuple):
        raise ConfigurationError('messages must be a list, such as [{"role": "user", "content": "Hi"}]')
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) and not hasattr(message, "model_dump"):
            raise ConfigurationError(f"messages[{index}] must be a dictionary with 'role' and 'content'")
        if isinstance(message, Mapping) and not isinstance(message.get("role"), str):
            raise ConfigurationError(f"messages[{index}] has no 'role'")


def plain(message: Any) -> Message:
    """Give the message as a dictionary; clients' message objects are accepted."""
    return dict(message) if isinstance(message, Mapping) else dict(message.model_dump(mode="json", exclude_none=True))


def respond(ending: Ending, agent: Any, run_id: str | None) -> Response:
    """Return the loop's ending as the `Response` a program gets."""
    return Response(
        messages=ending.messages,
        agent=agent,
        context_variables=ending.context,
        run_id=run_id,
        usage=ending.usage,
        ended_by=ending.ended_by,
    )


@dataclass
class _InMemory:
    """Performs the loop's effects without recording them. Tools get the live context, as in Swarm."""

    swarm: Swarm
    asked: Request
    run_id: str
    waits: Waits
    client: Any
    channel: Channel | None = None
    cast: Cast = field(default_factory=dict)
    conversation: Conversation = field(default_factory=Conversation)

    def __post_init__(self) -> None:
        self.cast[self.asked.agent.name] = self.asked.agent

    async def __call__(self, effect: Effect) -> Reply | list[Outcome] | bool:
        if isinstance(effect, Ask):
            return await self._ask(effect)
        return await self._call_all(effect) if isinstance(effect, CallAll) else False

    async def _ask(self, effect: Ask) -> Reply:
        agent = self.cast[effect.agent]
        if self.channel is not None:
            self.channel.begin(effect.agent, effect.turn)
        completion = await complete(
            self.client,
            agent,
            effect.history,
            effect.context,
            conversation=self.conversation,
            model_override=self.asked.model_override,
            debug=self.asked.debug,
            call=ModelCall(self.run_id, effect.turn),
            waits=self.waits,
            show=self.channel,
        )
        if self.channel is not None:
            self.channel.end()
        calls = await plan_calls(agent, completion.message, self.waits, completion.finish, self._new(effect))
        together = runs_together(agent, calls, self.swarm.tool_concurrency)
        return Reply(completion.message, calls, completion.usage, together, finish=completion.finish)

    def _new(self, effect: Ask | CallAll) -> list[Message]:
        return effect.history[len(self.asked.messages) :]

    async def _call_all(self, effect: CallAll) -> list[Outcome]:
        agent, width = self.cast[effect.agent], self.swarm.tool_concurrency
        if not effect.together:
            self._announce(agent, effect)
            return await call_in_order(effect.calls, lambda call: self._call(agent, effect, call, self.waits))
        lane = Lane(width)

        async def batch(waits: Waits) -> list[Outcome]:
            def one(call: Call) -> Awaitable[Outcome]:
                return lane.run(find_tool(agent, call.tool), lambda: self._call(agent, effect, call, waits))

            return await call_together(effect.calls, one)

        if not isinstance(self.waits, Blocking):
            return await batch(self.waits)
        return beside(lambda here: batch(here if width == 1 else OnLoop()))

    def _announce(self, agent: Any, effect: CallAll) -> None:
        """Open the requests for the approval of a batch at once, though its calls are made one after the other."""
        for call in effect.calls:
            if call.approval:
                function = find_tool(agent, call.tool)
                self.swarm.inbox.open(self._approval(function, effect, call))

    async def _call(self, agent: Any, effect: CallAll, call: Call, waits: Waits) -> Outcome:
        function = find_tool(agent, call.tool)
        if call.plan == "tell" or function is None:
            return Outcome(call.text)
        current, inbox = self._current(effect, call), self.swarm.inbox
        if call.approval:
            asked = self._approval(function, effect, call)
            call, refused = await approved(asked, function, call, inbox, waits)
            if refused is not None:
                return refused
        here = Inside(current, IN_MEMORY, inbox)
        tell = self.swarm.tool_errors == "tell"
        outcome = await call_tool(function, call, effect.context, here, cast=self.cast, tell_errors=tell, waits=waits)
        inbox.close(current.idempotency_key)
        if outcome.later is None:
            return outcome
        decision: Decision = await waits.call(inbox.wait, later_of(call, current, outcome.later))
        return posted(decision, lambda value: read_result(value, self.cast), outcome)

    def _approval(self, function: Any, effect: CallAll, call: Call) -> Asked:
        new = self._new(effect)
        same = same_before(new, call.index)
        number = None if same is None else step_number(new, same)
        return approval_of(function, call, self._current(effect, call), number)

    def _current(self, effect: CallAll, call: Call) -> CurrentCall:
        key = f"{self.run_id}/{effect.turn}.{call.index}"
        return CurrentCall(self.run_id, effect.agent, call.tool, call.id, 1, key)
