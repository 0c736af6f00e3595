"""The first use of a swarm, while the connections to its database break, or its server is away."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from dbos._dbos import _get_or_create_dbos_registry

from durable_swarm import Agent, ConfigurationError, DurableSwarm, RunNotFound
from durable_swarm.engine.backend import launch
from durable_swarm.engine.database import reconnecting
from durable_swarm.engine.processes import opening
from durable_swarm.engine.processes.process import Process
from durable_swarm.testing import ScriptedModel
from tests.crash.matrix import LONG
from tests.engine.conftest import Make
from tests.engine.helpers import unique, user
from tests.support.cuts import cutting
from tests.support.patience import PATIENCE
from tests.support.proxy import Plan, proxied

STEP = 1 if LONG else 4
"""Which statements of the opening find their connection cut: each, or in the short form every fourth."""
NEVER = 10**9


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The times that opening was tried."""
    made: list[Any] = []
    monkeypatch.setattr(opening, "Process", lambda *given: made.append(given) or Process(*given))
    return made


@pytest.mark.slow
def test_a_connection_that_is_cut_does_not_stop_the_opening(postgres_database: str, tries: list[Any]) -> None:
    """Whichever statement of the opening finds its connection cut, and the server away for a moment, it goes on."""
    opened = 0
    for number in itertools.count(1, STEP):
        tries.clear()
        with DurableSwarm(ScriptedModel([]), database=postgres_database) as swarm:
            with cutting(number, 2) as cuts:
                try:
                    assert swarm.runs() == []
                    opened += len(tries) > 1
                except ConfigurationError as error:
                    # The first to fail was not a statement: the server took no connection.
                    assert "Connection refused" in str(error)  # noqa: PT017
            assert swarm.runs() == []
        if not cuts.fell:
            break
    assert opened > 2


def test_opening_is_not_tried_for_ever(
    postgres_database: str, tries: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While each connection is cut, opening is tried for some seconds; then it raises the clear error."""
    monkeypatch.setattr(reconnecting, "OPENING", 1.0)
    with DurableSwarm(ScriptedModel([]), database=postgres_database) as swarm:
        with cutting(2, NEVER), pytest.raises(ConfigurationError, match="Check that the server runs"):
            swarm.runs()
        assert len(tries) > 1
        assert swarm.runs() == []


def test_a_server_that_is_away_is_not_waited_for(postgres_database: str, tries: list[Any]) -> None:
    """Opening fails at its first try where the server takes no connection."""
    with DurableSwarm(ScriptedModel([]), database=postgres_database) as swarm:
        with cutting(1, NEVER), pytest.raises(ConfigurationError, match="Check that the server runs"):
            swarm.runs()
        assert len(tries) == 1


def test_an_opening_that_fails_leaves_no_queue(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue of a process that did not open is not served by the next one, which would ask for it all the time."""

    def fail(*_: object) -> None:
        raise ConfigurationError("not now")

    served = _get_or_create_dbos_registry().internal_queue_map
    before = set(served)
    with monkeypatch.context() as patch:
        patch.setattr(launch, "launch_dbos", fail)
        with pytest.raises(ConfigurationError, match="not now"):
            make(ScriptedModel([])).runs()
    assert set(served) == before


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
    agent, cuts = Agent(name=unique()), 0
    for seed in range(8):
        plan = Plan(random.Random(seed), mean=6000, commits=3)
        with (
            proxied(postgres_database, plan) as url,
            DurableSwarm(ScriptedModel(lambda _: "Done."), database=url) as swarm,
        ):
            plan.cutting = True
            with contextlib.suppress(ConfigurationError, RunNotFound):
                FIRST[first](swarm, agent)
            plan.cutting = False
            assert swarm.start(agent, user()).result(PATIENCE).messages[-1]["content"] == "Done."
        cuts += plan.cuts.total()
    assert cuts
