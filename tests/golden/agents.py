"""The agents whose runs are in the golden databases, and the scripted model that answers them.

A program of a golden database is started again by the tests: the same names, other processes, perhaps years later.
So nothing here changes once it is recorded; a new agent is added at the end.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import sqlalchemy

from durable_swarm import Agent, Result, ask_human, later, sleep, step, tool
from durable_swarm.encryption import EncryptionCodec
from durable_swarm.testing import ScriptedModel, call

KEY = "Z29sZGVuIGdvbGRlbiBnb2xkZW4gZ29sZGVuIGdvbGQ="
"""The key of the encrypted runs: no secret."""
ORDER = {"order": "A-1", "since": date(2026, 1, 2), "price": Decimal("9.90"), "tags": ("new", "gift")}

LEDGER, DEATH = "GOLDEN_LEDGER", "GOLDEN_DEATH"
"""Variables: the file that takes the effects; the effect at which the process is killed, or raises."""
NAP = 20.0
"""Seconds for which the sleeping run sleeps: in a golden database they have passed."""


def note(effect: str) -> None:
    """Write an effect into the ledger, then end as the environment says."""
    with Path(os.environ[LEDGER]).open("a", encoding="utf-8") as ledger:
        ledger.write(f"{effect}\n")
    death = os.environ.get(DEATH)
    if death == effect:
        os.kill(os.getpid(), signal.SIGKILL)
    if death == f"raise {effect}":
        raise OSError(f"{effect} is out of order")


@step
def charge(order: str) -> Result:
    """Charge an order."""
    note("charge")
    return Result(value=f"charged {order}", context_variables={"charged": True, "price": Decimal("8.90")})


@step
def weigh(order: str) -> int:
    """Weigh an order."""
    note("weigh")
    return len(order)


@step
def wrap(order: str) -> str:
    """Wrap an order."""
    note("wrap")
    return f"wrapped {order}"


def pack(order: str, context_variables: dict[str, Any]) -> str:
    """Pack an order: two steps, and a change of the context in place."""
    weight, wrapped = weigh(order), wrap(order)
    note("pack")
    context_variables["weight"] = weight
    return f"{wrapped}, {weight} kg"


@step
def post(order: str) -> str:
    """Post an order."""
    note("post")
    return f"posted {order}"


@tool(approval=True)
def refund(order: str, amount: int) -> str:
    """Refund an order."""
    note("refund")
    return f"refunded {amount} for {order}"


def colour() -> str:
    """Ask for a colour."""
    note("ask")
    return f"it is {ask_human('Which colour?', choices=['red', 'blue'])}"


def nap() -> str:
    """Sleep."""
    note("nap")
    sleep(NAP)
    note("woke")
    return "slept"


@tool(effect="once")
def pay(order: str) -> str:
    """Pay for an order, once."""
    note("pay")
    return f"paid {order}"


@tool(effect="transactional")
def book(order: str, connection: sqlalchemy.Connection) -> str:
    """Book an order in the same transaction as the record."""
    connection.execute(sqlalchemy.text("INSERT INTO golden_orders (name) VALUES (:name)"), {"name": order})
    note("book")
    return f"booked {order}"


def invoice(order: str) -> Any:
    """Have an invoice paid by and by."""
    note("invoice")
    return later(f"invoice-{order}")


def desk() -> Agent:
    """Hand off to the desk."""
    note("handoff")
    return agent("desk")


def _last_words() -> str:
    note("model")
    return "Done."


FUNCTIONS: dict[str, list[Callable[..., Any]]] = {
    "done": [charge, pack, desk],
    "desk": [post],
    "failed": [charge, post],
    "cancelled": [charge, colour],
    "held": [charge, post],
    "approval": [charge, refund],
    "question": [charge, colour],
    "later": [charge, invoice],
    "sleep": [charge, nap],
    "suspended": [colour],
    "queued": [charge, pack],
    "forked": [charge, pack],
    "encrypted": [charge, pack],
    "streamed": [charge],
    "killed-tool": [charge, pack],
    "killed-model": [charge],
    "killed-step": [charge, post],
    "once": [charge, pay],
    "transactional": [book, post],
}
_A = {"order": "A-1"}
_TEXT = "One word, two words, three words, four words."
SCRIPTS: dict[str, list[Any]] = {
    "done": [[call("charge", **_A), call("pack", **_A)], ["desk"], [call("post", **_A)], "Done."],
    "failed": [[call("charge", **_A)], [call("post", **_A)], "Done."],
    "cancelled": [[call("charge", **_A)], ["colour"], "Done."],
    "held": [[call("charge", **_A)], [call("post", **_A)], "Done."],
    "approval": [[call("charge", **_A)], [call("refund", order="A-1", amount=5)], "Done."],
    "question": [[call("charge", **_A)], ["colour"], "Done.", "Heard."],
    "later": [[call("charge", **_A)], [call("invoice", **_A)], "Done."],
    "sleep": [[call("charge", **_A)], ["nap"], "Done."],
    "suspended": [["colour"], "Done."],
    "queued": [[call("charge", **_A)], [call("pack", **_A)], "Done."],
    "forked": [[call("charge", **_A)], [call("pack", **_A)], "Done."],
    "encrypted": [[call("charge", **_A)], [call("pack", **_A)], "Done."],
    "streamed": [[call("charge", **_A)], _TEXT],
    "killed-tool": [[call("charge", **_A)], [call("pack", **_A)], "Done."],
    "killed-model": [[call("charge", **_A)], _last_words],
    "killed-step": [[call("charge", **_A), call("post", **_A)], "Done."],
    "once": [[call("charge", **_A)], [call("pay", **_A)], "Done."],
    "transactional": [[call("book", **_A)], [call("post", **_A)], "Done."],
}
SCRIPTS["desk"] = SCRIPTS["done"]


@functools.cache
def agent(name: str, version: int = 1) -> Agent:
    """Return the agent of that name, which lives as long as the process."""
    instructions = f"golden {name}" if version == 1 else f"golden {name} {version}"
    return Agent(name=f"golden {name}", instructions=instructions, functions=list(FUNCTIONS[name]))


def _reply(request: dict[str, Any]) -> Any:
    """Answer by the script of the agent that asks: the reply that comes after those in its history."""
    messages = request["messages"]
    name = messages[0]["content"].split()[1]
    reply = SCRIPTS[name][sum(message["role"] == "assistant" for message in messages)]
    return reply() if callable(reply) else reply


def model() -> ScriptedModel:
    """Return a model that answers all of the agents, in any process."""
    slow = os.environ.get(DEATH) == "text"  # So that some of the text is stored when the process is killed.
    return ScriptedModel(_reply, pace=0.1 if slow else 0.0)


def options(name: str) -> dict[str, Any]:
    """Return how the `DurableSwarm` of a golden database is made."""
    chosen: dict[str, Any] = {"name": "golden"}
    if name == "encrypted":
        chosen["codec"] = EncryptionCodec(KEY)
    if name == "held":
        chosen["changed_agents"] = "hold"
    return chosen


def effects(ledger: Path) -> Iterator[str]:
    """Yield the effects in a ledger."""
    yield from ledger.read_text(encoding="utf-8").split()
