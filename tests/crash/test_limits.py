"""A crash gives no budget back: what a run may spend and has spent survives kills at every boundary."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, LimitReached, Limits
from durable_swarm.testing import ScriptedModel, call
from durable_swarm.testing.crash.boundaries import KillPoint, Side
from tests.crash.boundaries import effect
from tests.crash.lives import Lives
from tests.crash.matrix import LONG, read_ledger

QUESTION = [{"role": "user", "content": "Please."}]
ALLOWED = 4


def endless(request: dict[str, Any]) -> Any:
    """Call the tool that is offered, for ever, and note each call that a provider would charge."""
    effect("model")
    return [call(request["tools"][0]["function"]["name"], number=len(request["messages"]))]


def spend(url: str, kind: str, run_id: str) -> tuple[str, tuple[int, int, int], int, str]:
    """A program that reaches its limit: alone, or with child runs. Returns the limit, what was spent, and the text."""

    def work(number: int) -> str:
        effect("work")
        return "worked"

    helper = Agent(name="Limited helper", functions=[work])

    async def delegate(number: int) -> str:
        return str((await swarm.run_async(helper, QUESTION)).ended_by)

    boss = Agent(name="Limited boss", functions=[delegate if kind == "family" else work])
    limits = Limits(requests=ALLOWED, tool_calls=50) if kind == "family" else Limits(requests=ALLOWED)
    with DurableSwarm(ScriptedModel(endless, strict=False), database=url) as swarm:
        try:
            swarm.run(boss, QUESTION, run_id=run_id, limits=limits)
        except LimitReached as error:
            spent = swarm.get(run_id).spent
            return error.limit, (spent.requests, spent.uncertain, spent.tool_calls), int(error.used), str(error)
    return "", (0, 0, 0), 0, ""


def survives(lives: Lives, tmp_path: Path, url: str, kind: str, at: KillPoint) -> bool:
    """Kill the program there, run it again, and compare what it says with what was charged; False if nobody died."""
    run_id = f"run-{kind}-{at.number}-{at.side}"
    ledger = tmp_path / run_id
    killed = lives.live(spend, url, kind, run_id, ledger=ledger, at=at).killed
    limit, (requests, uncertain, calls), used, text = lives.live(spend, url, kind, run_id, ledger=ledger).value
    made = [one.label for one in read_ledger(ledger, run_id)]
    begun, entered = made.count("model"), made.count("work")
    assert (limit, requests, used) == ("requests", ALLOWED, ALLOWED), (at, text)
    assert f"durable-swarm extend {run_id} --requests" in text
    assert begun <= ALLOWED, at
    assert uncertain >= begun - (requests - uncertain), at
    assert calls >= entered - killed, at
    return killed


@pytest.mark.alternates  # What is killed is the same; that it survives is seen on both.
@pytest.mark.slow
@pytest.mark.timeout(3600 if LONG else 120)
@pytest.mark.parametrize("kind", ["alone", "family"])
@pytest.mark.parametrize("side", ["before", "after"])
def test_a_crash_gives_no_budget_back(kind: str, side: Side, database_url: str, lives: Lives, tmp_path: Path) -> None:
    """Killed anywhere, a run makes no more calls than it may; a call in flight stays counted as uncertain."""
    places = (KillPoint(number, side) for number in itertools.count(1 if LONG else 2, 1 if LONG else 5))
    killed = list(itertools.takewhile(lambda at: survives(lives, tmp_path, database_url, kind, at), places))
    assert len(killed) >= (12 if LONG else 3)


def test_a_run_killed_at_its_limit_counts_no_call_that_was_not_permitted(lives: Lives, tmp_path: Path) -> None:
    """Killed behind its last permitted call, the run counts no uncertain call: the next was never permitted."""
    url, ledger = f"sqlite:///{tmp_path}/runs.sqlite", tmp_path / "ledger"
    undisturbed = lives.live(spend, url, "alone", "undisturbed", ledger=ledger)
    for number in range(len(undisturbed.passed) - 3, len(undisturbed.passed) + 1):
        assert survives(lives, tmp_path, url, "alone", KillPoint(number, "after"))


def runaway(url: str) -> str:
    """A model that calls a tool that does not exist, for ever. Returns the error that ends the run."""

    def reply(request: dict[str, Any]) -> Any:
        effect("model")
        return [call("nobody", number=1)]

    agent = Agent(name="Limited runaway")
    with DurableSwarm(ScriptedModel(reply, strict=False), database=url) as swarm:
        try:
            swarm.run(agent, QUESTION, run_id="run-away")
        except LimitReached as error:
            return str(error)
    return ""


def test_a_runaway_ends_by_itself_and_does_not_begin_anew(lives: Lives, tmp_path: Path) -> None:
    """Killed twice, it still ends with its tenth failure: the count of failures is that of its records."""
    url, ledger = f"sqlite:///{tmp_path}/runs.sqlite", tmp_path / "ledger"
    assert lives.live(runaway, url, ledger=ledger, at=KillPoint(9, "after")).killed
    assert lives.live(runaway, url, ledger=ledger, at=KillPoint(7, "after")).killed
    assert "durable-swarm extend run-away --repeats 10" in lives.live(runaway, url, ledger=ledger).value
    assert len(read_ledger(ledger, "run-away")) <= 12
