"""Runs that are interrupted without a crash, and restarted programs that lack something."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, errors, step
from durable_swarm.testing import ScriptedModel
from tests.crash import scenarios
from tests.crash.boundaries import effect
from tests.crash.lives import Lives, say
from tests.crash.matrix import COLOURS, Matrix, read_ledger
from tests.crash.scenarios import ask, scripted
from tests.crash.test_tools import place_of
from tests.support.patience import PATIENCE

RUN = "run-1"
QUESTION = [{"role": "user", "content": "Please."}]


def program(*, blocks: bool, name: str = "Desk", prompt: str = "Help.") -> tuple[Agent, ScriptedModel]:
    """Give an agent with two tools; if it `blocks`, its second stays until it is interrupted."""

    @step
    def first() -> str:
        effect("first")
        return "first done"

    def second() -> str:
        effect("second")
        if blocks:
            say("in the second tool")
            time.sleep(3600)
        return "second done"

    script = [[ask("first"), ask("second")], "Done."]
    return Agent(name=name, functions=[first, second], instructions=prompt), ScriptedModel(scripted(script))


def start(swarm: DurableSwarm, agent: Agent, colour: str) -> str:
    """Run the agent, in either colour, and give its last words."""
    if colour == "sync":
        return str(swarm.run(agent, QUESTION, run_id=RUN).messages[-1]["content"])

    async def main() -> str:
        return str((await swarm.run_async(agent, QUESTION, run_id=RUN)).messages[-1]["content"])

    return asyncio.run(main())


def run_until_interrupted(url: str, colour: str, blocks: bool) -> tuple[str, str]:
    """A program that tells how its run ended, and what the database says of it then."""
    agent, model = program(blocks=blocks)
    with DurableSwarm(model, database=url) as swarm:
        try:
            return start(swarm, agent, colour), swarm.get(RUN).status
        except KeyboardInterrupt:
            return "interrupted", swarm.get(RUN).status


def happened(ledger: Path) -> Counter[str]:
    """Count the effects."""
    return Counter(effect.label for effect in read_ledger(ledger, RUN))


def test_ctrl_c_leaves_the_run_unfinished(lives: Lives, tmp_path: Path) -> None:
    """Ctrl+C in a tool ends the program at once; the run stays unfinished, and the next start continues it."""
    ledger, url = tmp_path / "ledger", f"sqlite:///{tmp_path}/runs.sqlite"
    first = lives.start(run_until_interrupted, url, "sync", True, ledger=ledger)
    first.hear()
    first.send(signal.SIGINT)
    assert first.end().value == ("interrupted", "running")
    second = lives.live(run_until_interrupted, url, "sync", False, ledger=ledger)
    assert second.value == ("Done.", "done")
    assert happened(ledger) == {"model": 2, "first": 1, "second": 2}


def async_until_interrupted(url: str, blocks: bool) -> tuple[str, str]:
    """A program on an event loop whose tool is async, so that Ctrl+C reaches it."""

    async def only() -> str:
        effect("only")
        if blocks:
            say("in the tool")
            await asyncio.sleep(60)
        return "done"

    agent = Agent(name="Desk", functions=[only])
    model = ScriptedModel(scripted([[ask("only")], "Done."]))
    with DurableSwarm(model, database=url) as swarm:
        try:
            return start(swarm, agent, "async"), swarm.get(RUN).status
        except KeyboardInterrupt:
            return "interrupted", swarm.get(RUN).status


def test_ctrl_c_on_an_event_loop_leaves_the_run_unfinished(lives: Lives, tmp_path: Path) -> None:
    """Ctrl+C during `asyncio.run` leaves the run unfinished, and the next start continues it."""
    ledger, url = tmp_path / "ledger", f"sqlite:///{tmp_path}/runs.sqlite"
    first = lives.start(async_until_interrupted, url, True, ledger=ledger)
    first.hear()
    first.send(signal.SIGINT)
    assert first.end().value == ("interrupted", "running")
    second = lives.live(async_until_interrupted, url, False, ledger=ledger)
    assert second.value == ("Done.", "done")
    assert happened(ledger) == {"model": 2, "only": 2}


def interrupt_and_recover(url: str, way: str) -> str:
    """A program whose tool is interrupted once, and which then continues the run in the same process."""
    calls: list[int] = []

    def only() -> str:
        effect("only")
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return "done"

    agent = Agent(name="Desk", functions=[only])
    swarm = DurableSwarm(ScriptedModel(scripted([[ask("only")], "Done."])), database=url)
    with contextlib.suppress(KeyboardInterrupt):
        swarm.run(agent, QUESTION, run_id=RUN)
    assert swarm.get(RUN).status == "running"
    if way == "recover":
        assert [run.id for run in swarm.recover()] == [RUN]
        return str(swarm.get(RUN).result(timeout=PATIENCE).messages[-1]["content"])
    return str(swarm.run(agent, QUESTION, run_id=RUN).messages[-1]["content"])


@pytest.mark.parametrize("way", ["recover", "attach"])
def test_an_interrupted_run_goes_on_in_the_same_process(way: str, lives: Lives, tmp_path: Path) -> None:
    """After a KeyboardInterrupt the same process can continue the run, by `recover()` or by the same call."""
    ledger, url = tmp_path / "ledger", f"sqlite:///{tmp_path}/runs.sqlite"
    assert lives.live(interrupt_and_recover, url, way, ledger=ledger).value == "Done."
    assert happened(ledger) == {"model": 2, "only": 2}


def kill_in_second_tool(lives: Lives, url: str, ledger: Path) -> None:
    """Leave a run behind that died in its second tool."""
    life = lives.start(run_until_interrupted, url, "sync", True, ledger=ledger)
    life.hear()
    assert life.kill().killed


def _wait_for_an_agent(run: Any) -> None:
    """Wait until the run has come to where it needs an agent that this program lacks."""
    end = time.monotonic() + PATIENCE
    while run.waits_for is None and time.monotonic() < end:
        time.sleep(0.02)


def define_late(url: str) -> tuple[list[str], str, str]:
    """A program that looks for runs before it defines its agent."""
    gone = program(blocks=False)
    swarm = DurableSwarm(gone[1], database=url)
    del gone
    found = [run.id for run in swarm.recover()]
    run = swarm.get(RUN)
    _wait_for_an_agent(run)
    before = run.status
    agent, _ = program(blocks=False)
    assert agent.name == "Desk"
    return found, before, str(run.result(timeout=PATIENCE).messages[-1]["content"])


def test_a_run_waits_for_its_agent(lives: Lives, tmp_path: Path) -> None:
    """A run whose agent is not defined stays `running`, a log line names the agent, and it goes on once it can."""
    ledger, url = tmp_path / "ledger", f"sqlite:///{tmp_path}/runs.sqlite"
    kill_in_second_tool(lives, url, ledger)
    end = lives.live(define_late, url, ledger=ledger)
    assert end.value == ([], "running", "Done.")
    assert "'Desk'" in end.log
    assert happened(ledger) == {"model": 2, "first": 1, "second": 2}


def define_second_agent_late(url: str) -> tuple[str, str | None, scenarios.Answer]:
    """The journey, restarted by a program that defines the agent of the handoff only later."""
    made = scenarios.journey()
    later = [agent.model_dump() for agent in made.agents if agent.name == "Billing"]
    desk = Agent(name="Desk", functions=made.agents[0].functions[:3], instructions=made.agents[0].instructions)
    model = made.model
    del made
    swarm = DurableSwarm(model, database=url)
    swarm.recover()
    run = swarm.get(RUN)
    _wait_for_an_agent(run)
    status, reason = run.status, run.waits_for
    billing = Agent(**later[0])
    assert (desk.name, billing.name) == ("Desk", "Billing")
    return status, reason, scenarios.answer(run.result(timeout=PATIENCE))


@pytest.mark.parametrize("colour", COLOURS)
def test_a_run_waits_for_the_agent_of_its_handoff(colour: str, lives: Lives, tmp_path: Path) -> None:
    """A recovered run that comes to an agent which is not defined waits for it, saying so, and goes on with it."""
    ledger, url = tmp_path / "ledger", f"sqlite:///{tmp_path}/runs.sqlite"
    matrix = Matrix(lives, tmp_path, "journey")
    at = place_of(matrix, "effect charge", "before")
    assert lives.live(scenarios.live, "journey", url, RUN, colour, "attach", ledger=ledger, at=at).killed
    end = lives.live(define_second_agent_late, url, ledger=ledger)
    status, reason, answer = end.value
    assert status == "running"
    assert "'Billing'" in str(reason)
    assert "'Billing'" in end.log
    assert answer == matrix.undisturbed("sync")[0].value


def define_twice(url: str) -> tuple[str, str, str]:
    """A program with two different agents of one name; it then names the run and gives its agent."""
    agent, model = program(blocks=False)
    other, _ = program(blocks=False, prompt="Help otherwise.")
    swarm = DurableSwarm(model, database=url)
    swarm.recover()
    run = swarm.get(RUN)
    try:
        told = str(run.result(timeout=5).messages)
    except errors.AmbiguousAgent as error:
        told = str(error)
    status = run.status
    assert other.name == agent.name
    return told, status, str(swarm.run(agent, QUESTION, run_id=RUN).messages[-1]["content"])


def test_two_agents_of_one_name_are_never_guessed(lives: Lives, tmp_path: Path) -> None:
    """With two different agents of its agent's name a recovered run waits; the call that gives the agent settles it."""
    ledger, url = tmp_path / "ledger", f"sqlite:///{tmp_path}/runs.sqlite"
    kill_in_second_tool(lives, url, ledger)
    told, status, words = lives.live(define_twice, url, ledger=ledger).value
    assert "2 different agents named 'Desk'" in told
    assert status == "running"
    assert words == "Done."
    assert happened(ledger) == {"model": 2, "first": 1, "second": 2}
