"""One model call: the request, the client, the retries, the reply as plain data.

Rate limits, timeouts, lost connections and server errors (408, 409, 429, 5xx) are retried, as often as the client's own
`max_retries` says (5 if the client has no such setting), after 0.5 s doubling to 8 s, or after the time in
`Retry-After`. Errors of the caller (400, 401, 404, …) are not retried.

A streamed reply is the same call: its chunks are shown as they arrive and merged into the same message.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Protocol

from durable_swarm import credentials
from durable_swarm.concurrency import LoopRuntime, Runtime
from durable_swarm.models.choice import ModelChoice
from durable_swarm.models.client import client_for, takes_origins
from durable_swarm.models.client_loops import on_its_loop
from durable_swarm.models.cut import warn_if_cut
from durable_swarm.models.final_tool import (
    AnswerSink,
    as_answer,
    note_refusal,
    refused_format,
    refuses_format,
    with_final_tool,
)
from durable_swarm.models.lean import prepared, retries_itself
from durable_swarm.models.memo import KeptInMemory, Memo
from durable_swarm.models.provider_errors import (
    BAD_OUTPUT_TRIES,
    bad_output,
    of_provider,
    pause,
    status_of,
    transient,
)
from durable_swarm.models.receiver import AttemptSink, DeltaSink, StreamReceiver, has_end_marks, note_end_marks
from durable_swarm.models.reply import Answer, read_finish, read_message, read_usage
from durable_swarm.models.request import build_request, instructions
from durable_swarm.models.retry import DEFAULT_RETRIES, _model_error
from durable_swarm.models.stream import Unmarked, unreadable, whole
from durable_swarm.models.wire import Conversation, with_origin
from durable_swarm.schema.output import OutputType, output_type_of
from durable_swarm.types import AgentLike, Message, Usage


@dataclass(frozen=True)
class ModelCall:
    """Identifies a model call: the run, its turn counted from 0, and the turns that a fork has `kept`."""

    run_id: str
    turn: int
    kept: int = 0
    memo: Memo = field(default_factory=KeptInMemory, compare=False)
    """Where a client keeps what it needs after a crash, in the middle of this call."""
    notes: dict[str, object] = field(default_factory=dict, compare=False)
    """The client's note on its answer: `model`, if another one than the requested one has answered."""
    by_tool: bool | None = None
    """True if the run asks for the answer by a final tool, False by `response_format`; None if it never asked."""
    keep_by_tool: Callable[[], None] = field(default=lambda: None, compare=False)
    """Called before a request with a final tool is sent that the run does not know of. May block."""


current_model_call: ContextVar[ModelCall | None] = ContextVar("durable_swarm_model_call", default=None)


@dataclass(frozen=True)
class Completion:
    """A model's answer as plain data: the message, the tokens if counted, the model that was asked.

    `finish` is the finish reason, if it is not the usual one. `by_tool` means that the answer came by a final tool,
    which `message` does not show.
    """

    message: Message
    usage: Usage | None
    model: str
    finish: str = ""
    by_tool: bool = False


async def complete(
    client: object,
    agent: AgentLike,
    history: list[Message],
    context: dict[str, object],
    *,
    conversation: Conversation,
    choice: ModelChoice,
    debug: bool,
    call: ModelCall,
    waits: Runtime,
    show: DeltaSink | None = None,
    gate: Gate | None = None,
    tools: bool = True,
) -> Completion:
    """Make one model call for `agent`, with its retries. With `show` the reply is streamed and shown as it arrives.

    `gate` is asked before each try, and after each one that failed. Without `tools` the model is offered none.

    Raises `ModelError` if the provider refuses or stays unreachable; other exceptions of the client pass unchanged.
    """
    system = await instructions(agent, context, waits)
    request = build_request(agent, [], choice.name, streamed=show is not None, offers_tools=tools)
    client = client_for(client, request["model"])
    origins = takes_origins(client)
    request["messages"] = conversation.request(system, history, request["model"], origins=origins)
    if debug:
        say(f"Getting chat completion for...: {request['messages']}")
    asking = _Asking(client, request, waits, call, show, choice.remedy, output_type_of(agent))
    with _called(call):
        answer = await asking.answer(gate)
    model = str(call.notes.get("model") or request["model"])
    message = with_origin(as_answer(read_message(answer.message, call.turn), asking.final), model)
    if debug:
        say(f"Received completion: {message}")
    finish = read_finish(answer)
    warn_if_cut(agent.name, call.run_id, finish, has_calls=bool(message["tool_calls"]))
    return Completion(message, read_usage(answer), model, finish, bool(asking.final))


@contextlib.contextmanager
def _called(call: ModelCall) -> Iterator[None]:
    token = current_model_call.set(call)
    try:
        yield
    finally:
        current_model_call.reset(token)


class Gate(Protocol):
    """Decides when a model is asked."""

    async def admit(self, model: str) -> None:
        """Wait until the model may be asked."""

    def gives_up(self, error: Exception, attempt: int) -> bool:
        """Return True if no further try is to be made now, although the error of this one may pass."""

    async def pause(self, seconds: float) -> None:
        """Wait between two tries."""


@dataclass
class _Asking:
    """One model call with its retries."""

    client: object
    request: dict[str, Any]
    waits: Runtime
    call: ModelCall
    show: DeltaSink | None
    remedy: str
    """The advice if the provider does not have the model."""
    output: OutputType | None = None
    final: str = ""
    """The name of the final tool by which the answer is asked for, if it is."""
    begun: bool = False
    """True if the last attempt failed after an answer had begun."""

    async def answer(self, gate: Gate | None) -> Answer:
        """Ask until there is an answer. Raises `ModelError`, and exceptions of the program's own client."""
        credentials.remember(self.client)
        retries = getattr(self.client, "max_retries", None)
        tries = 1 + (retries if isinstance(retries, int) else DEFAULT_RETRIES)
        await self._choose_form()
        for attempt in count(1):
            if gate is not None:
                await gate.admit(self.request["model"])
            try:
                return await self._attempt()
            except Exception as raised:
                error = unreadable(raised) or raised
                if not of_provider(error):
                    raise
                most = max(tries, BAD_OUTPUT_TRIES) if bad_output(error) else tries
                if self._was_retried(error):
                    raise _model_error(error, attempt - 1 + tries, self._hint(error)) from None
                if attempt >= most or not transient(error) or (gate is not None and gate.gives_up(error, attempt)):
                    raise _model_error(error, attempt, self._hint(error)) from None
                seconds = pause(error, attempt)
                await (self.waits.sleep(seconds) if gate is None else gate.pause(seconds))
        raise AssertionError("unreachable")

    def _hint(self, error: Exception) -> str:
        if status_of(error) not in (404, 410):
            return ""
        return f". The provider may not have model {self.request['model']!r}: {self.remedy}"

    def _was_retried(self, error: Exception) -> bool:
        """Return True if the client itself has already retried the failed call, and given up."""
        came = isinstance(getattr(error, "status_code", None), int) or isinstance(error, _lost_by_openai())
        return came and not self.begun and not bad_output(error) and transient(error) and retries_itself(self.client)

    async def _choose_form(self) -> None:
        """Ask for the answer as this run did before; if it never did, as the model takes it."""
        known = self.call.by_tool
        if self.output is not None and (refuses_format(self.client, self.request["model"]) if known is None else known):
            await self._ask_by_tool(self.output)

    async def _ask_by_tool(self, output: OutputType) -> None:
        note_refusal(self.client, self.request["model"])
        if not self.call.by_tool:
            await self.waits.call(self.call.keep_by_tool)
        self.request, self.final = with_final_tool(self.request, output)

    async def _attempt(self) -> Answer:
        try:
            return await self._asked()
        except Exception as error:
            if self.output is None or self.final or not refused_format(error, self.request):
                raise
        await self._ask_by_tool(self.output)
        return await self._asked()

    async def _asked(self) -> Answer:
        self.begun = False
        if self.show is None:
            create, arguments = prepared(self.client, self.request)
            return whole(await self.waits.call(on_its_loop(self.client, create), **arguments))
        if self.request["stream"] and has_end_marks(self.client, self.request["model"]) is False:
            self._ask_whole()
        try:
            show = AnswerSink(self.show, self.final) if self.final else self.show
            answer = await self._receive(AttemptSink(show, self.call.turn))
        except Exception as error:
            refused = self._unmarked(error) or _refused(error, self.request)
            if refused is None:
                raise
        else:
            if self.request["stream"] and answer.finish:
                note_end_marks(self.client, self.request["model"], True)
            return answer
        # Not in further tries either.
        if refused == "stream":
            self._ask_whole()
        else:
            del self.request["stream_options"]
        return await self._asked()

    def _unmarked(self, error: Exception) -> str | None:
        """Return "stream" if a stream ended without an end mark, and this provider may never send one.

        The received text may be whole or not, so a whole reply is requested. A provider that does mark its ends has
        broken off.
        """
        model = self.request["model"]
        if not isinstance(error, Unmarked) or not self.request["stream"] or has_end_marks(self.client, model):
            return None
        note_end_marks(self.client, model, False)
        return "stream"

    def _ask_whole(self) -> None:
        self.request.pop("stream_options", None)
        self.request["stream"] = False

    async def _receive(self, shown: AttemptSink) -> Answer:
        """Make one attempt at a streamed call. If it fails or is cancelled, the shown text is withdrawn."""
        create, arguments = prepared(self.client, self.request)
        reception = StreamReceiver(partial(create, **arguments), shown)
        receive = on_its_loop(self.client, reception.way())
        # Not in the threads of `waits`: the reader may need one of them to read meanwhile.
        waits = LoopRuntime() if isinstance(self.waits, LoopRuntime) else self.waits
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


def _refused(error: Exception, request: Mapping[str, object]) -> str | None:
    """Return the argument needed for streaming that a provider, or a client with a fixed signature, refuses.

    Without `stream_options` the tokens of a stream are not counted; without `stream` the reply arrives whole.
    """
    refuses = isinstance(error, TypeError) or getattr(error, "status_code", None) in (400, 403, 422)
    if not refuses or not request["stream"]:
        return None
    if "stream_options" in request and "stream_options" in str(error):
        return "stream_options"
    return "stream" if re.search(r"\bstream(ing)?\b", str(error)) else None


def say(text: str) -> None:
    """Print a debug line in grey, as Swarm does."""
    print(f"\033[97m[\033[90m durable-swarm \033[97m]\033[90m {text}\033[0m")
