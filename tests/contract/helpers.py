"""Replies as OpenAI's own types, clients that are not ours, and short ways to read a response."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_message_tool_call import ChatCompletionMessageToolCall, Function

from durable_swarm import Response
from tests.support.patience import PATIENCE

MakeSwarm = Callable[..., Any]
"""Makes a `Swarm` or a `DurableSwarm` with the given client and options."""

Run = Callable[..., Response]
"""Runs `swarm.run` or `swarm.run_async` with the arguments after the first, which is the swarm."""


def user(text: str = "Hi") -> list[dict[str, Any]]:
    """Give a conversation of one user message."""
    return [{"role": "user", "content": text}]


def tool_messages(response: Response) -> list[dict[str, Any]]:
    """Give the tool messages of a response, in order."""
    return [message for message in response.messages if message["role"] == "tool"]


def tool_contents(response: Response) -> list[str]:
    """Give what the model was told by the tools, in order."""
    return [message["content"] for message in tool_messages(response)]


def roles(response: Response) -> list[str]:
    """Give the roles of the new messages, in order."""
    return [message["role"] for message in response.messages]


def system_prompts(calls: Sequence[dict[str, Any]]) -> list[str]:
    """Give the system prompt of each request."""
    return [request["messages"][0]["content"] for request in calls]


def completion(
    content: str | None = None,
    calls: Sequence[tuple[str, Any]] = (),
    tokens: tuple[int, int] | None = None,
) -> ChatCompletion:
    """Give a completion of OpenAI's own type.

    `calls` holds names and arguments; arguments that are text are sent as they are. Every call has the same id, as in
    the mock client of Swarm's tests. `tokens` are those of prompt and completion.
    """
    tool_calls: list[Any] = [
        ChatCompletionMessageToolCall(
            id="mock_tc_id",
            type="function",
            function=Function(name=name, arguments=given if isinstance(given, str) else json.dumps(given)),
        )
        for name, given in calls
    ]
    message = ChatCompletionMessage(role="assistant", content=content, tool_calls=tool_calls or None)
    return ChatCompletion(
        id="mock_cc_id",
        created=1234567890,
        model="gpt-4o",
        object="chat.completion",
        choices=[Choice(message=message, finish_reason="stop", index=0)],
        usage=_usage(*tokens) if tokens else None,
    )


def _usage(prompt: int, answer: int) -> CompletionUsage:
    return CompletionUsage(prompt_tokens=prompt, completion_tokens=answer, total_tokens=prompt + answer)


def mock_client(*replies: Any) -> Any:
    """Give a client as Swarm's tests mock it; replies that are exceptions are raised."""
    client = SimpleNamespace(chat=MagicMock())
    client.chat.completions.create.side_effect = replies
    return client


def async_mock_client(*replies: Any) -> Any:
    """Give a client whose `create` is a coroutine function."""
    return SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=AsyncMock(side_effect=replies))))


class Meeting:
    """A place where `parties` calls wait for one another: nobody passes unless all are under way at once."""

    def __init__(self, parties: int) -> None:
        self._lock = threading.Lock()
        self._arrived = 0
        self._parties = parties
        self._complete = threading.Event()

    def wait(self) -> None:
        """Wait for the others in a plain function; raises TimeoutError if they never come."""
        self._arrive()
        if not self._complete.wait(PATIENCE):
            raise TimeoutError("the calls did not run together")

    async def wait_async(self) -> None:
        """Wait for the others in a coroutine; raises TimeoutError if they never come."""
        self._arrive()
        if not await asyncio.to_thread(self._complete.wait, PATIENCE):
            raise TimeoutError("the calls did not run together")

    def _arrive(self) -> None:
        with self._lock:
            self._arrived += 1
            if self._arrived == self._parties:
                self._complete.set()


def replies_in(items: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Give the deltas of each reply that was streamed; what a reset has made void is left out."""
    replies: list[list[dict[str, Any]]] = []
    for item in items:
        match item.get("delim"):
            case "start":
                replies.append([])
            case "reset":
                replies[-1].clear()
            case None:
                replies[-1].append(item)
    return replies


def rebuilt(deltas: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Give the message that deltas add up to, by the rules of Swarm's consumers."""
    calls: dict[int, dict[str, str]] = {}
    for fragment in (one for delta in deltas for one in delta["tool_calls"] or ()):
        call = calls.setdefault(fragment["index"], {"id": "", "name": "", "arguments": ""})
        call["id"] += fragment["id"] or ""
        call["name"] += fragment["function"]["name"] or ""
        call["arguments"] += fragment["function"]["arguments"] or ""
    text = "".join(delta["content"] or "" for delta in deltas)
    assert [index for index, delta in enumerate(deltas) if "sender" in delta] == [0]
    return {"sender": deltas[0]["sender"], "content": text, "calls": [calls[index] for index in sorted(calls)]}


def essence(message: dict[str, Any]) -> dict[str, Any]:
    """Give what of a message is streamed."""
    calls = [{"id": call["id"], **call["function"]} for call in message["tool_calls"] or ()]
    return {"sender": message["sender"], "content": message["content"] or "", "calls": calls}
