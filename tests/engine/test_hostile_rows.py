"""Rows of other shapes than were ever written are data: one clear error for their run, nothing for any other."""

from __future__ import annotations

import contextlib
import json
import threading
from typing import Any

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, DurableSwarmError, step
from durable_swarm.cli import main
from durable_swarm.codec import decode
from durable_swarm.testing import ScriptedModel
from tests.crash.matrix import LONG
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, Program, change, rows, unique, user

DEEP = "[" * 100_000 + "]" * 100_000
TAGS: list[Any] = [
    {"$type": "__class__", "value": "os.system"},
    {"$type": "__import__", "value": "os"},
    {"$type": ["dict"], "value": []},
    {"$type": "tuple", "value": 5},
    {"$type": "dict", "value": [[{"$type": "dict", "value": []}, 1]]},
    {"$type": "set", "value": [[1]]},
    {"$type": "text", "value": '\\"], "x": ["'},
    {"$type": "text", "value": "\\"},
    {"$type": "decimal", "value": "one"},
    {"$type": "decimal", "value": [5, [1], "x"]},
    {"$type": "bytes", "value": 5},
    {"$type": "int", "value": "0x" + "f" * 100_000 + "z"},
    {"$type": "timedelta", "value": [10**30, 0, 0]},
    {"$type": "datetime", "value": {"$type": "datetime"}},
    {"$type": "uuid"},
    {"$type": "float", "value": [1]},
]
SHAPES: list[Any] = [
    *(None, 5, True, "text", [], [1], {}),
    *({"v": None}, {"v": "1"}, {"v": True}, {"v": -1}, {"v": 99}, {"v": [1]}),
    *({"v": 1}, {"v": 1, "sealed": "text"}, {"v": 1, "sealed": 5}),
    *(
        {"v": 1, "agent": agent, "swarm": "", "messages": [], "context": {}}
        for agent in (5, None, ["x"], {"$type": "x"}, "")
    ),
    *(
        {"v": 1, "agent": "Clerk", "swarm": "", "messages": messages, "context": {}}
        for messages in (5, "x", {}, [5], [[]], [None])
    ),
    *(
        {"v": 1, "agent": "Clerk", "swarm": "", "messages": [], "context": context}
        for context in (5, [], "x", [[1, 2]], {"$type": "tuple", "value": []})
    ),
    {"v": 1, "agent": "Clerk", "swarm": "", "messages": [], "context": {}, "max_turns": "many"},
    {"v": 1, "agent": "Clerk", "swarm": ["x"], "messages": [], "context": {}},
    {"v": 1, "agent": "Clerk", "swarm": "", "messages": [], "context": {}, "model_override": {"x": 1}},
    {"v": 1, "agent": "Clerk", "swarm": "", "messages": [], "context": {}, "kept": [5]},
    {"v": 1, "agent": "Clerk", "swarm": "", "messages": [], "context": {}, "detours": {"x": 5}},
    *(
        {"v": 1, "message": message}
        for message in (5, [], None, {"tool_calls": 5}, {"tool_calls": [5]}, {"tool_calls": [{"function": 5}]})
    ),
    {"v": 1, "message": {"content": "x"}, "usage": [1]},
    {"v": 1, "message": {"content": "x"}, "usage": ["a", "b", "c", "d"]},
    {"v": 1, "message": {"content": {"$type": "__class__", "value": 1}}},
    *({"v": 1, "plan": plan, "message": {"content": ""}} for plan in (5, ["step"], [{}], {"tell": 1})),
    *({"v": 1, "text": text} for text in (5, [], {"a": 1}, TAGS[0])),
    *({"v": 1, "agent": agent, "text": "x"} for agent in (5, [], {"a": 1})),
    *(
        {"v": 1, "changed": changed, "text": "x"}
        for changed in (5, [], "x", {"a": TAGS[0]}, {"$type": "tuple", "value": [1]})
    ),
    *({"v": 1, "updates": changed, "text": "x"} for changed in (5, [1], "x", {"a": TAGS[0]})),
    *({"v": 1, "removed": removed, "text": "x"} for removed in (5, [[]], [{}], "x")),
    *({"v": 1, "value": value} for value in TAGS),
    *(
        {"v": 1, "raised": raised}
        for raised in (5, [], "x", {}, {"type": 5}, {"type": "os.system", "state": {}, "args": []})
    ),
    {"v": 1, "raised": {"type": "ValueError", "args": 5, "state": {}}},
    {"v": 1, "raised": {"type": "ValueError", "args": [], "state": {"__class__": "x", "__dict__": 5}}},
    {
        "v": 1,
        "raised": {"type": "ValueError", "own": {"type": "RunFailed", "message": 5, "attributes": {"__class__": 5}}},
    },
    {"v": 1, "raised": {"type": "ValueError", "own": {"type": 5, "attributes": {"message": 5}}}},
]
PLACES = {
    "input": ("workflow_input", "inputs", "workflow_uuid = :run"),
    "model": ("operation_outputs", "output", "workflow_uuid = :run AND function_id = 1"),
    "step tool": ("operation_outputs", "output", "workflow_uuid = :run AND function_name LIKE 'tool:%'"),
    "tool": ("workflow_output", "output", "workflow_uuid = :run || '/0.0'"),
    "inner step": ("operation_outputs", "output", "workflow_uuid = :run || '/1.0'"),
}
FORGERIES = [DEEP, "", "{", *map(json.dumps, SHAPES)]


@step
def inner(number: int) -> int:
    """Make a step."""
    return number


@step
def double(number: int) -> int:
    """Double a number."""
    return 2 * number


class Clerk:
    """An agent with every kind of record, whose second turn waits to be let go."""

    def __init__(self) -> None:
        self.entered, self.opened, self.seen = threading.Event(), threading.Event(), list[Any]()
        self.agent = Agent(name=unique(), functions=[self.compute, double, self.hold])
        self.replies: list[Any] = [[("compute", {"number": 1}), ("double", {"number": 2})], ["hold"], "Done"]

    def compute(self, number: int, context_variables: dict[str, Any]) -> str:
        """Make a step."""
        context_variables["computed"] = number
        return str(inner(number))

    def hold(self) -> str:
        """Make a step, and wait."""
        self.seen.append(inner(2))
        self.entered.set()
        assert self.opened.wait(PATIENCE)
        return "held"


def forge(url: str, place: str, text: str, run_id: str = "r") -> None:
    """Put a text in the place of a record, as somebody could who may write the database."""
    table, column, where = PLACES[place]
    if place == "input":
        text = f'{{"positionalArgs":[{text}],"namedArgs":{{}}}}'
    change(url, f"UPDATE {{schema}}{table} SET {column} = :text WHERE {where}", text=text, run=run_id)


def looks(swarm: DurableSwarm, run_id: str) -> list[DurableSwarmError]:
    """Look at a run in every way, and give the errors; any that is not of this package fails the test."""
    run, found = swarm.get(run_id), []
    for look in (run.messages, run.steps, lambda: run.usage, lambda: run.status, lambda: run.agent, swarm.runs):
        try:
            look()
        except DurableSwarmError as error:
            found.append(error)
    return found


@pytest.mark.parametrize("place", PLACES)
def test_reading_hostile_rows(make: Make, url: str, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever stands in a row, reading the run gives an answer or one clear error, in a line."""
    program = Clerk()
    program.opened.set()
    with make(ScriptedModel(program.replies)) as swarm:
        swarm.run(program.agent, user(), run_id="r")
        for text in FORGERIES if LONG else FORGERIES[::4]:
            forge(url, place, text)
            for error in looks(swarm, "r"):
                assert "\n" not in str(error), text[:100]
                assert len(str(error)) < 1000
            assert main(["show", "r", "--database", url]) in (0, 1, 2)
            assert "should not happen" not in capsys.readouterr().err, text[:200]


NOTES = ["[1]", '"x"', "5", "null", '{"agent":[1],"swarm":{},"at":"x"}', '{"at":1e300}', '{"at":-1,"agent":5}', "{"]
DAMAGED = NOTES[-1]
"""What PostgreSQL refuses in a JSON column."""


def note(url: str, text: str, more: str = "") -> bool:
    """Put a text in the place of the notes on the run `bad`; False if the database refuses it."""
    if text == DAMAGED and not url.startswith("sqlite"):
        return False
    value = ":text" if url.startswith("sqlite") else "CAST(:text AS jsonb)"
    change(
        url,
        f"UPDATE {{schema}}workflow_status SET attributes = {value}{more} WHERE workflow_uuid = 'bad'",
        text=text,
    )
    return True


def test_hostile_notes_are_none(make: Make, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Notes on a run that have not the form they are written in count as none, for it and for lists of runs."""
    with make(ScriptedModel(["Done", "Done"])) as swarm:
        for run_id in ("good", "bad"):
            swarm.run(Agent(), user(), run_id=run_id)
        began = swarm.get("bad").created_at
        for text in filter(lambda text: note(url, text), NOTES):
            assert looks(swarm, "bad") == [], text
            assert {run.id for run in swarm.runs()} == {"good", "bad"}
            assert abs((swarm.get("bad").created_at - began).total_seconds()) < PATIENCE, text
            assert main(["runs", "--database", url]) == 0
            assert "bad" in capsys.readouterr().out
        change(url, "UPDATE {schema}workflow_status SET created_at = 8000000000000000 WHERE workflow_uuid = 'bad'")
        assert swarm.get("bad").created_at.year == 1970


@pytest.mark.parametrize("text", NOTES)
def test_hostile_notes_keep_no_other_run_from_being_taken_over(make: Make, url: str, text: str) -> None:
    """A run whose notes tell nothing stays where it is, and the others of its dead process are taken over."""
    agent = Agent(name=unique())
    with make(ScriptedModel(["Done", "Done"])) as swarm:
        for run_id in ("good", "bad"):
            swarm.run(agent, user(), run_id=run_id)
    dead = ", status = 'PENDING', executor_id = 'dead'"
    if not note(url, text, dead):
        pytest.skip("the database refuses it")
    change(url, f"UPDATE {{schema}}workflow_status SET {dead[2:]} WHERE workflow_uuid = 'good'")
    with make(ScriptedModel([])) as swarm:
        assert [run.id for run in swarm.recover()] == ["good"]
        assert swarm.get("good").result(PATIENCE).messages[-1]["content"] == "Done"
        assert swarm.get("bad").status == "running"


def test_a_status_of_another_version(make: Make, url: str) -> None:
    """A row of a status that this version does not know has one clear error, and lists go on without it."""
    with make(ScriptedModel(["Done"])) as swarm:
        swarm.run(Agent(), user(), run_id="bad")
        change(url, "UPDATE {schema}workflow_status SET status = 'LATER' WHERE workflow_uuid = 'bad'")
        with pytest.raises(ConfigurationError, match="status 'LATER', which this version"):
            print(swarm.get("bad").status)
        assert swarm.runs() == []


LIVES = """
    import asyncio, json, sys, time
    from durable_swarm import Agent, DurableSwarm, DurableSwarmError, step
    from durable_swarm.testing import ScriptedModel

    @step
    def inner(number: int) -> int:
        return number

    @step
    def double(number: int) -> int:
        return 2 * number

    def compute(number: int, context_variables: dict) -> str:
        context_variables["computed"] = number
        return str(inner(number))

    async def hold() -> str:
        inner(2)
        if life == "first":
            await asyncio.sleep(60)
        return "held"

    def reply(request):
        turn = sum(message["role"] == "assistant" for message in request["messages"])
        first = [("compute", {"number": 1}), ("double", {"number": 2})]
        return [first, ["hold"], "Done"][min(turn, 2)]

    url, life, *ids = sys.argv[1:]
    agent = Agent(name="Clerk", functions=[compute, double, hold])
    with DurableSwarm(ScriptedModel(reply, strict=False), database=url) as swarm:
        if life == "first":
            for run_id in ids:
                swarm.start(agent, [{"role": "user", "content": "Hi"}], run_id=run_id)
            time.sleep(60)
        found, begun = {}, time.monotonic()
        for run_id in ids:
            deadline = begun + (20 if run_id.startswith("good") else 5)
            run, told = swarm.get(run_id), "under way"
            while told == "under way":
                try:
                    told = run.result(0.05).messages[-1]["content"]
                except TimeoutError:
                    if time.monotonic() > deadline:
                        break
                except DurableSwarmError as error:
                    told = f"{type(error).__name__}: {error}"
            found[run_id] = told
    print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_recovering_hostile_rows(url: str, place: str) -> None:
    """A process that takes over runs with hostile rows says of each what is wrong, and the others go on."""
    program = Program(LIVES)
    bad = {f"bad-{number}": text for number, text in enumerate(FORGERIES if LONG else FORGERIES[::6])}
    good = ["good-1", "good-2", "good-3"]
    ids = [*good[:1], *bad, *good[1:]]
    program.run_and_kill(lambda: _open_calls(url) == len(ids), url, "first", *ids)
    for run_id, text in bad.items():
        forge(url, place, text, run_id)
    found = program.run(url, "second", *good, *bad)
    assert {found[run_id] for run_id in good} == {"Done"}
    for run_id, text in bad.items():
        assert "\n" not in found[run_id]
        clear = (
            "Done",
            "RunFailed: ",
            "Unreadable: ",
            "ReplayMismatch: ",
            "ConfigurationError: ",
            "UnknownAgent: ",
            "under way",
        )
        assert found[run_id].startswith(clear), (text[:200], found[run_id])
    assert "Traceback" not in found["stderr"], found["stderr"][-3000:]


def _open_calls(url: str) -> int:
    with contextlib.suppress(Exception):
        return sum(call.endswith("/1.0") for (call,) in rows(url, "workflow_uuid", "operation_outputs"))
    return 0


@pytest.mark.parametrize("tag", TAGS, ids=lambda tag: str(tag)[:40])
def test_tags_of_the_codec(tag: Any) -> None:
    """A tagged value that was never written is refused with ValueError, or is plain data."""
    for hostile in (tag, [tag], {"a": tag}, {"$type": "tuple", "value": [tag]}):
        with contextlib.suppress(ValueError):
            assert type(json.loads(json.dumps(decode(hostile), default=repr))) in (str, list, dict)
