"""An agent with two tools, one that reads and one that acts: the weather, and a mail about it.

python main.py "How is the weather in Oslo? Send it to ann@example.org"
"""

from __future__ import annotations

import sys
from typing import Any

from durable_swarm import Agent, DurableSwarm, tool

WEATHER = {"Oslo": "snow, -3 °C", "Rome": "sun, 19 °C"}


@tool(effect="read")
def get_weather(city: str) -> str:
    """Report the weather of a city."""
    return f"{city}: {WEATHER.get(city, 'clouds, 11 °C')}"


@tool(effect="once")
def send_mail(email: str, text: str) -> str:
    """Send a mail. A mail server takes no idempotency key: if a crash leaves it open, a person is asked."""
    print(f"mail to {email}: {text}")
    return f"Sent to {email}."


reporter = Agent(name="Weather reporter", instructions="Report the weather.", functions=[get_weather, send_mail])


def main(text: str, client: Any = None, run_id: str = "weather-1") -> str:
    """Answer a question about the weather; the same `run_id` again continues after a crash."""
    with DurableSwarm(client) as swarm:
        return str(swarm.run(reporter, [{"role": "user", "content": text}], run_id=run_id).messages[-1]["content"])


if __name__ == "__main__":
    print(main(*sys.argv[1:2] or ["How is the weather in Oslo? Send it to ann@example.org"]))
