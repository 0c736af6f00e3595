"""A library as an MCP server, started by the agent's program: it finds books, and lends them."""

from __future__ import annotations

from typing import Any

from mcp.server import MCPServer
from mcp_types import ToolAnnotations

BOOKS = {"Moby-Dick": "Melville", "Emma": "Austen"}

server: MCPServer[Any] = MCPServer("library")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def find_book(title: str) -> str:
    """Find a book in the catalogue of the library."""
    return f"{title} by {BOOKS[title]} is there." if title in BOOKS else f"There is no {title}."


@server.tool(annotations=ToolAnnotations(idempotent_hint=True))
def lend_book(title: str, reader: str) -> str:
    """Lend a book to a reader. To lend it again to the same reader changes nothing."""
    return f"{title} is lent to {reader}."


if __name__ == "__main__":
    server.run("stdio")
