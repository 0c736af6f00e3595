"""The tools of one MCP server, made from its list of tools."""

from __future__ import annotations

import dataclasses
import functools
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

from mcp_types import Tool

from durable_swarm.concurrency import block
from durable_swarm.errors import ConfigurationError
from durable_swarm.mcp.calls import Conversation
from durable_swarm.mcp.connection import Connection
from durable_swarm.tools.decorators import tool_from_schema
from durable_swarm.toolsets import Toolset
from durable_swarm.types import Effect, note_settings, settings_of

Approval = bool | Callable[..., Any]
"""As in `@tool`."""


@dataclasses.dataclass(eq=False, repr=False)
class McpTools(Toolset):
    """The tools of one MCP server. `close()` ends the connection; the next use opens it again."""

    connection: Connection
    prefix: str
    only: set[str] | None
    trust: bool
    effects: dict[str, Effect]
    approval: Approval | Mapping[str, Approval]

    def __post_init__(self) -> None:
        self._tools: list[Callable[..., object]] | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"mcp_tools({self.connection.label})"

    @property
    def is_loaded(self) -> bool:
        """True if the server's list of tools was read."""
        return self._tools is not None

    def tools(self) -> list[Callable[..., Any]]:
        """Return the tools; none before `load`."""
        return self._tools or []

    def load(self) -> None:
        """Read the server's list of tools, unless it was read. Raises `ConfigurationError`."""
        with self._lock:
            if self._tools is None:
                self._tools = self._made(block(self.connection.tools()))

    def close(self) -> None:
        """Close the connection to the server."""
        self.connection.close()

    def _made(self, listed: list[Tool]) -> list[Callable[..., object]]:
        names = [tool.name for tool in listed]
        wanted = {*(self.only or ()), *self.effects, *(self.approval if isinstance(self.approval, Mapping) else ())}
        if missing := sorted(wanted - {*names}):
            raise ConfigurationError(
                f"MCP server {self.connection.label} has no tool {', '.join(map(repr, missing))}; "
                f"it has {', '.join(names) or 'none'}"
            )
        kept = [tool for tool in listed if self.only is None or tool.name in self.only]
        return [self._tool(tool) for tool in kept]

    def _tool(self, tool: Tool) -> Callable[..., object]:
        effect = self.effects.get(tool.name) or self._hinted(tool)
        rule = self.approval.get(tool.name, False) if isinstance(self.approval, Mapping) else self.approval
        # Servers may use dots and slashes in names, and providers take neither.
        name = self.prefix + re.sub(r"[^a-zA-Z0-9_-]", "_", tool.name)
        made = tool_from_schema(
            name,
            tool.description or tool.title or "",
            tool.input_schema,
            functools.partial(_call, self.connection, tool.name, effect),
            effect=effect,
            approval=rule,
        )
        note_settings(made, dataclasses.replace(settings_of(made), marks_itself=True))
        return made

    def _hinted(self, tool: Tool) -> Effect:
        hints = tool.annotations if self.trust else None
        if hints is not None and hints.read_only_hint:
            return "read"
        return "idempotent" if hints is not None and hints.idempotent_hint else "once"


async def _call(connection: Connection, tool: str, effect: Effect, /, **arguments: object) -> str:
    return await Conversation(connection, tool, effect, arguments).result()
