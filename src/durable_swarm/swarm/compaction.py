"""`Compaction`: a session whose messages have become many continues with a summary of the first ones.

The messages themselves stay where they are: a summary changes only what a model is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from durable_swarm.codec import dumps
from durable_swarm.display import as_call
from durable_swarm.errors import ConfigurationError
from durable_swarm.fields import named_fields
from durable_swarm.types import Message
from durable_swarm.validation import check_name, check_text, check_whole

INSTRUCTIONS = (
    "You summarize the beginning of a conversation for the agent that continues it. Write down what was asked, what "
    "was found out and decided, and what is still open, with all names, numbers and dates that may be needed. Write "
    "nothing else."
)
"""What the model is told that writes a summary."""

HEADING = "Summary of the conversation so far:\n"
"""The beginning of the message that has the summary."""

PER_TOKEN = 3
"""The number of characters that count as a token where a provider has not counted."""

_functions: dict[str, Callable[[list[Message]], object]] = {}
"""The functions that write summaries, by name: a run that continues in another process finds them again."""


@named_fields
@dataclass(frozen=True)
class Compaction:
    """When and how the first messages of a session are replaced by a summary, for the model only.

    A run writes a summary before its first model call if the messages to send are more than `at_messages`, without the
    system prompt, or about more than `at_tokens` tokens. The last `keep_last` messages stay as they are, and a call
    stays together with its result. `function(messages) -> str` writes the summary, or else a model: `model`, by default
    that of the agent, with `instructions`. Raises `ConfigurationError`.
    """

    at_tokens: int | None = None
    at_messages: int | None = None
    keep_last: int = 8
    model: str | None = None
    instructions: str | None = None
    function: Callable[[list[Message]], Any] | None = None

    def __post_init__(self) -> None:
        if self.at_tokens is None and self.at_messages is None:
            raise ConfigurationError("Compaction needs at_messages=, at_tokens= or both")
        check_whole("keep_last", self.keep_last, 0)
        if self.at_tokens is not None:
            check_whole("at_tokens", self.at_tokens, 1)
        if self.at_messages is not None:
            check_whole("at_messages", self.at_messages, 1)
            if self.keep_last >= self.at_messages:
                raise ConfigurationError(
                    f"keep_last must be less than at_messages, or nothing is left to summarize; it is {self.keep_last} "
                    f"of {self.at_messages}"
                )
        if self.model is not None:
            check_name("model", self.model)
        if self.instructions is not None:
            check_text("instructions", self.instructions)
        if self.function is not None:
            if not callable(self.function) or self.model is not None or self.instructions is not None:
                raise ConfigurationError(
                    "function must be a function of the messages, and model and instructions are for a model instead"
                )
            _functions[name_of(self.function)] = self.function


def name_of(function: Callable[..., object]) -> str:
    """Return the name by which another process finds a function."""
    known = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}.{known}"


def function_named(name: str) -> Callable[[list[Message]], Any] | None:
    """Return the function of that name, or None if this process has made no `Compaction` with it."""
    return _functions.get(name)


@dataclass(frozen=True)
class SessionHistory:
    """The messages of a session as its next run is sent them: a summary of the first `upto`, and all others.

    `tokens` is what the provider counted for them at the last model call, or 0.
    """

    messages: list[Message] = field(default_factory=list)
    summary: str = ""
    upto: int = 0
    tokens: int = 0

    @property
    def sent(self) -> list[Message]:
        """The messages that a model is sent."""
        head = [{"role": "user", "content": HEADING + self.summary}] if self.summary else []
        return [*head, *self.messages]

    def grown(self, more: Sequence[Message], tokens: int) -> SessionHistory:
        """Return the history after a run with these messages."""
        return replace(self, messages=[*self.messages, *more], tokens=tokens)

    def crosses(self, compaction: Compaction, new: Sequence[Message]) -> bool:
        """Return True if the history and new messages are more than a compaction allows."""
        most = compaction.at_messages
        if most is not None and len(self.sent) + len(new) > most:
            return True
        counted = self.tokens or _size(self.sent)
        return compaction.at_tokens is not None and counted + _size(new) > compaction.at_tokens

    def first(self, compaction: Compaction, new: Sequence[Message]) -> int:
        """Return how many of the messages to summarize; a call is not separated from its result."""
        at = min(max(len(self.messages) + len(new) - compaction.keep_last, 0), len(self.messages))
        while 0 < at < len(self.messages) and self.messages[at].get("role") == "tool":
            at -= 1
        return at

    def summarized(self, at: int, text: str) -> SessionHistory:
        """Return the history with a summary in place of the first `at` messages."""
        return SessionHistory(self.messages[at:], text, self.upto + at)

    def to_summarize(self, at: int) -> list[Message]:
        """Return what a summary of the first `at` messages is made of: the summary before it, and these."""
        return [*self.sent[: len(self.sent) - len(self.messages)], *self.messages[:at]]


def check_summary(text: object) -> str:
    """Check that a summary says something, and return it. Raises `ConfigurationError`."""
    if not isinstance(text, str) or not text.strip():
        raise ConfigurationError(
            f"the summary of a session must be a text that is not empty, not {text!r:.40}; resume the run to write it "
            "again"
        )
    return text


def _size(messages: Sequence[Message]) -> int:
    return (
        sum(len(dumps(message.get("content")) + dumps(message.get("tool_calls"))) for message in messages) // PER_TOKEN
    )


def transcript(messages: Sequence[Message]) -> str:
    """Return messages as a text that a model can summarize."""
    return "\n\n".join(_line(message) for message in messages)


def _line(message: Message) -> str:
    who = message.get("sender") or message.get("tool_name") or message.get("role")
    said = message.get("content")
    text = said if isinstance(said, str) else "" if said is None else dumps(said)
    calls = [call.get("function", {}) for call in message.get("tool_calls") or []]
    made = [f"[calls {as_call(str(call.get('name')), call.get('arguments'))}]" for call in calls]
    return f"{who}: {' '.join(part for part in (text, *made) if part)}"
