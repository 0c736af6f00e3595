"""An answer of OpenAI's Responses API in the shape of chat completions, whole and chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from durable_swarm.models.reply import ErrorReply
from durable_swarm.providers.responses_request import KIND

UNDER_WAY = ("queued", "in_progress")
"""The statuses of an unfinished response."""

_BETWEEN = "\n\n"
"""The separator between two texts of one reply."""

_CUT = {"max_output_tokens": "length", "content_filter": "content_filter"}
_STATUSES = {"rate_limit_exceeded": "429", "server_error": "500", "vector_store_timeout": "504"}
"""The HTTP statuses of transient failures; any other failure is that of the request."""


def completion_of(response: Any) -> Any:
    """Return a finished response as a `ChatCompletion`. Raises `ErrorReply` if it has failed."""
    from openai.types.chat import ChatCompletion

    check_ended(response)
    message = _message(response)
    choice = {"index": 0, "message": message, "finish_reason": _finish(response, bool(message["tool_calls"]))}
    return ChatCompletion.construct(
        id=response.id,
        object="chat.completion",
        created=int(response.created_at or 0),
        model=response.model,
        choices=[choice],
        usage=_usage(response),
    )


def check_ended(response: Any) -> None:
    """Check that a response has ended with an answer. Raises `ErrorReply`."""
    if response.status == "failed" or response.error is not None:
        code = getattr(response.error, "code", None) or "server_error"
        message = getattr(response.error, "message", None) or "the response failed"
        raise failure(code, message)
    if response.status == "cancelled":
        raise ErrorReply(f"response {response.id} was cancelled at the provider", "409")


def failure(code: Any, message: str) -> ErrorReply:
    """Return the error for a failure that the API reports in its own words."""
    status = _STATUSES.get(code)
    return ErrorReply(message, code, "invalid_request_error") if status is None else ErrorReply(message, status, code)


def _message(response: Any) -> dict[str, Any]:
    output = response.output or []
    texts = [_joined(item, "text") for item in output if item.type == "message"]
    refusals = [_joined(item, "refusal") for item in output if item.type == "message"]
    calls = [
        {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
        for item in output
        if item.type == "function_call"
    ]
    texts, refusals = [*filter(None, texts)], [*filter(None, refusals)]
    said = any(item.type == "message" for item in output)
    return {
        "role": "assistant",
        "content": _BETWEEN.join(texts) if texts or (said and not refusals) else None,
        "refusal": _BETWEEN.join(refusals) or None,
        "tool_calls": calls or None,
        "provider": origin_of(response),
    }


def _joined(item: Any, key: str) -> str:
    return "".join(getattr(part, key, None) or "" for part in item.content or ())


def origin_of(response: Any) -> dict[str, Any]:
    """Return the part of a reply that the API needs back: its items, without the message's texts and calls."""
    items = [_bare(item.to_dict(mode="json")) for item in response.output or ()]
    messages = [item for item in items if item.get("type") == "message"]
    if len(messages) == 1 and _is_plain(messages[0]):
        del messages[0]["content"]
    return {"kind": KIND, "model": str(response.model), "items": items}


def _bare(item: dict[str, Any]) -> dict[str, Any]:
    own = ("call_id", "name", "arguments") if item.get("type") == "function_call" else ()
    return {name: value for name, value in item.items() if value is not None and name not in own}


def _is_plain(item: dict[str, Any]) -> bool:
    """Return True if the content of a message has nothing but the text."""
    parts = item.get("content") or []
    return all(part.get("type") == "output_text" and not part.get("annotations") for part in parts)


def _finish(response: Any, calls: bool) -> str:
    if response.status == "incomplete":
        reason = getattr(response.incomplete_details, "reason", None) or "length"
        return _CUT.get(reason, reason)
    return "tool_calls" if calls else "stop"


def _usage(response: Any) -> dict[str, Any] | None:
    usage = response.usage
    if usage is None:
        return None
    cached = getattr(usage.input_tokens_details, "cached_tokens", None) or 0
    written = getattr(usage.input_tokens_details, "cache_write_tokens", None) or 0
    reasoning = getattr(usage.output_tokens_details, "reasoning_tokens", None) or 0
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
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

    def take(self, event: Any) -> Iterator[Any]:
        """Take an event, and yield its chunks. Raises `ErrorReply` for the end of a response that failed."""
        number = getattr(event, "sequence_number", None)
        self.last = number if isinstance(number, int) else self.last
        response = getattr(event, "response", None)
        if response is not None:
            self.response_id, self._model = response.id, str(response.model)
        match event.type:
            case "response.output_text.delta":
                yield from self._say(event, "content")
            case "response.refusal.delta":
                yield from self._say(event, "refusal")
            case "response.output_item.added" if event.item.type == "function_call":
                yield self._call(event)
            case "response.function_call_arguments.delta":
                self._streamed.add((event.output_index, "arguments"))
                yield self._arguments(event.output_index, event.delta)
            case "response.output_item.done":
                yield from self._done(event)
            case "error":
                raise failure(event.code, event.message)
            case "response.completed" | "response.incomplete" | "response.failed" | "response.cancelled":
                self.ended = True
                check_ended(event.response)
                yield from self._end(event.response)

    def _chunk(self, delta: dict[str, Any] | None, finish: str | None = None, usage: Any = None) -> Any:
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

    def _say(self, event: Any, key: str) -> Iterator[Any]:
        self._streamed.add((event.output_index, key))
        yield self._text(event.item_id, key, event.delta)

    def _text(self, item_id: str, key: str, text: str) -> Any:
        """Return the chunk of a piece of text, after a separator at the beginning of a further item."""
        between = _BETWEEN if self._said not in (None, f"{item_id} {key}") and (self._said or "").endswith(key) else ""
        self._said = f"{item_id} {key}"
        return self._chunk({key: between + text})

    def _call(self, event: Any) -> Any:
        self._calls[event.output_index] = number = len(self._calls)
        function = {"name": event.item.name, "arguments": ""}
        made = {"index": number, "id": event.item.call_id, "type": "function", "function": function}
        return self._chunk({"tool_calls": [made]})

    def _arguments(self, place: int, text: str) -> Any:
        return self._chunk({"tool_calls": [{"index": self._calls[place], "function": {"arguments": text}}]})

    def _done(self, event: Any) -> Iterator[Any]:
        """Yield the parts of an item that did not arrive in pieces."""
        item, place = event.item, event.output_index
        if item.type == "function_call":
            if place not in self._calls:
                yield self._call(event)
            if (place, "arguments") not in self._streamed and item.arguments:
                yield self._arguments(place, item.arguments)
        elif item.type == "message":
            for key, field in (("content", "text"), ("refusal", "refusal")):
                text = _joined(item, field)
                if text and (place, key) not in self._streamed:
                    yield self._text(item.id, key, text)
            if not _joined(item, "text") and not _joined(item, "refusal"):
                yield self._chunk({"content": ""})

    def _end(self, response: Any) -> Iterator[Any]:
        yield self._chunk({"provider": origin_of(response)}, _finish(response, bool(self._calls)))
        yield self._chunk(None, usage=_usage(response))
