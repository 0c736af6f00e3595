"""`Redacting`: a codec that permanently masks secrets before anything is stored.

The masked text is lost: the run itself, live or after a crash, continues with the mask. This makes it safe, because the
model and the tools see the same with and without a crash. A tool that needs a secret reads it from its source.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from durable_swarm import codec
from durable_swarm.codec import Codec, Place
from durable_swarm.errors import ConfigurationError

__all__ = ["Redacting"]

_NAMES = frozenset({"role", "type", "id", "tool_call_id", "tool_name", "sender", "run_id", "step", "agent", "removed"})
"""Fields of records with names of ours and the provider's: a history with others is refused."""

_OWN_SHAPE = frozenset({"messages", "message", "raised", "own", "plan", "kept", "detours", "removed", "heard"})
"""Fields of records that contain such names; all others hold values of users."""

_VALUES = frozenset({"args", "state", "attributes", "context", "updates", "changed", "value"})
"""Fields inside those that hold values of users after all."""


class Redacting:
    """Masks the matches of `patterns` in texts of messages, arguments, results, context and errors.

    A pattern is a regular expression, as text or compiled. `mask` replaces each match. `inner` is a codec that gets the
    masked data, such as `EncryptionCodec()`.

    Numbers, dates, dictionary keys and the names of agents, tools and steps stay as they are. Raises
    `ConfigurationError` for an invalid pattern.
    """

    def __init__(
        self, patterns: Sequence[str | re.Pattern[str]], inner: Codec | None = None, *, mask: str = "[redacted]"
    ) -> None:
        if not isinstance(mask, str) or not codec.storable(mask):
            raise ConfigurationError("mask must be a string that a database can store")
        self._patterns = _compiled(patterns)
        self._inner = inner
        self._mask = mask

    def __repr__(self) -> str:
        return f"Redacting({len(self._patterns)} patterns, inner={self._inner!r})"

    def __eq__(self, other: object) -> bool:
        """Compare: two with the same patterns, mask and inner codec are the same codec."""
        if not isinstance(other, Redacting):
            return NotImplemented
        return (self._patterns, self._mask, self._inner) == (other._patterns, other._mask, other._inner)

    def __hash__(self) -> int:
        return hash((tuple(self._patterns), self._mask))

    def encode(self, data: dict[str, Any], place: Place) -> dict[str, Any] | str:
        """Mask, then pass to the inner codec."""
        masked = {key: self._field(key, value) for key, value in data.items()}
        return masked if self._inner is None else self._inner.encode(masked, place)

    def decode(self, stored: dict[str, Any] | str, place: Place) -> dict[str, Any]:
        """Return the stored data; the masks stay."""
        if self._inner is not None:
            return self._inner.decode(stored, place)
        if isinstance(stored, str):
            raise ConfigurationError("it was stored through another codec; pass that one as inner=")
        return stored

    def text(self, text: str) -> str:
        """Return the text with every match masked."""
        for pattern in self._patterns:
            text = pattern.sub(lambda _: self._mask, text)
        return text

    def _field(self, key: str, value: Any) -> object:
        if (
            key == "progress"
        ):  # For events: number, time, and data with names of ours beside the data that the tool has emitted.
            return [[seq, at, self._progress(data), *kind] for seq, at, data, *kind in value]
        if key == "ended":
            at, kind, data = value
            return [
                at,
                kind,
                {name: self._value(item) if name == "error_message" else item for name, item in data.items()},
            ]
        return self._member(key, value) if key in _OWN_SHAPE else self._value(value)

    def _progress(self, data: Mapping[str, object]) -> dict[str, object]:
        return {key: self._value(item) if key in ("progress", "question") else item for key, item in data.items()}

    def _named(self, value: object) -> object:
        """Mask in a message or a failure, except in the fields that hold names."""
        if isinstance(value, list):
            return [self._named(item) for item in value]
        if not isinstance(value, dict) or codec.TAG in value:
            return self._value(value)
        if "arguments" in value and "name" in value:
            return {**value, "arguments": self._arguments(value["arguments"])}
        return {key: self._member(key, item) for key, item in value.items()}

    def _member(self, key: str, item: object) -> object:
        if key in _NAMES:
            return item
        if key == "plan" and isinstance(item, list):
            return [entry if isinstance(entry, str) else self._plan(entry) for entry in item]
        return self._value(item) if key in _VALUES else self._named(item)

    def _plan(self, entry: Mapping[str, object]) -> dict[str, object]:
        return {
            key: item if key in ("make", "effect", "approval") else self._value(item) for key, item in entry.items()
        }

    def _arguments(self, text: object) -> object:
        """Mask in the arguments of a tool call, which are JSON unless the model made a mistake."""
        if not isinstance(text, str):
            return self._value(text)
        try:
            given = json.loads(text)
        except (ValueError, RecursionError):
            return self.text(text)
        masked = self._plain(given)
        return text if masked == given else json.dumps(masked)

    def _plain(self, value: object) -> object:
        """Mask in JSON data that is not ours, where a key `$type` has no meaning."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self._plain(item) for item in value]
        return {key: self._plain(item) for key, item in value.items()} if isinstance(value, dict) else value

    def _value(self, value: object) -> object:
        """Mask in a value as the codec of `durable_swarm.codec` writes it."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self._value(item) for item in value]
        if not isinstance(value, dict):
            return value
        return self._tagged(value) if codec.TAG in value else {key: self._value(item) for key, item in value.items()}

    def _tagged(self, value: dict[str, Any]) -> object:
        kind, inside = value[codec.TAG], value["value"]
        if kind == "dict":
            return {**value, "value": [[key, self._value(item)] for key, item in inside]}
        if kind in ("tuple", "set", "frozenset"):
            return {**value, "value": self._value(inside)}
        if kind == "text":
            return codec.encode(self.text(codec.decode(value)))
        if kind == "bytes":
            masked = self.text(codec.decode(value).decode("latin-1"))
            return codec.encode(masked.encode("latin-1", "replace"))
        return value


def _compiled(patterns: Any) -> list[re.Pattern[str]]:
    if isinstance(patterns, str | re.Pattern):
        patterns = [patterns]
    try:
        compiled = [re.compile(pattern) for pattern in patterns]
    except (TypeError, re.error) as error:
        raise ConfigurationError(f"patterns must be regular expressions: {error}") from None
    if not compiled or not all(isinstance(pattern.pattern, str) for pattern in compiled):
        raise ConfigurationError("patterns must be at least one regular expression for text")
    return compiled
