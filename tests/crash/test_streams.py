"""A streamed reply over HTTP, killed at any instant of it, as three readers see it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from durable_swarm import Agent, DurableSwarm, errors
from durable_swarm.testing import serve_scripted
from durable_swarm.types import Message
from tests.crash.following import Told, differences, follow_into, read_told, wrongs_of
from tests.crash.lives import Life, Lives, hear, say
from tests.crash.matrix import LONG
from tests.crash.streamed import Companion, notes, told_of

RUN = "run-tokens"
QUESTION = [{"role": "user", "content": "Count."}]
TOKENS, PACE = 200, 0.01 if LONG else 0.004
TEXT = " ".join(f"n{number}" for number in range(TOKENS))
KILLS = 20 if LONG else 3
SEED = int(time.time())
"""Another one in each run; a failure names it."""


def serve() -> None:
    """A provider, until the test says a word."""
    with serve_scripted(lambda _: TEXT, pace=PACE) as server:
        say(server.base_url)
        hear()


def program(url: str, base_url: str, colour: str) -> list[Message]:
    """A program with the real client: it streams the run, follows it, and gives the transcript."""
    clerk = Agent(name="Counting clerk")
    kind: Any = openai.OpenAI if colour == "sync" else openai.AsyncOpenAI
    swarm = DurableSwarm(kind(base_url=base_url, api_key="sk-test", max_retries=0), database=url)
    companion = Companion(swarm, RUN)
    spoken = False
    last: Any = None

    def take(item: Any) -> None:
        nonlocal spoken, last
        last = item
        if item.get("content") and not spoken:
            spoken = True
            say("speaking")

    async def stream() -> None:
        async for item in swarm.run_async(clerk, QUESTION, stream=True, run_id=RUN):
            take(item)

    if colour == "sync":
        for item in swarm.run(clerk, QUESTION, stream=True, run_id=RUN):
            take(item)
    else:
        asyncio.run(stream())
    companion.end()
    messages: list[Message] = last["response"].messages
    return messages


def follow(url: str) -> list[Told]:
    """A reader in a process of its own, which knows no agent; it reads until the run ends."""
    swarm = DurableSwarm(database=url)
    while True:
        try:
            run = swarm.get(RUN)
            break
        except errors.RunNotFound:
            time.sleep(0.01)
    return follow_into(run, Path("outside.told"))


def kill_on_the_way(lives: Lives, url: str, base_url: str, colour: str, chance: random.Random, ledger: Path) -> None:
    """Start the program so often, and kill it somewhere in its reply."""
    for _ in range(KILLS):
        life: Life = lives.start(program, url, base_url, colour, ledger=ledger)
        assert life.hear() == "speaking"
        time.sleep(chance.uniform(0, TOKENS * PACE * 0.9))
        life.kill()


@pytest.mark.slow
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_reply_killed_at_any_instant_is_told_alike_to_all(
    colour: str, lives: Lives, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Readers inside the killed process, beside it and after it put together the reply, and get each number once."""
    databases = {"sync": f"sqlite:///{tmp_path}/runs.sqlite", "async": None}
    url = databases[colour] or request.getfixturevalue("postgres_database")
    ledger = tmp_path / "ledger"
    print(f"seed {SEED}")
    provider = lives.start(serve, ledger=ledger)
    base_url = provider.hear()
    DurableSwarm(database=url).close()
    outside = lives.start(follow, url, ledger=ledger)
    kill_on_the_way(lives, url, base_url, colour, random.Random(f"{SEED} {colour}"), ledger)
    messages = lives.live(program, url, base_url, colour, ledger=ledger).value
    assert [message["content"] for message in messages] == [TEXT]
    beside, later, inside = outside.end().value, told_of(url, RUN), read_told(tmp_path / notes(RUN))
    problems = [
        *wrongs_of("the reader beside", beside, messages),
        *wrongs_of("the reader afterwards", later, messages),
        *wrongs_of("the reader inside", inside, messages),
        *differences("the reader inside", inside, later),
    ]
    assert not problems, problems
    assert beside == later
    assert sum(event["type"] == "text.reset" for event in later) >= 1, "no kill met the reply"
    provider.say("stop")
    print(json.dumps({"events": len(later), "kills": KILLS}))
