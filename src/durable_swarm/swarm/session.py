"""`Session`: a conversation of many runs. What every swarm's sessions share: their methods, and the checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args, overload

from durable_swarm.agents import remember
from durable_swarm.concurrency import in_thread
from durable_swarm.errors import ConfigurationError, SessionBusy
from durable_swarm.limits import Limits, check_limits
from durable_swarm.streaming import Item, Stream
from durable_swarm.swarm.arguments import check_agent, check_messages, plain
from durable_swarm.swarm.compaction import Compaction
from durable_swarm.types import Message, Response, Usage
from durable_swarm.validation import check_name, check_seconds, check_whole

WhenBusy = Literal["queue", "join", "interrupt", "reject"]
"""What becomes of a message to a session in which a run is in progress."""

NO_RESULT = "Error: this call has no result."
"""The text sent to the model for a call that a run has left without a result."""

SEND_LATER = "wait for its end, or send the message with when_busy='queue'"
FORK_LATER = "a session can be forked when its first run has ended"
"""What to do about a busy session."""


def busy(session: str, run_id: str | None, then: str = "wait for its end") -> SessionBusy:
    """Return the error for a session in which a run is in progress; `then` says what to do."""
    named = f"run {run_id!r}" if run_id else "a run"
    return SessionBusy(f"{named} of session {session!r} is in progress; {then}", session=session, run_id=run_id or "")


@dataclass(frozen=True)
class Sent:
    """The checked arguments of a message to a session. Raises `ConfigurationError`."""

    message: str | Message | list[Message]
    run_id: str | None = None
    when_busy: WhenBusy = "queue"
    model_override: str | None = None
    debug: bool = False
    max_turns: float = float("inf")
    execute_tools: bool = True
    stream: bool = False
    provider_patience: float | None = None
    limits: Limits | None = None

    def __post_init__(self) -> None:
        check_messages(self.messages)
        if self.provider_patience is not None:
            check_seconds("provider_patience", self.provider_patience)
        check_limits(self.limits)
        if not self.messages:
            raise ConfigurationError("message must not be an empty list")
        if self.when_busy not in get_args(WhenBusy):
            known = ", ".join(repr(one) for one in get_args(WhenBusy))
            raise ConfigurationError(f"when_busy must be one of {known}, not {self.when_busy!r:.40}")
        if self.when_busy == "join" and self.run_id is not None:
            raise ConfigurationError(
                "when_busy='join' gives the message to the run in progress, which has an id; leave run_id out"
            )

    @property
    def messages(self) -> list[Message]:
        """The messages: a text is one of the user."""
        if isinstance(self.message, str):
            return [{"role": "user", "content": self.message}]
        if isinstance(self.message, Mapping) or hasattr(self.message, "model_dump"):
            return [plain(self.message)]
        if not isinstance(self.message, list | tuple):
            raise ConfigurationError(
                f"message must be a text, a message dictionary or a list of them, not {self.message!r:.80}"
            )
        return list(self.message)


def check_session(id: object, agent: Any, context_variables: object, limits: object, compaction: object) -> None:
    """Check what a session is made of, and register the agent. Raises `ConfigurationError`."""
    check_name("the id of a session", id)
    if agent is not None:
        check_agent(agent)
        remember(agent)
    if context_variables is not None and not isinstance(context_variables, Mapping):
        raise ConfigurationError("context_variables must be a dictionary")
    check_limits(limits)
    if compaction is not None and not isinstance(compaction, Compaction):
        raise ConfigurationError(f"compaction must be a Compaction, not a {type(compaction).__name__}")


def _not_in_memory(method: str) -> ConfigurationError:
    return ConfigurationError(f"{method} needs a DurableSwarm: a run in memory has no handle; use run() or run_async()")


def answered(messages: Iterable[Message], known: Mapping[int, str] | None = None) -> list[Message]:
    """Return the messages of a run so that a provider accepts more after them: each call has a result.

    `known` has results of the last reply's calls that are not among the messages, by the number of the call.
    """
    found = list(messages)
    last = max((at for at, message in enumerate(found) if message.get("role") == "assistant"), default=None)
    calls = [] if last is None else found[last].get("tool_calls") or []
    results = [] if last is None else [message for message in found[last:] if message.get("role") == "tool"]
    for number, call in enumerate(calls[len(results) :], len(results)):
        name, text = (call.get("function") or {}).get("name", ""), (known or {}).get(number, NO_RESULT)
        found.append({"role": "tool", "tool_call_id": call.get("id"), "tool_name": name, "content": text})
    return found


def newest(messages: list[Message], limit: int | None) -> list[Message]:
    """Return the newest `limit` messages, or all. Raises `ConfigurationError`."""
    if limit is None:
        return messages
    check_whole("limit", limit, 1)
    return messages[-limit:]


class Session(ABC):
    """A conversation of many runs: each continues with the messages, the agent and the context the last one left.

    Made by `swarm.session(id, agent)`, which reads and writes nothing: the session begins with its first message. One
    run of a session is in progress at a time, whoever sends the messages.
    """

    def __init__(
        self,
        swarm: object,
        id: str,
        agent: Any,
        context_variables: dict[str, Any],
        limits: Limits | None = None,
        compaction: Compaction | None = None,
    ) -> None:
        self.id = id
        self._swarm = swarm
        self._agent = agent
        self._context = context_variables
        self._limits = limits
        self._compaction = compaction

    def __repr__(self) -> str:
        return f"Session({self.id!r})"

    @property
    @abstractmethod
    def agent(self) -> str:
        """The name of the agent that answers the next message; "" for a new session without one."""

    @property
    @abstractmethod
    def context_variables(self) -> dict[str, Any]:
        """The context variables that the last run has left; for a new session, those it was given."""

    @property
    @abstractmethod
    def usage(self) -> Usage | None:
        """The tokens of all runs so far, or None if the provider counts none."""

    @property
    @abstractmethod
    def created_at(self) -> datetime | None:
        """The time of the first message, in UTC; None for a session without messages."""

    @property
    @abstractmethod
    def updated_at(self) -> datetime | None:
        """The time of the last change, in UTC; None for a session without messages."""

    @abstractmethod
    def messages(self, limit: int | None = None) -> list[Message]:
        """Return the conversation, users' messages included: all of it, or the newest `limit` messages.

        Messages that wait for their turn are not in it.
        """

    def runs(self) -> list[Any]:
        """Return the runs in the order of their messages. Raises `ConfigurationError` in memory."""
        raise _not_in_memory("runs()")

    @abstractmethod
    def fork(self, id: str, *, run: Any = None) -> Session:
        """Return a new session that begins with this conversation, up to and with `run` (a run or its id), or all.

        Nothing is executed again, and no message is stored again. This session stays as it is. Raises `RunConflict` if
        session `id` exists, and `SessionBusy` if `run`, or the session's first run, has not ended.
        """

    @abstractmethod
    def delete(self) -> None:
        """Delete the session and its runs. Raises `SessionBusy` while one is in progress or waits."""

    def start(
        self,
        message: str | Message | list[Message],
        *,
        run_id: str | None = None,
        when_busy: WhenBusy = "queue",
        model_override: str | None = None,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        provider_patience: float | None = None,
        limits: Limits | None = None,
        queue: bool = False,
        priority: int = 0,
    ) -> Any:
        """Send a message as `run` does, and return its `Run` once it is recorded.

        Raises `ConfigurationError` in memory.
        """
        raise _not_in_memory("start()")

    async def start_async(
        self,
        message: str | Message | list[Message],
        *,
        run_id: str | None = None,
        when_busy: WhenBusy = "queue",
        model_override: str | None = None,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        provider_patience: float | None = None,
        limits: Limits | None = None,
        queue: bool = False,
        priority: int = 0,
    ) -> Any:
        """Start as `start` does, on the running event loop."""
        raise _not_in_memory("start_async()")

    async def messages_async(self, limit: int | None = None) -> list[Message]:
        """Return the messages as `messages` does, on the event loop."""
        return await in_thread(self.messages, limit)

    async def runs_async(self) -> list[Any]:
        """Return the runs as `runs` does, on the event loop."""
        return await in_thread(self.runs)

    async def fork_async(self, id: str, *, run: object = None) -> Session:
        """Fork as `fork` does, on the event loop."""
        return await in_thread(lambda: self.fork(id, run=run))

    async def delete_async(self) -> None:
        """Delete as `delete` does, on the event loop."""
        await in_thread(self.delete)

    @abstractmethod
    def _respond(self, sent: Sent) -> Response:
        """Run to the end in the calling thread."""

    @abstractmethod
    async def _respond_async(self, sent: Sent) -> Response:
        """Run to the end on the running loop."""

    @abstractmethod
    def _stream(self, sent: Sent) -> Iterator[Item]:
        """Run, and pass the dictionaries to the calling thread."""

    @abstractmethod
    def _stream_async(self, sent: Sent) -> AsyncIterator[Item]:
        """Run on the running loop, and pass the dictionaries to it."""

    @overload
    def run(
        self,
        message: str | Message | list[Message],
        *,
        stream: Literal[True],
        run_id: str | None = None,
        when_busy: WhenBusy = "queue",
        model_override: str | None = None,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        provider_patience: float | None = None,
        limits: Limits | None = None,
    ) -> Iterator[Item]: ...
    @overload
    def run(
        self,
        message: str | Message | list[Message],
        *,
        stream: Literal[False] = False,
        run_id: str | None = None,
        when_busy: WhenBusy = "queue",
        model_override: str | None = None,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        provider_patience: float | None = None,
        limits: Limits | None = None,
    ) -> Response: ...
    def run(
        self,
        message: str | Message | list[Message],
        *,
        stream: bool = False,
        run_id: str | None = None,
        when_busy: WhenBusy = "queue",
        model_override: str | None = None,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        provider_patience: float | None = None,
        limits: Limits | None = None,
    ) -> Response | Iterator[Item]:
        """Send a message and return the response to it, as `swarm.run` does with the whole conversation.

        `message` is a text, a message dictionary or a list of them; `Response.messages` are the new ones. `max_turns`
        counts the new messages. While another run of the session is in progress, in any process, `when_busy` decides:
        "queue" answers the messages one after the other in the order in which they came, "join" gives the message to
        that run and returns its response, "interrupt" cancels that run first, "reject" raises `SessionBusy`. The same
        `run_id` again returns the recorded response, or continues the run.

        A run that fails or is cancelled leaves its messages, with a result for each call, and the session continues. A
        run whose messages were too long for the model is left out.

        Raises as `swarm.run` does, `SessionBusy`, and `ConfigurationError` for a new session without an agent.
        """
        sent = Sent(
            message,
            run_id,
            when_busy,
            model_override,
            debug,
            max_turns,
            execute_tools,
            stream,
            provider_patience,
            limits,
        )
        return self._stream(sent) if stream else self._respond(sent)

    @overload
    def run_async(
        self,
        message: str | Message | list[Message],
        *,
        stream: Literal[True],
        run_id: str | None = None,
        when_busy: WhenBusy = "queue",
        model_override: str | None = None,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        provider_patience: float | None = None,
        limits: Limits | None = None,
    ) -> Stream: ...
    @overload
    def run_async(
        self,
        message: str | Message | list[Message],
        *,
        stream: Literal[False] = False,
        run_id: str | None = None,
        when_busy: WhenBusy = "queue",
        model_override: str | None = None,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        provider_patience: float | None = None,
        limits: Limits | None = None,
    ) -> Coroutine[Any, Any, Response]: ...
    def run_async(
        self,
        message: str | Message | list[Message],
        *,
        stream: bool = False,
        run_id: str | None = None,
        when_busy: WhenBusy = "queue",
        model_override: str | None = None,
        debug: bool = False,
        max_turns: float = float("inf"),
        execute_tools: bool = True,
        provider_patience: float | None = None,
        limits: Limits | None = None,
    ) -> Coroutine[Any, Any, Response] | Stream:
        """Send as `run` does, on the event loop. Await it; with `stream`, iterate it."""
        sent = Sent(
            message,
            run_id,
            when_busy,
            model_override,
            debug,
            max_turns,
            execute_tools,
            stream,
            provider_patience,
            limits,
        )
        return Stream(self._stream_async(sent)) if stream else self._respond_async(sent)
