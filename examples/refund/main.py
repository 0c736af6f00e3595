"""A shop's refunds: one agent, a payment service that takes an idempotency key, a mail at the end.

    OPENAI_API_KEY=... python examples/refund/main.py

Kill it at any moment and start it again: no finished step is repeated, and the one that was in progress reaches
the payment service under the same key.
"""

from __future__ import annotations

from typing import Any

from durable_swarm import Agent, DurableSwarm, ToolError, current_call, step

ORDERS = {"A1": {"item": "teapot", "price": 40}, "B2": {"item": "kettle", "price": 60}}


class Payments:
    """Stands for a payment service; a real one, too, takes each key once."""

    def refund(self, amount: int, key: str) -> str:
        """Pay back an amount."""
        print(f"paying back {amount} under key {key}")
        return f"payment-{amount}"


payments = Payments()


@step
def pay_back(amount: int) -> str:
    """Pay back, once: the key is the same however often this is tried."""
    return payments.refund(amount, key=current_call().idempotency_key)


@step
def mark_refunded(order: str) -> None:
    """Note in the shop that the order was refunded."""
    print(f"order {order} is refunded")


def refund(order: str, context_variables: dict[str, Any]) -> str:
    """Refund an order, given its number."""
    if order not in ORDERS:
        raise ToolError(f"there is no order {order!r}; ask the user for its number")
    payment = pay_back(int(str(ORDERS[order]["price"])))
    mark_refunded(order)
    context_variables["refunded"] = [*context_variables.get("refunded", []), order]
    return f"Refunded order {order} with {payment}."


refunds = Agent(
    name="Refunds", instructions="Refund what the user asks for, then say what you did.", functions=[refund]
)


def main(client: Any = None) -> str:
    """Refund an order; `client` is a model client, by default OpenAI's."""
    with DurableSwarm(client) as swarm:
        asked = [{"role": "user", "content": "Please refund my order A1."}]
        return str(swarm.run(refunds, asked, run_id="refund-A1").messages[-1]["content"])


if __name__ == "__main__":
    print(main())
