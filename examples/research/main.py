"""A researcher who asks several sources at once: `async def` tools of one reply run together.

OPENAI_API_KEY=... python examples/research/main.py "coral reefs"
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from durable_swarm import Agent, DurableSwarm, step

SOURCES = {"library": 0.2, "archive": 0.4, "press": 0.1}
"""Seconds that each source takes."""


@step(retries=2)
async def search(source: str, topic: str) -> str:
    """Search one source: library, archive or press."""
    await asyncio.sleep(SOURCES.get(source, 0.1))
    return f"{source}: three findings about {topic}"


researcher = Agent(
    name="Researcher",
    instructions="Search the library, the archive and the press at once, then sum up in one sentence.",
    functions=[search],
)


def main(topic: str, client: Any = None) -> str:
    """Research a topic; `client` is a model client, by default OpenAI's."""
    with DurableSwarm(client) as swarm:
        asked = [{"role": "user", "content": f"What is known about {topic}?"}]
        return str(swarm.run(researcher, asked, run_id=f"research-{topic}").messages[-1]["content"])


if __name__ == "__main__":
    print(main(" ".join(sys.argv[1:]) or "coral reefs"))
