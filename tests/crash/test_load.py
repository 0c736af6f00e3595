"""Many runs at once: each gets its own results, from a bounded number of threads, without a locked database."""

from __future__ import annotations

import asyncio
import functools
import json
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, Result, ToolError, step
from durable_swarm.testing import ScriptedModel
from tests.crash.lives import Lives
from tests.crash.matrix import LONG
from tests.crash.scenarios import ask

SEED = int(time.time())
"""Another one in each run; a failure names it."""


def shuffled(request: dict[str, Any]) -> Any:
    """Answer by the seed in the question: five calls at once: two of one tool, one fails, one hands off."""
    question = json.loads(request["messages"][1]["content"])
    if any(message["role"] == "tool" for message in request["messages"]):
        return "All in."
    chance = random.Random(question["seed"])
    calls = [
        ("price", {"item": "apple", "delay": chance.random()}),
        ("price", {"item": "pear", "delay": chance.random()}),
        ("slow", {"delay": 1 + chance.random()}),
        ("refuse", {"delay": chance.random()}),
        ("hand_off", {"delay": chance.random()}),
    ]
    chance.shuffle(calls)
    return [{"name": name, "arguments": arguments, "id": f"c{index}"} for index, (name, arguments) in enumerate(calls)]


def plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give an async tool as a plain one."""

    @functools.wraps(function)
    def called(**arguments: Any) -> Any:
        return asyncio.run(function(**arguments))

    return called


def market(colour: str) -> tuple[Agent, Agent]:
    """Give an agent whose tools take their time, async or in threads."""

    async def wait(delay: float) -> None:
        await asyncio.sleep(delay / 100)

    async def price(item: str, delay: float, context_variables: dict[str, Any]) -> str:
        await wait(delay)
        context_variables[item] = "priced"
        return f"price of {item}"

    @step
    async def slow(delay: float) -> str:
        await wait(delay)
        return "slow answer"

    async def refuse(delay: float) -> str:
        await wait(delay)
        raise ToolError("refused")

    async def hand_off(delay: float) -> Result:
        await wait(delay)
        return Result(value="handed off", agent=second)

    tools: list[Callable[..., Any]] = [price, slow, refuse, hand_off]
    functions = [plain(function) for function in tools] if colour == "sync" else tools
    second = Agent(name="Second")
    return Agent(name="Market", functions=functions), second


EXPECTED = {"slow": "slow answer", "refuse": "Error: refused", "hand_off": "handed off"}


def trade(url: str, first: int, count: int, colour: str) -> list[str]:
    """A program that runs `count` seeds at once; gives what is wrong."""
    agent, second = market(colour)
    swarm = DurableSwarm(ScriptedModel(shuffled), database=url, tool_concurrency=5 if colour == "sync" else 1)

    async def one(seed: int) -> list[str]:
        question = [{"role": "user", "content": json.dumps({"seed": seed})}]
        return wrong(seed, await swarm.run_async(agent, question, run_id=f"run-{seed}"))

    async def main() -> list[str]:
        return [
            text
            for texts in await asyncio.gather(*(one(seed) for seed in range(first, first + count)))
            for text in texts
        ]

    assert second.name == "Second"
    return asyncio.run(main())


def wrong(seed: int, response: Any) -> list[str]:
    """Say what is swapped or missing in a response."""
    asked = response.messages[0]["tool_calls"]
    told = {message["tool_call_id"]: message["content"] for message in response.messages if message["role"] == "tool"}
    problems = [f"{seed}: agent {response.agent.name}"] if response.agent.name != "Second" else []
    if response.context_variables != {"apple": "priced", "pear": "priced"}:
        problems.append(f"{seed}: context {response.context_variables}")
    for call in asked:
        name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
        expected = EXPECTED.get(name, f"price of {arguments.get('item')}")
        if told.get(call["id"]) != expected:
            problems.append(f"{seed}: {call['id']} is {told.get(call['id'])!r}, not {expected!r}")
    return problems


@pytest.mark.slow
@pytest.mark.parametrize("colour", ["async", "sync"])
def test_parallel_results_belong_to_their_calls(colour: str, lives: Lives, tmp_path: Path) -> None:
    """With random delays, failures, handoffs and kills no result is swapped and none is missing."""
    print(f"seed {SEED}")
    seeds, batch = (1000, 10) if LONG else (40, 10)
    chance = random.Random(SEED)

    def one(first: int) -> tuple[int, list[str]]:
        url, ledger = f"sqlite:///{tmp_path}/{first}.sqlite", tmp_path / "ledger"
        kills = 0
        if first // batch % 10 < 4:
            kills = lives.live(trade, url, first, batch, colour, ledger=ledger, at=chance.uniform(0.05, 0.6)).killed
        return kills, lives.live(trade, url, first, batch, colour, ledger=ledger).value

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(one, range(0, seeds, batch)))
    assert [text for _, texts in found for text in texts] == []
    assert sum(kills for kills, _ in found) >= 0.3 * len(found)


def crowd(url: str) -> list[str]:
    """A program with 50 runs at once on SQLite, from threads and from an event loop."""

    def look(number: int, context_variables: dict[str, Any]) -> str:
        context_variables["looked"] = number
        return str(number)

    @step
    def note(number: int) -> str:
        return str(-number)

    def reply(request: dict[str, Any]) -> Any:
        number = int(request["messages"][1]["content"])
        done = sum(message["role"] == "assistant" for message in request["messages"])
        return [ask("look", number=number), ask("note", number=number)] if done < 3 else f"done {number}"

    agent = Agent(name="Crowd", functions=[look, note])
    swarm = DurableSwarm(ScriptedModel(reply), database=url)

    def question(number: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": str(number)}]

    def in_thread(number: int) -> str:
        return str(swarm.run(agent, question(number), run_id=f"run-{number}").messages[-1]["content"])

    async def on_loop() -> list[str]:
        runs = [swarm.run_async(agent, question(number), run_id=f"run-{number}") for number in range(25, 50)]
        return [str(response.messages[-1]["content"]) for response in await asyncio.gather(*runs)]

    with ThreadPoolExecutor(26) as pool:
        beside = pool.submit(asyncio.run, on_loop())
        return [*pool.map(in_thread, range(25)), *beside.result()]


@pytest.mark.slow
def test_fifty_runs_at_once_share_a_file(lives: Lives, tmp_path: Path) -> None:
    """Fifty runs at once on one SQLite file, half in threads and half on a loop, all end, and no lock is in the way."""
    end = lives.live(crowd, f"sqlite:///{tmp_path}/runs.sqlite", ledger=tmp_path / "ledger")
    assert end.value == [f"done {number}" for number in range(50)]
    assert "locked" not in end.log


def flood(url: str) -> tuple[int, int]:
    """A program that starts 300 runs with plain tools; gives how many ended and the most threads there were."""

    def nap() -> str:
        time.sleep(0.005)
        return "rested"

    most = 0
    over = threading.Event()

    def count() -> None:
        nonlocal most
        while not over.wait(0.005):
            most = max(most, threading.active_count())

    threading.Thread(target=count, daemon=True).start()
    agent = Agent(name="Sleeper", functions=[nap])
    model = ScriptedModel(lambda request: "ok" if request["messages"][-1]["role"] == "tool" else [ask("nap")])
    swarm = DurableSwarm(model, database=url)
    runs = [swarm.start(agent, [{"role": "user", "content": "Rest."}]) for _ in range(300)]
    ended = sum(run.result(timeout=200).messages[-1]["content"] == "ok" for run in runs)
    over.set()
    return ended, most


@pytest.mark.slow
def test_many_runs_share_few_threads(lives: Lives, tmp_path: Path) -> None:
    """Three hundred runs under way need a fixed number of threads: 32 for tools, 64 of the engine, and a few."""
    ended, most = lives.live(flood, f"sqlite:///{tmp_path}/runs.sqlite", ledger=tmp_path / "ledger").value
    assert ended == 300
    assert most <= 32 + 64 + 20
