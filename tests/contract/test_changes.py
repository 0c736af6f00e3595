"""Context variables in a batch of calls that are made together: what each call sees, what stays, what is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, Result, Swarm
from durable_swarm.testing import ScriptedModel, call
from tests.contract.helpers import MakeSwarm, Meeting, Run, tool_contents, user
from tests.support.patience import PATIENCE


def async_tool(work: Callable[[dict[str, Any], str], Any], parties: int) -> Any:
    """Give an async tool `act` that does its work when all `parties` calls have begun."""
    meeting = Meeting(parties)

    async def act(name: str, context_variables: dict[str, Any]) -> Any:
        await meeting.wait_async()
        return work(context_variables, name)

    return act


def plain_tool(work: Callable[[dict[str, Any], str], Any], parties: int) -> Any:
    """Give a plain tool `act` that does its work when all `parties` calls have begun."""
    meeting = Meeting(parties)

    def act(name: str, context_variables: dict[str, Any]) -> Any:
        meeting.wait()
        return work(context_variables, name)

    return act


TOOLS = pytest.mark.parametrize("make_tool", [async_tool, plain_tool])
MakeTool = Callable[[Callable[[dict[str, Any], str], Any], int], Any]


def together(*names: str) -> list[Any]:
    """Give a model's replies: one call of `act` for each name, then an answer."""
    return [[call("act", name=name) for name in names], "Done"]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Give what was logged about lost updates."""
    return [record.getMessage() for record in caplog.records if "different values" in record.getMessage()]


@TOOLS
def test_a_call_does_not_see_its_siblings(make_swarm: MakeSwarm, run: Run, make_tool: MakeTool) -> None:
    """Calls made together start from the context before the batch: none sees what another one changes meanwhile."""
    changed = Meeting(2)

    def work(context: dict[str, Any], name: str) -> str:
        context["items"].append(name)
        context[name] = True
        changed.wait()
        return f"{context['items']} {sorted(context)}"

    async def act(name: str, context_variables: dict[str, Any]) -> str:
        return await asyncio.to_thread(work, context_variables, name)

    tool = act if make_tool is async_tool else plain_tool(work, 2)
    swarm = make_swarm(ScriptedModel(together("a", "b")), tool_concurrency=2)
    response = run(swarm, Agent(functions=[tool]), user(), {"items": ["x"]})
    assert tool_contents(response) == ["['x', 'a'] ['a', 'items']", "['x', 'b'] ['b', 'items']"]
    assert response.context_variables == {"items": ["x", "b"], "a": True, "b": True}


@TOOLS
def test_the_last_call_in_the_order_of_the_model_wins(
    make_swarm: MakeSwarm, run: Run, make_tool: MakeTool, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two values that calls made together give a variable the later call's stays, and the loss is logged once."""

    def work(context: dict[str, Any], name: str) -> str:
        context["seat"] = name
        return name

    swarm = make_swarm(ScriptedModel(together("12A", "14C")), tool_concurrency=2)
    response = run(swarm, Agent(functions=[make_tool(work, 2)]), user())
    assert response.context_variables == {"seat": "14C"}
    (warning,) = warnings(caplog)
    assert "context_variables['seat']" in warning
    assert "'act' (call 1), 'act' (call 2); the value of 'act' (call 2) is kept" in warning


def test_a_result_beats_changes_in_place(make_swarm: MakeSwarm, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Results are applied after the batch, so an earlier call's Result wins over a later change in place; logged."""

    async def first() -> Result:
        return Result(value="first", context_variables={"seat": "12A"})

    async def second(context_variables: dict[str, Any]) -> str:
        context_variables["seat"] = "14C"
        return "second"

    agent = Agent(functions=[first, second])
    response = run(make_swarm(ScriptedModel([["first", "second"], "Done"])), agent, user())
    assert response.context_variables == {"seat": "12A"}
    (warning,) = warnings(caplog)
    assert "'first' (call 1), 'second' (call 2); the value of 'first' (call 1) is kept" in warning


@TOOLS
def test_a_removal_is_a_change(
    make_swarm: MakeSwarm, run: Run, make_tool: MakeTool, caplog: pytest.LogCaptureFixture
) -> None:
    """A variable that one call removes and a later one sets is set, and the difference is logged."""

    def work(context: dict[str, Any], name: str) -> str:
        del context["seat"]
        if name == "moves":
            context["seat"] = "14C"
        return name

    swarm = make_swarm(ScriptedModel(together("leaves", "moves")), tool_concurrency=2)
    response = run(swarm, Agent(functions=[make_tool(work, 2)]), user(), {"seat": "12A"})
    assert response.context_variables == {"seat": "14C"}
    assert len(warnings(caplog)) == 1


@TOOLS
def test_equal_and_different_variables_are_no_loss(
    make_swarm: MakeSwarm, run: Run, make_tool: MakeTool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is logged where calls made together set different variables, or one variable to equal values."""

    def work(context: dict[str, Any], name: str) -> Result:
        context["seen"] = ["passport"]
        context[name] = name
        return Result(value=name, context_variables={"checked": True})

    swarm = make_swarm(ScriptedModel(together("a", "b", "c")), tool_concurrency=3)
    response = run(swarm, Agent(functions=[make_tool(work, 3)]), user())
    assert response.context_variables == {"seen": ["passport"], "checked": True, "a": "a", "b": "b", "c": "c"}
    assert warnings(caplog) == []


def test_calls_in_order_lose_nothing(make_swarm: MakeSwarm, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Calls made one after the other build on each other, so different values of a variable are no loss."""

    def act(name: str, context_variables: dict[str, Any]) -> str:
        context_variables["order"] = [*context_variables.get("order", []), name]
        return str(context_variables["order"])

    response = run(make_swarm(ScriptedModel(together("a", "b"))), Agent(functions=[act]), user())
    assert tool_contents(response) == ["['a']", "['a', 'b']"]
    assert response.context_variables == {"order": ["a", "b"]}
    assert warnings(caplog) == []


@TOOLS
def test_a_failed_call_told_to_the_model_keeps_its_changes(
    make_swarm: MakeSwarm, run: Run, make_tool: MakeTool
) -> None:
    """With `tool_errors="tell"` what a call changed before its exception is kept, as for calls made in order."""

    def work(context: dict[str, Any], name: str) -> str:
        context[name] = "begun"
        raise LookupError(name)

    swarm = make_swarm(ScriptedModel(together("a", "b")), tool_concurrency=2, tool_errors="tell")
    response = run(swarm, Agent(functions=[make_tool(work, 2)]), user())
    assert response.context_variables == {"a": "begun", "b": "begun"}


class Basket:
    """Something that has no JSON form."""

    def __init__(self) -> None:
        self.items: list[str] = []

    def __deepcopy__(self, memo: Any) -> Basket:
        return self


@TOOLS
def test_an_object_in_memory_is_itself(run: Run, make_tool: MakeTool, caplog: pytest.LogCaptureFixture) -> None:
    """In memory a value without a JSON form is no copy in any call: changes of the object are its own, and stay."""
    basket = Basket()
    seen: list[Any] = []

    def work(context: dict[str, Any], name: str) -> str:
        seen.append(context["basket"])
        context["basket"].items.append(name)
        context["count"] = 1
        context.setdefault(f"own {name}", Basket())
        return name

    swarm = Swarm(ScriptedModel(together("a", "b")), tool_concurrency=2)
    response = run(swarm, Agent(functions=[make_tool(work, 2)]), user(), {"basket": basket})
    assert all(one is basket for one in seen)
    assert sorted(basket.items) == ["a", "b"]
    assert response.context_variables["basket"] is basket
    assert sorted(response.context_variables) == ["basket", "count", "own a", "own b"]
    assert warnings(caplog) == []


@TOOLS
def test_another_object_in_its_place_is_a_change(
    run: Run, make_tool: MakeTool, caplog: pytest.LogCaptureFixture
) -> None:
    """In memory a call that puts another object in a variable's place changes it; two such calls lose one of them."""
    baskets = {"a": Basket(), "b": Basket()}

    def work(context: dict[str, Any], name: str) -> str:
        context["basket"] = baskets[name]
        return name

    swarm = Swarm(ScriptedModel(together("a", "b")), tool_concurrency=2)
    response = run(swarm, Agent(functions=[make_tool(work, 2)]), user(), {"basket": Basket()})
    assert response.context_variables["basket"] is baskets["b"]
    assert len(warnings(caplog)) == 1


@TOOLS
def test_replay_does_not_warn_again(
    make_tool: MakeTool, tmp_path: Path, fresh_sqlite: Callable[[Path], str], caplog: pytest.LogCaptureFixture
) -> None:
    """A lost update is logged by the process that made the calls, and not by one that reads their records."""
    caplog.set_level(logging.WARNING, "durable_swarm")

    def work(context: dict[str, Any], name: str) -> str:
        context["seat"] = name
        return name

    agent = Agent(name=f"Seats {make_tool.__name__}", functions=[make_tool(work, 2)])
    url = fresh_sqlite(tmp_path / "runs.sqlite")
    replies = together("12A", "14C")
    failing = ScriptedModel([replies[0], ValueError("no")])
    with DurableSwarm(failing, database=url, tool_concurrency=2) as swarm, pytest.raises(ValueError, match="no"):
        swarm.run(agent, user(), run_id="seats")
    assert len(warnings(caplog)) == 1
    with DurableSwarm(ScriptedModel(replies), database=url, tool_concurrency=2) as swarm:
        run = swarm.get("seats")
        run.resume()
        assert run.result(PATIENCE).context_variables == {"seat": "14C"}
    assert len(warnings(caplog)) == 1
