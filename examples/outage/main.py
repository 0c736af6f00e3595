"""A provider that is away: the run waits, says why, and continues by itself. Needs no key.

    python examples/outage/main.py

The provider answers with status 503 three times and then recovers. Press Ctrl+C while the run waits and start the
program again: the run continues, and the figures are not collected again.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from durable_swarm import Agent, DurableSwarm, Run, step
from durable_swarm.testing import call, http_error, serve_scripted


@step
def collect_figures() -> str:
    """Return the figures of the day."""
    print("collecting the figures")
    return "42 orders"


agent = Agent(name="Reporter", instructions="Write short reports.", functions=[collect_figures])
MESSAGES = [{"role": "user", "content": "Write today's report."}]
REPLIES = iter([*[http_error(503, "overloaded") for _ in range(3)], "42 orders today."])


def reply(request: dict[str, Any]) -> Any:
    """Ask for the figures; once they are there, be away for a while, then report."""
    has_figures = any(message["role"] == "tool" for message in request["messages"])
    return next(REPLIES) if has_figures else [call("collect_figures")]


def tell(run: Run) -> None:
    """Print what the run waits for, as any other process could."""
    told = None
    while run.status not in ("done", "failed"):
        if (reason := run.waits_for) != told and reason is not None:
            print(f"{run.status}: {reason}")
        told = reason
        time.sleep(0.2)


def main() -> None:
    """Ask for a report, from a provider that is away when the figures are there."""
    with serve_scripted(reply) as provider, provider.client(max_retries=0) as client, DurableSwarm(client) as swarm:
        run = swarm.start(agent, MESSAGES, run_id="report", provider_patience=3600)
        teller = threading.Thread(target=tell, args=[run])
        teller.start()
        print(run.result().messages[-1]["content"])
        teller.join()


if __name__ == "__main__":
    main()
