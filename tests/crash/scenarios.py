"""The programs that the crash matrix kills: each builds its agents anew, as a restarted program does.

Every model call and every tool has an effect in the ledger, so a lost or repeated one shows. The models answer by the
history alone: they know nothing of earlier lives.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from durable_swarm import Agent, DurableSwarm, Response, Result, errors, step, tool
from durable_swarm.models.call import current_model_call
from durable_swarm.testing import ScriptedModel
from tests.crash import streamed
from tests.crash.boundaries import effect
from tests.support.patience import PATIENCE

Answer = dict[str, Any]
"""What a program got of a run, as plain data: messages, context variables, the last agent's name."""

NOT_RECORDED = "not_recorded"
"""The effect of a life that looked for its run and found that it was never recorded."""


@dataclass
class Program:
    """A program: its agents (the first is started), its model, and what it starts the run with."""

    agents: list[Agent]
    model: ScriptedModel
    context: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    with_swarm: Callable[[DurableSwarm], None] = lambda _: None
    streams: bool = False
    """Whether it is streamed, and a reader in its process follows the run."""


def ask(name: str, /, **arguments: Any) -> tuple[str, dict[str, Any]]:
    """Write a tool call of a script."""
    return name, arguments


def scripted(script: Sequence[Any]) -> Callable[[dict[str, Any]], Any]:
    """Answer turn n of a conversation with reply n of the script; ids of calls follow from the turn alone."""

    def reply(request: dict[str, Any]) -> Any:
        effect("model")
        turn = sum(message["role"] == "assistant" for message in request["messages"])
        made = script[turn]
        if isinstance(made, str):
            return made
        return [{"name": name, "arguments": args, "id": f"t{turn}c{index}"} for index, (name, args) in enumerate(made)]

    return reply


def refund() -> Program:
    """A refund: a tool with five inner steps, then a plain tool."""

    @step
    def check_order(order: str) -> dict[str, Any]:
        effect("check_order")
        return {"order": order, "total": 40}

    @step
    def check_stock(order: str) -> int:
        effect("check_stock")
        return 3

    @step
    def pay_back(total: int) -> str:
        effect("pay_back")
        return f"payment-{total}"

    @step
    def restock(stock: int) -> int:
        effect("restock")
        return stock + 1

    @step
    def send_mail(text: str) -> None:
        effect("send_mail")

    def process_refund(order: str, context_variables: dict[str, Any]) -> str:
        found = check_order(order)
        stock = restock(check_stock(order))
        payment = pay_back(found["total"])
        send_mail(payment)
        context_variables["refunds"].append({"order": order, "payment": payment, "stock": stock})
        return f"refunded {order} with {payment}"

    def apply_discount() -> str:
        effect("apply_discount")
        return "11 % off"

    agent = Agent(name="Refunds", functions=[process_refund, apply_discount])
    script = [[ask("process_refund", order="A1")], [ask("apply_discount")], "Refunded, and 11 % off the next order."]
    return Program([agent], ScriptedModel(scripted(script)), {"refunds": []})


def journey() -> Program:
    """Three turns with two tool calls each, a handoff, changes of the context in place and through `Result`."""

    @step
    def search(city: str, context_variables: dict[str, Any]) -> str:
        effect("search")
        context_variables["seen"].append(city)
        return f"3 hotels in {city}"

    def reserve(hotel: str, context_variables: dict[str, Any]) -> Result:
        effect("reserve")
        context_variables["seen"].append(hotel)
        context_variables.pop("draft", None)
        return Result(value=f"reserved {hotel}", context_variables={"hotel": hotel})

    @step
    def note(text: str, context_variables: dict[str, Any]) -> Result:
        effect("note")
        return Result(value="noted", context_variables={"notes": [*context_variables.get("notes", []), text]})

    def to_billing(context_variables: dict[str, Any]) -> Result:
        effect("to_billing")
        context_variables["steps"] = {"handed": True}
        return Result(value="billing takes over", agent=billing)

    @step
    def charge(amount: int, context_variables: dict[str, Any]) -> str:
        effect("charge")
        context_variables["steps"]["charged"] = amount
        return f"charged {amount} for {context_variables['hotel']}"

    def receipt(context_variables: dict[str, Any]) -> Result:
        effect("receipt")
        total = context_variables["steps"]["charged"]
        return Result(value=f"receipt over {total}", context_variables={"receipt": total})

    billing = Agent(name="Billing", functions=[charge, receipt], instructions="Charge.")
    desk = Agent(
        name="Desk", functions=[search, reserve, note, to_billing], instructions=lambda c: f"Seen: {c['seen']}"
    )
    script = [
        [ask("search", city="Rome"), ask("reserve", hotel="Roma")],
        [ask("note", text="late"), ask("to_billing")],
        [ask("charge", amount=90), ask("receipt")],
        "Enjoy Rome.",
    ]
    return Program([desk, billing], ScriptedModel(scripted(script)), {"seen": [], "draft": "x"})


def five_steps() -> Program:
    """One tool of five steps: the same step twice, a step that raises, and steps that feed each other."""

    @step
    def add(total: int, more: int) -> int:
        effect(f"add_{total}_{more}")
        return total + more

    @step
    def refuse() -> None:
        effect("refuse")
        raise ValueError("no more")

    @step
    async def finish(total: int) -> dict[str, int]:
        effect("finish")
        return {"total": total}

    async def count(start: int, context_variables: dict[str, Any]) -> str:
        total = add(start, 1)
        total = add(total, 2)
        try:
            refuse()
        except ValueError as error:
            total = add(total, len(str(error)))
        context_variables.update(await finish(total))
        return f"counted {total}"

    agent = Agent(name="Counter", functions=[count])
    return Program([agent], ScriptedModel(scripted([[ask("count", start=1)], "Counted."])))


def together_async() -> Program:
    """Three async tools of one reply, which run together: one of them slow, one with two steps."""

    @step
    async def first(city: str) -> str:
        effect("first")
        await asyncio.sleep(0.002)
        return f"{city} first"

    @step
    async def second(city: str) -> str:
        effect("second")
        return f"{city} second"

    async def weather(city: str, context_variables: dict[str, Any]) -> str:
        await asyncio.sleep(0.006 if city == "Rome" else 0.0)
        effect(f"weather_{city}")
        context_variables[city] = "sun"
        return f"sun in {city}"

    async def tour(city: str, context_variables: dict[str, Any]) -> Result:
        text = await first(city)
        return Result(value=f"{text}, {await second(city)}", context_variables={"tour": city})

    agent = Agent(name="Guide", functions=[weather, tour])
    script = [[ask("weather", city="Rome"), ask("tour", city="Oslo"), ask("weather", city="Bonn")], "Sun everywhere."]
    return Program([agent], ScriptedModel(scripted(script)))


def together_plain() -> Program:
    """Three plain tools of one reply in three threads, two of them undecorated and one a step."""

    def fetch(page: int, context_variables: dict[str, Any]) -> str:
        effect(f"fetch_{page}")
        context_variables[f"page{page}"] = page * 10
        return f"page {page}"

    @step
    def count(context_variables: dict[str, Any]) -> str:
        effect("count")
        return f"{len(context_variables)} so far"

    agent = Agent(name="Reader", functions=[fetch, count])
    script = [[ask("fetch", page=1), ask("count"), ask("fetch", page=2)], [ask("count")], "Read."]
    return Program([agent], ScriptedModel(scripted(script)), options={"tool_concurrency": 3})


def nested() -> Program:
    """A run inside a tool: an agent as a tool of another."""
    holder: list[DurableSwarm] = []

    @step
    def look_up(topic: str) -> str:
        effect("look_up")
        return f"all about {topic}"

    def cite() -> str:
        effect("cite")
        return "cited"

    researcher = Agent(name="Researcher", functions=[look_up, cite], model="researcher")

    def research(topic: str, context_variables: dict[str, Any]) -> str:
        messages = [{"role": "user", "content": topic}]
        response = holder[0].run(researcher, messages, {"depth": 1})
        context_variables["inner"] = str(response.run_id).partition("/")[2]
        return str(response.messages[-1]["content"])

    def publish() -> str:
        effect("publish")
        return "published"

    inner = scripted([[ask("look_up", topic="swarms"), ask("cite")], "Swarms are many."])
    outer = scripted([[ask("research", topic="swarms"), ask("publish")], "It is out."])
    model = ScriptedModel(lambda request: (inner if request["model"] == "researcher" else outer)(request))
    editor = Agent(name="Editor", functions=[research, publish])
    return Program([editor, researcher], model, with_swarm=holder.append)


def shapes() -> Program:
    """One reply that calls a lambda, a closure, a bound method, a partial and a callable object."""

    class Till:
        """Something with a state of its own, which no database could hold."""

        lock = threading.Lock()

        def pay(self, amount: int) -> str:
            with self.lock:
                effect("pay")
                return f"paid {amount}"

        def __call__(self, amount: int) -> str:
            effect("till")
            return f"till {amount}"

    def times(factor: int) -> Callable[[int], str]:
        def scale(amount: int) -> str:
            effect("scale")
            return str(amount * factor)

        return scale

    def add(first: int, amount: int) -> str:
        effect("add")
        return str(first + amount)

    def double(amount: int) -> str:
        effect("double")
        return str(2 * amount)

    till = Till()
    by_name = tool(name="double")(lambda amount: double(amount) + " at once")
    agent = Agent(name="Shapes", functions=[by_name, times(3), till.pay, functools.partial(add, 100), till])
    names = ["double", "scale", "pay", "add", "Till"]
    script = [[ask(name, amount=index) for index, name in enumerate(names)], "All called."]
    return Program([agent], ScriptedModel(scripted(script)))


def streamed_replies() -> Program:
    """Four turns that come in word by word, with a handoff, tools that emit, and a reply that breaks off once."""
    return Program(streamed.agents(), streamed.model(), streams=True)


def careless() -> Program:
    """Wrong on purpose: two effects in one tool with nothing recorded between them."""

    def pay_and_mail() -> str:
        effect("pay")
        effect("mail")
        return "paid and mailed"

    agent = Agent(name="Careless", functions=[pay_and_mail])
    return Program([agent], ScriptedModel(scripted([[ask("pay_and_mail")], "Done."])))


def forgetful() -> Program:
    """Wrong on purpose: what its tool answers depends on the life it is called in."""

    def answer() -> str:
        effect("answer")
        return str(os.getpid())

    agent = Agent(name="Forgetful", functions=[answer])
    return Program([agent], ScriptedModel(scripted([[ask("answer")], "Done."])))


SCENARIOS: dict[str, Callable[[], Program]] = {
    function.__name__: function for function in (refund, journey, five_steps, together_async, together_plain, nested)
}

PROGRAMS = {
    **SCENARIOS,
    "streamed_replies": streamed_replies,
    "shapes": shapes,
    "careless": careless,
    "forgetful": forgetful,
}
"""The scenarios, and programs that are killed at a few places only."""

IN_FLIGHT = {name: 3 if name.startswith(("together", "streamed")) else 1 for name in PROGRAMS}
"""How many effects of a scenario may be under way at once, and so be repeated after one kill."""

QUESTION = [{"role": "user", "content": "Please."}]


def live(name: str, url: str, run_id: str, colour: str, way: str) -> Answer:
    """One life of a scenario.

    `colour` is `sync` (`run`) or `async` (`run_async`). `way` is how the life comes to the run: `attach` names it in
    the same call again, `recover` finds what is there and waits for it; if nothing is, the run was never recorded.
    """
    program = PROGRAMS[name]()
    swarm = DurableSwarm(program.model, database=url, **program.options)
    program.with_swarm(swarm)
    companion = streamed.Companion(swarm, run_id) if program.streams else None
    go = _live_async(program, swarm, run_id, way)
    response = asyncio.run(go) if colour == "async" else _live_sync(program, swarm, run_id, way, go)
    if companion is not None:
        companion.end()
    return answer(response)


def _live_sync(program: Program, swarm: DurableSwarm, run_id: str, way: str, unused: Any) -> Response:
    unused.close()
    if way == "recover":
        swarm.recover()
        try:
            return swarm.get(run_id).result(timeout=PATIENCE)
        except errors.RunNotFound:
            effect(NOT_RECORDED)
    if program.streams:
        *_, last = swarm.run(program.agents[0], QUESTION, program.context, stream=True, run_id=run_id)
        streamed_response: Response = last["response"]
        return streamed_response
    return swarm.run(program.agents[0], QUESTION, program.context, run_id=run_id)


async def _live_async(program: Program, swarm: DurableSwarm, run_id: str, way: str) -> Response:
    if way == "recover":
        await swarm.recover_async()
        try:
            return await (await swarm.get_async(run_id)).result_async(timeout=PATIENCE)
        except errors.RunNotFound:
            effect(NOT_RECORDED)
    if program.streams:
        items = swarm.run_async(program.agents[0], QUESTION, program.context, stream=True, run_id=run_id)
        *_, last = [item async for item in await items]
        response: Response = last["response"]
        return response
    return await swarm.run_async(program.agents[0], QUESTION, program.context, run_id=run_id)


def answer(response: Response) -> Answer:
    """Give a response as plain data."""
    return {
        "messages": response.messages,
        "context": response.context_variables,
        "agent": None if response.agent is None else response.agent.name,
        "tokens": None if response.usage is None else response.usage.total_tokens,
    }


__all__ = ["SCENARIOS", "Program", "answer", "ask", "current_model_call", "live", "scripted"]
