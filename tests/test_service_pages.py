"""Pages of a run: bounded whatever the run holds, with every value to be had whole; and what tells of changes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, Event, step
from durable_swarm.service import NoStep, Runs, open_runs
from durable_swarm.testing import ScriptedModel, call
from tests.engine.helpers import user
from tests.support.asking import asking
from tests.support.patience import PATIENCE

LONG = "x" * 5_000


@step
def inside(size: int) -> str:
    """Return a text of a size."""
    return "x" * size


def speak(size: int) -> str:
    """Return a text of a size, by a step."""
    return inside(size)


def leave(url: str) -> None:
    """Leave a run of three turns and seven steps, with a long value, and a long message."""
    model = ScriptedModel([[call("speak", size=5_000)], [call("speak", size=3)], "Done"])
    with DurableSwarm(model, database=url) as swarm:
        agent = Agent(name="Speaker", functions=[speak])
        swarm.run(agent, [*user("Hi") * 150, *user(LONG)], run_id="long")


def test_a_page_has_some_steps_and_cuts_values(database_url: str) -> None:
    """Pages hold all steps of `show` in its order; a cut value is named, and whole by its number."""
    leave(database_url)
    with open_runs(database_url) as runs:
        whole = runs.show("long").steps
        pages = [runs.page("long", after, 3) for after in (0, 3, 6)]
        assert [one.number for page in pages for one in page.steps] == [one.number for one in whole]
        assert [page.total for page in pages] == [7, 7, 7]
        assert [page.cut for page in pages] == [[2, 3], [], []]
        assert pages[0].steps[1].output == f"{'x' * 2_000}…"
        assert runs.step("long", 2) == whole[1]
        assert len(pages[0].asked) == 100
        assert pages[0].asked[-1]["content"] == f"{'x' * 2_000}…"
        assert pages[0].run == runs.view("long")


@pytest.mark.parametrize("number", [0, 8])
def test_a_step_that_is_not_there(database_url: str, number: int) -> None:
    """A number beyond the run's steps is an error of its own."""
    leave(database_url)
    with open_runs(database_url) as runs, pytest.raises(NoStep, match=f"no step {number}; it has 7"):
        runs.step("long", number)


def test_a_mark_tells_of_changes(database_url: str) -> None:
    """The marks of all runs and of one differ after an answer and the end of the run; of one not after another run."""
    seen: list[Any] = []

    def look(runs: Runs) -> None:
        assert runs.mark() == runs.mark()
        seen.append((runs.mark(), runs.mark("asks")))

    with asking("asks", "choose", database=database_url) as run, open_runs(database_url) as runs:
        look(runs)
        runs.inbox.answer("asks", "red", "ana")
        run.result(timeout=PATIENCE)
        look(runs)
        with DurableSwarm(ScriptedModel(["Hello"]), database=database_url) as other:
            other.run(Agent(name="Other"), user())
        look(runs)
    assert len({of_all for of_all, _ in seen}) == 3
    assert len({of_one for _, of_one in seen}) == 2


def test_many_readers_follow_a_run(database_url: str) -> None:
    """Each of several followers on one loop gets every event once, those of before and those of after, and ends."""

    async def read(runs: Runs) -> list[Event]:
        return [event async for event in runs.follow("asks")]

    async def follow_all(runs: Runs) -> list[list[Event]]:
        readers = [asyncio.create_task(read(runs)) for _ in range(5)]
        await asyncio.sleep(0)
        await asyncio.to_thread(runs.inbox.answer, "asks", "red", "ana")
        return await asyncio.wait_for(asyncio.gather(*readers), 60)

    with asking("asks", "choose", database=database_url), open_runs(database_url) as runs:
        found = asyncio.run(follow_all(runs))
        assert found == [list(runs.events("asks"))] * 5
    assert found[0][-1].type == "run.finished"
