"""The agents of the refund demo: a complete user program.

Each step prints a line when it is really executed, and takes $DURABLE_SWARM_DEMO_SECONDS, by default 1.
"""

from __future__ import annotations

import os
import time
from typing import Any

from durable_swarm import Agent, step

STEPS = 5
SECONDS = float(os.environ.get("DURABLE_SWARM_DEMO_SECONDS", "1"))


@step
def refund_step(number: int, item_id: str, reason: str) -> None:
    """Do one step of a refund."""
    # A model wrote the arguments: repr keeps them from controlling the terminal.
    about = repr(f"item {item_id} because {reason}")[1:-1]
    print(f"[mock] Refunding {about}: step {number} of {STEPS} ...", end=" ", flush=True)
    time.sleep(SECONDS)
    print("done", flush=True)


def process_refund(context_variables: dict[str, Any], item_id: str, reason: str = "NOT SPECIFIED") -> str:
    """Refund an item, given its number and the user's reason."""
    for number in range(1, STEPS + 1):
        refund_step(number, item_id, reason)
    return f"Refunded item {item_id} to {context_variables['user_name']}."


@step
def apply_discount() -> str:
    """Apply a discount to the user's cart."""
    print("[mock] Applying discount ...", end=" ", flush=True)
    time.sleep(SECONDS)
    print("done", flush=True)
    return "Applied discount of 11%"


def transfer_to_refunds() -> Agent:
    """Hand the user over to the agent for refunds and discounts."""
    return refund_agent


refund_agent = Agent(
    name="Refunds Agent",
    instructions=(
        "You are a refund agent. Do what the user asks with your tools, without asking for confirmation: first "
        "process_refund, when it is done apply_discount. Then tell the user by name, in one sentence, what you did."
    ),
    functions=[process_refund, apply_discount],
)
triage_agent = Agent(
    name="Triage Agent", instructions="Hand the user over at once, without a word.", functions=[transfer_to_refunds]
)
