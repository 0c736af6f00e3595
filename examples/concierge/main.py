"""A conversation that lasts: each guest has a session, which continues after a restart and takes one message at a time.

OPENAI_API_KEY=... python examples/concierge/main.py GUEST MESSAGE [ID]

With an ID of the message, such as the chat gives it, a message that is sent again after a crash is not answered twice.
"""

from __future__ import annotations

import sys
from typing import Any

from durable_swarm import Agent, Compaction, DurableSwarm, Result, Session


def book_table(guests: int, context_variables: dict[str, Any]) -> Result:
    """Book a table for dinner."""
    print(f"booking a table for {guests}")
    return Result(value=f"booked for {guests}", context_variables={"booked": guests, **context_variables})


def to_kitchen() -> Agent:
    """Hand over to the kitchen for questions about food."""
    return kitchen


concierge = Agent(
    name="Concierge",
    instructions="You are the concierge of a hotel. Book tables; questions about food are for the kitchen.",
    functions=[book_table, to_kitchen],
)
kitchen = Agent(name="Kitchen", instructions="You are the kitchen of a hotel. Answer questions about food.")


def session_of(swarm: DurableSwarm, guest: str) -> Session:
    """Return the conversation with a guest; long ones are summarized."""
    return swarm.session(f"guest/{guest}", concierge, compaction=Compaction(at_messages=40, keep_last=8))


def main(guest: str, message: str, message_id: str | None = None, client: Any = None) -> str:
    """Send a guest's message, and return the answer."""
    with DurableSwarm(client) as swarm:
        response = session_of(swarm, guest).run(message, run_id=message_id)
        return str(response.messages[-1]["content"])


if __name__ == "__main__":
    print(main(*sys.argv[1:4]))
