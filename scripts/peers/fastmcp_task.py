"""FastMCP's client calls a tool, which becomes a task that asks; before it answers, it waits for a line on stdin.

    python fastmcp_task.py BASE TOKEN

Prints a line for each question, and at last the result.
"""

import asyncio
import json
import sys

from fastmcp import Client
from fastmcp.client.elicitation import ElicitResult
from fastmcp_tasks.client import call_tool_task


async def answer(message: str, *_: object) -> ElicitResult:
    """Print a question, and accept it when a line comes."""
    print(json.dumps({"asked": message}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    return ElicitResult(action="accept", content={"approve": True})


async def main(base: str, token: str) -> None:
    """Call the tool as a task, and once more as a plain call, which is a task that the client hides."""
    async with Client(f"{base}/mcp", auth=token, elicitation_handler=answer) as client:
        task = await call_tool_task(client, "ask_clerk", {"message": "pay"})
        told = {"task": task.task_id, "said": (await task).content[0].text}
        print(json.dumps({**told, "again": (await client.call_tool("ask_clerk", {"message": "talk"})).content[0].text}))


asyncio.run(main(*sys.argv[1:]))
