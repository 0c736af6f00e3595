"""What readers of a streamed run are told when it is cancelled, fails, is closed, forked, or cannot be written."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import Agent, DurableSwarm, Run, emit, errors
from durable_swarm.codec import Place
from durable_swarm.testing import ScriptedModel, call
from durable_swarm.testing.faults import cut, http_error
from durable_swarm.testing.shapes import Chunk, ChunkChoice, Delta
from tests.crash.following import Told, as_line, texts_of, wrongs_of
from tests.crash.matrix import LONG
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, unique, user

TEXT = " ".join(f"word{number}" for number in range(80))
PACE = 0.004


def told(run: Run, after: int = 0) -> list[Told]:
    """Give all events of a run that has ended."""
    return [as_line(event) for event in run.events(after)]


def begun(run: Run, pieces: int = 10) -> list[Told]:
    """Read a run's events until so many pieces of text have come."""
    found: list[Told] = []
    for event in run.events():
        found.append(as_line(event))
        if sum(one["type"] == "text.delta" for one in found) == pieces:
            return found
    raise AssertionError(f"the run has ended: {found}")


def check_continued(before: list[Told], run: Run) -> None:
    """Check that what was told stays told (lost text may be void), and that all of it is the transcript."""
    later = told(run)
    for one, other in zip(before, later, strict=False):
        lost = one["type"].startswith("text.") and other["type"] == "text.reset"
        assert one == other or lost, f"{one} became {other}"
    behind = before + told(run, after=before[-1]["seq"])
    messages = run.result(timeout=PATIENCE).messages
    for events in (later, behind):
        kept = [one for one in events if one["type"] not in ("run.failed", "run.cancelled")]
        renumbered = [{**one, "seq": number} for number, one in enumerate(kept, 1)]
        assert not wrongs_of("a reader", renumbered, messages)
        assert [one["seq"] for one in events] == list(range(1, len(events) + 1))


def test_a_run_cancelled_while_it_speaks_goes_on_behind_that(make_anywhere: Make) -> None:
    """What a cancelled run has told keeps its numbers, its end too, and the resumed run goes on behind them."""
    agent = Agent(name=unique())  # Kept: a resumed run looks for an agent that is there.
    run = make_anywhere(ScriptedModel(lambda _: TEXT, pace=PACE)).start(agent, user())
    first = begun(run)
    run.cancel()
    with pytest.raises(errors.RunCancelled):
        run.result(timeout=PATIENCE)
    events = first + told(run, after=first[-1]["seq"])
    assert (events[-1]["type"], told(run)[-1]) == ("run.cancelled", events[-1])
    run.resume()
    run.result(timeout=PATIENCE)
    check_continued(events, run)
    assert told(run)[len(events) - 1]["type"] == "run.cancelled"


def test_a_run_that_failed_while_it_spoke_goes_on_behind_that(make_anywhere: Make) -> None:
    """The end of a failed run stays under its number when the run is resumed, once and for every reader."""
    answers: list[Any] = [cut(TEXT, after=30), http_error(400), cut(TEXT, after=50), http_error(400), TEXT]
    agent = Agent(name=unique())
    run = make_anywhere(ScriptedModel(answers, pace=PACE)).start(agent, user())
    events: list[Told] = []
    for ends in (1, 2):
        with pytest.raises(Exception, match="400"):
            run.result(timeout=PATIENCE)
        events += told(run, after=len(events))
        assert [one["type"] for one in events].count("run.failed") == ends
        assert (events[-1]["type"], told(run)) == ("run.failed", events)
        run.resume()
    run.result(timeout=PATIENCE)
    check_continued(events, run)


def test_a_fork_tells_what_it_keeps_under_numbers_of_its_own(make: Make) -> None:
    """A fork whose kept turn was told piece by piece tells the turn whole, and all of its own turns."""

    def work() -> str:
        for part in range(3):
            emit(f"part {part}")
        return "worked"

    def reply(request: dict[str, Any]) -> Any:
        made = {"id": "c1", "type": "function", "function": {"name": "work", "arguments": "{}"}}
        worked = any(message["role"] == "tool" for message in request["messages"])
        return TEXT if worked else {"role": "assistant", "content": "a " * 40, "tool_calls": [made]}

    agent = Agent(name=unique(), functions=[work])
    run = make(ScriptedModel(reply, pace=PACE)).start(agent, user())
    run.result(timeout=PATIENCE)
    fork = run.fork(1)
    messages = fork.result(timeout=PATIENCE).messages
    assert not wrongs_of("the run", told(run), run.result().messages)
    assert not wrongs_of("the fork", told(fork), messages)
    kinds = [one["type"] for one in told(fork)]
    assert kinds[:6] == ["run.started", "turn.started", "text.delta", "tool.started", "tool.finished", "turn.started"]


def test_a_swarm_closed_in_mid_reply_and_opened_again_goes_on(url: str) -> None:
    """A run that `close` has stopped while it spoke is continued in the same process, and told on."""
    agent = Agent(name=unique())
    model = ScriptedModel(lambda _: TEXT, pace=PACE)
    with DurableSwarm(model, database=url) as swarm:
        run = swarm.start(agent, user())
        first = begun(run, 15)
    with DurableSwarm(model, database=url) as swarm:
        run = swarm.get(run.id)
        run.result(timeout=PATIENCE)
        check_continued(first, run)


@contextlib.contextmanager
def locked(path: Path) -> Any:
    """Keep everybody from writing to a SQLite file in this block."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    yield
    connection.execute("ROLLBACK")
    connection.close()


def test_a_reply_comes_in_while_the_database_is_locked(make: Make, tmp_path: Path) -> None:
    """Tokens flow on to the program while nothing can be written, and afterwards the events are right."""
    swarm = make(ScriptedModel(lambda _: TEXT, pace=0.015))
    stream = swarm.run(Agent(name=unique()), user(), stream=True, run_id="locked")
    items = list(itertools.islice(stream, 5))
    with locked(tmp_path / "runs.sqlite"):  # Which would never end if the tokens waited for the database.
        items += itertools.islice(stream, 60)
    items += stream
    assert "".join(item.get("content") or "" for item in items) == TEXT
    run = swarm.get("locked")
    assert not wrongs_of("a reader", told(run), run.result().messages)


class Shaky:
    """A codec that fails with the first row of events."""

    failures = 0
    lossless = True

    def encode(self, data: dict[str, Any], place: Place) -> dict[str, Any]:
        if place.step == "events" and not self.failures:
            self.failures += 1
            raise OSError("no key just now")
        return data

    def decode(self, stored: Any, place: Place) -> Any:
        return stored


def test_a_codec_that_fails_once_stops_no_later_row(make: Make) -> None:
    """Events are stored again as they come once the codec works again, in this run and in others."""

    async def work() -> str:
        emit("begun")
        await asyncio.sleep(0.2)
        emit("done")
        return "worked"

    def reply(request: dict[str, Any]) -> Any:
        return TEXT if request["messages"][-1]["role"] == "tool" else [call("work")]

    codec = Shaky()
    swarm = make(ScriptedModel(reply, pace=PACE), codec=codec)
    agent = Agent(name=unique(), functions=[work])
    for number in range(2):
        run = swarm.start(agent, user(str(number)))
        live = [as_line(event) for event in run.events()]
        assert not wrongs_of("a reader", live, run.result(timeout=PATIENCE).messages)
        assert live == told(run)
    assert codec.failures == 1
    assert sum(event.type == "text.delta" for event in run.events()) > 3, "no row was written"


Begin = Callable[[DurableSwarm, Agent], tuple[Any, Callable[[], str]]]


def as_dictionaries(swarm: DurableSwarm, agent: Agent) -> tuple[Any, Callable[[], str]]:
    """Read Swarm's dictionaries; the text is that of the last reply."""
    stream = swarm.run(agent, user(), stream=True, run_id="slow")

    def rest() -> str:
        texts = [""]
        for item in stream:
            texts += [""] if item.get("delim") in ("start", "reset") else []
            texts[-1] += item.get("content") or ""
        return texts[-1]

    return next(stream), rest


def as_events(swarm: DurableSwarm, agent: Agent) -> tuple[Any, Callable[[], str]]:
    """Read events."""
    events = swarm.start(agent, user(), run_id="slow").events()
    return next(events), lambda: texts_of(as_line(event) for event in events)[1]


@pytest.mark.parametrize("begin", [as_dictionaries, as_events])
def test_a_reader_that_stops_stops_nobody(begin: Begin, make: Make) -> None:
    """A run ends though its reader has read one item and reads no more; what it reads later is right."""

    def look() -> str:
        return threading.current_thread().name

    def reply(request: dict[str, Any]) -> Any:
        return TEXT if request["messages"][-1]["role"] == "tool" else [call("look")]

    swarm = make(ScriptedModel(reply, pace=0.002))
    _, rest = begin(swarm, Agent(name=unique(), functions=[look]))
    ended = threading.Event()
    threading.Thread(target=lambda: (swarm.get("slow").result(), ended.set()), daemon=True).start()
    assert ended.wait(PATIENCE), "the run waits for its reader"
    assert rest() == TEXT


PIECES, PIECE = 100_000 if LONG else 20_000, "x" * 50


class Torrent:
    """A client whose reply is megabytes of text in many pieces."""

    def __init__(self) -> None:
        self.chat = self
        self.completions = self

    def create(self, **_: Any) -> Any:
        for _ in range(PIECES):
            yield Chunk(id="c", created=0, model="m", choices=[ChunkChoice(delta=Delta(content=PIECE))])
        yield Chunk(id="c", created=0, model="m", choices=[ChunkChoice(delta=Delta(), finish_reason="stop")])


@pytest.mark.slow
@pytest.mark.parametrize("begin", [as_dictionaries, as_events])
def test_a_reader_that_is_gone_costs_little_memory(begin: Begin, make: Make) -> None:
    """A long reply that nobody reads takes no more memory than a few times its text."""
    swarm = make(Torrent())
    tracemalloc.start()
    try:
        _, rest = begin(swarm, Agent(name=unique()))
        message = swarm.get("slow").result(timeout=100).messages[-1]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"{peak / len(PIECE) / PIECES:.1f} times the text")
    assert len(message["content"]) == len(PIECE) * PIECES
    assert peak < 12 * len(PIECE) * PIECES
    assert rest
