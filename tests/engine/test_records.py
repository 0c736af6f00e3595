"""The wire format: records of newer versions and of other programs are told apart, and nothing of them is guessed."""

from __future__ import annotations

import contextlib
import json
import threading
from typing import Any

import pytest

from durable_swarm import (
    Agent,
    ConfigurationError,
    DurableSwarm,
    DurableSwarmError,
    NotSerializable,
    ReplayMismatch,
    RunFailed,
    step,
)
from durable_swarm.engine.records import base, failures, runs
from durable_swarm.loop import Call, Outcome, Reply, Start
from durable_swarm.testing import ScriptedModel
from durable_swarm.types import Usage
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, change, rows, unique, user


@step
def double(number: int) -> int:
    """Double a number."""
    return 2 * number


def compute(number: int) -> str:
    """Use a step."""
    return str(double(number))


REPLIES: list[Any] = [[("compute", {"number": 2}), ("double", {"number": 5})], "Done"]
PLACES = {
    "input": ("workflow_input", "inputs", "workflow_uuid = 'r'"),
    "model call": ("operation_outputs", "output", "workflow_uuid = 'r' AND function_name LIKE 'model:%'"),
    "step tool": ("operation_outputs", "output", "workflow_uuid = 'r' AND function_name LIKE 'tool:%'"),
    "tool": ("workflow_output", "output", "workflow_uuid = 'r/0.0'"),
}


def rewrite(url: str, place: str, old: str, new: str) -> None:
    """Replace a text within a stored record."""
    table, name, where = PLACES[place]
    statement = f"UPDATE {{schema}}{table} SET {name} = replace({name}, :old, :new) WHERE {where}"
    change(url, statement, old=old, new=new)


@pytest.fixture
def recorded(make: Make, url: str) -> str:
    """The URL of a database in which the run "r" is recorded, closed."""
    with make(ScriptedModel(REPLIES)) as swarm:
        swarm.run(Agent(name=unique(), functions=[compute, double]), user(), run_id="r")
    return url


@pytest.mark.parametrize("place", PLACES)
def test_a_newer_record(make: Make, recorded: str, place: str) -> None:
    """A record of a newer version is refused with both versions and the advice to upgrade."""
    rewrite(recorded, place, '"v":1', '"v":2')
    with pytest.raises(ConfigurationError, match=r"newer version of durable-swarm.*version 2.*up to 1.*upgrade"):
        make(ScriptedModel([])).get("r").messages()


@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_record(make: Make, recorded: str, place: str) -> None:
    """A value without a version is no record of ours, which the error says with its place."""
    rewrite(recorded, place, '"v":1', '"w":1')
    with pytest.raises(ReplayMismatch, match=r"'r(/0\.0)?'.* is not a record of durable-swarm|is not a record.*'r"):
        make(ScriptedModel([])).get("r").messages()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("text", ["[]", '{"v":1}', "{"])
def test_broken_records(make: Make, recorded: str, place: str, text: str) -> None:
    """Whatever stands in a record's place, reading the run ends with an error of this package, never another."""
    table, name, where = PLACES[place]
    change(recorded, f"UPDATE {{schema}}{table} SET {name} = :text WHERE {where}", text=text)
    run = make(ScriptedModel([])).get("r")
    for look in (run.messages, run.steps, lambda: run.usage, lambda: run.created_at, lambda: run.result(1)):
        with contextlib.suppress(DurableSwarmError, TimeoutError):
            look()


def held_run(make: Make) -> Agent:
    """Leave the run "r" unfinished in its second turn, and give its agent; the tool goes on when called again."""
    entered, opened = threading.Event(), threading.Event()

    def hold() -> str:
        entered.set()
        assert opened.wait(PATIENCE)
        return "held"

    agent = Agent(name=unique(), functions=[compute, double, hold])
    swarm = make(ScriptedModel([*REPLIES[:1], ["hold"], "Done"]))
    swarm.start(agent, user(), run_id="r")
    assert entered.wait(PATIENCE)
    swarm.close()
    opened.set()
    return agent


def test_a_recorded_step_of_another_name(make: Make, url: str) -> None:
    """A run whose recorded step has another name than the code's is held, with ReplayMismatch, and not mixed."""
    agent = held_run(make)
    renamed = "UPDATE {schema}operation_outputs SET function_name = 'tool:other' WHERE function_name = 'tool:double'"
    change(url, renamed)
    model = ScriptedModel(["Done"])
    swarm = make(model)
    with pytest.raises(ReplayMismatch):
        swarm.get("r").result(PATIENCE)
    assert agent.name
    assert swarm.get("r").status == "running"
    assert model.calls == []


def test_a_newer_record_of_a_run_under_way(make: Make, url: str) -> None:
    """An older version that takes over a newer one's run holds it with a clear reason, and damages nothing."""
    agent = held_run(make)
    rewrite(url, "model call", '"v":1', '"v":7')
    swarm = make(ScriptedModel(["Done"]))
    with pytest.raises(ConfigurationError, match="upgrade the package"):
        swarm.get("r").result(PATIENCE)
    assert swarm.get("r").status == "running"
    rewrite(url, "model call", '"v":7', '"v":1')
    swarm.close()
    again = make(ScriptedModel(["never", "never", "Done"])).start(agent, user(), run_id="r")
    assert again.result(PATIENCE).messages[-1]["content"] == "Done"


def test_names_and_ids(recorded: str) -> None:
    """The names of workflows, steps and calls are those the format fixes."""
    assert sorted(tuple(row) for row in rows(recorded, "workflow_uuid, name")) == [
        ("r", "durable_swarm.run"),
        ("r/0.0", "durable_swarm.tool"),
    ]
    names = [row[0] for row in rows(recorded, "function_name", "operation_outputs")]
    assert sum(name.startswith("model:Clerk-") for name in names) == 2
    assert {"tool:double", "double", "durable_swarm.tool"} <= set(names)
    assert {row[0] for row in rows(recorded, "application_version")} == {"durable-swarm-1"}


def test_each_thing_is_recorded_once(make: Make, url: str) -> None:
    """Long texts stand in the database once: the input, a reply and a tool's result, whatever the number of turns."""
    texts = {name: f"{name}-" + "x" * 500 for name in ("input", "reply", "result")}

    def tell() -> str:
        return texts["result"]

    replies = [{"content": texts["reply"], "tool_calls": ["tell"]}, *[["nothing"]] * 5, "Done"]
    swarm: DurableSwarm = make(ScriptedModel(replies))
    swarm.run(Agent(functions=[tell, nothing]), user(texts["input"]), run_id="r")
    tables = {"workflow_input": "inputs", "workflow_output": "output", "operation_outputs": "output"}
    stored = " ".join(str(row[0]) for table, column in tables.items() for row in rows(url, column, table))
    assert {name: stored.count(text) for name, text in texts.items()} == {"input": 1, "reply": 1, "result": 1}


def nothing() -> str:
    """Do nothing."""
    return ""


def test_round_trips() -> None:
    """Start, reply and outcome come back from their records as they were."""
    start = Start("A", user("ü\0"), {"a": (1, {2}), "b": b"x"}, "m", 5, False)
    assert runs.read_start(_stored(runs.start_record(start, swarm="s", at=1.0, debug=True, stream=True))) == start
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{"}}
    message = {"role": "assistant", "content": "x", "tool_calls": [call, call]}
    calls = [Call(0, "c", "add", "{", "flow"), Call(1, "c", "add", "{", "tell", "Error: \0")]
    usage = Usage(requests=1, prompt_tokens=2, completion_tokens=3, total_tokens=5)
    reply = Reply(message, calls, usage, together=True, finish="length")
    record = runs.reply_record(reply, model="m", version="v", at=1, shown={"at": 3, "from": 0, "events": [[1, 1]]})
    assert runs.read_reply(_stored(record)) == reply
    outcome = Outcome("\0", "B", {"a": {1}}, {"b": (2,)}, ["c"])
    assert runs.read_outcome(_stored(runs.outcome_record(outcome))) == outcome


def _stored(record: base.Record) -> Any:
    return json.loads(json.dumps(record))


def test_a_failure_comes_back_as_text() -> None:
    """An exception of a program is read back as RunFailed: type, text and traceback, nothing executed."""
    try:
        raise LookupError("not there")
    except LookupError as error:
        record = failures.failure_record("r", error, step="tool:x")
    found = failures.read_failure(_stored(record))
    assert isinstance(found, RunFailed)
    assert (found.run_id, found.error_type, found.error_message) == ("r", "LookupError", "not there")
    assert found.traceback.endswith("LookupError: not there\n")


@pytest.mark.parametrize("key", [1, None, (1, "a"), "$type", "a\0b", "a\ud800"], ids=ascii)
def test_context_keys(key: Any) -> None:
    """Context variables have names: a key that is none is refused before anything runs, and the path names it."""
    context = {"fine": 1, key: 2}
    with pytest.raises(NotSerializable, match="keys must be strings") as caught:
        runs.start_record(Start("A", [], context), swarm="", at=0.0, debug=False, stream=False)
    assert caught.value.path == f"context_variables[{key!r}]"
    assert str(caught.value).isprintable()
