"""Performing one model call: the request, the client, the retries, the reply as plain data.

Retries: rate limits, timeouts, lost connections and errors of the server (408, 409, 429, 5xx) are tried again, as often
as the client's own `max_retries` says (5 where a client has no such setting), after 0.5 s doubling to 8 s, or after
what `Retry-After` asks for. The caller's mistakes (400, 401, 404, …) are not.

A streamed reply is the same call: its pieces are shown while they come in, and merged to the same whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import json
import os
import random
import re
import sys
import threading
import weakref
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from durable_swarm.answers import Answer, EmptyReply, checked, read_finish, read_message, read_usage
from durable_swarm.deltas import BrokenStream
from durable_swarm.errors import ConfigurationError, ModelError
from durable_swarm.receiving import Reception, Show, Shown
from durable_swarm.schema import tool_schema
from durable_swarm.types import Message, Usage
from durable_swarm.waits import OnLoop, Waits, background_loop, is_async

DEFAULT_RETRIES = 5
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_RETRY_AFTER = 0.5, 8.0, 600.0
"""Seconds between tries: the first, the longest of our own, the longest a provider may ask for."""


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


class Conversation:
    """The history as providers accept it, converted once per message and not once per call."""

    def __init__(self) -> None:
        self._wire: list[Message] = []

    def request(self, system: str, history: list[Message]) -> list[Message]:
        """Give the messages of one request. `history` only ever grows between calls."""
        self._wire.extend(to_wire(message) for message in history[len(self._wire) :])
        return [{"role": "system", "content": system}, *self._wire]


def to_wire(message: Message) -> Message:
    """Give the message without what providers refuse: Swarm's own keys, nulls, arguments that are not JSON."""
    wire = {key: value for key, value in message.items() if value is not None and key not in ("sender", "tool_name")}
    if message.get("role") == "assistant":
        # Providers take a message without content only where it calls tools.
        wire.setdefault("content", None if wire.get("tool_calls") else "")
    if "tool_calls" in wire:
        wire["tool_calls"] = [_repaired(call) for call in wire["tool_calls"]]
        if not wire["tool_calls"]:
            del wire["tool_calls"]
    return wire


def _repaired(call: dict[str, Any]) -> dict[str, Any]:
    """Some servers refuse for ever a history with a broken name or arguments; the model was told about them anyway."""
    function = dict(call.get("function") or {})
    name = re.sub(r"[^a-zA-Z0-9_-]", "_", str(function.get("name") or ""))[:64] or "_"
    arguments = function.get("arguments")
    try:
        arguments = json.dumps(arguments) if isinstance(arguments, Mapping) else arguments
        sound = isinstance(json.loads(arguments or ""), dict)
    except (TypeError, ValueError, RecursionError):
        sound = False
    return {**call, "function": {**function, "name": name, "arguments": arguments if sound else "{}"}}


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
    request = build_request(agent, conversation.request(system, history), model_override, streamed=show is not None)
    if debug:
        say(f"Getting chat completion for...: {request['messages']}")
    begin = None if show is None else partial(Shown, show, call.turn)
    with _called(call):
        answer = await _with_retries(client, request, waits, begin, admit)
    message = read_message(answer.message, call.turn)
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
    tools = [tool_schema(function) for function in agent.functions]
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


async def _with_retries(
    client: Any, request: dict[str, Any], waits: Waits, begin: Begin | None, admit: Admit | None
) -> Answer:
    _remember_key(client)
    retries = getattr(client, "max_retries", None)
    tries = 1 + (retries if isinstance(retries, int) else DEFAULT_RETRIES)
    for attempt in range(1, tries + 1):
        if admit is not None:
            await admit(request["model"])
        try:
            return await _attempt(client, request, waits, begin)
        except Exception as error:
            if not _of_provider(error):
                raise
            if attempt == tries or not transient(error):
                raise _model_error(error, attempt) from error
            await waits.sleep(pause(error, attempt))
    raise AssertionError("unreachable")


async def _attempt(client: Any, request: dict[str, Any], waits: Waits, begin: Begin | None) -> Answer:
    if begin is None:
        create, arguments = _prepared(client, request)
        create = partial(_beside, create) if _is_at_home(client) else create
        return checked(await waits.call(create, **arguments))
    try:
        return await _receive(client, request, waits, begin())
    except Exception as error:
        refused = _refused(error, request)
        if refused is None:
            raise
    # Kept out of further tries too.
    request.pop("stream_options", None)
    if refused == "stream":
        request["stream"] = False
    return await _attempt(client, request, waits, begin)


def _prepared(client: Any, request: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Give the function to call, and its arguments."""
    if not is_openai(client):
        return client.chat.completions.create, request
    # The official client walks every message of every request in Python. What stands in `extra_body` it sends as it is.
    body = {key: request[key] for key in ("messages", "tools") if request[key] is not None}
    body.update(request.get("extra_body") or {})
    rest = {
        key: value
        for key, value in request.items()
        if key not in ("tools", "stream", "extra_body") and value is not None
    }
    return _bare(client).chat.completions.create, {**rest, "messages": [], "extra_body": body}


def _refused(error: Exception, request: dict[str, Any]) -> str | None:
    """Give which argument a provider, or a client with a fixed list of arguments, refuses: one that streaming needs.

    Without `stream_options` the tokens of a stream are not counted; where nothing is streamed, a reply comes whole.
    """
    refuses = isinstance(error, TypeError) or getattr(error, "status_code", None) in (400, 403, 422)
    if not refuses or not request["stream"]:
        return None
    if "stream_options" in request and "stream_options" in str(error):
        return "stream_options"
    return "stream" if re.search(r"\bstream(ing)?\b", str(error)) else None


async def _receive(client: Any, request: dict[str, Any], waits: Waits, shown: Shown) -> Answer:
    """Make one attempt at a streamed call. What it has shown is taken back when it fails, or is cancelled."""
    create, arguments = _prepared(client, request)
    if request["stream"]:
        arguments = {**arguments, "stream": request["stream"]}
    receive = Reception(partial(create, **arguments), shown).way()
    if _is_at_home(client):
        receive = partial(_beside, receive)
    # Not in the threads that belong to `waits`: one of them may be the reader's, who is to read meanwhile.
    waits = OnLoop() if isinstance(waits, OnLoop) else waits
    try:
        answer: Answer = await waits.call(receive)
        return answer
    except BaseException:
        shown.end()
        raise


_at_home: weakref.WeakSet[Any] = weakref.WeakSet()
"""Async clients of our own making: their connections belong to the background loop, whichever loop asks."""


def _is_at_home(client: Any) -> bool:
    return is_openai(client) and client in _at_home


async def _beside(create: Callable[..., Any], **request: Any) -> Any:
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(create(**request), background_loop()))


def _bare(client: Any) -> Any:
    """Give the client without retries of its own, sharing its connections."""
    try:
        return client.with_options(max_retries=0)
    except TypeError:
        # A program's own subclass, made with other arguments, cannot be made anew; `chat` is bound to the original.
        bare = copy.copy(client)
        vars(bare).pop("chat", None)
        bare.max_retries = 0
        return bare


def is_openai(client: Any) -> bool:
    """Whether it is a client of the `openai` package, which is only imported where a program uses it."""
    openai = sys.modules.get("openai")
    return openai is not None and isinstance(client, (openai.OpenAI, openai.AsyncOpenAI))


def _of_provider(error: Exception) -> bool:
    """Whether the error speaks of the provider, not of the program."""
    openai = sys.modules.get("openai")
    foreign = openai is not None and isinstance(error, openai.OpenAIError)
    return foreign or isinstance(getattr(error, "status_code", None), int) or transient(error)


def transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    status = _status(error)
    if status is not None:
        spent = getattr(error, "code", None) == "insufficient_quota"
        refused = _headers(error).get("x-should-retry") == "false"
        return (status in (408, 409, 429) or status >= 500) and not spent and not refused
    names = {kind.__name__ for kind in type(error).__mro__}
    # A body that is no JSON (a proxy's page, a cut answer) reaches us as the decoder's error.
    kinds = ConnectionError | TimeoutError | EmptyReply | BrokenStream | json.JSONDecodeError | UnicodeDecodeError
    return isinstance(error, kinds) or bool(names & _LOST_CONNECTIONS) or _passing_event(error)


_LOST_CONNECTIONS = {"APIConnectionError", "APITimeoutError", "TransportError"}
"""Names of the errors of openai and httpx; neither needs to be there."""


def _passing_event(error: Exception) -> bool:
    """Whether it is an error that the provider sent in the middle of a stream, and that may pass."""
    lasting = "insufficient_quota", "invalid_request_error"
    return _is_event(error) and not any(getattr(error, name, None) in lasting for name in ("code", "type"))


def _is_event(error: Exception) -> bool:
    # The class alone: its subclasses are errors of other kinds.
    return type(error).__name__ == "APIError"


def _status(error: Exception) -> int | None:
    """Give the HTTP status; some providers send it as the code of an error in the middle of a stream."""
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return status
    code = str(getattr(error, "code", None)) if _is_event(error) else ""
    return int(code) if re.fullmatch(r"[45]\d\d", code, re.ASCII) else None


def pause(error: Exception, attempt: int) -> float:
    """Give the seconds to wait after try number `attempt`, what the provider asks for going first."""
    with contextlib.suppress(TypeError, ValueError):
        asked = float(_headers(error)["retry-after"])
        if 0 <= asked <= LONGEST_RETRY_AFTER:
            return asked
    return float(min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE) * random.uniform(0.75, 1))


def _headers(error: Exception) -> Mapping[str, str]:
    headers = getattr(getattr(error, "response", None), "headers", None)
    return defaultdict(str) if headers is None else defaultdict(str, {str(k).lower(): v for k, v in headers.items()})


def _model_error(error: Exception, tries: int) -> ModelError:
    # The error stays the cause and is printed with it; a key that the provider repeats must not stand there either.
    error.args = tuple(without_secrets(part) if isinstance(part, str) else part for part in error.args)
    times = f" after {tries} tries" if tries > 1 else ""
    return ModelError(
        f"the model call failed{times}: {type(error).__name__}: {without_secrets(str(error))[:1000]}",
        status=_status(error),
        error_type=type(error).__name__,
        tries=tries,
    )


_KEYS = re.compile(r"sk-[\w-]{6,}|(?<=Bearer )\S+")
_PASSWORDS = re.compile(r"(://[^/\s:@]*:)[^/\s@]+(?=@)")
_used_keys: set[str] = set()
"""The keys of all clients that were used in this process: no error of it may repeat them."""


def _remember_key(client: Any) -> None:
    key = getattr(client, "api_key", None)
    if isinstance(key, str) and len(key) > 5:
        _used_keys.add(key)


def without_secrets(text: str) -> str:
    """Give the text without keys and the passwords of URLs.

    Keys are those of clients in use, the environment's, and whatever looks like one.
    """
    environment = ",".join(os.environ.get(name, "") for name in ("OPENAI_API_KEY", "DURABLE_SWARM_ENCRYPTION_KEYS"))
    for secret in {*_used_keys, *map(str.strip, environment.split(","))}:
        if len(secret) > 5:
            text = text.replace(secret, "***")
    return _PASSWORDS.sub(r"\1***", _KEYS.sub("***", text))


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

    def ready(self) -> None:
        """Check that there is a client to use. Raises `ConfigurationError`."""
        if self._given is None and not self._made:
            self.get()

    def close(self) -> None:
        """Close what this object made; a later `get` makes it anew."""
        with self._lock:
            blocking, on_loops = self._made.pop(False, None), self._made.pop(True, None)
        if blocking is not None:
            blocking.close()
        if on_loops is not None:
            closed = asyncio.run_coroutine_threadsafe(on_loops.close(), background_loop())
            with contextlib.suppress(TimeoutError):
                closed.result(0 if _on_background_loop() else CLOSING_SECONDS)


def _on_background_loop() -> bool:
    try:
        return asyncio.get_running_loop() is background_loop()
    except RuntimeError:
        return False


def _default_client(asynchronous: bool) -> Any:
    import openai

    try:
        kind = openai.AsyncOpenAI if asynchronous else openai.OpenAI
        client = kind(max_retries=DEFAULT_RETRIES)
    except openai.OpenAIError as error:
        raise ConfigurationError(
            f"no model client: {without_secrets(str(error))} Set OPENAI_API_KEY, or pass client= to the swarm."
        ) from error
    if asynchronous:
        _at_home.add(client)
    return client
