"""What runs ask, under ill luck: in the moment of a cancellation, with other code, with rows that were damaged."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from durable_swarm import (
    Agent,
    ConfigurationError,
    DurableSwarm,
    DurableSwarmError,
    Run,
    RunCancelled,
    ask_human,
    later,
    tool,
)
from durable_swarm.encryption import EncryptionCodec, new_key
from durable_swarm.engine.execution import waiting
from durable_swarm.engine.processes import here
from durable_swarm.engine.storage import ownership
from durable_swarm.engine.storage import requests as stored_requests
from durable_swarm.requests import Decision, Request
from durable_swarm.service import open_runs
from durable_swarm.testing import ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, change, unique, user, wait_until


def asked(swarm: DurableSwarm) -> Request:
    """Wait until something is asked, and give it."""
    found: list[Request] = wait_until(swarm.requests)
    return found[0]


def ask() -> str:
    """Ask a person."""
    return ask_human("Colour?")


def asking(*more: Any) -> ScriptedModel:
    """Give a model that calls `ask`."""
    return ScriptedModel([["ask"], *more, "Done."])


def test_cancelled_while_it_is_taken_over(make_anywhere: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is cancelled just when it is taken over stays cancelled; resumed, it has its answer."""
    monkeypatch.setattr(waiting, "THREADS", 0)
    swarm, agent = make_anywhere(asking()), Agent(name=unique(), functions=[ask])
    run = swarm.start(agent, user())
    request, store = asked(swarm), here.current().store
    look = store.unfinished

    def look_and_cancel(version: str) -> list[Any]:
        found = look(version)
        if any(row.workflow_id == run.id and row.status == "ENQUEUED" for row in found):
            monkeypatch.setattr(store, "unfinished", look)
            run.cancel()
        return found

    monkeypatch.setattr(store, "unfinished", look_and_cancel)
    wait_until(lambda: run.id not in here.current().local.executions)
    swarm.answer("red", request.id)
    with pytest.raises(RunCancelled):
        run.result(PATIENCE)
    run.resume()
    assert run.result(PATIENCE).messages[1]["content"] == "red"


def test_a_run_that_rested_has_its_own_agent(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs whose agents share a name go on each with its own, also if the program has not kept it."""
    monkeypatch.setattr(waiting, "THREADS", 0)
    name, swarm = unique(), make(ScriptedModel([["ask"]] * 3 + ["Done."] * 3))

    def begun(number: int) -> Run:
        def ask() -> str:
            return f"{number} {ask_human('Colour?')}"

        return swarm.start(Agent(name=name, functions=[ask]), user())

    runs = [begun(number) for number in range(3)]
    wait_until(lambda: len(swarm.requests()) == 3 and not here.current().local.executions)
    for run in runs:
        run.answer("red")
    told = [run.result(PATIENCE).messages[1]["content"] for run in runs]
    assert told == ["0 red", "1 red", "2 red"]


def test_closing_under_a_caller_that_waits(make: Make) -> None:
    """`close` ends a `run()` that waits in another thread, which opens nothing again."""
    swarm, agent = make(asking()), Agent(name=unique(), functions=[ask])
    with ThreadPoolExecutor(1) as pool:
        over = pool.submit(swarm.run, agent, user())
        asked(swarm)
        swarm.close()
        with pytest.raises(ConfigurationError, match="was closed"):
            over.result(PATIENCE)
    with pytest.raises(ConfigurationError, match="no DurableSwarm is open"):
        here.current()


def test_a_clock_that_is_set_back(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question expires after its timeout, also if the clock is set back by a day while it waits."""
    swarm = make(asking())

    def ask() -> str:
        return ask_human("Colour?", timeout=2, default="grey")

    agent = Agent(name=unique(), functions=[ask])
    run = swarm.start(agent, user())
    asked(swarm)
    monkeypatch.setattr(ownership, "now", lambda: ownership.now() - 86_400_000)
    assert run.result(PATIENCE).messages[1]["content"] == "grey"


def test_a_question_that_is_another_one_now(make_anywhere: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a tool that is entered again asks something else, an answer to the old question is none to the new one."""
    monkeypatch.setattr(waiting, "THREADS", 0)
    swarm, items = make_anywhere(asking()), iter("abcdef")

    def ask() -> str:
        item = next(items)
        return f"{item}: {ask_human(f'Delete {item}?')}"

    agent = Agent(name=unique(), functions=[ask])
    run = swarm.start(agent, user())
    assert asked(swarm).question == "Delete a?"
    wait_until(lambda: run.id not in here.current().local.executions)
    monkeypatch.setattr(waiting, "THREADS", 1)
    run.answer("yes")
    assert wait_until(swarm.requests)[0].question == "Delete b?"
    run.answer("no")
    assert run.result(PATIENCE).messages[1]["content"] == "b: no"


def test_a_decision_that_the_code_refuses(make_anywhere: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """An approval that does not fit the tool as it is opens the request again, and whoever decides is shown why."""
    made: list[int] = []

    @tool(approval=True)
    def pay(amount: int) -> str:
        made.append(amount)
        return "paid"

    swarm, agent = make_anywhere(ScriptedModel([[("pay", {"amount": 5})], "Done."])), Agent(functions=[pay])
    run = swarm.start(agent, user())
    request = asked(swarm)
    with monkeypatch.context() as patch:
        patch.setattr(stored_requests, "check_decision", lambda *_: None)
        here.current().store.inbox.decide(request.id, Decision("approved", arguments={"amount": "much"}), "ann")
    shown = wait_until(lambda: [one for one in swarm.requests() if one.question != request.question])
    assert "amount" in shown[0].question
    run.approve()
    run.result(PATIENCE)
    assert made == [5]


@pytest.mark.parametrize("timeout", [1e12, 1e300, float("inf")])
def test_a_question_for_ages(timeout: float, make: Make) -> None:
    """A timeout beyond what a calendar or a database can hold is none."""

    def ask() -> str:
        return ask_human("Colour?", timeout=timeout)

    agent = Agent(name=unique(), functions=[ask])
    swarm = make(asking())
    run = swarm.start(agent, user())
    assert asked(swarm).expires_at is None
    run.answer("red")
    assert run.result(PATIENCE).messages[1]["content"] == "red"


@pytest.mark.parametrize(
    "damage", ["request='['", "kind='x'", "state=7", "created_at=NULL", "expires_at='x'", "decision='['"]
)
def test_a_damaged_request(damage: str, make: Make, url: str) -> None:
    """A damaged row is shown as that and takes no answer; the other requests are shown and answered as ever."""
    swarm, agent = make(ScriptedModel([["ask"], ["ask"], "Done."])), Agent(name=unique(), functions=[ask])
    runs = [swarm.start(agent, user()) for _ in range(2)]
    wait_until(lambda: len(swarm.requests()) == 2)
    bad, good = runs
    change(url, f"UPDATE durable_swarm_requests SET {damage} WHERE run_id = :run", run=bad.id)
    assert [one.question for one in swarm.requests() if one.run_id == good.id] == ["Colour?"]
    assert all("damaged" in one.question for one in swarm.requests() if one.run_id == bad.id)
    with pytest.raises(DurableSwarmError, match="damaged"):
        swarm.answer("red", f"{bad.id}/0.0/0")
    good.answer("red")
    assert good.result(PATIENCE).messages[1]["content"] == "red"


def test_what_no_database_stores(make: Make, url: str) -> None:
    """Ids, tokens and names that a database cannot store are refused in a sentence, and the request stays open."""
    swarm, agent = make(asking()), Agent(name=unique(), functions=[ask])
    run = swarm.start(agent, user())
    request = asked(swarm)
    with open_runs(url) as opened:
        for refused in (
            lambda: opened.inbox.answer("\udcff", "red", None),
            lambda: opened.inbox.answer(request.id, "red", "\udcff"),
            lambda: opened.inbox.complete("\udcff", "red", None),
            lambda: opened.inbox.complete("", "red", None),
            lambda: opened.inbox.say("\udcff", "red"),
            lambda: swarm.answer("red", request.id, by=7),  # type: ignore[arg-type]
        ):
            with pytest.raises(DurableSwarmError):
                refused()
    run.answer("red")
    assert run.result(PATIENCE).messages[1]["content"] == "red"


def test_an_early_result_that_the_run_cannot_read(make: Make, url: str) -> None:
    """A result posted without the keys, before its call has asked for it, is asked for again, and it is said why."""
    with DurableSwarm(database=url, name="keyless") as keyless:
        keyless.complete("parcel", "lost")

    def ship() -> str:
        return later("parcel")  # type: ignore[no-any-return]

    swarm = make(ScriptedModel([["ship"], "Done."]), codec=EncryptionCodec(new_key()))
    agent = Agent(name=unique(), functions=[ship])
    run = swarm.start(agent, user())
    assert "post it again" in asked(swarm).question
    swarm.complete("parcel", "sent")
    assert run.result(PATIENCE).messages[1]["content"] == "sent"


def test_a_token_of_another_call(make: Make) -> None:
    """A token that belongs to another call ends the run of the second with an error; mended and resumed, it goes on."""
    tokens = ["parcel", "parcel", "letter"]

    def ship() -> str:
        return later(tokens.pop(0))  # type: ignore[no-any-return]

    swarm = make(ScriptedModel(lambda request: "Done." if request["messages"][-1]["role"] == "tool" else ["ship"]))
    agent = Agent(name=unique(), functions=[ship])
    swarm.start(agent, user(), run_id="first")
    asked(swarm)
    second = swarm.start(agent, user(), run_id="second")
    with pytest.raises(ConfigurationError, match="belongs to the tool call 'first"):
        second.result(PATIENCE)
    assert second.status == "failed"
    second.resume()
    wait_until(second.requests)
    swarm.complete("letter", "sent")
    assert second.result(PATIENCE).messages[1]["content"] == "sent"


def test_an_overdue_request_of_a_dead_process(make: Make, url: str) -> None:
    """A request whose time is over is not listed as open, though no process has closed it yet."""

    def ask_shortly() -> str:
        return ask_human("Now?", timeout=3600, default="later")

    agent = Agent(name=unique(), functions=[ask_shortly])
    with DurableSwarm(ScriptedModel([["ask_shortly"]]), database=url) as swarm:
        swarm.start(agent, user(), run_id="r")
        asked(swarm)
    with open_runs(url) as runs:
        assert len(runs.inbox.list()) == 1
        change(url, "UPDATE durable_swarm_requests SET expires_at = 1")
        assert runs.inbox.list() == []
        assert runs.view("r").status == "running"
    swarm = make(ScriptedModel([["ask_shortly"], "Done."]))
    assert swarm.get("r").result(PATIENCE).messages[1]["content"] == "later"


@pytest.mark.parametrize("found", [True, False])
def test_a_check_that_gives_a_bool(found: bool, make: Make) -> None:
    """A check that says yes or no tells no result: a person is asked, and told why."""
    entered: list[str] = []

    @tool(effect="once", check=lambda order: found)
    def pay(order: str) -> str:
        entered.append(order)
        raise ValueError("lost")

    swarm, agent = make(ScriptedModel([[("pay", {"order": "A1"})], "Done."])), Agent(name=unique(), functions=[pay])
    run = swarm.start(agent, user())
    with pytest.raises(ValueError, match="lost"):
        run.result(PATIENCE)
    run.resume()
    request = asked(swarm)
    assert f"Its check gave {found}" in request.question
    run.answer("paid")
    assert run.result(PATIENCE).messages[1]["content"] == "paid"
    assert entered == ["A1"]
