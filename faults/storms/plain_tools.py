"""The tools under attack, as plain functions; `async_tools` has the same ones."""

from __future__ import annotations

import time

from durable_swarm import ask_human, sleep, step, tool
from faults.storms.effects import CHOICES, NAP, PACE, begin, child_id, end, fail_once


@step
def look(n: int) -> str:
    """Look: a step of its own."""
    begun = begin()
    time.sleep(PACE * (1 + n % 3))
    return end(begun)


@step
def first(n: int) -> str:
    """The first of two steps inside a tool."""
    begun = begin("first")
    time.sleep(PACE)
    return end(begun, "first")


@step
def second(n: int) -> str:
    """The second of two steps inside a tool."""
    begun = begin("second")
    time.sleep(PACE)
    return end(begun, "second")


def note(n: int) -> str:
    """Note something, in two steps."""
    return f"{first(n)} {second(n)}"


def fetch(n: int) -> str:
    """Fetch: a tool without steps."""
    begun = begin()
    time.sleep(PACE * 2)
    return end(begun)


@tool(effect="once")
def pay(n: int) -> str:
    """Pay, which must not happen twice unseen."""
    begun = begin()
    time.sleep(PACE * 4)
    return end(begun)


@tool(approval=True)
def refund(amount: int) -> str:
    """Refund what a person has agreed to."""
    begun = begin(amount=amount)
    return f"refunded {amount} {end(begun)}"


def ask(n: int) -> str:
    """Ask a person for a colour."""
    return f"answer {ask_human('Which colour?', choices=CHOICES)}"


def nap(n: int) -> str:
    """Sleep for a while."""
    begun = begin()
    sleep(NAP)
    return end(begun)


def delegate(n: int) -> str:
    """Have a helper do something in a run of its own."""
    from faults.storms import program

    messages = [{"role": "user", "content": f"{child_id()}: look,fetch"}]
    return str(program.swarm.run(program.helper, messages, run_id=child_id()).messages[-1]["content"])


def shaky(n: int) -> str:
    """Fail the first time."""
    begun = begin()
    fail_once(begun)
    return end(begun)


TOOLS = [look, note, fetch, pay, refund, ask, nap, delegate, shaky]
