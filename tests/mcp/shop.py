"""An MCP server, as a program of its own: `python shop.py LEDGER [PORT]`. Each call of a tool is a line of the ledger.

A call for "crash" kills the process that started the server the first time, a call for "exit" the server itself.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

from mcp.server import MCPServer
from mcp.server.mcpserver import Elicit, RequestStateSecurity, Resolve
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import BaseModel


class Seats(BaseModel):
    """What the shop asks."""

    count: int


def shop(ledger: Path, *, key: str | None = "a key of thirty-two bytes or more") -> MCPServer[Any]:
    """Make the server; without a key, it forgets what it asked when it is started again."""
    server: MCPServer[Any] = MCPServer(
        "shop", request_state_security=None if key is None else RequestStateSecurity(keys=[key])
    )

    def entered(what: str) -> None:
        with ledger.open("a") as file:
            file.write(f"{what}\n")
        first = ledger.read_text().splitlines().count(what) == 1
        if what.endswith(" crash") and first:
            os.kill(os.getppid(), signal.SIGKILL)
            os._exit(1)  # Nobody is there to end it.
        if what.endswith(" exit") and first:
            os._exit(1)

    async def ask(show: str) -> Elicit[Seats]:
        entered(f"ask {show}")
        return Elicit(f"How many seats for {show}?", Seats)

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    def look(what: str) -> str:
        """Look something up."""
        entered(f"look {what}")
        return f"saw {what}"

    @server.tool(annotations=ToolAnnotations(idempotent_hint=True))
    def put(what: str) -> dict[str, str]:
        """Put something."""
        entered(f"put {what}")
        return {"put": what}

    @server.tool()
    def pay(what: str) -> str:
        """Pay for something."""
        entered(f"pay {what}")
        if what == "nothing":
            raise ToolError("nothing to pay")
        return f"paid {what}"

    @server.tool(name="book.seats")
    async def book(show: str, seats: Annotated[Seats, Resolve(ask)]) -> str:
        """Book seats."""
        entered(f"book {show}")
        return f"{seats.count} for {show}"

    return server


if __name__ == "__main__":
    path, *port = sys.argv[1:]
    if port and port[0].isdigit():
        shop(Path(path)).run(transport="streamable-http", host="127.0.0.1", port=int(port[0]))
    else:
        shop(Path(path), **({"key": None} if port else {})).run(transport="stdio")
