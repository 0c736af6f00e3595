"""Runs that tool calls of other runs start: who is whose parent, and what their records say of it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, Run, step
from durable_swarm.testing import ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import change, rows, unique, user

Replies = list[Any]


def call(tool: str, **arguments: Any) -> list[Any]:
    """Return a reply with one tool call."""
    return [(tool, arguments)]


def start_of(url: str, run_id: str) -> dict[str, Any]:
    """Return the stored input of a run."""
    stored = {run: json.loads(text) for run, text in rows(url, "workflow_uuid, inputs", "workflow_input")}
    record: dict[str, Any] = stored[run_id]["positionalArgs"][0]
    return record


class House:
    """A boss whose tools start runs of a worker in every way there is."""

    def __init__(self, make: Make, replies: Replies) -> None:
        self.worker = Agent(name=unique("Hand"))
        self.swarm: DurableSwarm = make(ScriptedModel(replies))
        self.boss = Agent(
            name=unique("Boss"), functions=[self.plainly, self.awaited, self.begun, self.marked, self.named]
        )

    def plainly(self) -> str:
        return str(self.swarm.run(self.worker, user("Work")).messages[-1]["content"])

    async def awaited(self) -> str:
        return str((await self.swarm.run_async(self.worker, user("Work"))).messages[-1]["content"])

    async def begun(self) -> str:
        run = await self.swarm.start_async(self.worker, user("Work"))
        return str((await run.result_async()).messages[-1]["content"])

    @step
    def marked(self) -> str:
        return str(self.swarm.run(self.worker, user("Work")).messages[-1]["content"])

    def named(self) -> str:
        return str(self.swarm.run(self.worker, user("Work"), run_id="by-name").messages[-1]["content"])


@pytest.mark.parametrize("tool", ["plainly", "awaited", "begun", "marked"])
def test_a_run_that_a_tool_starts_has_a_parent(make_anywhere: Make, database_url: str, tool: str) -> None:
    """Whatever way a tool starts a run, its id, its record and its handle say whose child it is."""
    house = House(make_anywhere, [call(tool), "Done", "All done"])
    house.swarm.run(house.boss, user(), run_id="top")
    child = house.swarm.get("top/0.0/0")
    record = start_of(database_url, child.id)
    assert (record["parent"], record["root"]) == ("top", "top")
    assert _id(child.parent) == "top"
    top = house.swarm.get("top")
    assert [run.id for run in top.children()] == [child.id]
    assert top.parent is None
    assert child.children() == []
    assert start_of(database_url, "top").keys() & {"parent", "root"} == set()


def _id(run: Run | None) -> str | None:
    return None if run is None else run.id


def test_a_child_with_an_id_of_its_own_is_a_child(make_anywhere: Make, database_url: str) -> None:
    """A run that a tool starts under a given id is a child, too."""
    house = House(make_anywhere, [call("named"), "Done", "All done"])
    house.swarm.run(house.boss, user(), run_id="giver")
    assert start_of(database_url, "by-name")["root"] == "giver"
    assert _id(house.swarm.get("by-name").parent) == "giver"
    assert [run.id for run in house.swarm.get("giver").children()] == ["by-name"]


def test_attaching_to_a_run_does_not_make_it_a_child(make: Make) -> None:
    """A run that exists already stays without parent, though a tool asks for its result."""
    house = House(make, ["Done", call("named"), "All done"])
    house.swarm.run(house.worker, user("Work"), run_id="by-name")
    house.swarm.run(house.boss, user(), run_id="asker")
    assert house.swarm.get("by-name").parent is None
    assert house.swarm.get("asker").children() == []


def test_grandchildren_have_the_same_root(make_anywhere: Make, database_url: str) -> None:
    """Every run of a family has the top run as its root, and its own parent."""
    swarm = make_anywhere(ScriptedModel([call("ask_middle"), call("ask_low"), "low", "middle", "top"]))
    low = Agent(name=unique("Low"))

    async def ask_low() -> str:
        return str((await swarm.run_async(low, user())).messages[-1]["content"])

    middle = Agent(name=unique("Middle"), functions=[ask_low])

    async def ask_middle() -> str:
        return str((await swarm.run_async(middle, user())).messages[-1]["content"])

    async def direct() -> list[Run]:
        await swarm.run_async(Agent(name=unique("Top"), functions=[ask_middle]), user(), run_id="line")
        return await (await swarm.get_async("line")).children_async()

    assert [run.id for run in asyncio.run(direct())] == ["line/0.0/0"]
    record = start_of(database_url, "line/0.0/0/0.0/0")
    assert (record["parent"], record["root"]) == ("line/0.0/0", "line")


def test_a_child_of_an_earlier_version_has_its_parent_from_its_id(make_anywhere: Make, database_url: str) -> None:
    """A child run whose parent was never recorded has the parent that its id names, if that run exists."""
    house = House(make_anywhere, [call("plainly"), "Done", "All done"])
    house.swarm.run(house.boss, user(), run_id="early")
    change(database_url, "DELETE FROM {schema}durable_swarm_children")
    child = house.swarm.get("early/0.0/0")
    assert _id(child.parent) == "early"
    change(database_url, "DELETE FROM {schema}workflow_status WHERE workflow_uuid = 'early'")
    assert child.parent is None


@pytest.mark.parametrize("tool", ["plainly", "awaited", "begun", "marked", "named"])
def test_events_of_the_parent_tell_of_the_child(make_anywhere: Make, tool: str) -> None:
    """A parent's events say when a call has started a child run and when it has its result, live as in the records."""
    house = House(make_anywhere, [call(tool), "Done", "All done"])
    run = house.swarm.start(house.boss, user(), run_id="telling")
    live = list(run.events())
    assert [event.seq for event in live] == list(range(1, len(live) + 1))
    types = [event.type for event in live]
    began, ended = types.index("child.started"), types.index("child.finished")
    assert types.index("tool.started") < began < ended < types.index("tool.finished")
    child = house.swarm.get("telling").children()[0]
    about = {"turn": 0, "tool": tool, "call_id": live[began].data["call_id"], "run_id": child.id}
    assert live[began].data == {**about, "agent": house.worker.name}
    assert live[ended].data == {**about, "agent": house.worker.name, "status": "done"}
    assert list(house.swarm.get("telling").events()) == live


def test_a_child_that_fails_is_told(make: Make) -> None:
    """The event of a child's end has the state it ended in."""
    house = House(make, [call("begun"), ValueError("away")])
    with pytest.raises(ValueError, match="away"):
        house.swarm.run(house.boss, user(), run_id="sorry")
    told = [event.data["status"] for event in house.swarm.get("sorry").events() if event.type == "child.finished"]
    assert told == ["failed"]
