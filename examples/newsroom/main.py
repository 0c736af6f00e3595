"""An editor who asks two other agents at once: each works in a child run of its own, with its own tools.

OPENAI_API_KEY=... python examples/newsroom/main.py "the old bridge"
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from durable_swarm import Agent, DurableSwarm, step


@step
async def search(topic: str) -> str:
    """Search the archive for a topic."""
    await asyncio.sleep(0.2)
    return f"three articles about {topic}"


@step
async def look_up(claim: str) -> str:
    """Look up a claim in the register."""
    await asyncio.sleep(0.1)
    return f"the register confirms: {claim}"


reporter = Agent(name="Reporter", instructions="Search the archive, then report in one sentence.", functions=[search])
checker = Agent(name="Fact Checker", instructions="Check the claim in the register.", functions=[look_up])
editor = Agent(
    name="Editor",
    instructions="Ask the reporter for facts and the fact checker about the date, both at once. Then write the news.",
    functions=[
        reporter.as_tool(description="Ask the reporter to research a topic."),
        checker.as_tool(description="Ask the fact checker about one claim."),
    ],
)


def main(topic: str, client: Any = None) -> str:
    """Write the news about a topic; `client` is a model client, by default OpenAI's."""
    with DurableSwarm(client) as swarm:
        response = swarm.run(editor, [{"role": "user", "content": f"Write about {topic}."}], run_id=f"news-{topic}")
        for child in swarm.get(f"news-{topic}").children():
            print(f"{child.id}  {child.agent}: {child.messages()[-1]['content']}")
        return str(response.messages[-1]["content"])


if __name__ == "__main__":
    print(main(" ".join(sys.argv[1:]) or "the old bridge"))
