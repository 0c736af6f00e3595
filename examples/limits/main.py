"""A run that costs too much stops, tells what it has spent, and continues once it may spend more.

OPENAI_API_KEY=... python examples/limits/main.py
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from durable_swarm import Agent, DurableSwarm, LimitReached, Limits

PAGES = ["Lamps are sold out.", "Chairs are on sale.", "Tables come on Monday."]


def read_page(number: int) -> str:
    """Read one page of the catalogue; pages are numbered from 0."""
    return PAGES[number] if number < len(PAGES) else "There are no more pages."


reader = Agent(
    name="Catalogue reader", instructions="Read the whole catalogue, then summarise it.", functions=[read_page]
)


PRICES = {"gpt-4o": (Decimal("2.50"), Decimal(10))}
"""US dollars for a million tokens, in and out."""


def prices(model: str, usage: Any) -> Decimal | None:
    """Return what a call costs, None for a model without a price."""
    if model not in PRICES:
        return None
    read, written = PRICES[model]
    return (read * usage.prompt_tokens + written * usage.completion_tokens) / 1_000_000


def main(client: Any = None) -> str:
    """Read the catalogue with one model call, then with as many as are needed; the client is openai's by default."""
    with DurableSwarm(client, prices=prices) as swarm:
        try:
            swarm.run(
                reader, [{"role": "user", "content": "What is new?"}], run_id="catalogue", limits=Limits(requests=1)
            )
        except LimitReached as error:
            print(f"stopped: {error.used} of {error.allowed} {error.limit}")
        run = swarm.get("catalogue")
        run.extend(requests=10)
        run.resume()
        answer = run.result().messages[-1]["content"]
        print(f"{run.spent.requests} model calls, {run.spent.tool_calls} tool calls, ${run.spent.cost}")
        return str(answer)


if __name__ == "__main__":
    print(main())
