"""A triage agent that passes the conversation to sales or refunds, who pass it back.

python main.py "I want a refund for item 5"
"""

from __future__ import annotations

import sys
from typing import Any

from durable_swarm import Agent, DurableSwarm, current_call, tool


def to_sales() -> Agent:
    """Pass the conversation on to sales: a customer wants to buy something."""
    return sales


def to_refunds() -> Agent:
    """Pass the conversation on to refunds: a customer wants money back."""
    return refunds


def back_to_triage() -> Agent:
    """Pass the conversation back if it is about something else."""
    return triage


def quote_price(item_number: int) -> str:
    """Tell the price of an item."""
    return f"Item {item_number} costs {10 * item_number} euros."


@tool(repeat="refuse")
def process_refund(item_number: int, reason: str = "not given") -> str:
    """Refund an item, once."""
    print(f"refunding item {item_number} ({reason}), reference {current_call().idempotency_key}")
    return f"Item {item_number} is refunded."


triage = Agent(name="Shop triage", instructions="Find out who can help, and pass on.", functions=[to_sales, to_refunds])
sales = Agent(name="Shop sales", instructions="Sell kindly.", functions=[quote_price, back_to_triage])
refunds = Agent(name="Shop refunds", instructions="Refund without fuss.", functions=[process_refund, back_to_triage])


def main(text: str, client: Any = None, run_id: str = "triage-1") -> str:
    """Answer a customer; the same `run_id` again continues after a crash."""
    with DurableSwarm(client) as swarm:
        response = swarm.run(triage, [{"role": "user", "content": text}], run_id=run_id)
        agent = response.agent.name if response.agent else "nobody"
        return f"{agent}: {response.messages[-1]['content']}"


if __name__ == "__main__":
    print(main(*sys.argv[1:2] or ["I want a refund for item 5"]))
