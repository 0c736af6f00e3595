"""Agents by name: who is known, who is meant, and what counts as a change."""

from __future__ import annotations

import functools
import gc
import importlib
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from durable_swarm import Agent, AmbiguousAgent, UnknownAgent, tool
from durable_swarm import agents as durable_swarm_agents


def fresh() -> str:
    """Give a name that no other test's agent has."""
    return f"agent-{uuid.uuid4()}"


def greet(name: str) -> str:
    """Greet somebody."""
    return f"Hello {name}"


def test_an_agent_is_known_from_its_construction() -> None:
    """Defining an agent is all it takes to find it by name."""
    agent = Agent(name=fresh())
    assert durable_swarm_agents.find(agent.name) is agent
    assert agent.name in durable_swarm_agents.names()


def test_a_collected_agent_is_forgotten() -> None:
    """The roster keeps no agent alive, not even one in a reference cycle with its own tools."""
    name = fresh()

    def define() -> None:
        agent = Agent(name=name)
        agent.functions.append(lambda: agent)

    define()
    gc.collect()
    with pytest.raises(UnknownAgent, match=f"no agent named '{name}' is defined in this process; define it, or import"):
        durable_swarm_agents.find(name)


def test_an_unknown_agent_is_named() -> None:
    """The error for a name nobody has carries the name."""
    with pytest.raises(UnknownAgent) as caught:
        durable_swarm_agents.find("nobody at all")
    assert caught.value.agent == "nobody at all"
    assert durable_swarm_agents.find_or_none("nobody at all") is None


def test_agents_defined_alike_are_one() -> None:
    """Of several agents of one name that are defined alike, the newest is meant."""
    name = fresh()
    first, second = Agent(name=name, functions=[greet]), Agent(name=name, functions=[greet])
    assert durable_swarm_agents.find(name) is second
    del second
    gc.collect()
    assert durable_swarm_agents.find(name) is first


def test_different_agents_of_one_name_are_ambiguous() -> None:
    """Of several agents of one name that differ, none is guessed."""
    name = fresh()
    agents = [Agent(name=name, instructions="one"), Agent(name=name, instructions="two")]
    with pytest.raises(AmbiguousAgent, match=f"2 different agents named '{name}'") as caught:
        durable_swarm_agents.find(name)
    assert caught.value.agent == agents[0].name
    assert durable_swarm_agents.find_or_none(name) is None


def test_a_renamed_agent_is_found_by_its_new_name() -> None:
    """Names are read when they are asked for, so an agent that is renamed later is found."""
    agent = Agent(name=fresh())
    agent.name = fresh()
    assert durable_swarm_agents.find(agent.name) is agent


def test_foreign_agents_are_known_once_remembered() -> None:
    """An object that is no Agent is known from the moment it was given to a run, and only once."""
    foreign = SimpleNamespace(name=fresh(), model="m", instructions="", functions=[])
    assert durable_swarm_agents.find_or_none(foreign.name) is None
    durable_swarm_agents.remember(foreign)
    durable_swarm_agents.remember(foreign)
    assert durable_swarm_agents.find(foreign.name) is foreign


def test_watchers_are_told_of_each_new_agent() -> None:
    """A watcher hears the name of every agent that becomes known, until it stops watching."""
    heard: list[str] = []
    stop = durable_swarm_agents.watch(heard.append)
    first = Agent(name=fresh())
    durable_swarm_agents.remember(first)
    stop()
    Agent(name=fresh())
    assert heard == [first.name]


class Prompt:
    """A prompt that is an object with a call."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __call__(self, context_variables: dict[str, Any]) -> str:
        return self.text

    def method(self, context_variables: dict[str, Any]) -> str:
        return self.text


def prompt(context_variables: dict[str, Any], text: str = "") -> str:
    """Give a prompt."""
    return text


# No source file stands behind it.
BARE: Any = eval("lambda context_variables: 'x'")

CALLABLES: dict[str, Any] = {
    "function": prompt,
    "lambda": lambda context_variables: "x",
    "partial": functools.partial(prompt, text="x"),
    "callable object": Prompt("x"),
    "bound method": Prompt("x").method,
    "lambda without source": BARE,
    "partial without source": functools.partial(BARE),
    "builtin": str,
    "builtin method": "{}".format,
}


@pytest.mark.parametrize("kind", CALLABLES)
def test_every_callable_prompt_has_a_fingerprint(kind: str) -> None:
    """An agent whose instructions are any kind of callable has a fingerprint, the same each time."""
    agent = Agent(name="A", instructions=CALLABLES[kind])
    assert durable_swarm_agents.fingerprint(agent) == durable_swarm_agents.fingerprint(agent)
    assert len(durable_swarm_agents.fingerprint(agent)) == 12


def other(name: str) -> str:
    """Greet somebody else."""
    return name


CHANGES: dict[str, dict[str, Any]] = {
    "name": {"name": "B"},
    "model": {"model": "other"},
    "instructions": {"instructions": "Be rude."},
    "callable instructions": {"instructions": prompt},
    "a tool more": {"functions": [greet, other]},
    "no tools": {"functions": []},
    "another tool": {"functions": [other]},
    "described tool": {"functions": [tool(description="Another text.")(lambda name: name)]},
    "tool_choice": {"tool_choice": "none"},
    "model_settings": {"model_settings": {"temperature": 1}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_definition_changes_the_fingerprint(change: str) -> None:
    """Prompt, tools, model and settings are part of the fingerprint."""
    base: dict[str, Any] = {"name": "A", "functions": [greet], "instructions": "Be kind."}
    assert durable_swarm_agents.fingerprint(Agent(**base)) != durable_swarm_agents.fingerprint(
        Agent(**base | CHANGES[change])
    )


def test_what_is_no_change() -> None:
    """Two definitions alike have one fingerprint, also from two evaluations of one line of code."""

    def make() -> Agent:
        return Agent(name="A", instructions=lambda context_variables: "x", functions=[greet])

    assert durable_swarm_agents.fingerprint(make()) == durable_swarm_agents.fingerprint(make())


def test_an_edited_file_is_no_change_of_a_running_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program whose file is replaced while it runs, as by a deploy, keeps the code it has, and the fingerprint."""
    for name in ("edited", "twin"):
        (tmp_path / f"{name}.py").write_text("def prompt(context_variables):\n    return 'Old.'\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    edited, twin = (Agent(name="A", instructions=importlib.import_module(name).prompt) for name in ("edited", "twin"))
    (tmp_path / "edited.py").write_text("# Edited.\ndef prompt():\n    return 'New.'\n", encoding="utf-8")
    assert durable_swarm_agents.fingerprint(edited) == durable_swarm_agents.fingerprint(twin)


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Let threads take turns as often as Python can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty_threads")
def test_agents_come_and_go_in_threads() -> None:
    """Looking for agents while others are made and collected elsewhere neither fails nor misses one that stays."""
    crowd = [Agent(name="crowd") for _ in range(200)]
    stays, over = Agent(name=fresh()), threading.Event()
    failures: list[BaseException] = []

    def churn() -> None:
        while not over.is_set():
            several = [Agent(name="churned") for _ in range(20)]
            del several

    def look() -> None:
        try:
            for _ in range(100):
                assert durable_swarm_agents.find(stays.name) is stays
        except BaseException as error:
            failures.append(error)

    churners = [threading.Thread(target=churn) for _ in range(2)]
    lookers = [threading.Thread(target=look) for _ in range(2)]
    for thread in churners + lookers:
        thread.start()
    for thread in lookers:
        thread.join()
    over.set()
    for thread in churners:
        thread.join()
    assert failures == []
    assert len(crowd) == 200
