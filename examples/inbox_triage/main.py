"""Inbox triage: one run a mail. Newsletters are archived at once; an answer waits until a person has approved it.

    python main.py               # again at any time: each mail is worked on once
    durable-swarm inbox          # and: durable-swarm approve ID

The id of a run is that of its mail, so a program that is started every minute by cron never answers a mail twice.
"""

from __future__ import annotations

from typing import Any

from durable_swarm import Agent, DurableSwarm, current_call, tool

MAILS = {
    "mail-1": "Newsletter: archive this, there are new lamps in spring.",
    "mail-2": "Please answer: is my order shipped? Ann",
}


def archive_mail() -> str:
    """Archive a mail that needs no answer, such as a newsletter."""
    print(f"archived {current_call().run_id}")
    return "Archived."


@tool(approval=True)
def answer_mail(text: str) -> str:
    """Send an answer to a question in a mail. A person approves it first, and may change the text."""
    print(f"answered {current_call().run_id}: {text}")
    return "Sent."


secretary = Agent(name="Secretary", instructions="Archive or answer the mail.", functions=[archive_mail, answer_mail])


def main(client: Any = None, patience: float = 2) -> list[str]:
    """Work on all mails, and return what became of each after at most `patience` seconds of waiting for people."""
    with DurableSwarm(client) as swarm:
        runs = [swarm.start(secretary, [{"role": "user", "content": text}], run_id=id) for id, text in MAILS.items()]
        return [f"{run.id}: {_outcome(run, patience)}" for run in runs]


def _outcome(run: Any, patience: float) -> str:
    try:
        return str(run.result(timeout=patience).messages[-1]["content"])
    except TimeoutError:
        return f"waits for a person: durable-swarm approve {run.id}"


if __name__ == "__main__":
    print(*main(), sep="\n")
