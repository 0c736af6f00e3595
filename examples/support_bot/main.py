"""A support bot: it searches the help pages, answers from them, and opens a ticket for what they do not answer.

    pip install usearch
    python main.py "How do I reset my password?"

The pages are in a vector index of USearch, in a file that is made at first use. The embedding is made here, offline, of
the letters of words; put the one of your provider in its place.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import Any

from durable_swarm import Agent, DurableSwarm, current_call, tool

PAGES = {
    "Reset a password": "Choose 'Forgot password' on the login page, and open the link in the mail within an hour.",
    "Change the plan": "Plans change under Settings, Billing. The new price holds from the next month.",
    "Export data": "Settings, Export gives a ZIP file with everything that you have stored.",
}
INDEX = Path("help_pages.usearch")
DIMENSIONS = 256
NEAR = 0.6
"""The distance up to which a page is near a question: 0 is the same text, 1 has nothing in common."""


def embed(text: str) -> Any:
    """Return a vector of the text: how often each group of three letters is in its longer words."""
    import numpy as np

    vector = np.zeros(DIMENSIONS, dtype=np.float32)
    for word in re.findall(r"\w{4,}", text.lower()):
        padded = f"<{word}>"
        for start in range(len(padded) - 2):
            digest = hashlib.sha256(padded[start : start + 3].encode()).digest()
            vector[int.from_bytes(digest[:4], "big") % DIMENSIONS] += 1
    return vector


def open_index() -> Any:
    """Return the index of the help pages; the key of a page is its number in `PAGES`."""
    from usearch.index import Index

    if INDEX.exists():
        return Index.restore(INDEX)
    index = Index(ndim=DIMENSIONS, metric="cos")
    for number, (title, body) in enumerate(PAGES.items()):
        index.add(number, embed(f"{title} {title} {body}"))
    index.save(INDEX)
    return index


@tool(effect="read")
def search_pages(question: str) -> str:
    """Search the help pages: how to reset a password, change the plan, export data."""
    [nearest] = open_index().search(embed(question), 1)
    if nearest.distance > NEAR:
        return "No page answers this; open a ticket."
    title, body = list(PAGES.items())[nearest.key]
    return f"{title}: {body}"


def open_ticket(text: str) -> str:
    """Open a ticket for a problem that no help page solves."""
    number = current_call().idempotency_key  # the same after a crash, so that a ticket system opens one ticket
    print(f"ticket {number}: {text}")
    return f"Ticket {number} is open."


bot = Agent(
    name="Support bot",
    instructions="Answer from the help pages. Only if no page helps, open a ticket.",
    functions=[search_pages, open_ticket],
)


def main(text: str, client: Any = None, run_id: str = "support-1") -> str:
    """Answer a question; the same `run_id` again continues after a crash."""
    with DurableSwarm(client) as swarm:
        return str(swarm.run(bot, [{"role": "user", "content": text}], run_id=run_id).messages[-1]["content"])


if __name__ == "__main__":
    print(main(*sys.argv[1:2] or ["How do I reset my password?"]))
