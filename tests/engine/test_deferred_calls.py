"""An undecorated tool call is a step of its run, and becomes a workflow when it needs records of its own."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy
from dbos import DBOS

from durable_swarm import Agent, DurableSwarm, sleep, sleep_async, step, tool
from durable_swarm.engine.backend import queues
from durable_swarm.engine.records import names
from durable_swarm.testing import ScriptedModel, call
from tests.engine.codecs import encrypted
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, change, rows, unique, user, wait_until


@step
def noted(number: int) -> int:
    """Return the next number, once."""
    return number + 1


@step
async def noted_async(number: int) -> int:
    """Return the next number, once."""
    return number + 1


@DBOS.step()
def noted_by_dbos(number: int) -> int:
    """Return the next number, once, as a step of DBOS itself."""
    return number + 1


@DBOS.step()
async def noted_by_dbos_async(number: int) -> int:
    """Return the next number, once, as a step of DBOS itself."""
    return number + 1


def plain() -> str:
    """Do nothing that needs a record."""
    return "2"


async def plain_async() -> str:
    """Do nothing that needs a record."""
    return "2"


def with_step() -> str:
    """Make a step."""
    return str(noted(1))


async def with_step_async() -> str:
    """Make a step on the event loop."""
    return str(await noted_async(1))


async def with_steps_together() -> str:
    """Make steps that overlap."""
    return str(max(await asyncio.gather(noted_async(0), noted_async(1), noted_async(-1))))


def with_sleep() -> str:
    """Sleep durably."""
    sleep(0.001)
    return "2"


async def with_sleep_async() -> str:
    """Sleep durably on the event loop."""
    await sleep_async(0.001)
    return "2"


@tool(effect="once")
def once() -> str:
    """Be marked before it is entered."""
    return "2"


@tool(effect="transactional")
def in_transaction(connection: sqlalchemy.Connection) -> str:
    """Be recorded in a transaction, which checks who owns the call."""
    return str(connection.execute(sqlalchemy.text("SELECT 2")).scalar())


def with_dbos() -> str:
    """Make a step of DBOS itself."""
    return str(noted_by_dbos(1))


async def with_dbos_async() -> str:
    """Make a step of DBOS itself on the event loop."""
    return str(await noted_by_dbos_async(1))


def with_dbos_event() -> str:
    """Store something under the id of the call."""
    DBOS.set_event("progress", "half")
    return "2"


def with_dbos_patch() -> str:
    """Ask DBOS which code to execute, whose record is written before its number is drawn."""
    return "2" if DBOS.patch("new") else "1"


async def with_dbos_patch_async() -> str:
    """Ask DBOS which code to execute on the event loop."""
    return "2" if await DBOS.patch_async("new") else "1"


WITHOUT: list[Callable[..., Any]] = [plain, plain_async]
WITH: list[Callable[..., Any]] = [
    with_step, with_step_async, with_steps_together, with_sleep, with_sleep_async, once, in_transaction, with_dbos,
    with_dbos_async, with_dbos_event, with_dbos_patch, with_dbos_patch_async,
]  # fmt: skip


def run(swarm: DurableSwarm, *tools: Callable[..., Any], run_id: str) -> str:
    """Make one call of the tools in a run, in one reply, and return the last result."""
    agent = Agent(name=unique(), functions=list(tools))
    return str(swarm.run(agent, user(), run_id=run_id).messages[-2]["content"])


def steps_of(url: str, run_id: str) -> list[str]:
    """Return the names of a run's recorded steps, in order."""
    found = rows(url, "workflow_uuid, function_id, function_name", "operation_outputs")
    return [name for _, _, name in sorted(row for row in found if row[0] == run_id)]


@pytest.mark.parametrize("made", WITHOUT, ids=lambda made: made.__name__)
def test_a_call_that_needs_no_records_is_one_row(
    made: Callable[..., Any], make_anywhere: Make, database_url: str
) -> None:
    """Its outcome is a step of the run, and no workflow of its own exists."""
    swarm = make_anywhere(ScriptedModel([[call(made.__name__)], "Done."]))
    assert run(swarm, made, run_id="r") == "2"
    assert steps_of(database_url, "r")[1] == names.TOOL
    assert [row[0] for row in rows(database_url, "workflow_uuid")] == ["r"]


@pytest.mark.parametrize("made", WITH, ids=lambda made: made.__name__)
def test_a_call_that_needs_records_is_a_workflow(
    made: Callable[..., Any], make_anywhere: Make, database_url: str
) -> None:
    """Steps, sleeps, marks, transactions and what DBOS records itself make a row for the call first."""
    swarm = make_anywhere(ScriptedModel([[call(made.__name__)], "Done."]))
    assert run(swarm, made, run_id="r") == "2"
    assert steps_of(database_url, "r")[1] == names.TOOL
    assert dict(map(tuple, rows(database_url, "workflow_uuid, status"))) == {"r": "SUCCESS", "r/0.0": "SUCCESS"}
    assert steps_of(database_url, "r/0.0") or made is in_transaction


def test_each_call_of_a_batch_decides_for_itself(make_anywhere: Make, database_url: str) -> None:
    """Calls that are made together are steps or workflows, each under the number that it has drawn."""
    tools = [*WITHOUT, *WITH, *WITHOUT]
    swarm = make_anywhere(ScriptedModel([[call(made.__name__) for made in tools], "Done."]), tool_concurrency=4)
    assert run(swarm, *WITHOUT, *WITH, run_id="r") == "2"
    made = [name for name in steps_of(database_url, "r") if not name.startswith("model:")]
    assert made == [names.TOOL] * len(tools)
    workflows = {row[0] for row in rows(database_url, "workflow_uuid")} - {"r"}
    assert workflows == {f"r/0.{index}" for index, one in enumerate(tools) if one in WITH}
    infos = [info for info in swarm.get("r").steps() if info.kind == "tool"]
    assert [info.name for info in infos] == [f"tool:{one.__name__}" for one in tools]
    assert {info.output for info in infos} == {"2"}


@pytest.mark.parametrize("made", [*WITHOUT, with_step], ids=lambda made: made.__name__)
def test_a_resumed_run_does_not_repeat_the_call(
    made: Callable[..., Any], make_anywhere: Make, database_url: str
) -> None:
    """The outcome is read back, through the codec, from the step of the run or from the workflow."""
    swarm = make_anywhere(ScriptedModel([[call(made.__name__)], RuntimeError("away"), "Done."]), codec=encrypted())
    agent = Agent(name=unique(), functions=[made])
    with pytest.raises(RuntimeError):
        swarm.run(agent, user(), run_id="r")
    before = rows(database_url, "workflow_uuid, function_id, output, completed_at_epoch_ms", "operation_outputs")
    swarm.get("r").resume()
    assert swarm.get("r").result().messages[-2]["content"] == "2"
    after = rows(database_url, "workflow_uuid, function_id, output, completed_at_epoch_ms", "operation_outputs")
    assert set(map(tuple, before)) <= set(map(tuple, after))


@pytest.mark.parametrize("early", [False, True], ids=["plain", "with-step"])
def test_calls_after_one_that_has_failed_are_not_in_progress(early: bool, make_anywhere: Make) -> None:
    """Calls are made in order: those after a call without a result have not begun, whether it is a workflow or not."""

    def fails() -> str:
        """Fail, before or after a step."""
        if early:
            noted(1)
        raise ValueError("no such account")

    swarm = make_anywhere(ScriptedModel([[call("plain"), call("fails"), call("plain")], "Done."]))
    agent = Agent(name=unique(), functions=[plain, fails])
    with pytest.raises(ValueError, match="no such account"):
        swarm.run(agent, user(), run_id="r")
    made = [(info.name, info.status) for info in swarm.get("r").steps() if info.kind == "tool"]
    assert made == [("tool:plain", "done"), ("tool:fails", "failed")]


@pytest.mark.parametrize("made", [plain, with_step], ids=lambda made: made.__name__)
@pytest.mark.parametrize("begins", ["before", "after"])
def test_the_call_of_a_run_that_was_taken_over_records_nothing(
    made: Callable[..., Any], begins: str, make_anywhere: Make, database_url: str
) -> None:
    """Whether the run was lost before the tool made its step or after it."""
    inside, goes_on = threading.Event(), threading.Event()

    def work() -> str:
        """Be in progress while the run is lost."""
        early = made() if begins == "after" else ""
        inside.set()
        assert goes_on.wait(PATIENCE)
        return early or str(made())

    swarm = make_anywhere(ScriptedModel([[call("work")], "Done."]))
    agent = Agent(name=unique(), functions=[work])
    run = swarm.start(agent, user(), run_id="r")
    assert inside.wait(PATIENCE)
    change(database_url, "UPDATE {schema}workflow_status SET owner_xid = 'another' WHERE workflow_uuid = 'r'")
    goes_on.set()
    wait_until(lambda: "r/0.0" not in queues.executing() and "r" not in queues.executing())
    assert steps_of(database_url, "r")[1:] == ([names.TOOL] if made is with_step and begins == "after" else [])
    assert run.status == "running"


def test_a_thread_that_the_tool_left_behind_makes_no_workflow_of_an_ended_call(
    make_anywhere: Make, database_url: str
) -> None:
    """What still runs when the tool has returned adds no row to a call that is recorded."""
    goes_on, left = threading.Event(), list[threading.Thread]()

    def late() -> None:
        assert goes_on.wait(PATIENCE)
        with contextlib.suppress(BaseException):  # It is told that the run has ended.
            noted(1)

    def work() -> str:
        """Leave a thread behind."""
        left.append(threading.Thread(target=contextvars.copy_context().run, args=(late,)))
        left[0].start()
        return "2"

    swarm = make_anywhere(ScriptedModel([[call("work")], "Done."]))
    assert run(swarm, work, run_id="r") == "2"
    goes_on.set()
    left[0].join(PATIENCE)
    assert steps_of(database_url, "r")[1] == names.TOOL
    assert [row[0] for row in rows(database_url, "workflow_uuid")] == ["r"]
