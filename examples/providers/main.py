"""Two agents with models of two providers: one thinks by the Responses API, the other answers by chat completions.

OPENAI_API_KEY=... python examples/providers/main.py
"""

from __future__ import annotations

from typing import Any

from durable_swarm import Agent, DurableSwarm, current_call
from durable_swarm.providers import Fallback, Responses, Routes


def stock(item: str) -> str:
    """Look up how many of an item are in stock."""
    print(f"looking up {item}, reference {current_call().idempotency_key}")
    return "3 left"


def to_writer() -> Agent:
    """Hand over to the writer."""
    return writer


thinker = Agent(
    name="Thinker",
    model="gpt-5.4",
    instructions="Find out what is asked, then hand over to the writer.",
    functions=[stock, to_writer],
    model_settings={"reasoning_effort": "low"},
)
writer = Agent(name="Writer", model="small-writer", instructions="Answer in one short sentence.")


def providers(official: Any, local: Any) -> Any:
    """Make the client: what thinks is asked in the background, and by chat completions where that is away."""
    return Routes({"gpt-*": Fallback(Responses(official, background=True), official), "*": local})


def main(official: Any = None, local: Any = None) -> str:
    """Answer a question; the clients are openai's by default, the second for a server on this machine."""
    if official is None:
        from openai import OpenAI

        official, local = OpenAI(), OpenAI(base_url="http://localhost:8080/v1", api_key="none")
    with DurableSwarm(providers(official, local)) as swarm:
        asked = [{"role": "user", "content": "Are there lamps?"}]
        return str(swarm.run(thinker, asked, run_id="lamps").messages[-1]["content"])


if __name__ == "__main__":
    print(main())
