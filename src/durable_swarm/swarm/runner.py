"""`run` and its variants, for every swarm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, Literal, overload

from durable_swarm.limits import Limits
from durable_swarm.streaming import Item, Stream
from durable_swarm.swarm.answering import Answering
from durable_swarm.swarm.arguments import RunArguments
from durable_swarm.types import Agent, Message, Response, T


class Runner(Answering, ABC):
    """The methods by which programs run agents and answer them, the same in memory and durably."""

    @overload
    def run(
        self,
        agent: object,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        *,
        stream: Literal[True],
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        run_id: str | None = None,
        provider_patience: float | None = None,
        limits: Limits | None = None,
    ) -> Iterator[Item]: ...
    @overload
    def run(
        self,
        agent: Agent[T],
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        stream: Literal[False] = False,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        *,
        run_id: str | None = None,
    ) -> Response[T]: ...
    @overload
    def run(
        self,
        agent: object,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        stream: Literal[False] = False,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        *,
        run_id: str | None = None,
        provider_patience: float | None = None,
        limits: Limits | None = None,
    ) -> Response: ...
    @overload
    def run(
        self,
        agent: object,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        *,
        stream: bool,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        run_id: str | None = None,
        provider_patience: float | None = None,
        limits: Limits | None = None,
    ) -> Response | Iterator[Item]: ...
    def run(
        self,
        agent: object,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        stream: bool = False,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        *,
        run_id: str | None = None,
        provider_patience: float | None = None,
        limits: Limits | None = None,
    ) -> Response | Iterator[Item]:
        """Run the agents until one answers without a tool call; return the new messages and the last agent.

        `max_turns` counts messages, tool results included. With `stream=True` it yields Swarm's dictionaries:
        `{"delim": "start"}`, the deltas of a reply (the first with `sender`), `{"delim": "end"}`, finally
        `{"response": Response}`. After `{"delim": "reset"}` everything since the last `start` is void, because the
        model is asked again. The run begins with the first read and continues if the reader stops. Recorded replies are
        not streamed again.

        With `DurableSwarm` a crash in between loses nothing: the same `run_id` again returns the recorded response, or
        continues the run from its last completed step.

        `provider_patience` is how many seconds the run waits for a provider that is away, before it fails: by default
        as long as the `DurableSwarm` says, and in memory not at all.

        Raises `ModelError`, `ConfigurationError`, and a tool's exceptions; `DurableSwarm` also `RunConflict`,
        `RunCancelled`, `NotSerializable`.
        """
        asked = RunArguments(
            agent, messages, context_variables, model_override, stream, debug, max_turns, execute_tools,
            provider_patience, limits,
        )  # fmt: skip
        return self._stream(asked, run_id) if stream else self._respond(asked, run_id)

    @overload
    def run_async(
        self,
        agent: object,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        *,
        stream: Literal[True],
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        run_id: str | None = None,
        provider_patience: float | None = None,
        limits: Limits | None = None,
    ) -> Stream: ...
    @overload
    def run_async(
        self,
        agent: Agent[T],
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        stream: Literal[False] = False,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        *,
        run_id: str | None = None,
    ) -> Coroutine[Any, Any, Response[T]]: ...
    @overload
    def run_async(
        self,
        agent: object,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        stream: Literal[False] = False,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        *,
        run_id: str | None = None,
        provider_patience: float | None = None,
        limits: Limits | None = None,
    ) -> Coroutine[Any, Any, Response]: ...
    @overload
    def run_async(
        self,
        agent: object,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        *,
        stream: bool,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        run_id: str | None = None,
        provider_patience: float | None = None,
        limits: Limits | None = None,
    ) -> Coroutine[Any, Any, Response] | Stream: ...
    def run_async(
        self,
        agent: object,
        messages: list[Message],
        context_variables: dict[str, Any] | None = None,
        model_override: str | None = None,
        stream: bool = False,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        *,
        run_id: str | None = None,
        provider_patience: float | None = None,
        limits: Limits | None = None,
    ) -> Coroutine[Any, Any, Response] | Stream:
        """Run as `run` does, on the event loop; plain functions run in threads. Await it; with `stream`, iterate it."""
        asked = RunArguments(
            agent, messages, context_variables, model_override, stream, debug, max_turns, execute_tools,
            provider_patience, limits,
        )  # fmt: skip
        return Stream(self._stream_async(asked, run_id)) if stream else self._respond_async(asked, run_id)

    @abstractmethod
    def _respond(self, asked: RunArguments, run_id: str | None) -> Response:
        """Run to the end in the calling thread."""

    @abstractmethod
    def _stream(self, asked: RunArguments, run_id: str | None) -> Iterator[Item]:
        """Run, and pass the dictionaries to the calling thread."""

    @abstractmethod
    async def _respond_async(self, asked: RunArguments, run_id: str | None) -> Response:
        """Run to the end on the running loop."""

    @abstractmethod
    def _stream_async(self, asked: RunArguments, run_id: str | None) -> AsyncIterator[Item]:
        """Run on the running loop, and pass the dictionaries to it."""
