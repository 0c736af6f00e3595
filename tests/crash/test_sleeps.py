"""Sleeps survive their process: they end when they were first to end."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from durable_swarm import Agent, DurableSwarm, sleep, sleep_async
from durable_swarm.testing import ScriptedModel
from tests.crash.lives import Lives, say
from tests.crash.matrix import COLOURS

SECONDS, KILLED_AFTER = 2.0, 1.2


def napping(url: str, colour: str) -> str:
    """Run an agent that sleeps, and tell how long it slept in this life."""

    def nap() -> str:
        say("asleep")
        began = time.monotonic()
        sleep(SECONDS)
        say(time.monotonic() - began)
        return "awake"

    async def nap_async() -> str:
        say("asleep")
        began = time.monotonic()
        await sleep_async(SECONDS)
        say(time.monotonic() - began)
        return "awake"

    tool = nap if colour == "sync" else nap_async
    with DurableSwarm(ScriptedModel([[tool.__name__], "Done"]), database=url) as swarm:
        asked = [{"role": "user", "content": "Sleep."}]
        if colour == "sync":
            return str(swarm.run(Agent(functions=[tool]), asked, run_id="run-1").messages[1]["content"])
        return str(asyncio.run(swarm.run_async(Agent(functions=[tool]), asked, run_id="run-1")).messages[1]["content"])


@pytest.mark.parametrize("colour", COLOURS)
def test_a_sleep_ends_when_it_was_first_to_end(colour: str, lives: Lives, tmp_path: Path) -> None:
    """The next life sleeps what is left, and not from the beginning; nor does it wake too early."""
    url, ledger = f"sqlite:///{tmp_path}/runs.sqlite", tmp_path / "ledger"
    first = lives.start(napping, url, colour, ledger=ledger)
    assert first.hear() == "asleep"
    began = time.monotonic()
    time.sleep(KILLED_AFTER)
    first.kill()
    second = lives.start(napping, url, colour, ledger=ledger)
    assert second.hear() == "asleep"
    assert second.hear() < SECONDS - KILLED_AFTER + 0.5
    assert second.end().value == "awake"
    assert time.monotonic() - began > SECONDS - 0.05
