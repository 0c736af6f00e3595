"""A shop's agents and their runs, for the tests of the console and for its pictures: every state a run can be in."""

from __future__ import annotations

import time
from typing import Any

from durable_swarm import Agent, DurableSwarm, ask_human, tool
from durable_swarm.testing import ScriptedModel, call
from tests.support.patience import PATIENCE


def look_up(order: str) -> dict[str, str]:
    """Look an order up."""
    return {"order": order, "state": "shipped", "carrier": "Post"}


@tool(approval=lambda amount, **_: amount > 100, effect="once")
def refund(customer: str, amount: int) -> str:
    """Refund an amount to a customer."""
    if customer == "Nobody":
        raise RuntimeError("bank is down")
    return f"refunded {amount} to {customer}"


def choose_gift(customer: str) -> str:
    """Ask what a customer gets."""
    return ask_human(f"What does {customer} get for the trouble?", choices=["tea", "a book"])


def to_refunds() -> Agent:
    """Hand over to refunds."""
    return refunds


triage = Agent(name="Shop Triage", instructions="Find out what is wanted.", functions=[look_up, to_refunds])
refunds = Agent(name="Shop Refunds", instructions="Refund what is due.", functions=[refund, look_up, choose_gift])

STORY: dict[str, list[Any]] = {
    "order-0001": [[call("look_up", order="A1")], "Your bicycle is on its way with the Post; it comes on Tuesday."],
    "order-0002": [[call("look_up", order="A2"), call("look_up", order="A3")], "Both parcels are on their way."],
    "order-0003": [
        [call("look_up", order="A4")],
        [call("to_refunds")],
        [call("refund", customer="Ana", amount=60)],
        "60 € are on their way back to you. I am sorry for the broken bell.",
    ],
    "order-0004": [[call("to_refunds")], [call("refund", customer="Nobody", amount=20)]],
    "order-0005": [[call("to_refunds")], [call("refund", customer="Max", amount=250)], "It is refunded."],
    "order-0006": [[call("to_refunds")], [call("choose_gift", customer="Eva")], "Tea it is."],
}
ASKED = {
    "order-0001": "Where is my bicycle?",
    "order-0002": "Where are orders A2 and A3?",
    "order-0003": "The bell of my bicycle is broken. I want my money back.",
    "order-0004": "Refund order A7, please.",
    "order-0005": "Refund the bicycle. It never came.",
    "order-0006": "Everything went wrong. What do I get for it?",
}


def answer(request: dict[str, Any]) -> Any:
    """Return the next reply of the run whose question is in the request."""
    said = [message["content"] for message in request["messages"] if message["role"] == "user"]
    if "Tea will do." in said:
        return "Then tea is on its way to you. I am sorry for the broken bell."
    run_id = next(run_id for run_id, asked in ASKED.items() if asked in said)
    return STORY[run_id][sum(message["role"] == "assistant" for message in request["messages"])]


def run_shop(url: str) -> None:
    """Have every run of the story in a database, and leave it; the two last ones wait for a person."""
    with DurableSwarm(ScriptedModel(answer), database=url) as swarm:
        for run_id, asked in ASKED.items():
            run = swarm.start(triage, [{"role": "user", "content": asked}], run_id=run_id)
            until(lambda run=run: run.status not in ("queued", "running"))  # type: ignore[misc]


def until(happened: Any) -> Any:
    """Wait until this is true, and return it."""
    end = time.monotonic() + PATIENCE
    while not (found := happened()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return found
