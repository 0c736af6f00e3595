"""A report every night: started by cron as often as you like, it is written once a day.

    0 6,7,8 * * *  cd /srv/report && .venv/bin/python main.py

The id of the run is the day. If the machine was off or the program crashed at 6, the start at 7 continues it; if it is
done, the start at 8 only prints it.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any

from durable_swarm import Agent, DurableSwarm, step


@step
def count_orders(day: str) -> int:
    """Count the orders of a day, once: the number in the report is the one that was counted first."""
    print(f"counting the orders of {day}")
    return 42


def collect_figures(context_variables: dict[str, Any]) -> str:
    """Collect the figures of the day for the report."""
    return f"{count_orders(context_variables['day'])} orders"


writer = Agent(
    name="Report writer",
    instructions=lambda context_variables: f"Write a short report about {context_variables['day']}.",
    functions=[collect_figures],
)


def main(day: str, client: Any = None) -> str:
    """Write the report of a day, such as 2026-11-29, or return the one that is written."""
    with DurableSwarm(client) as swarm:
        asked = [{"role": "user", "content": "Write the report with today's figures."}]
        return str(swarm.run(writer, asked, {"day": day}, run_id=f"report-{day}").messages[-1]["content"])


if __name__ == "__main__":
    print(main(*sys.argv[1:2] or [datetime.now(UTC).date().isoformat()]))
