"""A personal shopper: it looks into the shop, and buys in a transaction, together with its checkpoint.

    python main.py "Order 2 lamps"

A crash at any moment neither loses an order nor places it twice: the rows and the result of the call are one commit.
"""

from __future__ import annotations

import sys
from typing import Any

from sqlalchemy import Connection, text

from durable_swarm import Agent, DurableSwarm, ToolError, tool

PRICES = {"lamp": 40, "table": 150}


@tool(effect="read")
def show_shop() -> str:
    """Show what there is to buy, and the prices."""
    return ", ".join(f"{item} for {price} euros" for item, price in PRICES.items())


@tool(effect="transactional")
def order_item(item: str, count: int, connection: Connection, context_variables: dict[str, Any]) -> str:
    """Order an item of the shop."""
    item = item if item in PRICES else next((known for known in PRICES if known in item.lower()), item)
    if item not in PRICES:
        raise ToolError(f"there is no {item!r}; there is {', '.join(PRICES)}")
    connection.execute(text("CREATE TABLE IF NOT EXISTS orders (customer TEXT, item TEXT, count INTEGER)"))
    row = {"customer": context_variables["customer"], "item": item, "count": count}
    connection.execute(text("INSERT INTO orders VALUES (:customer, :item, :count)"), row)
    return f"Ordered {count} of {item} for {count * PRICES[item]} euros."


shopper = Agent(
    name="Personal shopper",
    instructions=lambda context_variables: f"Help {context_variables['customer']} to shop.",
    functions=[show_shop, order_item],
)


def main(said: str, client: Any = None, run_id: str = "shopping-1") -> str:
    """Shop for a customer; the same `run_id` again continues after a crash."""
    with DurableSwarm(client) as swarm:
        response = swarm.run(shopper, [{"role": "user", "content": said}], {"customer": "Ann"}, run_id=run_id)
        return str(response.messages[-1]["content"])


if __name__ == "__main__":
    print(main(*sys.argv[1:2] or ["Order 2 of 'lamp', please"]))
