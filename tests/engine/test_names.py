"""Names are checked at the door: what no database could store, or find again, is one clear error."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from durable_swarm import (
    Agent,
    ConfigurationError,
    DurableSwarm,
    NotSerializable,
    Result,
    RunNotFound,
    Swarm,
    later,
    step,
)
from durable_swarm.codec import mended_text
from durable_swarm.testing import ScriptedModel
from tests.engine.helpers import user
from tests.support.patience import PATIENCE

HALVES = ["a\ud800", "\udc00b", "a\0b"]
signs = random.Random(7)
LONG = ["".join(chr(0x4E00 + signs.randrange(20_000)) for _ in range(1000)), "n" * 2800, "é" * 9000]
"""Names that an index of PostgreSQL does not hold, however they are compressed, or only just."""

DOORS: dict[str, Callable[[DurableSwarm, str, str], Any]] = {
    "agent": lambda swarm, name, _: swarm.run(Agent(name=name), user()),
    "run_id": lambda swarm, name, _: swarm.start(Agent(), user(), run_id=name),
    "agent on the queue": lambda swarm, name, _: swarm.enqueue(name, user()),
    "run_id on the queue": lambda swarm, name, _: swarm.enqueue("A", user(), run_id=name),
    "swarm": lambda _, name, url: DurableSwarm(database=url, name=name),
    "worker": lambda _, name, url: DurableSwarm(database=url, worker_id=name),
    "token": lambda swarm, name, _: swarm.complete(name, "x"),
    "step": lambda _, name, __: step(name=name)(user),
    "model of a rate": lambda _, name, url: DurableSwarm(database=url, model_rates={name: (1, 1)}),
}


@pytest.mark.parametrize("name", [*HALVES, *LONG], ids=lambda name: f"{len(name)} of {name[:2]!a}")
@pytest.mark.parametrize("door", DOORS)
def test_a_name_that_cannot_be_stored(door: str, name: str, url: str) -> None:
    """Every name that a program gives is refused at once where no database holds it; no model is asked."""
    model = ScriptedModel([])
    with DurableSwarm(model, database=url) as swarm:
        with pytest.raises(ConfigurationError) as caught:
            DOORS[door](swarm, name, url)
        assert swarm.runs() == []
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    assert model.calls == []


@pytest.mark.parametrize("name", [*HALVES, LONG[0]], ids=lambda name: f"{len(name)} of {name[:2]!a}")
def test_an_agent_that_a_tool_returns(name: str, url: str) -> None:
    """A handoff to an agent of such a name ends the run with that error, recorded as any other."""

    def hand_over() -> Agent:
        return Agent(name=name)

    def with_result() -> Result:
        return Result(agent=Agent(name=name))

    for tool in (hand_over, with_result):
        for swarm in (
            Swarm(ScriptedModel([[tool.__name__]])),
            DurableSwarm(ScriptedModel([[tool.__name__]]), database=url),
        ):
            with swarm, pytest.raises(ConfigurationError, match="the agent that the tool returned"):
                swarm.run(Agent(functions=[tool]), user())


def test_the_longest_names_hold(database_url: str) -> None:
    """Names of the greatest length run, wait, are found and answered on every database."""
    name, run_id = LONG[0][:166], LONG[0][:333]

    def ask() -> Any:
        return later(name)

    model = ScriptedModel([["ask"], "Done"])
    with DurableSwarm(model, database=database_url, name=name) as swarm:
        run = swarm.start(Agent(name=name, functions=[ask]), user(), run_id=run_id)
        swarm.complete(name, "yes")
        assert run.result(PATIENCE).messages[-1]["content"] == "Done"
        assert swarm.get(run_id).agent == name


@pytest.mark.parametrize("key", HALVES)
@pytest.mark.parametrize("method", ["run", "start", "enqueue"])
def test_a_key_of_the_context(key: str, method: str, url: str) -> None:
    """A context variable's name that cannot be stored is named by its path, before anything runs."""
    with DurableSwarm(ScriptedModel([]), database=url) as swarm:
        with pytest.raises(NotSerializable) as caught:
            getattr(swarm, method)(
                "A" if method == "enqueue" else Agent(), user(), context_variables={key: 1}, run_id="r"
            )
        assert repr(key) in caught.value.path
        with pytest.raises(RunNotFound):
            swarm.get("r")


@pytest.mark.parametrize("key", HALVES)
def test_a_key_that_a_tool_sets(key: str, url: str) -> None:
    """A tool that names a context variable so ends its run with that error."""

    def note(context_variables: dict[str, Any]) -> str:
        context_variables[key] = 1
        return "noted"

    def with_result() -> Result:
        return Result(context_variables={key: 1})

    with DurableSwarm(ScriptedModel(lambda request: [request["tools"][0]["function"]["name"]]), database=url) as swarm:
        for tool in (note, with_result):
            with pytest.raises(NotSerializable):
                swarm.run(Agent(functions=[tool]), user())


@pytest.mark.parametrize("key", HALVES)
def test_a_key_further_in(key: str, url: str) -> None:
    """Deeper in a value such a name is data, and half characters are mended as everywhere in values."""
    with DurableSwarm(ScriptedModel(["Done"]), database=url) as swarm:
        swarm.run(Agent(), user(), {"deep": {key: key}}, run_id="r")
        assert swarm.get("r").result(PATIENCE).context_variables == {"deep": {mended_text(key): mended_text(key)}}
