"""Ten agents, each with one fault that shows only when its program is killed and started again."""

from __future__ import annotations

import os
import random
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from durable_swarm import Agent, DurableSwarm, Response, current_call, step
from durable_swarm.testing import ScriptedModel, effect

QUESTION = [{"role": "user", "content": "Please."}]


def run(script: list[Any], *functions: Any, **options: Any) -> Response:
    """Run one agent with these tools to its end, as a program that may be started again does."""
    agent = Agent(name=options.pop("name", "Desk"), functions=list(functions), **options.pop("agent", {}))
    with DurableSwarm(ScriptedModel(script)) as swarm:
        return swarm.run(agent, QUESTION, **{"run_id": "r1", **options})


def doubled_charge() -> Response:
    """The service cannot know a repeated payment: it gets no idempotency key."""

    def charge() -> str:
        effect("charge")
        return "charged"

    return run([["charge"], "Done."], charge)


def lost_context() -> Response:
    """State is kept in a variable of the program, which a crash loses."""
    basket: list[str] = []

    def add(item: str) -> str:
        basket.append(item)
        return f"added {item}"

    def count(context_variables: dict[str, Any]) -> str:
        context_variables["items"] = len(basket)
        return "counted"

    return run([[("add", {"item": "tea"})], ["count"], "Done."], add, count)


def effect_before_the_approval() -> Response:
    """The order is placed before the step that asks whether it may be: a crash in between places it twice."""

    @step
    def approve() -> bool:
        return True

    def order() -> str:
        effect("order")
        return "ordered" if approve() else "refused"

    return run([["order"], "Done."], order)


def inner_steps_by_chance() -> Response:
    """Which step a tool takes is drawn anew in each life."""

    @step
    def by_mail() -> str:
        return "asked"

    @step
    def by_phone() -> str:
        return "asked"

    @step
    def confirm() -> str:
        return "confirmed"

    def ask() -> str:
        # As good as chance: each process takes another way.
        way = by_mail if not Path("asked").exists() else by_phone
        Path("asked").touch()
        way()
        return confirm()

    return run([["ask"], "Done."], ask)


def key_of_the_moment() -> Response:
    """The idempotency key is made anew in each attempt."""

    def pay() -> str:
        effect("pay", key=uuid.uuid4().hex)
        return "paid"

    return run([["pay"], "Done."], pay)


def a_new_run_each_time() -> Response:
    """The run has no run_id, so the program that starts again begins another."""

    def note() -> str:
        return "noted"

    return run([["note"], "Done."], note, run_id=None)


def mail_after_the_tool() -> Response:
    """A thread sends the mail after the tool has returned: a crash takes the thread with it."""
    sending: list[threading.Thread] = []

    def mail() -> str:
        sending.append(threading.Thread(target=lambda: (time.sleep(0.05), effect("mail"))))
        sending[0].start()
        return "will be mailed"

    response = run([["mail"], "Done."], mail)
    for thread in sending:
        thread.join()
    return response


def marked_before_done() -> Response:
    """The mark that says "booked" is made before the booking: a crash in between loses the booking."""

    def book() -> str:
        mark = Path("booked")
        if not mark.exists():
            mark.touch()
            effect("book", key=current_call().idempotency_key)
        return "booked"

    return run([["book"], "Done."], book)


def answer_by_the_clock() -> Response:
    """A tool tells the model what only this life knows."""

    @step
    def rate() -> int:
        return 3

    def quote() -> str:
        rate()
        return f"offer {os.getpid()}"

    return run([["quote"], "Done."], quote)


def name_by_the_process() -> Response:
    """The agent is called otherwise in each life, so that nobody finds it again."""

    def look() -> str:
        return "seen"

    return run([["look"], "Done."], look, name=f"Desk {os.getpid()} {random.random()}")


FAULTS = {
    doubled_charge: "repeated effect",
    lost_context: "context",
    effect_before_the_approval: "repeated effect",
    inner_steps_by_chance: "raised",
    key_of_the_moment: "another key",
    a_new_run_each_time: "another run",
    mail_after_the_tool: "lost effect",
    marked_before_done: "lost effect",
    answer_by_the_clock: "messages",
    name_by_the_process: "agent",
}
"""The agents, and what kind of finding each must give."""
