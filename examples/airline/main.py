"""An airline's service: a triage agent, specialists with their own policies, and a passenger in the context variables.

python main.py "I want to cancel my flight for a voucher"
"""

from __future__ import annotations

import sys
from typing import Any, Literal

from durable_swarm import Agent, DurableSwarm, Result, tool

PASSENGER = {"passenger": "Ann Lee", "flight": "DS 1919", "route": "Oslo to Rome"}


def policy(task: str) -> Any:
    """Return instructions for a task, which are written anew for each request from the context variables."""

    def instructions(context_variables: dict[str, Any]) -> str:
        about = ", ".join(f"{name} {value}" for name, value in sorted(context_variables.items()))
        return f"You work for an airline. Passenger: {about}. {task} If it is about something else, pass it back."

    return instructions


def to_changes() -> Agent:
    """Pass on: the passenger wants to change a flight."""
    return changes


def to_cancellations() -> Agent:
    """Pass on: the passenger wants to cancel a flight."""
    return cancellations


def to_baggage() -> Agent:
    """Pass on: baggage is lost or late."""
    return baggage


def back_to_service() -> Agent:
    """Pass the conversation back."""
    return service


def change_flight(new_flight: str, context_variables: dict[str, Any]) -> Result:
    """Change to another flight."""
    print(f"changing {context_variables['flight']} to {new_flight}")
    return Result(value=f"Changed to {new_flight}.", context_variables={"flight": new_flight})


@tool(approval=lambda refund_as: refund_as == "money")
def cancel_flight(refund_as: Literal["voucher", "money"], context_variables: dict[str, Any]) -> Result:
    """Cancel the flight for a voucher or for money. Money needs the approval of a person."""
    print(f"cancelling {context_variables['flight']} for {refund_as}")
    return Result(value=f"Cancelled; you get {refund_as}.", context_variables={"flight": "none"})


def search_baggage(context_variables: dict[str, Any]) -> str:
    """Search the baggage of the flight."""
    return f"Found in {context_variables['route'].split()[-1]}; it comes tomorrow."


service = Agent(
    name="Airline service",
    instructions=policy("Find out what it is about, and pass it on."),
    functions=[to_changes, to_cancellations, to_baggage],
)
changes = Agent(
    name="Flight changes", instructions=policy("Change flights."), functions=[change_flight, back_to_service]
)
cancellations = Agent(
    name="Cancellations", instructions=policy("Cancel flights."), functions=[cancel_flight, back_to_service]
)
baggage = Agent(name="Baggage", instructions=policy("Find baggage."), functions=[search_baggage, back_to_service])


def main(text: str, client: Any = None, run_id: str = "airline-1") -> str:
    """Help a passenger; the same `run_id` again continues after a crash."""
    with DurableSwarm(client) as swarm:
        response = swarm.run(service, [{"role": "user", "content": text}], PASSENGER, run_id=run_id)
        return f"{response.messages[-1]['content']} (flight: {response.context_variables['flight']})"


if __name__ == "__main__":
    print(main(*sys.argv[1:2] or ["I want to cancel my flight for a voucher"]))
