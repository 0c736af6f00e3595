"""How often a model is asked: over all runs and processes of a database, retries among them."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm
from durable_swarm.engine.processes import here
from durable_swarm.testing import ScriptedModel, rate_limited
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, unique, user, wait_until

SPACING = 0.1


class Asked:
    """A model that notes when it was asked."""

    max_retries = 2

    def __init__(self) -> None:
        self.chat = self.completions = self
        self.model = ScriptedModel(lambda request: "Done.")
        self.at: list[float] = []
        self._lock = threading.Lock()

    def create(self, **request: Any) -> Any:
        with self._lock:
            self.at.append(time.time())
        return self.model.chat.completions.create(**request)


def check_spaced(moments: list[float], began: float, spacing: float = SPACING) -> None:
    """Check that no call came before its moment: one may be late, and then close to the next."""
    for number, moment in enumerate(sorted(moments)):
        assert moment - began >= number * spacing - 0.002


def test_calls_are_spaced(make_anywhere: Make) -> None:
    """Calls of a rated model, in whatever runs, come at its pace."""
    model = Asked()
    swarm = make_anywhere(model, model_rates={"gpt-4o": (10, 10 * SPACING)})
    agent = Agent(name=unique())
    began = time.time()
    runs = [swarm.start(agent, user()) for _ in range(4)]
    for _ in range(2):
        swarm.run(agent, user())
    for run in runs:
        run.result(PATIENCE)
    assert len(model.at) == 6
    check_spaced(model.at, began)


def test_other_models_do_not_wait(make: Make) -> None:
    """A call of a model without a rate, or of one with a rate of its own, is made at once."""
    swarm = make(Asked(), model_rates={"gpt-4o": (1, 1000), "o3": (1, 1000)})
    for model in ("gpt-4o", "o3", "gpt-4.1", "gpt-4.1"):
        swarm.run(Agent(), user(), model_override=model)


def test_tries_count(make: Make) -> None:
    """A call that is made again after an error of the provider waits for a moment of its own."""
    model = Asked()
    model.model.inject(rate_limited(retry_after=0), rate_limited(retry_after=0))
    began = time.time()
    make(model, model_rates={"gpt-4o": (1, SPACING)}).run(Agent(), user())
    assert len(model.at) == 3
    check_spaced(model.at, began)


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        ([("gpt-4o", (1, 1))], "model_rates must be like"),
        ({"": (1, 1)}, "the model of a rate must be a string"),
        ({"gpt-4o": 5}, r"model_rates\['gpt-4o'\] must be \(calls, seconds\), not 5"),
        ({"gpt-4o": (0, 60)}, r"model_rates\['gpt-4o'\]: calls must be a whole number from 1 up"),
        ({"gpt-4o": (1, 0)}, r"model_rates\['gpt-4o'\]: seconds must be a number of seconds above 0"),
    ],
)
def test_what_is_no_rate_is_refused(rates: Any, told: str) -> None:
    """What cannot be kept to is refused when the swarm is made, and told by name."""
    with pytest.raises(ConfigurationError, match=told):
        DurableSwarm(ScriptedModel([]), model_rates=rates)


@pytest.mark.parametrize("end", ["cancel", "drain"])
def test_a_run_that_waits_for_its_moment_stops(end: str, make: Make) -> None:
    """A run that is cancelled, or whose worker stops, while it waits for a model's rate asks nobody."""
    model, name = Asked(), unique()
    swarm = make(model, model_rates={name: (1, 10 * PATIENCE)})
    agent = Agent(name=name, model=name)
    swarm.run(agent, user())
    run = swarm.start(agent, user())
    assert f"model {name!r} may be asked in" in str(wait_until(lambda: run.waits_for))
    if end == "cancel":
        run.cancel()
        wait_until(lambda: run.id not in here.current().local.executions)
    else:
        assert swarm.drain(PATIENCE) is True
    assert run.waits_for is None
    assert len(model.at) == 1
