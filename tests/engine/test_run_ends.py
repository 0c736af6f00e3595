"""How runs end otherwise: cancelled, failed, refused, repeated; and how they go on."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from durable_swarm import (
    Agent,
    DurableSwarm,
    ModelError,
    NotSerializable,
    RunCancelled,
    RunConflict,
    RunFailed,
    ToolError,
    step,
)
from durable_swarm.models.wire import to_wire
from durable_swarm.testing import ProviderError, ScriptedModel, check_request
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, Program, stored_runs, unique, user, wait_until


class Gate:
    """A tool that begins, and waits until it may end; it counts how often it was called."""

    def __init__(self) -> None:
        self.entered, self.opened, self.calls = threading.Event(), threading.Event(), 0

    def hold(self) -> str:
        """Wait for the gate to open."""
        self.calls += 1
        self.entered.set()
        assert self.opened.wait(PATIENCE)
        return "passed"


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A gate, opened after the test whatever happens."""
    made = Gate()
    yield made
    made.opened.set()


class OutOfStock(Exception):
    """An exception of a program, with an attribute."""

    def __init__(self, item: str) -> None:
        super().__init__(f"no {item} left")
        self.item = item


# Cancelling and going on


def test_cancel(make_anywhere: Make, gate: Gate) -> None:
    """A cancelled run stops at its next checkpoint: its result raises RunCancelled, its history stays legal."""
    model = ScriptedModel([["hold"], "never"])
    run = make_anywhere(model).start(Agent(name=unique(), functions=[gate.hold]), user(), run_id="r")
    assert gate.entered.wait(PATIENCE)
    run.cancel()
    assert run.status == "cancelled"
    gate.opened.set()
    with pytest.raises(RunCancelled, match=r"run 'r' was cancelled; Run\.resume\(\) continues it") as caught:
        run.result(PATIENCE)
    assert caught.value.run_id == "r"
    assert len(model.calls) == 1
    check_request({"model": "m", "messages": [to_wire(message) for message in user() + run.messages()]})


def test_cancelled_while_run_waits(make: Make, gate: Gate) -> None:
    """A blocking `run` that is cancelled from elsewhere raises RunCancelled, and so does `run_async`."""
    swarm = make(ScriptedModel([["hold"], ["hold"], "never"]))

    def cancel(run_id: str) -> None:
        assert gate.entered.wait(PATIENCE)
        swarm.get(run_id).cancel()
        gate.opened.set()

    threading.Thread(target=cancel, args=["one"]).start()
    with pytest.raises(RunCancelled):
        swarm.run(Agent(name=unique(), functions=[gate.hold]), user(), run_id="one")
    gate.entered.clear()
    gate.opened.clear()
    threading.Thread(target=cancel, args=["two"]).start()
    with pytest.raises(RunCancelled):
        asyncio.run(swarm.run_async(Agent(name=unique(), functions=[gate.hold]), user(), run_id="two"))


def test_resume_after_cancel(make_anywhere: Make, gate: Gate) -> None:
    """A cancelled run goes on with `resume` from its first unfinished step; what was recorded is not repeated."""
    model = ScriptedModel([["note"], ["hold"], "Done"])
    noted: list[int] = []

    def note() -> str:
        noted.append(1)
        return "noted"

    agent = Agent(name=unique(), functions=[note, gate.hold])
    run = make_anywhere(model).start(agent, user(), run_id="r")
    assert gate.entered.wait(PATIENCE)
    run.cancel()
    gate.opened.set()
    with pytest.raises(RunCancelled):
        run.result(PATIENCE)
    run.resume()
    assert run.result(PATIENCE).messages[-1]["content"] == "Done"
    assert run.status == "done"
    assert (len(noted), gate.calls, len(model.calls)) == (1, 2, 3)
    assert agent.functions


def test_cancelling_what_has_ended(make: Make) -> None:
    """Cancelling or resuming a run that is done changes nothing."""
    swarm = make(ScriptedModel(["Done"]))
    response = swarm.run(Agent(name=unique()), user(), run_id="r")
    run = swarm.get("r")
    run.cancel()
    run.resume()
    assert run.status == "done"
    assert run.result().messages == response.messages


def test_cancelling_twice(make: Make, gate: Gate) -> None:
    """A run may be cancelled again and again, and its result read as often: always RunCancelled."""
    run = make(ScriptedModel([["hold"]])).start(Agent(name=unique(), functions=[gate.hold]), user())
    assert gate.entered.wait(PATIENCE)
    for _ in range(3):
        run.cancel()
    gate.opened.set()
    for _ in range(2):
        with pytest.raises(RunCancelled):
            run.result(PATIENCE)


# Failing and going on


def test_a_failed_run(make_anywhere: Make) -> None:
    """An exception of a tool ends the run with that very exception, and the run is failed."""
    error = OutOfStock("tea")

    def order() -> str:
        raise error

    swarm = make_anywhere(ScriptedModel([["order"], "never"]))
    with pytest.raises(OutOfStock) as caught:
        swarm.run(Agent(name=unique(), functions=[order]), user(), run_id="r")
    assert caught.value is error
    run = swarm.get("r")
    assert run.status == "failed"
    check_request({"model": "m", "messages": [to_wire(message) for message in user() + run.messages()]})


def test_the_same_id_of_a_failed_run(make: Make) -> None:
    """A failed run called again by its id fails again as it did, and repeats nothing."""
    calls: list[int] = []

    def order() -> str:
        calls.append(1)
        raise OutOfStock("tea")

    swarm = make(ScriptedModel([["order"]]))
    agent = Agent(name=unique(), functions=[order])
    for _ in range(2):
        with pytest.raises((OutOfStock, RunFailed), match="no tea left"):
            swarm.run(agent, user(), run_id="r")
    assert len(calls) == 1


def test_resume_after_a_failure(make_anywhere: Make) -> None:
    """Once the cause is mended, `resume` repeats the failed call and nothing before it."""
    model = ScriptedModel([[("note", {}), ("order", {})], "Done"])
    noted: list[int] = []
    stock = {"tea": 0}

    def note() -> str:
        noted.append(1)
        return "noted"

    def order() -> str:
        if not stock["tea"]:
            raise OutOfStock("tea")
        return "tea"

    swarm = make_anywhere(model)
    agent = Agent(name=unique(), functions=[note, order])
    with pytest.raises(OutOfStock):
        swarm.run(agent, user(), run_id="r")
    stock["tea"] = 1
    run = swarm.get("r")
    run.resume()
    assert run.agent == agent.name
    assert [message["content"] for message in run.result(PATIENCE).messages] == [None, "noted", "tea", "Done"]
    assert run.status == "done"
    assert (len(noted), len(model.calls)) == (1, 2)


def test_resume_after_a_model_error(make_anywhere: Make) -> None:
    """A run that the provider refused goes on with `resume` once the provider takes it."""
    model = ScriptedModel([["note"], ProviderError("no credit", status_code=402), "Done"])

    def note() -> str:
        return "noted"

    swarm = make_anywhere(model)
    agent = Agent(name=unique(), functions=[note])
    with pytest.raises(ModelError):
        swarm.run(agent, user(), run_id="r")
    run = swarm.get("r")
    assert run.status == "failed"
    run.resume()
    assert run.agent == agent.name
    assert [message["content"] for message in run.result(PATIENCE).messages] == [None, "noted", "Done"]
    assert run.usage is not None


def test_resume_of_a_failed_step(make: Make) -> None:
    """A failed `@step` inside a tool is repeated by `resume`; the finished steps before it are not."""
    done: list[str] = []
    broken = [True]

    @step
    def pay() -> str:
        done.append("paid")
        return "paid"

    @step
    def ship() -> str:
        done.append("shipped")
        if broken:
            raise OutOfStock("box")
        return "shipped"

    def order() -> str:
        return f"{pay()}, {ship()}"

    swarm = make(ScriptedModel([["order"], "Done"]))
    agent = Agent(name=unique(), functions=[order])
    with pytest.raises(OutOfStock):
        swarm.run(agent, user(), run_id="r")
    broken.clear()
    run = swarm.get("r")
    run.resume()
    assert run.agent == agent.name
    assert run.result(PATIENCE).messages[1]["content"] == "paid, shipped"
    assert done == ["paid", "shipped", "shipped"]


READER = """
    import json, sys
    from durable_swarm import Agent, DurableSwarm
    from durable_swarm.testing import ScriptedModel

    with DurableSwarm(ScriptedModel([]), database=sys.argv[1]) as swarm:
        run = swarm.get("r")
        try:
            run.result(20)
        except Exception as error:
            found = {"class": type(error).__name__, "text": str(error), "run": run.status, **error.attributes}
            print(json.dumps(found))
"""


def test_a_failure_read_in_another_process(make_anywhere: Make, database_url: str) -> None:
    """Elsewhere a failure is RunFailed, with the exception's type, text and traceback as plain texts."""

    def order() -> str:
        raise OutOfStock("ü\0\ud800")

    swarm = make_anywhere(ScriptedModel([["order"]]))
    with pytest.raises(OutOfStock):
        swarm.run(Agent(name=unique(), functions=[order]), user(), run_id="r")
    found = Program(READER).run(database_url)
    assert (found["class"], found["run"], found["run_id"]) == ("RunFailed", "failed", "r")
    assert found["error_type"] == f"{OutOfStock.__module__}.OutOfStock"
    assert found["error_message"] == "no ü\0\ud800 left"
    assert found["traceback"].startswith("Traceback (most recent call last)")
    assert "in order" in found["traceback"]
    assert "raise OutOfStock" in found["traceback"]
    assert found["text"].startswith(f"run 'r' failed with {OutOfStock.__module__}.OutOfStock: no ü")


def test_an_own_error_read_in_another_process(make_anywhere: Make, database_url: str) -> None:
    """Errors of this package come back elsewhere as what they are, with their attributes, and say they are recorded."""
    swarm = make_anywhere(ScriptedModel([ProviderError("not like this", status_code=422)]))
    with pytest.raises(ModelError) as caught:
        swarm.run(Agent(), user(), run_id="r")
    found = Program(READER).run(database_url)
    assert found["class"] == "ModelError"
    assert re.fullmatch(rf"{re.escape(str(caught.value))} \(recorded at .*durable-swarm resume r\)", found["text"])
    assert (found["run"], found["status"], found["error_type"], found["tries"]) == ("failed", 422, "ProviderError", 1)


# The same id again


def test_the_same_call_again(make_anywhere: Make) -> None:
    """The same id with the same arguments gives the recorded response: neither model nor tools are called again."""
    calls: list[int] = []

    def note() -> str:
        calls.append(1)
        return "noted"

    model = ScriptedModel([["note"], "Done"])
    swarm = make_anywhere(model)
    agent = Agent(name=unique(), functions=[note])
    responses = [swarm.run(agent, user(), run_id="r") for _ in range(2)]
    responses.append(asyncio.run(swarm.run_async(agent, user(), run_id="r")))
    responses.append(swarm.start(agent, user(), run_id="r").result())
    assert all(response.messages == responses[0].messages for response in responses)
    assert all(response.run_id == "r" for response in responses)
    assert (len(calls), len(model.calls)) == (1, 2)


@pytest.mark.parametrize("change", ["agent", "messages"])
@pytest.mark.parametrize("method", ["run", "run_async", "start", "start_async"])
def test_the_same_id_for_something_else(make: Make, method: str, change: str) -> None:
    """The id of a run with another agent or other messages raises RunConflict, says which, and changes nothing."""
    swarm = make(ScriptedModel(["Done"]))
    swarm.run(Agent(name="A"), user("one"), run_id="r")
    agent, messages = (Agent(name="B"), user("one")) if change == "agent" else (Agent(name="A"), user("two"))

    async def call() -> None:
        result: Any = getattr(swarm, method)(agent, messages, run_id="r")
        if asyncio.iscoroutine(result):
            await result

    wanted = "agent 'A'" if change == "agent" else "other messages"
    with pytest.raises(RunConflict, match=wanted) as caught:
        asyncio.run(call())
    assert caught.value.run_id == "r"
    assert swarm.get("r").status == "done"


def test_the_same_id_while_it_runs(make_anywhere: Make, gate: Gate) -> None:
    """The id of a run under way attaches to it: all callers get the one response, and the tool runs once."""
    model = ScriptedModel([["hold"], "Done"])
    swarm = make_anywhere(model)
    agent = Agent(name=unique(), functions=[gate.hold])
    first = swarm.start(agent, user(), run_id="r")
    assert gate.entered.wait(PATIENCE)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(swarm.run(agent, user(), run_id="r"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    again = swarm.start(agent, user(), run_id="r")
    assert again.status == "running"
    gate.opened.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert [response.messages for response in found] == [first.result(PATIENCE).messages] * 3
    assert (gate.calls, len(model.calls)) == (1, 2)


def test_many_at_once_with_one_id(make_anywhere: Make) -> None:
    """Threads and tasks that start one id at the same moment make one run, and all get its response."""
    calls: list[int] = []

    def note() -> str:
        calls.append(1)
        return "noted"

    model = ScriptedModel([["note"], "Done"])
    swarm = make_anywhere(model)
    agent = Agent(name=unique(), functions=[note])
    barrier, found = threading.Barrier(6), []

    def call() -> None:
        barrier.wait(PATIENCE)
        found.append(swarm.run(agent, user(), run_id="r").messages)

    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    async def main() -> list[Any]:
        return list(await asyncio.gather(*(swarm.run_async(agent, user(), run_id="r") for _ in range(6))))

    found += [response.messages for response in asyncio.run(main())]
    assert len(found) == 12
    assert all(messages == found[0] for messages in found)
    assert (len(calls), len(model.calls), len(swarm.runs())) == (1, 2, 1)


# Refused before anything is recorded


UNSTORABLE: dict[str, tuple[dict[str, Any], str]] = {
    "context": ({"context_variables": {"db": threading.Lock()}}, "context_variables['db']"),
    "deep context": ({"context_variables": {"a": {"b": [1, object()]}}}, "context_variables['a']['b'][1]"),
    "context key": ({"context_variables": {1: "x"}}, "context_variables[1]"),
    "message": ({"messages": [{"role": "user", "content": object()}]}, "messages[0]['content']"),
}


@pytest.mark.parametrize("kind", UNSTORABLE)
@pytest.mark.parametrize("method", ["run", "run_async", "start", "start_async"])
def test_what_cannot_be_stored_is_refused_first(make: Make, url: str, method: str, kind: str) -> None:
    """A value without JSON form raises NotSerializable with its path, before model, tool or database see anything."""
    given, path = UNSTORABLE[kind]
    model = ScriptedModel(["never"])
    swarm = make(model)

    async def call() -> None:
        result: Any = getattr(swarm, method)(Agent(), **{"messages": user(), **given})
        if asyncio.iscoroutine(result):
            await result

    with pytest.raises(NotSerializable) as caught:
        asyncio.run(call())
    assert caught.value.path == path
    assert path in str(caught.value)
    assert model.calls == []
    assert stored_runs(url) == 0


def test_run_inside_an_event_loop(make: Make) -> None:
    """`run` works where an event loop runs, and the run is recorded like any other."""
    swarm = make(ScriptedModel([["double"], "Done"]))

    @step
    def double() -> str:
        return "2"

    async def main() -> None:
        assert swarm.run(Agent(name=unique(), functions=[double]), user(), run_id="r").messages[-1]["content"] == "Done"
        assert [info.kind for info in swarm.get("r").steps()] == ["model", "tool", "model"]

    asyncio.run(main())


def test_a_tool_error_of_a_step_is_told(make: Make) -> None:
    """ToolError raised in a `@step` inside a tool passes through the tool and reaches the model."""

    @step
    def check() -> None:
        raise ToolError("not today")

    def order() -> None:
        check()

    response = make(ScriptedModel([["order"], "Done"])).run(Agent(name=unique(), functions=[order]), user())
    assert response.messages[1]["content"] == "Error: not today"


def test_an_exception_of_run_leaves_the_swarm_usable(make: Make, gate: Gate) -> None:
    """Ctrl+C in the calling thread leaves the run unfinished; the same id goes on with it, once."""
    model = ScriptedModel([["interrupt"], "Done"])
    interrupts = [KeyboardInterrupt]

    def interrupt() -> str:
        if interrupts:
            raise interrupts.pop()
        return "went on"

    swarm: DurableSwarm = make(model)
    agent = Agent(name=unique(), functions=[interrupt])
    with pytest.raises(KeyboardInterrupt):
        swarm.run(agent, user(), run_id="r")
    assert swarm.get("r").status == "running"
    response = swarm.run(agent, user(), run_id="r")
    assert [message["content"] for message in response.messages] == [None, "went on", "Done"]
    wait_until(lambda: swarm.get("r").status == "done")
    assert len(model.calls) == 2


def test_resumed_while_its_tool_still_works(make_anywhere: Make) -> None:
    """A run that is cancelled and resumed while its tool works goes on: the call is made again, and waited for."""
    gate = Gate()
    swarm = make_anywhere(ScriptedModel([["hold"], "Done."]))
    agent = Agent(name=unique(), functions=[gate.hold])
    run = swarm.start(agent, user())
    assert gate.entered.wait(PATIENCE)
    run.cancel()
    run.resume()
    gate.opened.set()
    assert run.result(timeout=PATIENCE).messages[-1]["content"] == "Done."
