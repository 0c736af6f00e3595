"""`Swarm`: the loop in memory, with Swarm's own methods. `DurableSwarm` has the same and is in `engine`."""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from durable_swarm.checks import check_text, check_whole
from durable_swarm.errors import ConfigurationError
from durable_swarm.loop import Ask, Call, CallAll, Ending, Outcome, Reply, Start, drive, turns
from durable_swarm.models import Clients, Conversation, ModelCall, complete
from durable_swarm.roster import remember
from durable_swarm.tools import (
    IN_MEMORY,
    Cast,
    CurrentCall,
    Inside,
    Lane,
    call_in_order,
    call_together,
    call_tool,
    find_tool,
    plan_calls,
    runs_together,
)
from durable_swarm.types import Message, Response
from durable_swarm.waits import Blocking, OnLoop, Waits, beside, finish


class Swarm:
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
    ) -> Response:
        """Run the agents until one answers without calling a tool; gives the new messages and the last agent.

        `max_turns` counts messages, tool results included. Raises `ModelError`, `ConfigurationError`, and what a tool
        raised.
        """
        asked = Request(agent, messages, context_variables, model_override, stream, debug, max_turns, execute_tools)
        return finish(self._run(asked, run_id, Blocking(), self.clients.get()))

    async def run_async(
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
    ) -> Response:
        """Run as `run` does, on the event loop; plain functions run in threads."""
        asked = Request(agent, messages, context_variables, model_override, stream, debug, max_turns, execute_tools)
        return await self._run(asked, run_id, OnLoop(), self.clients.get(asyncio.get_running_loop()))

    def close(self) -> None:
        """Close the client, if this object made it."""
        self.clients.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _run(self, asked: Request, run_id: str | None, waits: Waits, client: Any) -> Response:
        if run_id is not None:
            check_text("run_id", run_id)
        performer = _InMemory(self, asked, run_id or str(uuid.uuid4()), waits, client)
        ending = await drive(turns(asked.start(copy.deepcopy)), performer)
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
        if self.stream:
            raise ConfigurationError("stream=True is not available in this version; leave it out")
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
            messages=own([plain(message) for message in self.messages]),
            context=own(dict(self.context_variables or {})),
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
    check_text("the agent's name", agent.name)
    if not isinstance(agent.functions, list | tuple) or not all(callable(function) for function in agent.functions):
        raise ConfigurationError(f"agent {agent.name!r}: functions must be a list of functions")


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
    """Give the loop's ending as the `Response` a program gets."""
    return Response(
        messages=ending.messages, agent=agent, context_variables=ending.context, run_id=run_id, usage=ending.usage
    )


@dataclass
class _InMemory:
    """Performs the loop's effects without recording them. Tools get the live context, as in Swarm."""

    swarm: Swarm
    asked: Request
    run_id: str
    waits: Waits
    client: Any
    cast: Cast = field(default_factory=dict)
    conversation: Conversation = field(default_factory=Conversation)

    def __post_init__(self) -> None:
        self.cast[self.asked.agent.name] = self.asked.agent

    async def __call__(self, effect: Ask | CallAll) -> Reply | list[Outcome]:
        return await (self._ask(effect) if isinstance(effect, Ask) else self._call_all(effect))

    async def _ask(self, effect: Ask) -> Reply:
        agent = self.cast[effect.agent]
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
        )
        return Reply(completion.message, plan_calls(agent, completion.message), completion.usage)

    async def _call_all(self, effect: CallAll) -> list[Outcome]:
        agent, width = self.cast[effect.agent], self.swarm.tool_concurrency
        if not runs_together(agent, effect.calls, width):
            return await call_in_order(effect.calls, lambda call: self._call(agent, effect, call, self.waits))
        lane = Lane(width)

        async def batch(waits: Waits) -> list[Outcome]:
            def one(call: Call) -> Awaitable[Outcome]:
                return lane.run(find_tool(agent, call.tool), lambda: self._call(agent, effect, call, waits))

            return await call_together(effect.calls, one)

        if not isinstance(self.waits, Blocking):
            return await batch(self.waits)
        return beside(lambda here: batch(here if width == 1 else OnLoop()))

    async def _call(self, agent: Any, effect: CallAll, call: Call, waits: Waits) -> Outcome:
        function = find_tool(agent, call.tool)
        if call.plan == "tell" or function is None:
            return Outcome(call.text)
        key = f"{self.run_id}/{effect.turn}.{call.index}"
        here = Inside(CurrentCall(self.run_id, effect.agent, call.tool, call.id, 1, key), IN_MEMORY)
        tell = self.swarm.tool_errors == "tell"
        return await call_tool(function, call, effect.context, here, cast=self.cast, tell_errors=tell, waits=waits)
