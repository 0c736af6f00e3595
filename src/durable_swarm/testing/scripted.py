"""`ScriptedModel` and `AsyncScriptedModel`, model clients that answer from a script.

`Script` chooses the answer to a request; the clients and the server (`server.py`) deliver it.
"""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from types import SimpleNamespace
from typing import Any

from durable_swarm.errors import ConfigurationError
from durable_swarm.models.call import current_model_call
from durable_swarm.testing.faults import Cut, CutOff, Page, Slow, check_seconds, dropped
from durable_swarm.testing.provider_rules import ProviderError, check_request
from durable_swarm.testing.replies import REPLY_FORMS, check_reply, completion_of, cut_short, is_exception, message_of
from durable_swarm.testing.request_reader import ending, last_id
from durable_swarm.testing.rules import Rule, choose
from durable_swarm.testing.shapes import as_completion
from durable_swarm.testing.streams import AsyncScriptedStream, Patience, ScriptedStream, Tape, chunks_of


@dataclass(frozen=True)
class Play:
    """The answer to one request, with its timing and faults.

    `answer` is a response, an exception or a `Page`; `latency` and `pace` are seconds; `cut_after` the number of chunks
    after which the connection is lost, or None; `finish` the finish reason of a reply that was cut off, or None.
    """

    answer: Any
    latency: float = 0.0
    pace: float = 0.0
    cut_after: int | None = None
    finish: str | None = None

    def whole(self) -> Any:
        """Return the answer as `create` does, or raise it."""
        if isinstance(self.answer, BaseException):
            raise self.answer
        if isinstance(self.answer, Page):
            return _read_page(self.answer)
        if self.cut_after is not None:
            raise dropped()
        return self.answer

    def tape(self, request: Mapping[str, object]) -> Tape:
        """Return the answer as `create(stream=True)` does, or raise it."""
        if isinstance(self.answer, json.JSONDecodeError):
            return Tape([], self.pace, self.answer)
        if isinstance(self.answer, BaseException):
            raise self.answer
        if isinstance(self.answer, Page):
            _read_page(self.answer)
            return Tape([], self.pace)
        options = request.get("stream_options")
        chunks = chunks_of(as_completion(self.answer), isinstance(options, dict) and bool(options.get("include_usage")))
        return Tape(chunks[: self.cut_after], self.pace, None if self.cut_after is None else dropped())


def _read_page(page: Page) -> str:
    """Behave like openai's client, which takes a page of status 200 for an answer."""
    if page.status >= 400:
        raise ProviderError(page.text, page.status)
    return page.text


class Script(ABC):
    """The common part of the two clients: the replies or rules, and the record of the requests."""

    def __init__(
        self,
        replies: Sequence[object] | Callable[[dict[str, Any]], object],
        *,
        strict: bool = True,
        latency: float = 0.0,
        pace: float = 0.0,
        refuses: Collection[str] = (),
    ) -> None:
        check_seconds(latency)
        check_seconds(pace)
        self.calls: list[dict[str, Any]] = []
        self.strict = strict
        self.refuses = frozenset(refuses)
        self.latency = latency
        self.pace = pace
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._create))
        self._every = replies if callable(replies) else None
        self._replies = [] if callable(replies) else _checked(replies)
        self._rules = [rule for rule in self._replies if isinstance(rule, Rule)]
        self._injected: deque[object] = deque()
        self._next = 0
        self._runs: set[str] = set()
        self._ids = 0
        self._lock = threading.Lock()

    @abstractmethod
    def _create(self, **kwargs: object) -> object:
        """Answer as `chat.completions.create` does."""

    def inject(self, *replies: object) -> None:
        """Answer the next requests with these replies first, one each; they use up no other, and None changes nothing.

        So a fault occurs once, while a rule would repeat it each time. Raises `ConfigurationError` for a reply of an
        unknown form.
        """
        for reply in replies:
            if reply is not None:
                check_reply(reply)
        self._injected.extend(replies)

    def play(self, kwargs: Mapping[str, object]) -> Play:
        """Record the request and return its answer. Raises errors of the strict checks and the script."""
        request = _snapshot(kwargs)
        with self._lock:
            self.calls.append(request)
            number = len(self.calls)
            injected = self._injected.popleft() if self._injected else None
        if injected is None and self.strict:
            check_request(request)
        refused = [name for name in sorted(self.refuses) if request.get(name) is not None]
        if injected is None and refused:
            raise ProviderError(f"Unsupported parameter: {refused[0]!r}", 400, code="unsupported_parameter")
        reply = self._take(request) if injected is None else injected
        play = self._performed(reply, request)
        if is_exception(play.answer) or isinstance(play.answer, Page):
            return play
        if hasattr(play.answer, "choices"):
            return play if play.finish is None else replace(play, answer=cut_short(play.answer, play.finish))
        message = message_of(play.answer, self._ids_for(request))
        return replace(play, answer=completion_of(number, request, message, play.finish))

    def _take(self, request: dict[str, object]) -> object:
        if self._rules:
            return choose(self._rules, request)
        if self._every is not None:
            return self._every
        with self._lock:
            self._skip_answered_turns()
            if self._next >= len(self._replies):
                count = "1 reply" if len(self._replies) == 1 else f"{len(self._replies)} replies"
                raise ConfigurationError(
                    f"the script has {count} and was asked for one more; add a reply. "
                    f"The last request ended with {ending(request)}"
                )
            self._next += 1
            return self._replies[self._next - 1]

    def _skip_answered_turns(self) -> None:
        asked = current_model_call.get()
        if asked is not None and asked.run_id not in self._runs:
            self._runs.add(asked.run_id)
            self._next = max(self._next, asked.turn - asked.kept)

    def _performed(self, reply: object, request: Mapping[str, object]) -> Play:
        """Call the reply and unwrap it until it is plain."""
        play = Play(None, self.latency, self.pace)
        while True:
            if isinstance(reply, Slow):
                play = replace(
                    play,
                    latency=play.latency if reply.latency is None else reply.latency,
                    pace=play.pace if reply.pace is None else reply.pace,
                )
                reply = reply.reply
            elif isinstance(reply, Cut):
                play, reply = replace(play, cut_after=reply.after), reply.reply
            elif isinstance(reply, CutOff):
                play, reply = replace(play, finish=reply.reason), reply.reply
            elif is_exception(reply):
                return replace(play, answer=reply() if isinstance(reply, type) else reply)
            elif callable(reply) and not hasattr(reply, "choices"):
                reply = reply(request)
            else:
                return replace(play, answer=reply)

    def _ids_for(self, request: Mapping[str, object]) -> Callable[[], str]:
        """Return the maker of tool call ids: with rules they depend on the request alone, else they never repeat."""
        if self._rules:
            numbers = count(last_id(request) + 1)
            return lambda: f"call_{next(numbers)}"
        with self._lock:
            self._ids = max(self._ids, last_id(request))
        return self._new_id

    def _new_id(self) -> str:
        with self._lock:
            self._ids += 1
            return f"call_{self._ids}"


class ScriptedModel(Script):
    """A model client for tests and demos: `client.chat.completions.create(**kwargs)` returns the next reply.

    `replies` is a list of replies, used up one by one; or a list of rules, made by `when` and `otherwise`; or one
    callable that answers every request. A reply is

    - a string: the model's text;
    - a list of tool calls, each `"name"`, `("name", {"arg": 1})`, `("name", "raw text")`, `call("name", arg=1)`,
      `{"name": ..., "arguments": ...}` or openai's own shape; ids `call_1`, `call_2`, … are made if none is given;
    - a dict: a whole assistant message;
    - an exception, or an exception class: raised;
    - a fault, made by `rate_limited`, `cut`, `slowly` and their like;
    - a callable of the request (the dict of `kwargs`) that returns any of these, or a complete response object.

    With `stream=True` the answer comes as a `ScriptedStream` of chunks: text word by word, arguments in pieces, and the
    usage last if `stream_options` asks for it. `latency` are the seconds before each answer, `pace` those before
    each chunk; after a request's `timeout` (a number) a `TimeoutError` is raised.

    `calls` lists the requests, oldest first. With `strict` each request is checked by `check_request`, which raises
    `ProviderError` with status 400; such a request uses up no reply. So does a request with an argument named in
    `refuses`, such as "response_format".

    A program that starts again builds its script anew. Rules continue without a gap, because they depend on the request
    alone. A list that is asked for turn n of an unseen run continues at reply n (counted from 0), because an earlier
    execution used the replies before it. This fits a script of one run in which every reply ended a turn.

    Raises `ConfigurationError` for a reply of another form, when no reply is left, and when no rule fits. Threads may
    share one client.
    """

    def _create(self, **kwargs: object) -> object:
        play, patience = self.play(kwargs), Patience(kwargs)
        patience.wait(play.latency)
        return ScriptedStream(play.tape(kwargs), patience) if kwargs.get("stream") else play.whole()


class AsyncScriptedModel(Script):
    """`ScriptedModel` with an `async` `create`, as `AsyncOpenAI` is to `OpenAI`.

    Callables in the script are plain functions here too. With `stream=True`, `await` returns an `AsyncScriptedStream`.
    """

    async def _create(self, **kwargs: object) -> object:
        play, patience = self.play(kwargs), Patience(kwargs)
        await patience.wait_async(play.latency)
        return AsyncScriptedStream(play.tape(kwargs), patience) if kwargs.get("stream") else play.whole()


def _checked(replies: Sequence[object]) -> list[object]:
    if not isinstance(replies, (list, tuple)):
        raise ConfigurationError(
            f"ScriptedModel takes a list of replies or one callable, not {type(replies).__name__}. {REPLY_FORMS}"
        )
    rules = sum(isinstance(reply, Rule) for reply in replies)
    if rules not in (0, len(replies)):
        raise ConfigurationError(
            "ScriptedModel takes rules or replies in turn, not both in one list; make every entry a when(...) or "
            "otherwise(...), or none"
        )
    for number, rule in enumerate(replies[:-1], 1) if rules else ():
        if rule == Rule(rule.reply):
            raise ConfigurationError(
                f"the rules after otherwise(...) (entry {number} of {rules}) would never answer; put it last"
            )
    for reply in replies if not rules else ():
        check_reply(reply)
    return list(replies)


def _snapshot(kwargs: Mapping[str, object]) -> dict[str, object]:
    """Copy the request so that messages appended later do not show in it."""
    messages = kwargs.get("messages")
    return {**kwargs, "messages": list(messages)} if isinstance(messages, list) else dict(kwargs)
