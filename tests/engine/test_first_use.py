"""The first use of a swarm, while the connections to its database break."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, RunNotFound
from durable_swarm.testing import ScriptedModel
from tests.engine.helpers import unique, user
from tests.support.patience import PATIENCE
from tests.support.proxy import Plan, proxied

FIRST: dict[str, Callable[[DurableSwarm, Agent], Any]] = {
    "runs": lambda swarm, _: swarm.runs(),
    "start": lambda swarm, agent: swarm.start(agent, user()),
    "enqueue": lambda swarm, agent: swarm.enqueue(agent.name, user()),
    "get": lambda swarm, _: swarm.get("nothing"),
}


@pytest.mark.slow
@pytest.mark.parametrize("first", FIRST)
def test_connections_that_break_at_first_use(first: str, postgres_database: str) -> None:
    """Wherever a connection breaks while a swarm is opened, it works or raises one clear error; later it works."""
    agent, refused = Agent(name=unique()), 0
    for seed in range(8):
        plan = Plan(random.Random(seed), mean=6000, commits=3)
        with (
            proxied(postgres_database, plan) as url,
            DurableSwarm(ScriptedModel(lambda _: "Done."), database=url) as swarm,
        ):
            plan.cutting = True
            try:
                FIRST[first](swarm, agent)
            except (ConfigurationError, RunNotFound) as error:
                refused += "cannot be used" in str(error)
            plan.cutting = False
            assert swarm.start(agent, user()).result(PATIENCE).messages[-1]["content"] == "Done."
    assert refused
