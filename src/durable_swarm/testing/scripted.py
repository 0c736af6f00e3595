"""`ScriptedModel`, a model client that answers from a script, and the response objects it gives.

The responses have the shape of openai's `ChatCompletion`; openai itself is not needed.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from durable_swarm.errors import ConfigurationError
from durable_swarm.models import current_model_call
from durable_swarm.testing.strict import check_request

REPLY_FORMS = (
    "A reply is a string, a list of tool calls, a dict that is an assistant message, an exception, or a callable of "
    "the request."
)
CALL_FORMS = 'A tool call is "name", ("name", {"arg": 1}), ("name", "raw text") or call("name", arg=1).'


class _Part(BaseModel):
    # Programs set attributes of their own on a response, as openai's models allow.
    model_config = ConfigDict(extra="allow")


class Function(_Part):
    """Which function to call; `arguments` is the text the model wrote, normally a JSON object."""

    name: str
    arguments: str


class ToolCall(_Part):
    """One tool call of a reply."""

    id: str
    type: Literal["function"] = "function"
    function: Function


class AssistantMessage(_Part):
    """The message of a reply: text, tool calls, or a refusal."""

    content: str | None = None
    refusal: str | None = None
    role: Literal["assistant"] = "assistant"
    tool_calls: list[ToolCall] | None = None


class Choice(_Part):
    """The one choice of a response."""

    index: int = 0
    message: AssistantMessage
    finish_reason: str


class TokenUsage(_Part):
    """Made-up token counts: one token a word, the same for the same request and reply."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(_Part):
    """A whole response, shaped like openai's `ChatCompletion`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = 0
    model: str
    choices: list[Choice]
    usage: TokenUsage


def call(name: str, /, **arguments: Any) -> dict[str, Any]:
    """Write a tool call for a script: `call("refund", order="A1")`."""
    return {"name": name, "arguments": arguments}


class ScriptedModel:
    """A model client for tests and demos: `client.chat.completions.create(**kwargs)` gives the next reply.

    `replies` is a list, or one callable that answers every request. A reply is

    - a string: the model's text;
    - a list of tool calls, each `"name"`, `("name", {"arg": 1})`, `("name", "raw text")`, `call("name", arg=1)`,
      `{"name": ..., "arguments": ...}` or openai's own shape; ids `call_1`, `call_2`, … are made where none is given;
    - a dict: a whole assistant message;
    - an exception, or an exception class: raised;
    - a callable of the request (the dict of `kwargs`) that returns any of these, or a complete response object.

    `calls` lists the requests, oldest first. With `strict` each request is checked by `check_request`, which raises
    `ProviderError` with status 400; such a request uses up no reply.

    A program that starts again builds its script anew. Asked for turn n of a run it has not seen, the script goes on
    at reply n (counted from 0), because the replies before it were given in the program's earlier life. This fits a
    script of one run in which every reply ended a turn.

    Raises `ConfigurationError` for a reply of another form, for a request with `stream`, and when no reply is left.
    Threads may share one client.
    """

    def __init__(self, replies: Sequence[Any] | Callable[[dict[str, Any]], Any], *, strict: bool = True) -> None:
        self.calls: list[dict[str, Any]] = []
        self.strict = strict
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._create))
        self._every = replies if callable(replies) else None
        self._replies = [] if callable(replies) else _checked(replies)
        self._next = 0
        self._runs: set[str] = set()
        self._ids = 0
        self._lock = threading.Lock()

    def _create(self, **kwargs: Any) -> Any:
        request = _snapshot(kwargs)
        with self._lock:
            self.calls.append(request)
            number = len(self.calls)
        if request.get("stream"):
            raise ConfigurationError("ScriptedModel cannot stream yet; ask it without stream=True")
        if self.strict:
            check_request(request)
        reply = _performed(self._take(request), request)
        if hasattr(reply, "choices"):
            return reply
        return _completion(number, request, _message(reply, self._new_id))

    def _take(self, request: dict[str, Any]) -> Any:
        with self._lock:
            self._ids = max(self._ids, _last_id(request))
            if self._every is not None:
                return self._every
            self._skip_answered_turns()
            if self._next >= len(self._replies):
                raise ConfigurationError(
                    f"ScriptedModel has {len(self._replies)} replies and was asked for one more; add a reply. "
                    f"The last request ended with {_ending(request)}"
                )
            self._next += 1
            return self._replies[self._next - 1]

    def _skip_answered_turns(self) -> None:
        asked = current_model_call.get()
        if asked is not None and asked.run_id not in self._runs:
            self._runs.add(asked.run_id)
            self._next = max(self._next, asked.turn)

    def _new_id(self) -> str:
        with self._lock:
            self._ids += 1
            return f"call_{self._ids}"


def _checked(replies: Sequence[Any]) -> list[Any]:
    if not isinstance(replies, (list, tuple)):
        raise ConfigurationError(
            f"ScriptedModel takes a list of replies or one callable, not {type(replies).__name__}. {REPLY_FORMS}"
        )
    for reply in replies:
        if not isinstance(reply, BaseException) and not callable(reply) and not hasattr(reply, "choices"):
            _message(reply, str)
    return list(replies)


def _snapshot(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Copy the request so far that messages appended later do not show in it."""
    messages = kwargs.get("messages")
    return {**kwargs, "messages": list(messages)} if isinstance(messages, list) else dict(kwargs)


def _performed(reply: Any, request: dict[str, Any]) -> Any:
    """Raise the reply, or call it, until it is plain."""
    while True:
        if isinstance(reply, BaseException) or (isinstance(reply, type) and issubclass(reply, BaseException)):
            raise reply
        if hasattr(reply, "choices") or not callable(reply):
            return reply
        reply = reply(request)


def _message(reply: Any, new_id: Callable[[], str]) -> AssistantMessage:
    if isinstance(reply, str):
        return AssistantMessage(content=reply)
    if isinstance(reply, list) and reply:
        return AssistantMessage(tool_calls=[_tool_call(spec, new_id) for spec in reply])
    if isinstance(reply, dict) and not reply.keys().isdisjoint({"role", "content", "tool_calls"}):
        return _whole_message(reply, new_id)
    raise ConfigurationError(f"ScriptedModel cannot give the reply {reply!r}. {REPLY_FORMS}")


def _whole_message(reply: dict[str, Any], new_id: Callable[[], str]) -> AssistantMessage:
    calls = reply.get("tool_calls")
    parts = reply if calls is None else {**reply, "tool_calls": [_tool_call(spec, new_id) for spec in calls]}
    try:
        return AssistantMessage(**parts)
    except ValidationError as error:
        raise ConfigurationError(f"{reply!r} is not an assistant message: {error}") from error


def _tool_call(spec: Any, new_id: Callable[[], str]) -> ToolCall:
    given = None
    match spec:
        case str(name):
            arguments: Any = {}
        case (str(name), dict() | str() as arguments):
            pass
        case {"function": {"name": str(name), "arguments": dict() | str() as arguments}, **rest}:
            given = rest.get("id")
        case {"name": str(name), **rest} if isinstance(rest.get("arguments", {}), (dict, str)):
            arguments, given = rest.get("arguments", {}), rest.get("id")
        case _:
            raise ConfigurationError(f"ScriptedModel cannot make the tool call {spec!r}. {CALL_FORMS}")
    if not isinstance(given, str | None):
        raise ConfigurationError(f"the id of the scripted tool call {name!r} must be a string, not {given!r}")
    text = arguments if isinstance(arguments, str) else _as_json(name, arguments)
    return ToolCall(id=new_id() if given is None else given, function=Function(name=name, arguments=text))


def _as_json(name: str, arguments: dict[str, Any]) -> str:
    try:
        return json.dumps(arguments)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"the arguments of the scripted tool call {name!r} are not JSON: {error}") from error


def _completion(number: int, request: dict[str, Any], message: AssistantMessage) -> Completion:
    prompt = sum(_words(asked) for asked in _messages(request))
    answer = _words(message.model_dump())
    return Completion(
        id=f"chatcmpl-{number}",
        model=str(request.get("model", "scripted")),
        choices=[Choice(message=message, finish_reason="tool_calls" if message.tool_calls else "stop")],
        usage=TokenUsage(prompt_tokens=prompt, completion_tokens=answer, total_tokens=prompt + answer),
    )


def _words(message: dict[str, Any]) -> int:
    """Count a message's tokens: the words of its text, and those of the names and arguments of its calls."""
    texts = [str(message.get("content") or "")]
    texts += [f"{made['function']['name']} {made['function']['arguments']}" for made in message.get("tool_calls") or ()]
    return len(" ".join(texts).split())


def _last_id(request: dict[str, Any]) -> int:
    """Give the highest n of the ids `call_n` in the request, so that ids stay unique after a restart too."""
    ids = [str(made.get("id")) for message in _messages(request) for made in message.get("tool_calls") or ()]
    return max((int(found[1]) for text in ids if (found := re.fullmatch(r"call_(\d+)", text))), default=0)


def _ending(request: dict[str, Any]) -> str:
    """Show the last message of the request in a few words."""
    last = (_messages(request) or [{}])[-1]
    text = str(last.get("content"))
    return f"{last.get('role')}: {text if len(text) <= 200 else text[:200] + '…'}"


def _messages(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Give the messages that are dicts: without `strict` a request may hold anything."""
    messages = request.get("messages")
    return [message for message in messages if isinstance(message, dict)] if isinstance(messages, list) else []
