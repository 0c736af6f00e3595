"""Tools of LangChain as tools of this package: each of their calls is a checkpoint.

Needs the extra `langchain` (`pip install 'durable-swarm[langchain]'`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from durable_swarm.errors import ConfigurationError
from durable_swarm.tools.context import current_call
from durable_swarm.tools.decorators import tool_from_schema
from durable_swarm.types import Effect

if TYPE_CHECKING:
    from langchain_core.tools import BaseTool

__all__ = ["tool"]


def tool(
    langchain_tool: BaseTool, *, effect: Effect = "idempotent", approval: bool | Callable[..., object] = False
) -> Callable[..., Any]:
    """Return a tool of LangChain as a function for `Agent(functions=[...])`.

    Its name, its description and the schema of its arguments are kept; the model gets the text that it returns.
    `effect` and `approval` are as in `@tool`, because LangChain's tools do not say what a repetition does.

    Raises `ConfigurationError` for what no tool call here can give it: a result that ends the run (`return_direct`),
    and arguments that a graph injects.
    """
    try:
        from langchain_core.messages import ToolMessage
        from langchain_core.tools import BaseTool
        from langchain_core.utils.function_calling import convert_to_openai_tool
    except ImportError as error:
        raise ConfigurationError(f"tool needs the extra: pip install 'durable-swarm[langchain]' ({error})") from error
    _refuse(langchain_tool)
    name, described = langchain_tool.name, convert_to_openai_tool(langchain_tool)["function"]

    def request(arguments: Mapping[str, object]) -> Any:
        return {"type": "tool_call", "name": name, "id": current_call().call_id, "args": arguments}

    def text(message: object) -> str:
        if not isinstance(message, ToolMessage):
            raise TypeError(f"tool {name!r} returned a {type(message).__name__}, which only a graph can apply")
        return str(message.text)

    def plain(**arguments: object) -> str:
        return text(langchain_tool.invoke(request(arguments)))

    async def asynchronous(**arguments: object) -> str:
        return text(await langchain_tool.ainvoke(request(arguments)))

    own = type(langchain_tool)._arun is not BaseTool._arun
    function = asynchronous if getattr(langchain_tool, "coroutine", own) else plain
    return tool_from_schema(
        name, described["description"], described["parameters"], function, effect=effect, approval=approval
    )


def _refuse(langchain_tool: object) -> None:
    """Raise `ConfigurationError` unless this is a tool of LangChain that can be used here."""
    from langchain_core.tools import BaseTool, InjectedToolArg, InjectedToolCallId

    if not isinstance(langchain_tool, BaseTool):
        raise ConfigurationError(f"tool takes a tool of LangChain, not a {type(langchain_tool).__name__}")
    name = langchain_tool.name
    if langchain_tool.return_direct:
        raise ConfigurationError(f"tool {name!r} ends the run with its result (return_direct), which no tool here does")
    for field, info in getattr(langchain_tool.get_input_schema(), "model_fields", {}).items():
        kinds = [kind if isinstance(kind, type) else type(kind) for kind in info.metadata]
        if any(issubclass(kind, InjectedToolArg) and not issubclass(kind, InjectedToolCallId) for kind in kinds):
            raise ConfigurationError(f"argument {field!r} of tool {name!r} is injected by a graph; there is none here")
