"""An agent with the tools of an MCP server, which is a program of its own.

    pip install 'durable-swarm[mcp]'
    python main.py "Search the catalogue for 'Emma'"

The server says which of its tools only read and which may be repeated; since it is our own, it is trusted. After a
crash in a call, such a call is made again. A tool of a server that nobody trusts is not: a person is asked.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from durable_swarm import Agent, DurableSwarm
from durable_swarm.mcp import mcp_tools

SERVER = Path(__file__).with_name("server.py")

librarian = Agent(
    name="Librarian",
    instructions="Find and lend books.",
    functions=[mcp_tools([sys.executable, str(SERVER)], trust=True)],
)


def main(text: str, client: Any = None, run_id: str = "library-1") -> str:
    """Answer a reader; the same `run_id` again continues after a crash."""
    with DurableSwarm(client) as swarm:
        return str(swarm.run(librarian, [{"role": "user", "content": text}], run_id=run_id).messages[-1]["content"])


if __name__ == "__main__":
    print(main(*sys.argv[1:2] or ["Search the catalogue for 'Emma'"]))
