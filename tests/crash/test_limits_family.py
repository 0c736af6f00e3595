"""One budget for many child runs, in several processes that die at random."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, LimitReached, Limits
from durable_swarm.testing import ScriptedModel, call
from durable_swarm.testing.crash.boundaries import KillPoint
from tests.crash.boundaries import effect
from tests.crash.lives import Lives, say
from tests.crash.matrix import read_ledger

QUESTION = [{"role": "user", "content": "Please."}]
ROOT, CHILDREN, PROCESSES, ROUNDS = "run-family", 50, 4, 3
ALLOWED = 60
"""Model calls of the family, where its children would make two each."""


def reply(request: dict[str, Any]) -> Any:
    """Let the leader call its tool for ever, and each follower once."""
    effect("model")
    names = [tool["function"]["name"] for tool in request["tools"]]
    done = any(message["role"] == "tool" for message in request["messages"])
    return [call(names[0], number=1)] if names == ["spread"] or not done else "Done"


def look(number: int) -> str:
    """Look something up."""
    return "found"


def follow(url: str) -> bool:
    """A worker that executes child runs until the family has ended."""
    follower = Agent(name="Family follower", functions=[look])
    with DurableSwarm(ScriptedModel(reply, strict=False), database=url, name="family") as swarm:
        swarm.serve(concurrency=6)
        with contextlib.suppress(LimitReached):
            swarm.get(ROOT).result()
    return bool(follower)


def lead(url: str) -> tuple[str, int, int]:
    """The program whose run has the children; returns its limit, and the requests, of which so many are uncertain."""

    async def spread(number: int) -> str:
        runs = [
            await swarm.start_async(follower, QUESTION, run_id=f"{ROOT}-{index}", queue=True)
            for index in range(CHILDREN)
        ]
        say("spread")
        ends = await asyncio.gather(*(run.result_async() for run in runs), return_exceptions=True)
        return str(sum(isinstance(end, LimitReached) for end in ends))

    follower = Agent(name="Family follower", functions=[look])
    leader = Agent(name="Family leader", functions=[spread])
    with DurableSwarm(ScriptedModel(reply, strict=False), database=url, name="family") as swarm:
        run = swarm.start(leader, QUESTION, run_id=ROOT, limits=Limits(requests=ALLOWED))
        try:
            run.result()
        except LimitReached as error:
            return error.limit, run.spent.requests, run.spent.uncertain
    return "", 0, 0


@pytest.mark.alternates  # What is killed is the same; that it survives is seen on both.
@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_family_never_overdraws(seed: int, database_url: str, lives: Lives, tmp_path: Path) -> None:
    """Whoever dies whenever: no more calls are made than allowed, and those without an answer are uncertain."""
    chance, ledger = random.Random(seed), tmp_path / "ledger"
    leading = lives.start(lead, database_url, ledger=ledger)
    assert leading.hear() == "spread"
    killed = 0
    for _ in range(ROUNDS):
        points = [KillPoint(chance.randint(5, 40), "after") for _ in range(PROCESSES)]
        begun = [lives.start(follow, database_url, ledger=ledger, at=point) for point in points]
        killed += sum(life.end().killed for life in begun)
    last = [lives.start(follow, database_url, ledger=ledger) for _ in range(PROCESSES)]
    limit, requests, uncertain = leading.end().value
    assert all(life.end().value for life in last)
    made = [one.label for one in read_ledger(ledger, ROOT)].count("model")
    assert killed >= PROCESSES
    assert (limit, requests) == ("requests", ALLOWED)
    assert made <= ALLOWED
    assert uncertain >= made - (requests - uncertain)
