"""Performing one model call: the request, the client, the retries, the reply as plain data.

Retries: rate limits, timeouts, lost connections and errors of the server (408, 409, 429, 5xx) are tried again, as often
as the client's own `max_retries` says (5 where a client has no such setting), after 0.5 s doubling to 8 s, or after
what `Retry-After` asks for. The caller's mistakes (400, 401, 404, …) are not.

A streamed reply is the same call: its pieces are shown while they come in, and merged to the same whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import sys
import threading
import weakref
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from durable_swarm import credentials
from durable_swarm.answers import Answer, read_finish, read_message, read_usage
from durable_swarm.awaitables import is_async
from durable_swarm.codec import mended
from durable_swarm.credentials import without_secrets
from durable_swarm.deltas import Unmarked, whole
from durable_swarm.errors import ConfigurationError, ModelError, safe_text
from durable_swarm.lean import is_openai, prepared, retries_itself
from durable_swarm.receiving import Reception, Show, Shown, has_end_marks, note_end_marks
from durable_swarm.refusals import (
    BAD_OUTPUT_TRIES,
    LONGEST_RETRY_AFTER,
    TOO_LONG,
    bad_output,
    is_too_long,
    of_provider,
    pause,
    retry_after,
    root_of,
    status_of,
    transient,
)
from durable_swarm.schema import tool_schemas
from durable_swarm.types import Message, Usage
from durable_swarm.waits import OnLoop, Waits, background_loop, give_back, on_background
from durable_swarm.wire import Conversation, with_origin

DEFAULT_RETRIES = 5

CLOSING_SECONDS = 5.0
"""How long closing waits for connections to be given back."""


@dataclass(frozen=True)
class ModelCall:
    """Which model call is being made: the run, and its turn counted from 0, with the turns that a fork has `kept`."""

    run_id: str
    turn: int
    kept: int = 0


current_model_call: ContextVar[ModelCall | None] = ContextVar("durable_swarm_model_call", default=None)


@dataclass(frozen=True)
class Completion:
    """A model's answer as plain data: the message, the tokens if counted, the model that was asked.

    `finish` is the reason for the reply's end where it is not the usual one.
    """

    message: Message
    usage: Usage | None
    model: str
    finish: str = ""


async def complete(
    client: Any,
    agent: Any,
    history: list[Message],
    context: dict[str, Any],
    *,
    conversation: Conversation,
    model_override: str | None,
    debug: bool,
    call: ModelCall,
    waits: Waits,
    show: Show | None = None,
    admit: Admit | None = None,
) -> Completion:
    """Make one model call for `agent`, with its retries. With `show` the reply is streamed, and shown as it comes in.

    `admit` is awaited before each try, with the name of the model.

    Raises `ModelError` when the provider refuses or stays away; other exceptions of the client pass as they are.
    """
    system = await instructions(agent, context, waits)
    request = build_request(agent, [], model_override, streamed=show is not None)
    request["messages"] = conversation.request(system, history, request["model"])
    if debug:
        say(f"Getting chat completion for...: {request['messages']}")
    begin = None if show is None else partial(Shown, show, call.turn)
    with _called(call):
        answer = await _Asking(client, request, waits, begin).answer(admit)
    message = with_origin(read_message(answer.message, call.turn), request["model"])
    if debug:
        say(f"Received completion: {message}")
    return Completion(message, read_usage(answer), request["model"], read_finish(answer))


@contextlib.contextmanager
def _called(call: ModelCall) -> Iterator[None]:
    token = current_model_call.set(call)
    try:
        yield
    finally:
        current_model_call.reset(token)


async def instructions(agent: Any, context: dict[str, Any], waits: Waits) -> str:
    """Give the agent's prompt. A callable gets the context variables, where a missing one reads as ''."""
    if not callable(agent.instructions):
        return str(agent.instructions)
    if not inspect.signature(agent.instructions).parameters:
        return str(await waits.call(agent.instructions))
    return str(await waits.call(agent.instructions, defaultdict(str, context)))


def build_request(
    agent: Any, messages: list[Message], model_override: str | None, *, streamed: bool = False
) -> dict[str, Any]:
    """Give the keyword arguments of `chat.completions.create`, the same as Swarm's; `streamed` counts tokens too."""
    tools = mended(tool_schemas(agent))
    request = {
        "model": model_override or agent.model,
        "messages": messages,
        "tools": tools or None,
        "tool_choice": getattr(agent, "tool_choice", None),
        "stream": streamed,
    }
    if streamed:
        request["stream_options"] = {"include_usage": True}
    if tools:
        request["parallel_tool_calls"] = getattr(agent, "parallel_tool_calls", True)
    request.update(getattr(agent, "model_settings", None) or {})
    if streamed and not request["stream"]:
        del request["stream_options"]
    return request


Begin = Callable[[], Shown]
"""Begins what an attempt shows."""
Admit = Callable[[str], Awaitable[None]]
"""Waits until a model may be asked."""


@dataclass
class _Asking:
    """One model call with its retries."""

    client: Any
    request: dict[str, Any]
    waits: Waits
    begin: Begin | None
    begun: bool = False
    """Whether the last attempt went wrong after an answer had begun."""

    async def answer(self, admit: Admit | None) -> Answer:
        """Ask until there is an answer. Raises `ModelError`, and what the program's own client raises."""
        credentials.remember(self.client)
        retries = getattr(self.client, "max_retries", None)
        tries = 1 + (retries if isinstance(retries, int) else DEFAULT_RETRIES)
        for attempt in count(1):
            if admit is not None:
                await admit(self.request["model"])
            try:
                return await self._attempt()
            except Exception as error:
                if not of_provider(error):
                    raise
                most = max(tries, BAD_OUTPUT_TRIES) if bad_output(error) else tries
                if self._was_retried(error):
                    raise _model_error(error, attempt - 1 + tries) from None
                if attempt >= most or not transient(error):
                    raise _model_error(error, attempt) from None
                await self.waits.sleep(pause(error, attempt))
        raise AssertionError("unreachable")

    def _was_retried(self, error: Exception) -> bool:
        """Tell whether the client itself has tried again what went wrong, and given up."""
        came = isinstance(getattr(error, "status_code", None), int) or isinstance(error, _lost_by_openai())
        return came and not self.begun and not bad_output(error) and transient(error) and retries_itself(self.client)

    async def _attempt(self) -> Answer:
        self.begun = False
        if self.begin is None:
            create, arguments = prepared(self.client, self.request)
            create = partial(_beside, create) if _is_at_home(self.client) else create
            return whole(await self.waits.call(create, **arguments))
        if self.request["stream"] and has_end_marks(self.client, self.request["model"]) is False:
            self._ask_whole()
        try:
            answer = await self._receive(self.begin())
        except Exception as error:
            refused = self._unmarked(error) or _refused(error, self.request)
            if refused is None:
                raise
        else:
            if self.request["stream"] and answer.finish:
                note_end_marks(self.client, self.request["model"], True)
            return answer
        # Kept out of further tries too.
        if refused == "stream":
            self._ask_whole()
        else:
            del self.request["stream_options"]
        return await self._attempt()

    def _unmarked(self, error: Exception) -> str | None:
        """Return "stream" where a stream ended without a word of it, and this provider's may always do so.

        What came may be whole or not; a whole reply is asked for. A provider that marks its ends has broken off.
        """
        model = self.request["model"]
        if not isinstance(error, Unmarked) or not self.request["stream"] or has_end_marks(self.client, model):
            return None
        note_end_marks(self.client, model, False)
        return "stream"

    def _ask_whole(self) -> None:
        self.request.pop("stream_options", None)
        self.request["stream"] = False

    async def _receive(self, shown: Shown) -> Answer:
        """Make one attempt at a streamed call. What it has shown is taken back when it fails, or is cancelled."""
        create, arguments = prepared(self.client, self.request)
        reception = Reception(partial(create, **arguments), shown)
        receive = reception.way()
        if _is_at_home(self.client):
            receive = partial(_beside, receive)
        # Not in the threads that belong to `waits`: one of them may be the reader's, who is to read meanwhile.
        waits = OnLoop() if isinstance(self.waits, OnLoop) else self.waits
        try:
            answer: Answer = await waits.call(receive)
            return answer
        except BaseException:
            self.begun = reception.begun
            shown.end()
            raise


def _lost_by_openai() -> tuple[type[Exception], ...]:
    openai = sys.modules.get("openai")
    return () if openai is None else (openai.APIConnectionError,)


def _refused(error: Exception, request: dict[str, Any]) -> str | None:
    """Return which argument a provider, or a client with a fixed list of arguments, refuses: one that streaming needs.

    Without `stream_options` the tokens of a stream are not counted; where nothing is streamed, a reply comes whole.
    """
    refuses = isinstance(error, TypeError) or getattr(error, "status_code", None) in (400, 403, 422)
    if not refuses or not request["stream"]:
        return None
    if "stream_options" in request and "stream_options" in str(error):
        return "stream_options"
    return "stream" if re.search(r"\bstream(ing)?\b", str(error)) else None


_at_home: weakref.WeakSet[Any] = weakref.WeakSet()
"""Async clients of our own making: their connections belong to the background loop, whichever loop asks."""


def _is_at_home(client: Any) -> bool:
    return is_openai(client) and client in _at_home


async def _beside(create: Callable[..., Any], **request: Any) -> Any:
    return await asyncio.wrap_future(on_background(create(**request)))


def _model_error(error: Exception, tries: int) -> ModelError:
    # One exception in a traceback: the message has what the others would say. The error stays the context, and a key
    # that the provider repeats must not be there either.
    error.args = tuple(without_secrets(part) if isinstance(part, str) else part for part in error.args)
    times = f" after {tries} tries" if tries > 1 else ""
    wish = retry_after(error) or 0
    later = f" (the provider asks to be asked again in {wish:.0f} s)" if wish > LONGEST_RETRY_AFTER else ""
    text = without_secrets(f"{str(error)[:1000]}{root_of(error)}")
    if is_too_long(text):
        later = f"{later}. {TOO_LONG}"
    return ModelError(
        f"the model call failed{times}: {type(error).__name__}: {text}{later}",
        status=status_of(error),
        error_type=type(error).__name__,
        tries=tries,
    )


def say(text: str) -> None:
    """Print a debug line, grey, as Swarm does."""
    print(f"\033[97m[\033[90m durable-swarm \033[97m]\033[90m {text}\033[0m")


class Clients:
    """The model client of a swarm: the one it was given, or `openai`'s, made at first use."""

    def __init__(self, client: Any) -> None:
        self._given = client
        self._made: dict[bool, Any] = {}
        self._lock = threading.Lock()

    def get(self, loop: Any = None) -> Any:
        """Give the client for calls from a thread, or from the event loop `loop`; one serves all loops.

        Raises `ConfigurationError` where there is no API key.
        """
        if self._given is not None:
            return self._given
        asynchronous = loop is not None
        with self._lock:
            if asynchronous not in self._made:
                self._made[asynchronous] = _default_client(asynchronous)
            return self._made[asynchronous]

    @property
    def is_blocking(self) -> bool:
        """Whether the client is asked by plain calls."""
        return self._given is None or not is_async(self._given.chat.completions.create)

    @property
    def is_ready(self) -> bool:
        """Whether there is a client to use."""
        try:
            self.ready()
        except ConfigurationError:
            return False
        return True

    def ready(self) -> None:
        """Check that there is a client to use. Raises `ConfigurationError`."""
        if self._given is None and not self._made:
            self.get()

    def close(self) -> None:
        """Close what this object made, and give back the threads behind it; a later `get` makes it anew."""
        with self._lock:
            blocking, on_loops = self._made.pop(False, None), self._made.pop(True, None)
        if blocking is not None:
            blocking.close()
        if on_loops is not None:
            closed = on_background(on_loops.close())
            with contextlib.suppress(TimeoutError):
                closed.result(0 if _on_background_loop() else CLOSING_SECONDS)
        give_back()


def _on_background_loop() -> bool:
    try:
        return asyncio.get_running_loop() is background_loop()
    except RuntimeError:
        return False


def _default_client(asynchronous: bool) -> Any:
    try:
        import openai

        kind = openai.AsyncOpenAI if asynchronous else openai.OpenAI
        client = kind(max_retries=DEFAULT_RETRIES)
    except Exception as error:  # A proxy or a certificate of the environment that is unfit raises anything.
        raise ConfigurationError(
            f"no model client: {without_secrets(safe_text(error)).rstrip('.')}. Set OPENAI_API_KEY, or pass client= to "
            'the swarm. To try it offline, without a key: client=ScriptedModel(["Hello"]) of durable_swarm.testing, or '
            "`durable-swarm demo refund`."
        ) from None
    if asynchronous:
        _at_home.add(client)
    return client
