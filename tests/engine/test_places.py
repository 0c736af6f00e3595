"""The places of a worker: which runs take one, and from when on."""

from __future__ import annotations

import threading
from typing import Any

from durable_swarm import Agent
from durable_swarm.codec import Place
from durable_swarm.engine.processes import here
from durable_swarm.testing import ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, unique, user, wait_until


class Held:
    """A codec that keeps who opens the input of one run until it is told to go on."""

    lossless = True

    def __init__(self, run_id: str) -> None:
        self.run_id, self.came, self.go = run_id, threading.Event(), threading.Event()

    def encode(self, data: Any, place: Place) -> Any:
        return data

    def decode(self, stored: Any, place: Place) -> Any:
        if place.run_id == self.run_id and not self.go.is_set():
            self.came.set()
            assert self.go.wait(PATIENCE)
        return stored


def test_a_run_that_is_about_to_begin_has_its_place(make: Make) -> None:
    """A claimed run that has not begun yet, and one that was started here, leave no place for a third one of two."""
    gate, codec = threading.Event(), Held("claimed")

    def wait() -> str:
        assert gate.wait(PATIENCE)
        return "waited"

    agent = Agent(name=unique(), functions=[wait])
    swarm = make(
        ScriptedModel(lambda asked: "Done." if asked["messages"][-1]["role"] == "tool" else ["wait"]), codec=codec
    )
    swarm.serve(2)
    started = swarm.start(agent, user())
    wait_until(lambda: started.id in here.current().local.executions)
    claimed = swarm.start(agent, user(), queue=True, run_id="claimed")
    assert codec.came.wait(PATIENCE)
    here.current().worker.look()
    [(queue, _)] = here.current().worker._served.values()
    assert queue._worker_concurrency == 1  # Which is the claimed one's.
    codec.go.set()
    gate.set()
    assert [run.result(PATIENCE).messages[-1]["content"] for run in (started, claimed)] == ["Done."] * 2


def test_a_run_that_begins_here_takes_a_place_at_once(make: Make) -> None:
    """A run that does not come from the queue leaves one place less from the moment when it begins."""
    seen: list[Any] = []

    def look() -> str:
        [(queue, _)] = here.current().worker._served.values()
        seen.append(queue._worker_concurrency)
        return "seen"

    agent = Agent(name=unique(), functions=[look])
    swarm = make(ScriptedModel([["look"], "Done."]))
    swarm.serve(3)
    swarm.run(agent, user())
    assert seen == [2]
