"""`Run.resume()`: what ended too early goes on, and nothing that was finished happens again."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, errors, step
from durable_swarm.testing import ScriptedModel
from tests.crash.boundaries import effect
from tests.crash.lives import Lives, hear, say
from tests.crash.matrix import read_ledger
from tests.crash.scenarios import ask, scripted
from tests.support.patience import PATIENCE

RUN = "run-1"
QUESTION = [{"role": "user", "content": "Please."}]


def program(kind: str, *, broken: bool) -> tuple[Agent, ScriptedModel]:
    """Give an agent whose reply calls three tools; the middle one has three steps, the last perhaps `broken`."""

    @step
    def pick() -> str:
        effect("pick")
        return "picked"

    @step
    def pack() -> str:
        effect("pack")
        return "packed"

    @step
    def post() -> str:
        effect("post")
        if broken:
            raise OSError("the van is broken")
        return "posted"

    @step
    def bill() -> str:
        effect("bill")
        return "billed"

    def ship() -> str:
        return f"{pick()}, {pack()}, {post()}"

    async def ship_async() -> str:
        await asyncio.sleep(0.01)
        return ship()

    async def thank() -> str:
        effect("thank")
        return "thanked"

    def note() -> str:
        effect("note")
        return "noted"

    functions: list[Callable[..., Any]] = [bill, ship, note] if kind == "plain" else [bill, ship_async, thank]
    script = [[ask(function.__name__) for function in functions], "Done."]
    return Agent(name="Desk", functions=functions), ScriptedModel(scripted(script))


def fail(url: str, kind: str) -> tuple[str, str]:
    """The broken program: gives the error and what the database says of the run."""
    agent, model = program(kind, broken=True)
    swarm = DurableSwarm(model, database=url)
    try:
        return str(swarm.run(agent, QUESTION, run_id=RUN)), "done"
    except OSError as error:
        return str(error), swarm.get(RUN).status


def mend(url: str, kind: str, colour: str) -> list[str]:
    """The mended program: resumes the run and gives what the model was told."""
    agent, model = program(kind, broken=False)
    swarm = DurableSwarm(model, database=url)
    run = swarm.get(RUN)
    assert run.status == "failed"
    if colour == "async":
        asyncio.run(run.resume_async())
    else:
        run.resume()
    messages = run.result(timeout=PATIENCE).messages
    assert agent.name == "Desk"
    return [str(message["content"]) for message in messages if message["role"] == "tool"]


@pytest.mark.parametrize(("kind", "last"), [("plain", "note"), ("async", "thank")])
def test_resume_repeats_the_failed_step_only(
    kind: str, last: str, lives: Lives, tmp_path: Path, database_url: str
) -> None:
    """Once the code is mended, `resume()` repeats the failed step, not the tool's finished steps nor its siblings."""
    ledger = tmp_path / "ledger"
    assert lives.live(fail, database_url, kind, ledger=ledger).value == ("the van is broken", "failed")
    told = lives.live(mend, database_url, kind, "sync", ledger=ledger).value
    assert told == ["billed", "picked, packed, posted", {"note": "noted", "thank": "thanked"}[last]]
    happened = Counter(effect.label for effect in read_ledger(ledger, RUN))
    assert happened == {"model": 2, "bill": 1, "pick": 1, "pack": 1, "post": 2, last: 1}


def fail_and_mend(url: str, kind: str) -> list[str]:
    """A program that mends its tool while it lives."""
    agent, model = program(kind, broken=True)
    mended, _ = program(kind, broken=False)
    swarm = DurableSwarm(model, database=url)
    run = swarm.start(agent, QUESTION, run_id=RUN)
    try:
        run.result(timeout=PATIENCE)
    except OSError:
        agent.functions[:] = mended.functions
    del mended
    run.resume()
    messages = run.result(timeout=PATIENCE).messages
    return [str(message["content"]) for message in messages if message["role"] == "tool"]


@pytest.mark.parametrize(("kind", "last"), [("plain", "noted"), ("async", "thanked")])
def test_resume_works_in_the_process_that_failed(kind: str, last: str, lives: Lives, tmp_path: Path) -> None:
    """The process whose tool raised can resume the run with a mended tool, and the same handle gives the result."""
    ledger, url = tmp_path / "ledger", f"sqlite:///{tmp_path}/runs.sqlite"
    told = lives.live(fail_and_mend, url, kind, ledger=ledger).value
    assert told == ["billed", "picked, packed, posted", last]
    happened = Counter(effect.label for effect in read_ledger(ledger, RUN))
    assert happened["pick"] == happened["pack"] == happened["bill"] == 1
    assert happened["post"] == 2


def cancellable(waits: bool) -> tuple[Agent, ScriptedModel]:
    """Give an agent that calls a step, then a tool that waits to be told, then one more."""

    @step
    def first() -> str:
        effect("first")
        return "first"

    def second() -> str:
        effect("second")
        if waits:
            say("in the second tool")
            hear()
        return "second"

    def third() -> str:
        effect("third")
        return "third"

    script = [[ask("first"), ask("second")], [ask("third")], "Done."]
    return Agent(name="Desk", functions=[first, second, third]), ScriptedModel(scripted(script))


def run_until_cancelled(url: str, colour: str) -> str:
    """A program whose run is cancelled by another while its tool works."""
    agent, model = cancellable(waits=True)
    swarm = DurableSwarm(model, database=url)
    try:
        if colour == "sync":
            return str(swarm.run(agent, QUESTION, run_id=RUN).messages[-1]["content"])
        return str(swarm.start(agent, QUESTION, run_id=RUN).result().messages[-1]["content"])
    except errors.RunCancelled:
        return "cancelled"


def cancel(url: str) -> str:
    """Another program, which cancels the run and knows no agent of it."""
    swarm = DurableSwarm(database=url)
    swarm.get(RUN).cancel()
    return swarm.get(RUN).status


def resume_cancelled(url: str) -> str:
    """The program again: it resumes the cancelled run."""
    agent, model = cancellable(waits=False)
    swarm = DurableSwarm(model, database=url)
    run = swarm.get(RUN)
    assert (run.status, agent.name) == ("cancelled", "Desk")
    assert swarm.recover() == []
    run.resume()
    return str(run.result(timeout=PATIENCE).messages[-1]["content"])


@pytest.mark.alternates  # What is killed is the same; that it survives is seen on both.
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_cancelled_run_can_be_resumed(colour: str, lives: Lives, tmp_path: Path, database_url: str) -> None:
    """A cancelled run stops after the call under way, is not recovered, and goes on from there when it is resumed."""
    ledger = tmp_path / "ledger"
    life = lives.start(run_until_cancelled, database_url, colour, ledger=ledger)
    life.hear()
    assert lives.live(cancel, database_url, ledger=ledger).value == "cancelled"
    life.say("go on")
    assert life.end().value == "cancelled"
    before = Counter(effect.label for effect in read_ledger(ledger, RUN))
    assert before == {"model": 1, "first": 1, "second": 1}
    assert lives.live(resume_cancelled, database_url, ledger=ledger).value == "Done."
    happened = Counter(effect.label for effect in read_ledger(ledger, RUN))
    assert happened == {"model": 3, "first": 1, "second": 2, "third": 1}


def fail_after_crash(url: str, colour: str, way: str) -> tuple[str, str]:
    """The program again, whose interrupted tool now raises; gives the error and the run's status."""
    agent, model = cancellable(waits=False)

    def second() -> str:
        effect("second")
        raise OSError("the line is dead")

    agent.functions[1] = second
    swarm = DurableSwarm(model, database=url)
    try:
        if way == "recover":
            swarm.get(RUN).result(timeout=10)
        elif colour == "sync":
            swarm.run(agent, QUESTION, run_id=RUN)
        else:
            asyncio.run(swarm.run_async(agent, QUESTION, run_id=RUN))
    except OSError as error:
        return str(error), swarm.get(RUN).status
    except errors.RunFailed as error:
        return str(error.error_message), swarm.get(RUN).status
    return "no error", swarm.get(RUN).status


@pytest.mark.parametrize("way", ["attach", "recover"])
@pytest.mark.parametrize("colour", ["sync", "async"])
def test_a_tool_that_raises_after_a_crash_fails_the_run(colour: str, way: str, lives: Lives, tmp_path: Path) -> None:
    """A tool call that was in flight in a crash and raises when it is repeated ends the run with its exception."""
    ledger, url = tmp_path / "ledger", f"sqlite:///{tmp_path}/runs.sqlite"
    life = lives.start(run_until_cancelled, url, colour, ledger=ledger)
    life.hear()
    assert life.kill().killed
    end = lives.live(fail_after_crash, url, colour, way, ledger=ledger)
    assert end.value == ("the line is dead", "failed")
    happened = Counter(effect.label for effect in read_ledger(ledger, RUN))
    assert happened == {"model": 1, "first": 1, "second": 2}
