"""An answer of OpenAI's Responses API in the shape of chat completions, whole and chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from durable_swarm.models.reply import DATA, EmptyReply, ErrorReply, field, instead, refuse_error
from durable_swarm.models.stream import BrokenStream
from durable_swarm.providers.responses_request import KIND

UNDER_WAY = ("queued", "in_progress")
"""The statuses of an unfinished response."""

_BETWEEN = "\n\n"
"""The separator between two texts of one reply."""

_CUT = {"max_output_tokens": "length", "content_filter": "content_filter"}
_STATUSES = {"rate_limit_exceeded": "429", "server_error": "500", "vector_store_timeout": "504"}
"""The HTTP statuses of transient failures; any other failure is that of the request."""


def checked(response: object) -> object:
    """Return what is a response. Raises `ErrorReply` or `EmptyReply` for what a provider sent in its place."""
    if not id_of(response):
        refuse_error(response)
        raise EmptyReply(f"the provider's answer is not a response{instead(response)}")
    return response


def id_of(response: object) -> str:
    """Return the id of a response, "" if it has none."""
    found = field(response, "id")
    return found if isinstance(found, str) else ""


def completion_of(response: object) -> object:
    """Return a finished response as a `ChatCompletion`. Raises `EmptyReply`, or `ErrorReply` if it has failed."""
    from openai.types.chat import ChatCompletion

    check_ended(checked(response))
    message = _message(response)
    choice = {"index": 0, "message": message, "finish_reason": _finish(response, bool(message["tool_calls"]))}
    created = field(response, "created_at")
    return ChatCompletion.construct(
        id=id_of(response),
        object="chat.completion",
        created=int(created) if isinstance(created, int | float) else 0,
        model=field(response, "model"),
        choices=[choice],
        usage=_usage(response),
    )


def check_ended(response: object) -> None:
    """Check that a response has ended with an answer. Raises `ErrorReply`."""
    error, status = field(response, "error"), field(response, "status")
    if status == "failed" or error is not None:
        said = error if isinstance(error, str) else field(error, "message")
        raise failure(field(error, "code") or "server_error", str(said or "the response failed"))
    if status == "cancelled":
        raise ErrorReply(f"response {id_of(response)} was cancelled at the provider", "409")


def failure(code: object, message: str) -> ErrorReply:
    """Return the error for a failure that the API reports in its own words."""
    status = _STATUSES.get(code) if isinstance(code, str) else None
    return ErrorReply(message, code, "invalid_request_error") if status is None else ErrorReply(message, status, code)


def _items(response: object) -> list[object]:
    output = field(response, "output")
    if not isinstance(output, list | tuple):
        raise EmptyReply(f"the provider's response has no output: {output!r:.300}")
    return [item for item in output if not isinstance(item, DATA)]


def _message(response: object) -> dict[str, object]:
    output = _items(response)
    said = [item for item in output if field(item, "type") == "message"]
    texts = [*filter(None, (_joined(item, "text") for item in said))]
    refusals = [*filter(None, (_joined(item, "refusal") for item in said))]
    calls = [
        {
            "id": field(item, "call_id"),
            "type": "function",
            "function": {"name": field(item, "name"), "arguments": field(item, "arguments")},
        }
        for item in output
        if field(item, "type") == "function_call"
    ]
    return {
        "role": "assistant",
        "content": _BETWEEN.join(texts) if texts or (said and not refusals) else None,
        "refusal": _BETWEEN.join(refusals) or None,
        "tool_calls": calls or None,
        "provider": origin_of(response),
    }


def _joined(item: object, key: str) -> str:
    parts = field(item, "content")
    texts = [field(part, key) for part in parts] if isinstance(parts, list | tuple) else []
    return "".join(text for text in texts if isinstance(text, str))


def origin_of(response: object) -> dict[str, object]:
    """Return the part of a reply that the API needs back: its items, without the message's texts and calls."""
    items = [_bare(item) for item in _items(response)]
    messages = [item for item in items if item.get("type") == "message"]
    if len(messages) == 1 and _is_plain(messages[0]):
        del messages[0]["content"]
    return {"kind": KIND, "model": str(field(response, "model")), "items": items}


def _bare(item: object) -> dict[str, object]:
    if isinstance(item, BaseModel):  # As its `to_dict`, but silent about parts that the API does not have.
        item = item.model_dump(mode="json", by_alias=True, exclude_unset=True, warnings=False)
    if not isinstance(item, Mapping):
        return {}
    own = ("call_id", "name", "arguments") if item.get("type") == "function_call" else ()
    return {name: value for name, value in item.items() if value is not None and name not in own}


def _is_plain(item: Mapping[str, object]) -> bool:
    """Return True if the content of a message has nothing but the text."""
    parts = item.get("content") or []
    return isinstance(parts, list | tuple) and all(
        field(part, "type") == "output_text" and not field(part, "annotations") for part in parts
    )


def _finish(response: object, calls: bool) -> str:
    if field(response, "status") == "incomplete":
        reason = str(field(field(response, "incomplete_details"), "reason") or "length")
        return _CUT.get(reason, reason)
    return "tool_calls" if calls else "stop"


def _usage(response: object) -> dict[str, object] | None:
    usage = field(response, "usage")
    if usage is None:
        return None
    read, written = field(usage, "input_tokens_details"), field(usage, "output_tokens_details")
    cached = {name: field(read, name) or 0 for name in ("cached_tokens", "cache_write_tokens")}
    return {
        "prompt_tokens": field(usage, "input_tokens"),
        "completion_tokens": field(usage, "output_tokens"),
        "total_tokens": field(usage, "total_tokens"),
        "prompt_tokens_details": cached,
        "completion_tokens_details": {"reasoning_tokens": field(written, "reasoning_tokens") or 0},
    }


class Chunks:
    """The events of one response's stream as chunks of a chat completion."""

    def __init__(self) -> None:
        self.response_id = ""
        self.last = -1
        """The number of the last event."""
        self.ended = False
        self._begun = False
        self._model = ""
        self._said: str | None = None
        """The item of the last text."""
        self._calls: dict[int, int] = {}
        """The tool calls by the places of their items, numbered as chat completions number them."""
        self._streamed: set[tuple[int, str]] = set()
        """The items and kinds whose pieces have arrived."""

    def take(self, event: object) -> Iterator[object]:
        """Take an event, and yield its chunks.

        Raises `ErrorReply` for the end of a response that failed, and `BrokenStream` for what cannot be read.
        """
        number = field(event, "sequence_number")
        self.last = number if isinstance(number, int) else self.last
        response, item = field(event, "response"), field(event, "item")
        if response is not None:
            self.response_id, self._model = id_of(response) or self.response_id, str(field(response, "model"))
        match field(event, "type"):
            case "response.output_text.delta":
                yield from self._say(event, "content")
            case "response.refusal.delta":
                yield from self._say(event, "refusal")
            case "response.output_item.added" if field(item, "type") == "function_call":
                yield self._call(event)
            case "response.function_call_arguments.delta":
                self._streamed.add((_place(event), "arguments"))
                yield self._arguments(event, _text(event, "delta"))
            case "response.output_item.done":
                yield from self._done(event)
            case "error":
                raise failure(field(event, "code"), str(field(event, "message") or "the response failed"))
            case "response.completed" | "response.incomplete" | "response.failed" | "response.cancelled":
                self.ended = True
                check_ended(response)
                yield from self._end(response)
            case str():
                pass  # Of no interest.
            case _:
                raise _unfit("an event", event)

    def _chunk(self, delta: Mapping[str, object] | None, finish: str | None = None, usage: object = None) -> object:
        from openai.types.chat import ChatCompletionChunk

        if delta is not None and not self._begun:
            delta, self._begun = {"role": "assistant", **delta}, True
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
        return ChatCompletionChunk.construct(
            id=self.response_id,
            object="chat.completion.chunk",
            created=0,
            model=self._model,
            choices=choices,
            usage=usage,
        )

    def _say(self, event: object, key: str) -> Iterator[object]:
        self._streamed.add((_place(event), key))
        yield self._piece(field(event, "item_id"), key, _text(event, "delta"))

    def _piece(self, item_id: object, key: str, text: str) -> object:
        """Return the chunk of a piece of text, after a separator at the beginning of a further item."""
        between = _BETWEEN if self._said not in (None, f"{item_id} {key}") and (self._said or "").endswith(key) else ""
        self._said = f"{item_id} {key}"
        return self._chunk({key: between + text})

    def _call(self, event: object) -> object:
        self._calls[_place(event)] = number = len(self._calls)
        item = field(event, "item")
        function = {"name": field(item, "name"), "arguments": ""}
        made = {"index": number, "id": field(item, "call_id"), "type": "function", "function": function}
        return self._chunk({"tool_calls": [made]})

    def _arguments(self, event: object, text: str) -> object:
        number = self._calls.get(_place(event))
        if number is None:
            raise _unfit("the arguments of a tool call that it has", event)
        return self._chunk({"tool_calls": [{"index": number, "function": {"arguments": text}}]})

    def _done(self, event: object) -> Iterator[object]:
        """Yield the parts of an item that did not arrive in pieces."""
        item, place = field(event, "item"), _place(event)
        if isinstance(item, DATA):
            raise _unfit("an item", event)
        if field(item, "type") == "function_call":
            if place not in self._calls:
                yield self._call(event)
            if (place, "arguments") not in self._streamed and field(item, "arguments"):
                yield self._arguments(event, _text(item, "arguments"))
        elif field(item, "type") == "message":
            for key, part in (("content", "text"), ("refusal", "refusal")):
                text = _joined(item, part)
                if text and (place, key) not in self._streamed:
                    yield self._piece(field(item, "id"), key, text)
            if not _joined(item, "text") and not _joined(item, "refusal"):
                yield self._chunk({"content": ""})

    def _end(self, response: object) -> Iterator[object]:
        yield self._chunk({"provider": origin_of(response)}, _finish(response, bool(self._calls)))
        yield self._chunk(None, usage=_usage(response))


def _place(event: object) -> int:
    place = field(event, "output_index")
    if not isinstance(place, int):
        raise _unfit("an event with a place", event)
    return place


def _text(part: object, key: str) -> str:
    text = field(part, key)
    if not isinstance(text, str):
        raise _unfit("a text", part)
    return text


def _unfit(what: str, event: object) -> BrokenStream:
    return BrokenStream(f"the provider's stream contains something that is not {what}: {event!r:.300}")
