"""A desk behind a queue: programs put questions on it, and workers on any machine answer them.

    durable-swarm worker main:swarm &          # as often as you like
    python main.py "Refund order 7"

Without OPENAI_API_KEY the offline model answers. Workers on several machines share a PostgreSQL:
`deploy/compose.yaml` starts two of them.
"""

from __future__ import annotations

import os
import sys
import uuid

from durable_swarm import Agent, DurableSwarm, current_call, step
from durable_swarm.testing import ScriptedModel, mock_model


@step
def pay_back(order_number: int) -> str:
    """Pay an order back; the reference keeps the payment service from paying twice."""
    reference = current_call().idempotency_key
    print(f"paying back order {order_number}, reference {reference}", flush=True)
    return reference


def refund_order(order_number: int) -> str:
    """Refund an order."""
    return f"Order {order_number} is refunded with {pay_back(order_number)}."


swarm = DurableSwarm(None if os.environ.get("OPENAI_API_KEY") else ScriptedModel(mock_model()))
clerk = Agent(name="Queue clerk", instructions="Help with orders.", functions=[refund_order])


def main(text: str, run_id: str | None = None) -> str:
    """Put a question on the queue, and wait for the answer of a worker."""
    run = swarm.enqueue("Queue clerk", [{"role": "user", "content": text}], run_id=run_id or uuid.uuid4().hex)
    print(f"queued as {run.id}")
    return str(run.result().messages[-1]["content"])


if __name__ == "__main__":
    with swarm:
        print(main(*sys.argv[1:2] or ["Refund order 7"]))
