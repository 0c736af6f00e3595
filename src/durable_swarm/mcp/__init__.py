"""Tools of MCP servers for agents: `mcp_tools`. Needs the extra `mcp` (`pip install 'durable-swarm[mcp]'`)."""

from durable_swarm.mcp.tools import mcp_tools

__all__ = ["mcp_tools"]
