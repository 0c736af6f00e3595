"""Thirteen agents that are right: whenever their program is killed and started again, nothing differs."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

from durable_swarm import (
    Agent,
    AlreadyAnswered,
    DurableSwarm,
    Response,
    Result,
    Run,
    ToolError,
    ask_human,
    current_call,
    emit,
    later,
    sleep,
    step,
    tool,
)
from durable_swarm.testing import ScriptedModel, effect
from tests.kit.faulty import QUESTION, run


def keyed_charge() -> Response:
    """The payment service gets the call's idempotency key."""

    def charge() -> str:
        effect("charge", key=current_call().idempotency_key)
        return "charged"

    return run([["charge"], "Done."], charge)


def state_in_context() -> Response:
    """State is kept in the context variables, in place and through results."""

    def add(item: str, context_variables: dict[str, Any]) -> str:
        context_variables.setdefault("basket", []).append(item)
        return f"added {item}"

    def count(context_variables: dict[str, Any]) -> Result:
        return Result(value="counted", context_variables={"items": len(context_variables["basket"])})

    script = [[("add", {"item": "tea"})], [("add", {"item": "milk"})], ["count"], "Done."]
    return run(script, add, count, context_variables={})


def steps_in_order() -> Response:
    """Five steps inside a tool, each with an effect of its own."""

    def made(name: str) -> Any:
        @step(name=name)
        def act() -> str:
            effect(name, key=current_call().idempotency_key + name)
            return name

        return act

    acts = [made(name) for name in ("check", "reserve", "pay", "ship", "mail")]

    def process() -> str:
        return " ".join(act() for act in acts)

    return run([["process"], "Done."], process)


def handoff() -> Response:
    """A handoff and a tool of the second agent."""

    def close(context_variables: dict[str, Any]) -> str:
        context_variables["closed"] = True
        return "closed"

    second = Agent(name="Second", functions=[close])

    def transfer() -> Agent:
        return second

    with DurableSwarm(ScriptedModel([["transfer"], ["close"], "Done."])) as swarm:
        return swarm.run(Agent(name="First", functions=[transfer]), QUESTION, {"open": 1}, run_id="r1")


def calls_together() -> Response:
    """Three async tools of one reply run together."""

    async def ask(who: str) -> str:
        await asyncio.sleep(0.01)
        effect("ask", key=current_call().idempotency_key)
        return f"{who} agrees"

    return run([[("ask", {"who": "a"}), ("ask", {"who": "b"}), ("ask", {"who": "c"})], "Done."], ask)


def chance_in_a_step() -> Response:
    """What varies is recorded by a step, so that each life sees the same."""

    @step
    def pick() -> str:
        return Path("picked").read_text() if Path("picked").exists() else "first"

    def offer() -> str:
        picked = pick()
        Path("picked").write_text("second")
        return f"offer {picked}"

    return run([["offer"], "Done."], offer)


def errors_are_told() -> Response:
    """A tool's refusal goes to the model."""

    def refuse() -> str:
        raise ToolError("no such order")

    @tool(retries=1)
    def flaky() -> str:
        if current_call().attempt == 1 and not Path("tried").exists():
            Path("tried").touch()
            raise OSError("not now")
        return "worked"

    return run([["refuse"], ["flaky"], "Done."], refuse, flaky)


def short_sleep() -> Response:
    """A tool sleeps; the time it ends is recorded."""

    def wait() -> str:
        sleep(0.2)
        effect("woke", key=current_call().idempotency_key)
        return "awake"

    return run([["wait"], "Done."], wait)


def own_database() -> Response:
    """A tool writes to a database of the program, under the call's key."""

    def book(seat: str) -> str:
        with sqlite3.connect("seats.sqlite", timeout=10) as seats:
            seats.execute("CREATE TABLE IF NOT EXISTS seats (key TEXT PRIMARY KEY, seat TEXT)")
            seats.execute("INSERT OR IGNORE INTO seats VALUES (?, ?)", (current_call().idempotency_key, seat))
            booked = seats.execute("SELECT count(*) FROM seats").fetchone()[0]
        return f"{booked} booked"

    return run([[("book", {"seat": "1A"})], "Done."], book)


def two_runs(database: str) -> dict[str, Any]:
    """A program with two runs, started together and waited for."""

    def greet(name: str) -> str:
        return f"Hello, {name}"

    agent = Agent(name="Desk", functions=[greet])
    model = ScriptedModel(_greet_once)
    with DurableSwarm(model, database=database) as swarm:
        runs = [swarm.start(agent, QUESTION, run_id=f"r{number}") for number in (1, 2)]
        return {run.id: run.result().messages[-1]["content"] for run in runs}


def _greet_once(request: dict[str, Any]) -> Any:
    answered = any(message["role"] == "tool" for message in request["messages"])
    return "Done." if answered else [("greet", {"name": "Ada"})]


def streamed(database: str) -> dict[str, Any]:
    """A streamed run with progress; its events tell the text of its messages, whatever was lost of them."""

    def pay() -> str:
        emit("paying")
        effect("pay", key=current_call().idempotency_key)
        return "paid"

    script = ScriptedModel(
        lambda request: ["pay"] if len(request["messages"]) == 2 else "It is paid. " * 12, pace=0.002
    )
    with DurableSwarm(script, database=database) as swarm:
        *_, last = swarm.run(Agent(name="Desk", functions=[pay]), QUESTION, stream=True, run_id="streamed")
        events = list(swarm.get("streamed").events())
    said = ""
    for event in events:
        said = "" if event.type == "text.reset" else said + event.data.get("text", "")
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return {"said": said, "meant": last["response"].messages[-1]["content"]}


def people_decide() -> Response:
    """An approval, a question and a result that comes later, each answered in whatever life it is open."""

    @tool(approval=True)
    def refund(amount: int) -> str:
        effect("refund", key=current_call().idempotency_key)
        return f"refunded {amount}"

    def paint() -> str:
        return f"painted {ask_human('Colour?')}"

    def order() -> Any:
        effect("order", key=current_call().idempotency_key)
        return later("order-1")

    script = ScriptedModel([[("refund", {"amount": 500})], ["paint"], ["order"], "Done."])
    agent = Agent(name="Desk", functions=[refund, paint, order])
    with DurableSwarm(script) as swarm:
        return _decided(swarm, swarm.start(agent, QUESTION, run_id="r1"))


def _decided(swarm: DurableSwarm, run: Run) -> Response:
    """Answer all that the run asks until it has ended."""
    while run.status not in ("done", "failed"):
        for request in run.requests():
            with contextlib.suppress(AlreadyAnswered):
                if request.kind in ("approval", "unknown_outcome"):
                    swarm.approve(request.id)
                else:
                    swarm.answer("as asked", request.id)
        time.sleep(0.005)
    return run.result()


def once_with_a_check() -> Response:
    """A payment that is entered once: after a crash the bank's own books say what became of it."""
    books = Path("books")

    def paid(card: str) -> str | None:
        return books.read_text() if books.exists() else None

    @tool(effect="once", check=paid)
    def pay(card: str) -> str:
        effect("pay", key=current_call().idempotency_key)
        books.write_text(f"paid with {card}")
        return f"paid with {card}"

    return run([[("pay", {"card": "c1"})], "Done."], pay)


RIGHT = [
    keyed_charge,
    state_in_context,
    steps_in_order,
    handoff,
    calls_together,
    chance_in_a_step,
    errors_are_told,
    short_sleep,
    own_database,
    streamed,
    two_runs,
    once_with_a_check,
    people_decide,
]
