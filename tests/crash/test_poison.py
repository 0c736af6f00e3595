"""A tool that ends its process is given up in the end, and takes no other run with it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, RunFailed, sleep, step
from durable_swarm.engine.execution import crash_guard
from durable_swarm.testing import ScriptedModel
from tests.crash.boundaries import effect
from tests.crash.lives import Life, Lives, say
from tests.crash.matrix import read_ledger
from tests.crash.scenarios import PATIENCE

QUESTION = [{"role": "user", "content": "Please."}]
RUN = "run-poison"
HEALTHY = [f"run-{number}" for number in range(20)]
WAYS = {"exit": 7, "segfault": -signal.SIGSEGV, "kill": -signal.SIGKILL}
"""Ways in which a tool ends its process, with what the process then ends with."""


def end_process(way: str) -> None:
    """End this process as tools do: by themselves, by a fault in native code, by the kernel when memory is out."""
    if way == "exit":
        os._exit(WAYS[way])
    os.kill(os.getpid(), -WAYS[way])
    time.sleep(PATIENCE)


def drinker(way: str, kind: str) -> Agent:
    """Give an agent whose tool ends its process: an undecorated one, a `@step`, or in a step inside a tool."""

    def sip() -> str:
        effect("drink")
        if way:
            end_process(way)
        return "well"

    def drink() -> str:
        return str(step(sip)()) if kind == "inner" else sip()

    return Agent(name="Drinker", functions=[step(drink) if kind == "step" else drink])


def worker() -> Agent:
    """Give an agent whose tool takes a while, so that it is in flight when another ends the process."""

    async def work() -> str:
        effect("work")
        await asyncio.sleep(0.2)
        return "worked"

    return Agent(name="Worker", functions=[work])


def call_once(request: dict[str, Any]) -> Any:
    """Answer as a model that calls the agent's only tool, and then is done."""
    if request["messages"][-1]["role"] == "tool":
        return "Done."
    return [{"name": request["tools"][0]["function"]["name"], "arguments": {}, "id": "call"}]


def answer(swarm: DurableSwarm, run_id: str) -> str:
    """Wait for a run, and give its answer or its error."""
    try:
        return str(swarm.get(run_id).result(timeout=PATIENCE).messages[-1]["content"])
    except RunFailed as error:
        return f"{swarm.get(run_id).status}: {error}"


def one_life(url: str, way: str, kind: str, resumes: bool = False) -> str:
    """A program that starts its run or finds it, and waits for it. One has a name of its own, as workers have."""
    agent = drinker(way, kind)
    worker_id = "worker" if kind == "step" else None
    with DurableSwarm(ScriptedModel(call_once), database=url, worker_id=worker_id) as swarm:
        run = swarm.start(agent, QUESTION, run_id=RUN)
        if resumes:
            run.resume()
        return answer(swarm, RUN)


def crowd(url: str) -> dict[str, str]:
    """A program with one such run and many others."""
    agents = [drinker("kill", "plain"), worker()]
    with DurableSwarm(ScriptedModel(call_once), database=url) as swarm:
        for run_id in HEALTHY:
            swarm.start(agents[1], QUESTION, run_id=run_id)
        swarm.start(agents[0], QUESTION, run_id=RUN)
        return {run_id: answer(swarm, run_id) for run_id in [RUN, *HEALTHY]}


def resting(url: str) -> None:
    """A program whose tool sleeps for long, durably, and says when it does."""

    def rest() -> str:
        say("resting")
        sleep(3600)
        return "rested"

    with DurableSwarm(ScriptedModel(call_once), database=url) as swarm:
        swarm.start(Agent(name="Rester", functions=[rest]), QUESTION, run_id=RUN).result(timeout=PATIENCE)


def closing(url: str) -> None:
    """A program that is closed while its tool is in flight."""
    begun = threading.Event()

    def drink() -> str:
        effect("drink")
        begun.set()
        time.sleep(PATIENCE)
        return "well"

    swarm = DurableSwarm(ScriptedModel(call_once), database=url)
    swarm.start(Agent(name="Drinker", functions=[drink]), QUESTION, run_id=RUN)
    assert begun.wait(PATIENCE)
    swarm.close()


def slow(url: str) -> None:
    """A program whose tool ends the process, but not soon."""
    crash_guard.PROVEN = 0.1

    def drink() -> str:
        effect("drink")
        time.sleep(0.4)
        end_process("kill")
        return "well"

    with DurableSwarm(ScriptedModel(call_once), database=url) as swarm:
        swarm.start(Agent(name="Drinker", functions=[drink]), QUESTION, run_id=RUN)
        raise AssertionError(answer(swarm, RUN))


def stream(url: str, life: int) -> str:
    """A program with a tool that takes a while, and each time one more run whose tool ends the process."""

    def work() -> str:
        time.sleep(20 if life < crash_guard.EXECUTIONS - 1 else 0.6)
        return "worked"

    def drink() -> str:
        effect("drink")
        time.sleep(0.2)
        end_process("kill")
        return "well"

    with DurableSwarm(ScriptedModel(call_once), database=url) as swarm:
        swarm.start(Agent(name="Worker", functions=[work]), QUESTION, run_id=RUN)
        time.sleep(0.1)
        swarm.start(Agent(name="Drinker", functions=[drink]), QUESTION, run_id=f"run-{life}")
        return answer(swarm, RUN)


def drinks(ledger: Path) -> int:
    """Count how often the tool was executed."""
    return sum(effect.label == "drink" for effect in read_ledger(ledger, RUN))


def die(life: Life, way: str) -> None:
    """Wait until the tool has ended its process."""
    assert life.outcome() == (WAYS[way], None)


@pytest.mark.parametrize(("way", "kind"), [("exit", "plain"), ("segfault", "step"), ("kill", "inner")])
def test_a_tool_that_ends_its_process_is_given_up(way: str, kind: str, lives: Lives, tmp_path: Path) -> None:
    """It is executed three times; then its run fails with an error that names it, and resuming counts afresh."""
    url, ledger = f"sqlite:///{tmp_path}/runs.sqlite", tmp_path / "ledger"
    for _ in range(crash_guard.EXECUTIONS):
        die(lives.start(one_life, url, way, kind, ledger=ledger), way)
    given_up = lives.live(one_life, url, way, kind, ledger=ledger).value
    assert given_up.startswith(
        f"failed: run {RUN!r} was given up: tool 'drink' was being executed when its process died"
    )
    assert "3 times" in given_up
    assert "Run.resume()" in given_up
    assert drinks(ledger) == crash_guard.EXECUTIONS
    die(lives.start(one_life, url, way, kind, True, ledger=ledger), way)
    assert drinks(ledger) == crash_guard.EXECUTIONS + 1
    assert lives.live(one_life, url, "", kind, ledger=ledger).value == "Done."


@pytest.mark.slow
def test_other_runs_of_the_process_finish(lives: Lives, tmp_path: Path) -> None:
    """Twenty runs whose tools were in flight each time the process died come to their end; only the culprit fails."""
    url, ledger = f"sqlite:///{tmp_path}/runs.sqlite", tmp_path / "ledger"
    deaths = 0
    while (report := lives.start(crowd, url, ledger=ledger).outcome()[1]) is None:
        deaths += 1
        assert deaths <= crash_guard.EXECUTIONS
    assert report[RUN].startswith("failed: ")
    assert {run_id: text for run_id, text in report.items() if text != "Done."} == {RUN: report[RUN]}
    assert drinks(ledger) == deaths == crash_guard.EXECUTIONS
    worked = Counter(effect.key for effect in read_ledger(ledger, RUN) if effect.label == "work")
    assert len(worked) == len(HEALTHY)
    assert max(worked.values()) <= crash_guard.EXECUTIONS + 1


def test_a_healthy_tool_is_not_blamed_for_new_ones(lives: Lives, tmp_path: Path) -> None:
    """Though another tool ends the process in each life, for the first time or the second, it comes to its end."""
    url, ledger = f"sqlite:///{tmp_path}/runs.sqlite", tmp_path / "ledger"
    for number in range(12):
        told = lives.start(stream, url, number, ledger=ledger).outcome()[1]
        if told is not None:
            break
    assert told == "Done."
    assert number >= crash_guard.EXECUTIONS - 1


def test_a_tool_that_sleeps_is_not_what_ends_its_process(lives: Lives, tmp_path: Path) -> None:
    """However often a process dies while a tool waits with `sleep`, the tool is not given up."""
    url, ledger = f"sqlite:///{tmp_path}/runs.sqlite", tmp_path / "ledger"
    for _ in range(crash_guard.EXECUTIONS + 2):
        life = lives.start(resting, url, ledger=ledger)
        assert life.hear() == "resting"
        time.sleep(0.3)
        assert life.kill().killed


@pytest.mark.slow
def test_a_shutdown_in_good_order_does_not_count(lives: Lives, tmp_path: Path) -> None:
    """However often a program is closed while a tool is in flight, the tool is not given up."""
    url, ledger = f"sqlite:///{tmp_path}/runs.sqlite", tmp_path / "ledger"
    times = crash_guard.EXECUTIONS + 3
    for _ in range(times):
        assert not lives.live(closing, url, ledger=ledger).killed
    assert drinks(ledger) == times


@pytest.mark.slow
def test_a_long_tool_has_more_lives(lives: Lives, tmp_path: Path) -> None:
    """A tool that has gone on for a while each time its process died is given up later: it may just be slow."""
    url, ledger = f"sqlite:///{tmp_path}/runs.sqlite", tmp_path / "ledger"
    for _ in range(crash_guard.EXECUTIONS_OF_LONG):
        die(lives.start(slow, url, ledger=ledger), "kill")
    assert drinks(ledger) == crash_guard.EXECUTIONS_OF_LONG
    with pytest.raises(AssertionError, match="10 times in a row"):
        lives.live(slow, url, ledger=ledger)
