"""A travel desk: a triage agent hands over to a specialist, and the trip is kept in the context variables.

OPENAI_API_KEY=... python examples/travel/main.py
"""

from __future__ import annotations

from typing import Any

from durable_swarm import Agent, DurableSwarm, Result, current_call


class Hotels:
    """Stands for a booking service that knows a repeated booking by its reference."""

    def book(self, city: str, nights: int, reference: str) -> str:
        """Book a room."""
        print(f"booking {nights} nights in {city}, reference {reference}")
        return f"{city}-{nights}"


hotels = Hotels()


def book_hotel(city: str, nights: int, context_variables: dict[str, Any]) -> str:
    """Book a hotel in a city for some nights."""
    booking = hotels.book(city, nights, reference=current_call().idempotency_key)
    context_variables["trip"] = {**context_variables.get("trip", {}), "hotel": booking}
    return f"Booked {booking} for {context_variables['name']}."


def transfer_to_hotels() -> Result:
    """Hand over to the hotel desk."""
    return Result(value="The hotel desk takes over.", agent=hotel_desk, context_variables={"desk": "hotels"})


hotel_desk = Agent(
    name="Hotels",
    instructions=lambda context_variables: f"Book hotels for {context_variables['name']}.",
    functions=[book_hotel],
)
triage = Agent(name="Triage", instructions="Hand hotel questions to the hotel desk.", functions=[transfer_to_hotels])


def main(client: Any = None) -> dict[str, Any]:
    """Plan a trip and give its context variables; `client` is a model client, by default OpenAI's."""
    with DurableSwarm(client) as swarm:
        asked = [{"role": "user", "content": "I need a hotel in Rome for two nights."}]
        return swarm.run(triage, asked, {"name": "Ada"}, run_id="trip-ada").context_variables


if __name__ == "__main__":
    print(main())
