"""The responses of a scripted model, shaped like openai's `ChatCompletion` and the chunks of its stream.

openai itself is not needed.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from durable_swarm.errors import ConfigurationError


class Part(BaseModel):
    """A part of a response. Programs may set attributes of their own on it, as openai's models allow."""

    model_config = ConfigDict(extra="allow")


class Function(Part):
    """The function to call; `arguments` is the text the model wrote, normally a JSON object."""

    name: str
    arguments: str


class ToolCall(Part):
    """One tool call of a reply."""

    id: str
    type: Literal["function"] = "function"
    function: Function


class AssistantMessage(Part):
    """The message of a reply: text, tool calls, or a refusal."""

    content: str | None = None
    refusal: str | None = None
    role: Literal["assistant"] = "assistant"
    tool_calls: list[ToolCall] | None = None


class Choice(Part):
    """One choice of a response; a script writes one."""

    index: int = 0
    message: AssistantMessage
    finish_reason: str | None


class TokenUsage(Part):
    """Made-up token counts: one token a word, the same for the same request and reply."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(Part):
    """A whole response, shaped like openai's `ChatCompletion`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = 0
    model: str
    choices: list[Choice]
    usage: TokenUsage | None = None


class FunctionDelta(Part):
    """A piece of a function call: the name in the call's first piece, then more and more of the arguments."""

    name: str | None = None
    arguments: str


class ToolCallDelta(Part):
    """A piece of tool call number `index`; the first one has id and type."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class Delta(Part):
    """The addition of a chunk to the message; the first one has the role."""

    content: str | None = None
    refusal: str | None = None
    role: Literal["assistant"] | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Part):
    """A chunk's part of one choice; the last one has the finish reason."""

    index: int = 0
    delta: Delta
    finish_reason: str | None = None


class Chunk(Part):
    """A piece of a streamed response, shaped like openai's `ChatCompletionChunk`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int = 0
    model: str
    choices: list[ChunkChoice]
    usage: TokenUsage | None = None

    def as_sent(self) -> dict[str, Any]:
        """Return the chunk as providers send it: without nulls, except for the finish reason."""
        data = self.model_dump(exclude_none=True)
        for choice in data["choices"]:
            choice.setdefault("finish_reason", None)
        return data


def as_completion(answer: Any) -> Completion:
    """Convert a response object to ours. Raises `ConfigurationError` for one that is not shaped like openai's."""
    if isinstance(answer, Completion):
        return answer
    try:
        return Completion.model_validate(answer.model_dump())
    except (AttributeError, ValidationError) as error:
        raise ConfigurationError(
            f"a response that is streamed or served must be shaped like openai's ChatCompletion, not {answer!r}; "
            "give the reply as a string, a list of tool calls or a dict instead"
        ) from error
