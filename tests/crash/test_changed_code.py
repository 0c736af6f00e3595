"""A program that comes back changed: its unfinished runs go on, and their steps show which version did what."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, ReplayMismatch, step
from durable_swarm.testing import ScriptedModel
from tests.crash.boundaries import effect
from tests.crash.lives import Lives, hear, say
from tests.crash.matrix import COLOURS, read_ledger
from tests.crash.scenarios import ask, scripted
from tests.support.patience import PATIENCE

RUN = "run-1"
QUESTION = [{"role": "user", "content": "Please."}]


def wait_in(label: str, waits: bool) -> None:
    """Have an effect, and in a first life wait to be killed after it."""
    effect(label)
    if waits:
        say(f"in {label}")
        hear()


def original(waits: bool) -> tuple[Agent, list[Any]]:
    """The program as the run was started: in its second turn, a step and a plain tool are called."""

    def look() -> str:
        effect("look")
        return "looked"

    @step
    def weigh() -> str:
        effect("weigh")
        return "weighed"

    def send(parcel: str) -> str:
        wait_in("send", waits)
        return f"sent {parcel}"

    agent = Agent(name="Desk", functions=[look, weigh, send], instructions="Be kind.")
    return agent, [[ask("look")], [ask("weigh"), ask("send", parcel="p1")], "Sent."]


Change = Callable[[], tuple[Agent, list[Any]]]


def new_prompt() -> tuple[Agent, list[Any]]:
    """Another prompt."""
    agent, script = original(waits=False)
    agent.instructions = "Be brief."
    return agent, script


def decorator_added() -> tuple[Agent, list[Any]]:
    """The open call's tool has become a step."""
    agent, script = original(waits=False)
    agent.functions[2] = step(agent.functions[2])
    return agent, script


def decorator_removed() -> tuple[Agent, list[Any]]:
    """A finished step has become a plain tool."""
    agent, script = original(waits=False)
    agent.functions[1] = inspect.unwrap(agent.functions[1])
    return agent, script


def tool_renamed() -> tuple[Agent, list[Any]]:
    """A tool without an open call has another name, by which the model calls it from now on."""
    agent, script = original(waits=False)

    def examine() -> str:
        effect("examine")
        return "examined"

    agent.functions[0] = examine
    return agent, [*script[:2], [ask("examine")], "Sent."]


def tool_added() -> tuple[Agent, list[Any]]:
    """There is one more tool, and the model calls it."""
    agent, script = original(waits=False)

    @step
    def thank() -> str:
        effect("thank")
        return "thanked"

    agent.functions.insert(0, thank)
    return agent, [*script[:2], [ask("thank")], "Sent."]


def first_life(url: str, colour: str) -> None:
    """The original program, which waits in the second tool of its second turn."""
    agent, script = original(waits=True)
    swarm = DurableSwarm(ScriptedModel(scripted(script)), database=url)
    run = swarm.start(agent, QUESTION, run_id=RUN) if colour == "async" else None
    run.result() if run is not None else swarm.run(agent, QUESTION, run_id=RUN)


def changed_life(url: str, change: Change) -> tuple[str, list[tuple[str, str]], int]:
    """The changed program; gives the last words, the tools' answers and how many versions answered."""
    agent, script = change()
    swarm = DurableSwarm(ScriptedModel(scripted(script)), database=url)
    swarm.recover()
    run = swarm.get(RUN)
    messages = run.result(timeout=PATIENCE).messages
    versions = {info.version for info in run.steps() if info.kind == "model"}
    tools = [(message["tool_name"], message["content"]) for message in messages if message["role"] == "tool"]
    assert agent.name == "Desk"
    return str(messages[-1]["content"]), tools, len(versions)


KEPT = [("look", "looked"), ("weigh", "weighed"), ("send", "sent p1")]


@pytest.mark.parametrize(
    ("change", "more", "versions"),
    [
        (new_prompt, [], 2),
        (decorator_added, [], 1),
        (decorator_removed, [], 1),
        (tool_renamed, [("examine", "examined")], 2),
        (tool_added, [("thank", "thanked")], 2),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize("colour", COLOURS)
def test_a_changed_program_continues_its_runs(
    change: Change, more: list[tuple[str, str]], versions: int, colour: str, lives: Lives, tmp_path: Path
) -> None:
    """What is recorded stays, the rest is done by the new code, and the steps name the version that answered."""
    ledger, url = tmp_path / "ledger", f"sqlite:///{tmp_path}/runs.sqlite"
    life = lives.start(first_life, url, colour, ledger=ledger)
    life.hear()
    assert life.kill().killed
    words, tools, found = lives.live(changed_life, url, change, ledger=ledger).value
    assert (words, tools, found) == ("Sent.", KEPT + more, versions)
    happened = Counter(effect.label for effect in read_ledger(ledger, RUN))
    assert happened["look"] == happened["weigh"] == 1
    assert happened["send"] == 2


def without_tool(url: str) -> tuple[str, str | None]:
    """A program whose open call's tool is gone."""
    agent, script = original(waits=False)
    del agent.functions[2]
    swarm = DurableSwarm(ScriptedModel(scripted(script)), database=url)
    swarm.recover()
    run = swarm.get(RUN)
    with pytest.raises(ReplayMismatch):
        run.result(timeout=10)
    return run.status, run.waits_for


def unchanged() -> tuple[Agent, list[Any]]:
    """The original program."""
    return original(waits=False)


@pytest.mark.parametrize("colour", COLOURS)
def test_a_run_waits_for_a_tool_that_is_gone(colour: str, lives: Lives, tmp_path: Path) -> None:
    """A run with an open call of a tool that is gone waits, naming the tool; when the tool is back, it goes on."""
    ledger, url = tmp_path / "ledger", f"sqlite:///{tmp_path}/runs.sqlite"
    life = lives.start(first_life, url, colour, ledger=ledger)
    life.hear()
    assert life.kill().killed
    end = lives.live(without_tool, url, ledger=ledger)
    status, reason = end.value
    assert status == "running"
    assert "'send'" in str(reason)
    assert "'send'" in end.log
    words, tools, _ = lives.live(changed_life, url, unchanged, ledger=ledger).value
    assert (words, tools) == ("Sent.", KEPT)
