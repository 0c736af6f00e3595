"""The tools under attack, as async functions; `plain_tools` has the same ones."""

from __future__ import annotations

import asyncio

from durable_swarm import ask_human_async, sleep_async, step, tool
from faults.storms.effects import CHOICES, NAP, PACE, begin, child_id, end, fail_once


@step
async def look(n: int) -> str:
    """Look: a step of its own."""
    begun = begin()
    await asyncio.sleep(PACE * (1 + n % 3))
    return end(begun)


@step
async def first(n: int) -> str:
    """The first of two steps inside a tool."""
    begun = begin("first")
    await asyncio.sleep(PACE)
    return end(begun, "first")


@step
async def second(n: int) -> str:
    """The second of two steps inside a tool."""
    begun = begin("second")
    await asyncio.sleep(PACE)
    return end(begun, "second")


async def note(n: int) -> str:
    """Note something, in two steps."""
    return f"{await first(n)} {await second(n)}"


async def fetch(n: int) -> str:
    """Fetch: a tool without steps."""
    begun = begin()
    await asyncio.sleep(PACE * 2)
    return end(begun)


@tool(effect="once")
async def pay(n: int) -> str:
    """Pay, which must not happen twice unseen."""
    begun = begin()
    await asyncio.sleep(PACE * 4)
    return end(begun)


@tool(approval=True)
async def refund(amount: int) -> str:
    """Refund what a person has agreed to."""
    begun = begin(amount=amount)
    return f"refunded {amount} {end(begun)}"


async def ask(n: int) -> str:
    """Ask a person for a colour."""
    return f"answer {await ask_human_async('Which colour?', choices=CHOICES)}"


async def nap(n: int) -> str:
    """Sleep for a while."""
    begun = begin()
    await sleep_async(NAP)
    return end(begun)


async def delegate(n: int) -> str:
    """Have a helper do something in a run of its own."""
    from faults.storms import program

    messages = [{"role": "user", "content": f"{child_id()}: look,fetch"}]
    return str((await program.swarm.run_async(program.helper, messages, run_id=child_id())).messages[-1]["content"])


async def shaky(n: int) -> str:
    """Fail the first time."""
    begun = begin()
    fail_once(begun)
    return end(begun)


TOOLS = [look, note, fetch, pay, refund, ask, nap, delegate, shaky]
