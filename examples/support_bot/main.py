"""A support bot: it searches the help pages, answers from them, and opens a ticket for what they do not answer.

    python main.py "How do I reset my password?"

The search is SQLite's full-text index, which Python brings along; a vector store would stand in the same place.
"""

from __future__ import annotations

import sqlite3
import sys
from typing import Any

from durable_swarm import Agent, DurableSwarm, current_call, tool

PAGES = {
    "Reset a password": "Choose 'Forgot password' on the login page, and open the link in the mail within an hour.",
    "Change the plan": "Plans change under Settings, Billing. The new price holds from the next month.",
    "Export data": "Settings, Export gives a ZIP file with everything that you have stored.",
}


def index() -> sqlite3.Connection:
    """Return a full-text index of the help pages."""
    pages = sqlite3.connect(":memory:")
    pages.execute("CREATE VIRTUAL TABLE pages USING fts5(title, body, tokenize='porter')")
    pages.executemany("INSERT INTO pages VALUES (?, ?)", PAGES.items())
    return pages


@tool(effect="read")
def search_pages(question: str) -> str:
    """Search the help pages: how to reset a password, change the plan, export data."""
    words = " OR ".join(f'"{word}"' for word in question.split())
    query = "SELECT title, body FROM pages WHERE pages MATCH ? ORDER BY rank LIMIT 1"
    found = index().execute(query, [words]).fetchone()
    return f"{found[0]}: {found[1]}" if found else "No page answers this; open a ticket."


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
