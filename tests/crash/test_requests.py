"""Requests in the database: runs that leave memory while they wait, answers from elsewhere, what is said to a run."""

from __future__ import annotations

import gc
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from durable_swarm import (
    Agent,
    AlreadyAnswered,
    ConfigurationError,
    DurableSwarm,
    InvalidAnswer,
    Run,
    RunCancelled,
    ask_human,
    ask_human_async,
    sleep,
    step,
    tool,
)
from durable_swarm.engine.execution import waiting
from durable_swarm.engine.storage.messages import Messages
from durable_swarm.service import open_runs
from durable_swarm.testing import ScriptedModel
from tests.crash.lives import Lives, say
from tests.crash.matrix import LONG
from tests.engine.helpers import unique
from tests.support.patience import PATIENCE

QUESTION = [{"role": "user", "content": "Please."}]
RACES = 200 if LONG else 30


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a fresh SQLite file."""
    return f"sqlite:///{tmp_path}/runs.sqlite"


def soon(what: Any) -> Any:
    """Wait until the function gives something true, and give that."""
    end = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)
    return found


def texts(run: Run) -> list[str]:
    """Give the results of the run's tools, once it has ended."""
    return [message["content"] for message in run.result(PATIENCE).messages if message["role"] == "tool"]


def test_runs_that_wait_leave_memory(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When many wait, those that have waited longest are released; an answer, or their time, has them go on."""
    monkeypatch.setattr(waiting, "COROUTINES", 2)
    monkeypatch.setattr(waiting, "THREADS", 1)
    entered: Counter[str] = Counter()

    @step
    def prepare(who: str) -> str:
        entered[f"step {who}"] += 1
        return who

    def plain(who: str) -> str:
        entered[who] += 1
        return f"{prepare(who)} {ask_human('?')}"

    async def on_loop(who: str) -> str:
        entered[who] += 1
        return f"{who} {await ask_human_async('?')}"

    def nap(who: str) -> str:
        sleep(1.0)
        return f"{who} slept"

    def reply(request: dict[str, Any]) -> Any:
        kind, who = request["messages"][1]["content"].split()
        return "Done." if request["messages"][-1]["role"] == "tool" else [(kind, {"who": who})]

    agent = Agent(name=unique(), functions=[plain, on_loop, nap])
    kinds = ["plain"] * 4 + ["on_loop"] * 4 + ["nap"] * 3
    with DurableSwarm(ScriptedModel([reply] * 40), database=database_url) as swarm:
        runs = {
            f"r{number}": swarm.start(agent, [{"role": "user", "content": f"{kind} r{number}"}], run_id=f"r{number}")
            for number, kind in enumerate(kinds)
        }
        requests = soon(lambda: len(found := swarm.requests()) == 8 and found)
        soon(lambda: len(swarm._open().local.executions) <= 2 + 1 + 1)
        assert {run.status for run in runs.values()} <= {"waiting", "running", "done"}
        assert all(runs[request.run_id].status == "waiting" for request in requests)
        for request in requests:
            swarm.answer("yes", request.id)
        for name, kind in zip(runs, kinds, strict=True):
            expected = f"{name} slept" if kind == "nap" else f"{name} yes"
            assert texts(runs[name]) == [expected]
    assert all(count == 1 for what, count in entered.items() if what.startswith("step"))
    assert max(entered.values()) == 2


def asking(url: str) -> None:
    """Run an agent that asks, and say so; it is killed while it waits."""

    def paint() -> str:
        return ask_human("Colour?")

    with DurableSwarm(ScriptedModel([["paint"], "Done."]), database=url) as swarm:
        run = swarm.start(Agent(name="Desk", functions=[paint]), QUESTION, run_id="r1")
        soon(run.requests)
        say("asked")
        say(texts(run))


def test_answered_while_nobody_executes_it(database_url: str, lives: Lives, tmp_path: Path) -> None:
    """A request outlives its process: answered when that is dead, the run goes on with the answer when started."""
    life = lives.start(asking, database_url, ledger=tmp_path / "ledger")
    assert life.hear() == "asked"
    life.kill()
    with open_runs(database_url) as runs:
        assert [request.question for request in runs.inbox.list()] == ["Colour?"]
        assert runs.show("r1").status == "waiting"
        runs.inbox.answer("r1", "red", "ann")
        with pytest.raises(AlreadyAnswered):
            runs.inbox.answer("r1", "blue", "bob")
        assert runs.inbox.list() == []

    def paint() -> str:
        return ask_human("Colour?")

    with DurableSwarm(ScriptedModel([["paint"], "Done."]), database=database_url) as swarm:
        run = swarm.start(Agent(name="Desk", functions=[paint]), QUESTION, run_id="r1")
        assert texts(run) == ["red"]
        (request,) = run.requests(all=True)
        assert (request.status, request.answered_by) == ("answered", "ann")
        assert request.decision is not None
        assert request.decision.value == "red"


def test_answered_from_another_process(database_url: str, lives: Lives, tmp_path: Path) -> None:
    """A run that waits in a living process goes on at once when another process answers."""
    life = lives.start(asking, database_url, ledger=tmp_path / "ledger")
    assert life.hear() == "asked"
    with open_runs(database_url) as runs:
        runs.inbox.answer("r1", "red", None)
    assert life.hear() == ["red"]
    life.end()


def answering(url: str, count: int) -> list[str]:
    """Answer all requests in order as soon as the word is given; gives the ids of those that were taken."""
    taken = []
    with open_runs(url) as runs:
        say("ready")
        for number in range(count):
            try:
                runs.inbox.answer(f"r{number}", "yes", None)
                taken.append(f"r{number}")
            except AlreadyAnswered:
                pass
    return taken


def test_two_answer_at_once(database_url: str, lives: Lives, tmp_path: Path) -> None:
    """Of two processes that answer at the same moment exactly one wins, each time."""

    async def paint() -> str:
        return await ask_human_async("Colour?")

    replies = ScriptedModel([lambda request: "Done." if request["messages"][-1]["role"] == "tool" else ["paint"]] * 999)
    with DurableSwarm(replies, database=database_url) as swarm:
        agent = Agent(name="Desk", functions=[paint])
        runs = [swarm.start(agent, QUESTION, run_id=f"r{number}") for number in range(RACES)]
        soon(lambda: len(swarm.requests()) == RACES)
        both = [lives.start(answering, database_url, RACES, ledger=tmp_path / "ledger") for _ in range(2)]
        assert [life.hear() for life in both] == ["ready", "ready"]
        taken = [life.end().value for life in both]
        assert sorted(taken[0] + taken[1]) == sorted(f"r{number}" for number in range(RACES))
        assert [texts(run) for run in runs] == [["yes"]] * RACES


def test_cancelled_while_it_waits(database_url: str) -> None:
    """A run that waits is cancelled at once, its request closes, and opens again when the run is resumed."""

    def paint() -> str:
        return ask_human("Colour?")

    agent = Agent(name=unique(), functions=[paint])
    with DurableSwarm(ScriptedModel([["paint"], "Done."]), database=database_url) as swarm:
        run = swarm.start(agent, QUESTION, run_id="r1")
        request = soon(run.requests)[0]
        run.cancel()
        with pytest.raises(RunCancelled):
            run.result(PATIENCE)
        assert swarm.requests() == []
        with pytest.raises(ConfigurationError, match="has ended"):
            swarm.answer("red", request.id)
        run.resume()
        soon(run.requests)
        run.answer("red")
        assert texts(run) == ["red"]


def test_approved_under_another_code(url: str, lives: Lives, tmp_path: Path) -> None:
    """Arguments that the tool no longer takes are refused where the code is at hand, else the request opens again."""

    def agent_of(function: Any) -> Agent:
        return Agent(name="Desk", functions=[tool(approval=True, name="refund")(function)])

    def old(amount: int) -> str:
        return f"refunded {amount}"

    def new(amount: int, currency: str) -> str:
        return f"refunded {amount} {currency}"

    model = ScriptedModel([[("refund", {"amount": 5})], "Done."])
    with DurableSwarm(model, database=url) as swarm:
        run = swarm.start(agent_of(old), QUESTION, run_id="r1")
        request = soon(run.requests)[0]
    with open_runs(url) as runs:
        runs.inbox.approve(request.id, None, "ann")
    gc.collect()  # The old code is gone with its program.
    with DurableSwarm(model, database=url) as swarm:
        run = swarm.start(agent_of(new), QUESTION, run_id="r1")
        reopened = soon(run.requests)[0]
        assert "currency is missing" in reopened.question
        with pytest.raises(InvalidAnswer, match="currency is missing"):
            run.approve()
        assert run.status == "waiting"
        run.approve(arguments={"amount": 5, "currency": "EUR"})
        assert texts(run) == ["refunded 5 EUR"]


def test_what_is_said_is_heard_once(database_url: str) -> None:
    """A message is told to the model before its next call, once, and stands in the history."""
    at_work, go_on = threading.Event(), threading.Event()

    def work() -> str:
        at_work.set()
        assert go_on.wait(PATIENCE)
        return "worked"

    model = ScriptedModel([["work"], ["work"], "Done."])
    with DurableSwarm(model, database=database_url) as swarm:
        run = swarm.start(Agent(name="Desk", functions=[work]), QUESTION, run_id="r1")
        assert at_work.wait(PATIENCE)
        run.say("Hurry.")
        run.say("Please.")
        go_on.set()
        roles = [message["role"] for message in run.result(PATIENCE).messages]
        assert roles == ["assistant", "tool", "user", "user", "assistant", "tool", "assistant"]
        assert [message["content"] for message in run.messages() if message["role"] == "user"] == ["Hurry.", "Please."]
        assert [event.type for event in run.events()][-1] == "run.finished"
        with pytest.raises(ConfigurationError, match="has ended"):
            run.say("Too late.")


def test_what_is_said_at_the_end_is_heard_or_refused(database_url: str) -> None:
    """A message that comes while a run ends is heard, or its sender is told that the run has ended; none is lost."""
    heard: Counter[str] = Counter()

    def reply(request: dict[str, Any]) -> str:
        for message in request["messages"]:
            if message["role"] == "user":
                heard[message["content"]] += 1
        return "Done."

    with DurableSwarm(ScriptedModel([reply] * 1000), database=database_url) as swarm:
        agent = Agent(name="Desk")

        def one(number: int) -> str | None:
            run = swarm.start(agent, [{"role": "user", "content": f"q{number}"}], run_id=f"r{number}")
            time.sleep(0.002 * (number % 12))
            try:
                run.say(f"said {number}")
            except ConfigurationError:
                return None
            contents = [message["content"] for message in run.result(PATIENCE).messages]
            assert contents.count(f"said {number}") == 1
            return f"said {number}"

        with ThreadPoolExecutor(4) as pool:
            said = {text for text in pool.map(one, range(RACES)) if text}
        assert {text for text in heard if text.startswith("said")} == said


def test_a_run_at_its_limit_hears_nothing_more(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever says something while `max_turns` ends a run is told so, though what was said before was not heard."""
    refused: list[str] = []

    def close_for_good(self: Messages, run_id: str, after: int) -> bool:
        closed = closing(self, run_id, after)
        with pytest.raises(ConfigurationError, match="has ended"):
            self.say(run_id, "Too late.", "")
        refused.append(run_id)
        return closed

    def work() -> str:
        swarm.get("r1").say("Hurry.")
        return "worked"

    closing = Messages.close_for_good
    monkeypatch.setattr(Messages, "close_for_good", close_for_good)
    with DurableSwarm(ScriptedModel([["work"]]), database=database_url) as swarm:
        run = swarm.start(Agent(name="Desk", functions=[work]), QUESTION, max_turns=2, run_id="r1")
        assert [message["role"] for message in run.result(PATIENCE).messages] == ["assistant", "tool"]
        assert refused == ["r1"]
        assert [event.type for event in run.events()][-1] == "run.finished"


def test_several_open_requests_want_an_id(url: str) -> None:
    """Without an id an answer is for the only open request; with several open, they are named."""

    @tool(approval=True)
    def refund(item: str) -> str:
        return f"refunded {item}"

    model = ScriptedModel([[("refund", {"item": "a"}), ("refund", {"item": "b"})], "Done."])
    with DurableSwarm(model, database=url) as swarm:
        run = swarm.start(Agent(name="Desk", functions=[refund]), QUESTION, run_id="r1")
        soon(lambda: len(run.requests()) == 2)
        with pytest.raises(ConfigurationError, match=r"r1/0\.0/approval.*r1/0\.1/approval"):
            run.approve()
        run.reject("no", "r1/0.0/approval")
        run.approve()
        assert texts(run) == ["Error: this call was rejected: no", "refunded b"]
        with pytest.raises(AlreadyAnswered):
            run.approve()
        other = swarm.start(Agent(name="Other"), QUESTION, run_id="r2")
        with pytest.raises(ConfigurationError, match="not of run"):
            other.approve("r1/0.1/approval")
