"""The request to a model: the messages, the tools, the settings."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from durable_swarm.codec import mended
from durable_swarm.concurrency import Runtime
from durable_swarm.schema import tool_schemas
from durable_swarm.schema.output import output_type_of
from durable_swarm.types import AgentLike, Message


async def instructions(agent: AgentLike, context: Mapping[str, object], waits: Runtime) -> str:
    """Return the agent's prompt. A callable gets the context variables, in which a missing one reads as ''."""
    if not callable(agent.instructions):
        return str(agent.instructions)
    if not inspect.signature(agent.instructions).parameters:
        return str(await waits.call(agent.instructions))
    return str(await waits.call(agent.instructions, defaultdict(str, context)))


def build_request(
    agent: AgentLike, messages: list[Message], model: str, *, streamed: bool = False, offers_tools: bool = True
) -> dict[str, Any]:
    """Return the keyword arguments of `chat.completions.create`, the same as Swarm's; `streamed` counts tokens too.

    For an agent with an output type they name its schema as `response_format`.
    """
    tools = mended(tool_schemas(agent)) if offers_tools else []
    request = {
        "model": model,
        "messages": messages,
        "tools": tools or None,
        "tool_choice": getattr(agent, "tool_choice", None) if offers_tools else None,
        "stream": streamed,
    }
    if streamed:
        request["stream_options"] = {"include_usage": True}
    if tools:
        request["parallel_tool_calls"] = getattr(agent, "parallel_tool_calls", True)
    output = output_type_of(agent)
    if output is not None:
        request["response_format"] = mended(output.response_format)
    request.update(getattr(agent, "model_settings", None) or {})
    if streamed and not request["stream"]:
        del request["stream_options"]
    return request
