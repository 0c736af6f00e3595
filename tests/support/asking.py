"""Runs that ask something, left waiting in a database."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from durable_swarm import Agent, DurableSwarm, Run, ask_human, later, tool
from durable_swarm.testing import ScriptedModel, call
from tests.support.patience import PATIENCE


@tool(approval=lambda amount: amount > 100)
def refund(amount: int) -> str:
    """Refund an amount."""
    return f"refunded {amount}"


def choose() -> str:
    """Ask for a colour."""
    return ask_human("Which colour?", choices=["red", "blue"])


def ship() -> str:
    """Ship."""
    return later("parcel")  # type: ignore[no-any-return]


CLERK = Agent(name="Refund Clerk", functions=[refund, choose, ship])
CALLS: dict[str, Any] = {"refund": call("refund", amount=250), "choose": call("choose"), "ship": call("ship")}


@contextmanager
def asking(run_id: str, *names: str, **options: Any) -> Iterator[Run]:
    """Have a run that asks by all of these tools at once, in a swarm with these options."""
    model = ScriptedModel([[CALLS[name] for name in names], "Done."])
    with DurableSwarm(model, **options) as swarm:
        run = swarm.start(CLERK, [{"role": "user", "content": "Hi"}], run_id=run_id)
        end = time.monotonic() + PATIENCE
        while len(found := run.requests()) < len(names):
            assert time.monotonic() < end, f"only {found} are open"
            time.sleep(0.01)
        yield run


def leave(run_id: str, *names: str, **options: Any) -> None:
    """Leave such a run without a process that executes it."""
    with asking(run_id, *names, **options):
        pass
