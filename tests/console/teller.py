"""A program whose agent tells a long story, word by word: `python -m tests.console.teller URL PACE`."""

from __future__ import annotations

import sys

from durable_swarm import Agent, DurableSwarm
from durable_swarm.testing import ScriptedModel, slowly

STORY = " ".join(f"word-{number}" for number in range(200))
RUN = "story-1"


def main(url: str, pace: str) -> None:
    """Tell the story in a run of this database, or go on with it."""
    teller = Agent(name="Story Teller")
    model = ScriptedModel(lambda _: slowly(STORY, pace=float(pace)))
    with DurableSwarm(model, database=url) as swarm:
        swarm.start(teller, [{"role": "user", "content": "Tell me a story."}], run_id=RUN).result()


if __name__ == "__main__":
    main(*sys.argv[1:])
