"""A clerk with guardrails: one judges what is asked, with a small model, and one what is answered.

OPENAI_API_KEY=... python examples/guarded/main.py "Where is order A1?"
"""

from __future__ import annotations

import sys
from typing import Any

from pydantic import BaseModel

from durable_swarm import Agent, Block, DurableSwarm, Swarm, tool


class Topic(BaseModel):
    """What a message is about."""

    about_orders: bool
    reason: str


judge = Agent(name="Judge", model="gpt-5.4-mini", instructions="Is this about an order of a shop?", output_type=Topic)


def guards(client: Any) -> list[Any]:
    """Return the input guardrail. It asks a judge in memory: the verdict is what is recorded."""

    def on_topic(messages: list[dict[str, Any]]) -> Block | None:
        with Swarm(client) as swarm:
            topic = swarm.run(judge, messages[-1:]).output
        if topic is not None and topic.about_orders:
            return None
        return Block("no verdict" if topic is None else topic.reason, reply="I can only help with orders.")

    return [on_topic]


def no_phone_numbers(output: str) -> Block | None:
    """The output guardrail: refuse to give phone numbers away."""
    return Block("a phone number in the answer") if "+49" in output else None


@tool(effect="read")
def look_up(order: str) -> str:
    """Look up an order. It only reads, so it need not wait for the guardrail."""
    print(f"looking up {order}")
    return "shipped yesterday"


@tool(effect="once")
def refund(order: str) -> str:
    """Pay an order back. It begins only once the guardrail has passed."""
    print(f"refunding {order}")
    return "refunded"


def main(text: str, client: Any = None, run_id: str | None = None) -> str:
    """Return the answer to a customer; the same `run_id` again continues after a crash."""
    clerk = Agent(
        name="Order clerk",
        instructions="Help customers with their orders.",
        functions=[look_up, refund],
        input_guardrails=guards(client),
        output_guardrails=[no_phone_numbers],
    )
    with DurableSwarm(client) as swarm:
        response = swarm.run(clerk, [{"role": "user", "content": text}], run_id=run_id)
        return str(response.messages[-1]["content"])


if __name__ == "__main__":
    print(main(sys.argv[1] if len(sys.argv) > 1 else "Where is order A1?"))
