"""The history as a provider accepts it: which fields of a message are sent, under which ids, and to whom.

Fields that a provider adds to its replies (reasoning, signatures of tool calls, `extra_content`) are kept in the
message and sent back, because some providers refuse a history without them. They are not sent to the models of another
maker.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any, NoReturn

from durable_swarm.codec import mended
from durable_swarm.types import Message

REQUEST_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "audio", "function_call"})
"""The fields that a message of a request may have."""

_NOT_SENT = frozenset({"sender", "tool_name", "provider", "annotations"})
"""Our own keys, and fields that only describe a reply."""

_CALL_KEYS = frozenset({"id", "type", "function", "custom"})

_MAKERS = {
    "anthropic": ("anthropic", "claude"),
    "openai": ("openai", "gpt", "chatgpt", "o1", "o3", "o4", "codex"),
    "google": ("google", "gemini", "gemma"),
    "deepseek": ("deepseek",),
    "mistral": ("mistral", "mistralai", "mixtral", "magistral", "ministral", "codestral", "devstral"),
    "qwen": ("qwen", "qwq", "alibaba"),
    "moonshot": ("moonshot", "moonshotai", "kimi"),
    "xai": ("xai", "grok"),
    "meta": ("meta", "llama"),
    "zhipu": ("zhipu", "glm"),
    "minimax": ("minimax",),
    "cohere": ("cohere", "command"),
    "amazon": ("amazon", "nova"),
}
_MAKER_OF = {word: maker for maker, words in _MAKERS.items() for word in words}

LONGEST_ID = 40
"""Maximum length of a tool call's id that OpenAI accepts, in characters."""


def maker_of(model: object) -> str:
    """Return the maker of a model as far as its name tells; otherwise ""."""
    words = re.findall(r"[a-z]+[0-9]?", str(model).lower().replace("x-ai", "xai"))
    found = (_MAKER_OF.get(word) or _MAKER_OF.get(word.rstrip("0123456789")) for word in words)
    return next((maker for maker in found if maker), "")


def with_origin(message: Message, model: object) -> Message:
    """Return a reply with a note of its model's maker, if it has fields that only that maker's models need back."""
    maker, sent = maker_of(model), {key: value for key, value in message.items() if key not in _NOT_SENT}
    if not maker or "provider" in message or _for_others(sent) == sent:
        return message
    return {**message, "provider": {"kind": maker, "model": str(model)}}


class Conversation:
    """The history as providers accept it, converted once per message and not once per call."""

    def __init__(self) -> None:
        self._wire: list[Message] = []
        self._foreign: dict[int, tuple[Mapping[str, object], Message]] = {}
        """Replies with fields of their provider's own, by their place: their origin, and what others are sent."""
        self._ids = _Ids()

    def request(
        self, system: str, history: list[Message], model: object = None, *, origins: bool = False
    ) -> list[Message]:
        """Return the messages of one request to `model`. `history` only ever grows between calls.

        With `origins` the client decides to whom it sends what (see `addressed`).
        """
        for message in history[len(self._wire) :]:
            sent = self._ids.unique(to_wire(message))
            origin = message.get("provider")
            if isinstance(origin, Mapping) and origin.get("kind"):
                self._foreign[len(self._wire)] = origin, _for_others(sent)
            self._wire.append(sent)
        messages = [{"role": "system", "content": mended(system)}, *self._wire]
        asked = maker_of(model)
        for place, (origin, plain) in self._foreign.items():
            if origins:
                messages[place + 1] = {**messages[place + 1], "provider": dict(origin)}
            elif asked and str(origin["kind"]) != asked:
                messages[place + 1] = plain
        return messages


def addressed(messages: list[Message], model: object) -> list[Message]:
    """Return messages with their origins as a client for `model` is sent them: without, and none but its own fields."""
    asked = maker_of(model)
    return [_addressed(message, asked) if "provider" in message else message for message in messages]


def _addressed(message: Message, asked: str) -> Message:
    origin = message["provider"]
    kind = str(origin.get("kind") or "") if isinstance(origin, Mapping) else ""
    kept = {key: value for key, value in message.items() if key != "provider"}
    return _for_others(kept) if asked and kind and kind != asked else kept


def to_wire(message: Message) -> Message:
    """Return the message without what providers refuse: Swarm's own keys, nulls, arguments that are not JSON."""
    wire = {key: value for key, value in mended(message).items() if value is not None and key not in _NOT_SENT}
    if message.get("role") == "assistant":
        # Providers accept a message without content only if it calls tools.
        wire.setdefault("content", None if wire.get("tool_calls") else "")
        audio = wire.get("audio")
        if isinstance(audio, Mapping) and "id" in audio:
            wire["audio"] = {"id": audio["id"]}
    if "tool_calls" in wire:
        wire["tool_calls"] = [_repaired(call) for call in wire["tool_calls"]]
        if not wire["tool_calls"]:
            del wire["tool_calls"]
    return wire


def _for_others(message: Message) -> Message:
    """Return a message with only the fields that every provider knows."""
    plain = {key: value for key, value in message.items() if key in REQUEST_KEYS}
    if message.get("role") == "assistant" and isinstance(message.get("content"), list):
        # Thoughts and references are among the parts, too.
        parts = [part for part in message["content"] if isinstance(part, Mapping) and part.get("type") in _PARTS]
        plain["content"] = parts or ("" if not message.get("tool_calls") else None)
    if message.get("tool_calls"):
        plain["tool_calls"] = [_plain_call(call) for call in message["tool_calls"]]
    return plain


_PARTS = ("text", "refusal")


def _plain_call(call: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in call.items() if key in _CALL_KEYS}
    if isinstance(call.get("function"), Mapping):
        kept["function"] = {key: value for key, value in call["function"].items() if key in ("name", "arguments")}
    return kept


def _repaired(call: dict[str, Any]) -> dict[str, object]:
    """Repair broken names and arguments: some servers refuse such a history forever, and the model knows of them."""
    if call.get("type") == "custom" and isinstance(call.get("custom"), Mapping):
        return {key: value for key, value in call.items() if key != "function"}
    function = dict(call.get("function") or {})
    name = re.sub(r"[^a-zA-Z0-9_-]", "_", str(function.get("name") or ""))[:64] or "_"
    arguments = function.get("arguments")
    try:
        arguments = json.dumps(arguments) if isinstance(arguments, Mapping) else arguments
        sound = isinstance(json.loads(arguments or "", parse_constant=_no_constant), dict)
    except (TypeError, ValueError, RecursionError):
        sound = False
    return {**call, "function": {**function, "name": name, "arguments": arguments if sound else "{}"}}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON, though Python reads it")


class _Ids:
    """Makes the ids of tool calls unique in a history: some servers count from 0 in each reply, or send none."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._answers: defaultdict[str, deque[str]] = defaultdict(deque)
        """For the calls of the last reply: original id to the ids that are sent."""

    def unique(self, message: Message) -> Message:
        """Return the message with ids that no earlier call has; tool results get the new id of their call."""
        if message.get("role") == "tool":
            sent = self._answers[_id_of(message.get("tool_call_id"))]
            return {**message, "tool_call_id": sent.popleft()} if sent else message
        if message.get("role") == "assistant" and message.get("tool_calls"):
            self._answers.clear()
            return {**message, "tool_calls": [{**call, "id": self._new(call)} for call in message["tool_calls"]]}
        return message

    def _new(self, call: Mapping[str, object]) -> str:
        given = _id_of(call.get("id"))
        sent, number = given, len(self._seen)
        while not sent or sent in self._seen:
            ending = f"_{number}"
            sent, number = (given or "call")[: LONGEST_ID - len(ending)] + ending, number + 1
        self._seen.add(sent)
        self._answers[given].append(sent)
        return sent


def _id_of(given: object) -> str:
    return "" if given is None else str(given)
