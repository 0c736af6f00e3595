"""Rows of events and those who read them when something is wrong: damage, locks, codecs that fail, closing."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from durable_swarm import Agent, ConfigurationError, ReplayMismatch, emit
from durable_swarm.concurrency import CallerThreadExecutor
from durable_swarm.engine.api.live_stream import dictionaries
from durable_swarm.engine.api.run import Run
from durable_swarm.engine.database.connection import connect
from durable_swarm.engine.database.urls import choose
from durable_swarm.redaction import Redacting
from durable_swarm.streaming import Channel
from durable_swarm.testing import ScriptedModel, call
from tests.contract.helpers import rebuilt, replies_in
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, connected, schema, unique, user
from tests.engine.test_events import plain, texts, told, transcript, types

WORDS = " ".join(f"word{number}" for number in range(60))


def insert(path: Path, run_id: str, value: str, seq: int = 1_000_000) -> None:
    """Put a row of events into a SQLite file."""
    columns = 'workflow_uuid, key, value, "offset", function_id'
    with sqlite3.connect(path) as connection:
        connection.execute(
            f"INSERT INTO streams ({columns}) VALUES (?, 'durable_swarm.events', ?, ?, 0)", (run_id, value, seq)
        )


@pytest.mark.parametrize(
    "value",
    [
        "{",
        "[]",
        '{"v":1,"turn":0,"upto":2000000000,"events":[[1,"x"]]}',
        '{"v":1,"turn":0,"upto":9,"events":[["x",{}]]}',
        '{"v":1,"progress":[[2]]}',
        '{"v":99,"turn":0,"upto":9,"events":[]}',
    ],
)
def test_damaged_rows(make: Make, value: str, tmp_path: Path) -> None:
    """A row that is damaged is an error that says so, or is told as far as it makes sense; never a hang, never code."""
    swarm = make(ScriptedModel(["Hi."]))
    agent = Agent(name=unique())
    run = swarm.start(agent, user())
    run.result()
    insert(tmp_path / "runs.sqlite", run.id, value)
    try:
        events = list(run.events())
    except (ReplayMismatch, ConfigurationError) as error:
        events = []
        told_as = str(error)
    assert (
        types(events)[-1] == "run.finished"
        if events
        else "damaged" in told_as or "newer version" in told_as or "is not a record" in told_as
    )


@pytest.mark.parametrize("value", ["{", '{"v":1,"progress":[[2]]}', '{"v":1,"turn":0,"upto":9,"events":[["x",{}]]}'])
def test_damaged_rows_hold_no_run(make: Make, tmp_path: Path, value: str, caplog: pytest.LogCaptureFixture) -> None:
    """A run goes on where a row of its events is damaged, and says so: events are no reason to hold it."""
    swarm = make(ScriptedModel([WORDS] * 2, pace=0.01))
    agent = Agent(name=unique())
    run = swarm.start(agent, user(), run_id="r")
    for event in run.events():
        if event.seq == 6:
            break
    swarm.close()
    insert(tmp_path / "runs.sqlite", "r", value, 1000)  # Behind whatever was written until it closed.
    assert make(ScriptedModel([WORDS])).get("r").result(timeout=PATIENCE).messages[0]["content"] == WORDS
    assert "continues, but the stored events of its text cannot be read" in caplog.text


def test_rows_are_few(make_anywhere: Make) -> None:
    """Rows are written at most twenty times a second, or per four thousand characters, however many tokens come."""
    swarm = make_anywhere(ScriptedModel([" ".join(["x"] * 300)], pace=0.002))
    agent = Agent(name=unique())
    run = swarm.start(agent, user())
    begun = time.monotonic()
    list(run.events())
    took = time.monotonic() - begun
    url = swarm._open().url.render_as_string(hide_password=False)
    with connected(url) as connection:
        count = connection.exec_driver_sql(
            f"SELECT count(*) FROM {schema(url)}streams WHERE workflow_uuid = '{run.id}'"
        ).scalar_one()
    assert 0 < count <= took * 20 + 2


def test_a_locked_table_holds_no_run(make: Make, postgres_database: str) -> None:
    """A run does not wait for rows of its events: its checkpoints go on while nobody can write into their table."""
    swarm = make(ScriptedModel([[call("plain", text="x")], WORDS], pace=0.01), database=postgres_database)
    agent = Agent(name=unique(), functions=[plain])
    swarm.run(agent, user())
    swarm.clients._given.inject([call("plain", text="x")], WORDS)
    with psycopg.connect(postgres_database) as connection:
        connection.execute("LOCK TABLE dbos.streams IN ACCESS EXCLUSIVE MODE")
        run = swarm.start(agent, user())
        assert run.result(timeout=6).messages[-1]["content"] == WORDS
        connection.rollback()
    assert texts(list(run.events())) == transcript(run)


class Forgetful:
    """A codec that once gives back a row without what is in it."""

    lossless = True
    forgets = False

    def encode(self, data: dict[str, Any], place: Any) -> dict[str, Any]:
        return data

    def decode(self, stored: Any, place: Any) -> Any:
        forgets, self.forgets = self.forgets and place.step == "events", False
        return {} if forgets else stored


def test_the_writer_outlives_everything(make: Make) -> None:
    """Whatever is raised where rows are made, later rows are written: the thread that writes them goes on."""
    codec = Forgetful()

    def work() -> str:
        """Work."""
        codec.forgets = True
        emit("first")
        time.sleep(0.2)
        return "worked"

    swarm = make(ScriptedModel([[call("work")], WORDS], pace=0.01), codec=codec)
    agent = Agent(name=unique(), functions=[work])
    run = swarm.start(agent, user())
    live = list(run.events())
    assert texts(live) == transcript(run)
    assert sum(event.type == "text.delta" for event in live) > 3
    assert live == list(swarm.get(run.id).events())


def test_names_are_not_masked(make: Make) -> None:
    """A codec that masks leaves the names in events alone, so that progress and results can be told apart by call."""

    def work() -> str:
        """Work."""
        emit("call_1 is secret")
        time.sleep(0.2)
        return "call_1"

    swarm = make(ScriptedModel([[call("work")], "Done."]), codec=Redacting(["call_1", "work"]))
    agent = Agent(name=unique(), functions=[work])
    run = swarm.start(agent, user())
    found = [(data["tool"], data["call_id"]) for kind, data in told(list(run.events())) if kind.startswith("tool")]
    assert found == [("work", "call_1")] * 3
    progress = [data["progress"] for kind, data in told(list(run.events())) if kind == "tool.progress"]
    assert progress == ["[redacted] is secret"]


def test_readers_share_nothing(make: Make) -> None:
    """What one reader does to an event is nobody else's: neither another reader's nor the run's."""
    swarm = make(ScriptedModel([[call("plain", text="x")], WORDS], pace=0.005))
    agent = Agent(name=unique(), functions=[plain])
    run = swarm.start(agent, user())
    for event in run.events():
        if event.type == "tool.progress" and isinstance(event.data["progress"], dict):
            event.data["progress"].clear()
        event.data.clear()
    assert texts(list(run.events())) == transcript(run)
    progress = [data["progress"] for kind, data in told(list(run.events())) if kind == "tool.progress"]
    assert progress == ["half", {"done": 2, "of": 2}]


@pytest.mark.parametrize("face", ["events", "stream", "events_async"])
def test_closing_ends_readers(make: Make, face: str) -> None:
    """Whoever reads while the swarm is closed is told so, at once, and nothing is opened or asked again."""
    model = ScriptedModel([" ".join(["word"] * 400)] * 3, pace=0.01)
    swarm = make(model)
    agent = Agent(name=unique())
    closing = threading.Timer(0.2, swarm.close)

    def reading(items: Iterable[Any]) -> None:
        for number, _ in enumerate(items):
            if number == 0:
                closing.start()

    async def reading_async() -> None:
        async for event in (await swarm.start_async(agent, user(), run_id="r")).events_async():
            if event.seq == 1:
                closing.start()

    readers: dict[str, Callable[[], Any]] = {
        "stream": lambda: reading(swarm.run(agent, user(), stream=True, run_id="r")),
        "events": lambda: reading(swarm.start(agent, user(), run_id="r").events()),
        "events_async": lambda: asyncio.run(reading_async()),
    }
    with pytest.raises(ConfigurationError, match="was closed while run 'r' was read"):
        readers[face]()
    closing.join()
    assert len(model.calls) == 1
    assert swarm.run(agent, user(), run_id="r").messages[0]["content"].startswith("word")


def test_a_client_that_cannot_stream(make: Make) -> None:
    """A background run falls back to whole replies where the client or its provider refuses to stream."""

    class Refused(Exception):
        status_code = 400

    class Client:
        def __init__(self, refusal: Exception) -> None:
            self.refusal = refusal
            self.chat = SimpleNamespace(completions=self)

        def create(self, **request: Any) -> Any:
            if request["stream"]:
                raise self.refusal
            assert "stream_options" not in request
            return ScriptedModel(["Whole."]).chat.completions.create(**request)

    for number, error in enumerate([Refused("streaming is not allowed"), TypeError("no argument 'stream'")]):
        swarm = make(Client(error))
        agent = Agent(name=unique())
        run = swarm.start(agent, user(str(number)))
        live = list(run.events())
        assert texts(live) == {0: "Whole."}
        assert live == list(swarm.get(run.id).events())
        assert "text.reset" not in types(live)
        swarm.close()


def test_dictionaries_of_a_run_elsewhere(make: Make) -> None:
    """Of a run that another process executes, text comes from its events: whole, with its end, keys and sender."""
    swarm = make(ScriptedModel([[call("plain", text="x")], WORDS], pace=0.01))
    agent = Agent(name=unique(), functions=[plain])
    run = swarm.start(agent, user())
    outside = Run(run.id, swarm._store, lambda: None)
    with CallerThreadExecutor() as home:
        *items, last = dictionaries(outside, Channel(), home)
    replies = replies_in(items)
    assert rebuilt(replies[-1])["content"] == WORDS
    assert [item["sender"] for item in items if "sender" in item][-1] == agent.name
    assert items[-1] == {"delim": "end"}
    assert last["response"].messages[-1]["content"] == WORDS


def test_what_is_taken_back_is_not_written(tmp_path: Path) -> None:
    """A transaction that is rolled back does not count as a sign that the database can be written."""
    written: list[int] = []
    url = choose(f"sqlite:///{tmp_path}/x.sqlite")
    engine = connect(url, create=True, on_write=lambda: written.append(1))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE things (name TEXT)")
        connection.exec_driver_sql("INSERT INTO things VALUES ('a')")
    assert len(written) == 1
    with engine.connect() as connection:
        connection.exec_driver_sql("INSERT INTO things VALUES ('b')")
        connection.rollback()
        connection.exec_driver_sql("SELECT * FROM things").all()
        connection.commit()
    assert len(written) == 1
    engine.dispose()
