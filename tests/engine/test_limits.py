"""The limits of runs in a database: they hold after restarts, are extended, and are shared by a family of runs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy

from durable_swarm import (
    Agent,
    Compaction,
    ConfigurationError,
    DurableSwarm,
    InvalidOutput,
    LimitReached,
    Limits,
    ModelError,
    RunFailed,
    ToolError,
)
from durable_swarm.engine.database.connection import connect
from durable_swarm.engine.execution.budget import Budget
from durable_swarm.engine.storage.ledger import Key, Ledger
from durable_swarm.limits import Spent
from durable_swarm.service import open_runs
from durable_swarm.testing import ScriptedModel, call, http_error
from durable_swarm.types import Usage
from tests.engine.conftest import Make
from tests.engine.helpers import connected, rows, unique, user, wait_until

RUN = "run-1"


def look(number: int) -> str:
    """Look something up."""
    return f"found {number}"


def looking() -> Any:
    """Return a script that calls `look` for ever, with arguments that never repeat."""
    return lambda request: [call("look", number=len(request["messages"]))]


def spender(*functions: Any) -> Agent:
    """Make an agent of a name of its own."""
    return Agent(name=unique("Saver"), functions=list(functions) or [look])


def test_an_extended_run_continues(make_anywhere: Make) -> None:
    """After `extend` and `resume` the run goes on where it stood; nothing is asked again, and nothing is given back."""
    agent = spender()
    model = ScriptedModel(looking(), strict=False)
    swarm = make_anywhere(model)
    with pytest.raises(LimitReached) as caught:
        swarm.run(agent, user(), run_id=RUN, limits=Limits(requests=2))
    assert f"durable-swarm extend {RUN} --requests 2" in str(caught.value)
    assert f"durable-swarm resume {RUN}" in str(caught.value)
    run = swarm.get(RUN)
    run.extend(requests=1)
    run.resume()
    with pytest.raises(LimitReached) as again:
        run.result()
    assert (again.value.used, again.value.allowed, len(model.calls)) == (3, 3, 3)
    assert (run.spent.requests, run.spent.tool_calls, run.spent.uncertain) == (3, 3, 0)


def test_a_resumed_run_that_was_not_extended_asks_nothing(make: Make) -> None:
    """`resume` alone gives nothing back: the run fails again, before a model call."""
    agent = spender()
    model = ScriptedModel(looking(), strict=False)
    swarm = make(model)
    with pytest.raises(LimitReached):
        swarm.run(agent, user(), run_id=RUN, limits=Limits(requests=1))
    for _ in range(2):
        swarm.get(RUN).resume()
        with pytest.raises(LimitReached):
            swarm.get(RUN).result()
    assert (len(model.calls), swarm.get(RUN).spent.requests) == (1, 1)


def test_a_run_keeps_the_limits_it_was_started_with(make: Make) -> None:
    """A restart with other code, which would give other limits, does not change those of a run."""
    agent, script = spender(), looking()
    with pytest.raises(LimitReached):
        make(ScriptedModel(script, strict=False), limits=Limits(requests=1)).run(agent, user(), run_id=RUN)
    swarm = make(ScriptedModel(script, strict=False), limits=None)
    swarm.get(RUN).resume()
    with pytest.raises(LimitReached):
        swarm.get(RUN).result()


def test_a_run_in_progress_is_extended(make: Make) -> None:
    """An extension counts at once: the run meets it at the limit."""
    swarm = make(ScriptedModel([[call("more", number=1)], "Done"]))

    def more(number: int) -> str:
        swarm.get(RUN).extend(requests=1)
        return "extended"

    assert swarm.run(spender(more), user(), run_id=RUN, limits=Limits(requests=1)).ended_by == "answer"


@pytest.mark.parametrize("amount", [{}, {"requests": 0}, {"requests": "many"}, {"cost": 1}, {"turns": 1}])
def test_only_amounts_that_are_limited_are_extended(make: Make, amount: dict[str, Any]) -> None:
    """Nothing, no amount, and what has no limit are refused with the reason."""
    agent = spender()
    swarm = make(ScriptedModel(["Hello"]))
    swarm.run(agent, user(), run_id=RUN)
    with pytest.raises(ConfigurationError):
        swarm.get(RUN).extend(**amount)


def test_a_refused_model_call_costs_nothing(make: Make) -> None:
    """A call that the provider refused is not counted, however often the run is resumed."""
    agent = spender()
    swarm = make(ScriptedModel([http_error(400), http_error(400), "Hello"]))
    with pytest.raises(ModelError):
        swarm.run(agent, user(), run_id=RUN, limits=Limits(requests=1))
    swarm.get(RUN).resume()
    with pytest.raises(ModelError):
        swarm.get(RUN).result()
    assert swarm.get(RUN).spent.requests == 0
    swarm.get(RUN).resume()
    assert swarm.get(RUN).result().ended_by == "answer"
    assert (swarm.get(RUN).spent.requests, swarm.get(RUN).spent.uncertain) == (1, 0)


def test_a_fork_counts_anew(make: Make) -> None:
    """A fork has its source's limits, and has spent nothing: neither the kept turns nor an uncertain call."""
    agent = spender()
    model = ScriptedModel(looking(), strict=False)
    swarm = make(model)
    with pytest.raises(LimitReached):
        swarm.run(agent, user(), run_id=RUN, limits=Limits(requests=2))
    fork = swarm.get(RUN).fork(1)
    assert fork.spent == Spent()
    with pytest.raises(LimitReached):
        fork.result()
    assert (fork.spent.requests, fork.spent.uncertain, len(model.calls)) == (2, 0, 4)


def test_a_fork_of_a_run_that_repeated_itself_continues(make: Make) -> None:
    """The kept failures of a fork do not count for its own limit of repetitions."""
    agent = spender()
    swarm = make(ScriptedModel([*([[call("nobody")]] * 3), "Done"], strict=False))
    with pytest.raises(LimitReached):
        swarm.run(agent, user(), run_id=RUN, limits=Limits(repeats=3))
    assert swarm.get(RUN).fork(3).result().ended_by == "answer"


def test_a_database_of_an_earlier_version_has_no_limits(make: Make, url: str) -> None:
    """A run whose input names no limits is not limited, and a database without the table can be read."""
    agent = spender()
    swarm = make(ScriptedModel([[call("look", number=1)], "Done"]), limits=None)
    swarm.run(agent, user(), run_id=RUN)
    swarm.close()
    with connected(url) as connection:
        connection.exec_driver_sql("DROP TABLE durable_swarm_ledger")
    with open_runs(url) as opened:
        detail = opened.show(RUN)
    assert (detail.limits, detail.spent) == (None, Spent(2, 1, detail.usage or Usage()))


def test_deleted_runs_leave_no_account(make: Make, url: str) -> None:
    """The account of a run is deleted with it."""
    agent = spender()
    swarm = make(ScriptedModel(["Hello"]))
    swarm.run(agent, user(), run_id=RUN)
    swarm.get(RUN).extend(requests=1)
    swarm.close()
    with open_runs(url) as opened:
        assert opened.forget(datetime.now(UTC)) == 1
    assert rows(url, "id", "durable_swarm_ledger") == []


@pytest.fixture
def ledger(database_url: str) -> Iterator[Ledger]:
    """The ledger of a database that a `DurableSwarm` has made."""
    url = sqlalchemy.make_url(database_url)
    engine = connect(url, create=True)
    yield Ledger(url, engine)
    engine.dispose()


def together(count: int, work: Callable[[int], Any]) -> None:
    """Call `work` in several threads at once."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_no_share_is_given_twice(make_anywhere: Make, ledger: Ledger) -> None:
    """Of many runs that reserve from one account at once, exactly as many get a share as it allows."""
    make_anywhere(ScriptedModel([])).runs()
    root, given = Key("run", "root"), []
    ledger.open_for(root, Limits(requests=7))

    def reserve(number: int) -> None:
        while ledger.reserve([root, Key("run", f"child-{number}")], None) is None:
            given.append(number)

    together(4, reserve)
    account = ledger.read(root)
    assert account is not None
    assert (len(given), account.spent.requests, account.spent.uncertain) == (7, 7, 7)


def test_tool_calls_of_a_turn_are_granted_once(make_anywhere: Make, ledger: Ledger) -> None:
    """A repetition of a turn reserves nothing again, and what is missing only once there is more."""
    make_anywhere(ScriptedModel([])).runs()
    root, own = Key("run", "root"), Key("run", "child")
    ledger.open_for(root, Limits(tool_calls=3))
    assert ledger.grant([root, own], 0, 2) == (2, None)
    assert ledger.grant([root, own], 0, 2) == (2, None)
    granted, refusal = ledger.grant([root, own], 1, 3)
    assert refusal is not None
    assert (granted, refusal.key, refusal.found.used) == (1, root, 3)
    ledger.extend(root, None, {"tool_calls": 5})
    assert ledger.grant([root, own], 1, 3) == (3, None)
    account = ledger.read(root)
    assert account is not None
    assert account.spent.tool_calls == 5


def test_a_childs_own_limit_is_its_own_error(make: Make) -> None:
    """A child run that was given limits spends from both; its own one names the child, and a tool may tell it."""
    swarm = make(ScriptedModel(looking(), strict=False))
    helper = spender()

    def delegate() -> str:
        try:
            swarm.run(helper, user(), run_id="child", limits=Limits(requests=1))
        except LimitReached as error:
            raise ToolError(error.run_id) from error
        return "never"

    boss = ScriptedModel([[call("delegate")], "Done"])
    response = make(boss).run(spender(delegate), user(), run_id=RUN)
    assert response.messages[1]["content"] == "Error: child"
    assert (swarm.get(RUN).spent.requests, swarm.get("child").spent.requests) == (3, 1)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_a_request_for_more_is_an_event(streamed: bool, make_anywhere: Make) -> None:
    """Readers are told once of the request of a model call, also if another execution continues the run."""
    agent, limits = spender(), Limits(requests=1, on_limit="ask")
    model = ScriptedModel([[call("look", number=1)], "Done"])
    first = make_anywhere(model)
    if streamed:
        first.start(agent, user(), run_id=RUN, limits=limits)
    else:
        threading.Thread(target=_run, args=(first, agent, limits)).start()
    asked = wait_until(first.requests)[0]
    with open_runs(str(first.database)) as runs:
        next(event for event in runs.events(RUN) if event.type == "run.waiting")
    first.close()
    swarm = make_anywhere(model)
    swarm.recover()
    run = swarm.get(RUN)
    run.approve(asked.id, by="Ann")
    run.result()
    told = [event for event in run.events() if event.data.get("kind") == "limit"]
    assert [event.type for event in told] == ["request.opened", "run.waiting", "request.closed"]
    assert all(event.data["turn"] == 1 and event.data["request_id"] == asked.id for event in told)
    assert (told[0].data["question"], told[2].data["verdict"]) == (asked.question, "approved")


def _run(swarm: DurableSwarm, agent: Agent, limits: Limits) -> None:
    with contextlib.suppress(ConfigurationError):  # It is closed meanwhile.
        swarm.run(agent, user(), run_id=RUN, limits=limits)


@pytest.mark.parametrize("way", ["run", "start"])
def test_a_run_whose_price_is_unknown_is_not_begun(way: str, make_anywhere: Make) -> None:
    """A limit of cost that cannot be kept is refused before anything is recorded: no run is left to go on later."""
    swarm = make_anywhere(ScriptedModel(["Hello"]), prices=lambda *_: None)
    with pytest.raises(ConfigurationError, match="price of model"):
        getattr(swarm, way)(spender(), user(), run_id=RUN, limits=Limits(cost=1))
    assert swarm.runs() == []
    assert swarm.run(spender(), user(), run_id=RUN).messages[-1]["content"] == "Hello"


def test_a_summary_is_spent_by_its_run(make_anywhere: Make) -> None:
    """A run that has written a summary shows what that has cost, live and from its records."""

    def reply(request: dict[str, Any]) -> str:
        return "They met." if request["messages"][0]["content"] == "Be brief." else "Done"

    compaction = Compaction(at_messages=2, keep_last=1, model="small", instructions="Be brief.")
    swarm = make_anywhere(ScriptedModel(reply), prices=lambda model, _: 5 if model == "small" else 1)
    session = swarm.session(unique("summed"), spender(), compaction=compaction)
    session.run("one")
    session.run("two")
    spent = session.runs()[-1].spent
    assert (spent.requests, spent.uncertain, spent.cost) == (2, 0, 6)


def test_an_attempt_after_an_outage_is_uncertain_if_it_is_killed(make_anywhere: Make, ledger: Ledger) -> None:
    """That one attempt of a model call has failed says nothing of the next one, which may be in flight at a crash."""
    make_anywhere(ScriptedModel([])).runs()
    budget = Budget(ledger, RUN, None, Limits(requests=9))
    for killed in range(1, 4):
        budget._turn = 3
        budget._give_back()
        assert budget.reserve_here(0, again=False) is False
        assert budget.reserve(0, again=False) is None
        account = ledger.begin_again(RUN, 3)
        assert account.spent.uncertain == killed


def test_an_answer_that_is_not_recorded_is_paid(make_anywhere: Make) -> None:
    """A reply that fails its step costs its tokens and its price, each time; nothing of it was lost in a crash."""
    swarm = make_anywhere(ScriptedModel(lambda _: "nope", strict=False), prices=lambda *_: 1)
    agent = Agent(name=unique(), output_type=int, output_retries=1)
    with pytest.raises(InvalidOutput):
        swarm.run(agent, user(), run_id=RUN, limits=Limits(cost=3))
    run = swarm.get(RUN)
    assert (run.spent.requests, run.spent.cost, run.spent.uncertain) == (2, 2, 0)
    for error, cost in ((InvalidOutput, 3), (LimitReached, 3)):
        run.resume()
        with pytest.raises((error, RunFailed)):
            run.result()
        assert (run.spent.cost, run.spent.uncertain) == (cost, 0)


def test_work_is_given_back_by_no_resume(make_anywhere: Make) -> None:
    """Time worked in a tool counts once the tool has ended, also if the run then fails, or its tool has raised."""

    def work(number: int) -> str:
        time.sleep(0.06)
        if number > 1:
            raise OSError("no more")
        return "worked"

    model = ScriptedModel([[call("work", number=1)], [call("work", number=2)]], strict=False)
    swarm = make_anywhere(model)
    agent = spender(work)
    with pytest.raises(OSError, match="no more"):
        swarm.run(agent, user(), run_id=RUN, limits=Limits(seconds=0.15))
    run = swarm.get(RUN)
    assert run.spent.seconds >= 0.12
    run.resume()
    with pytest.raises((OSError, RunFailed)):
        run.result()
    assert run.spent.seconds >= 0.18


def test_a_summary_is_paid_though_its_run_fails(make_anywhere: Make) -> None:
    """A session's total has what its runs have spent before their first reply, too."""

    def reply(request: dict[str, Any]) -> Any:
        if request["messages"][0]["content"] == "Be brief.":
            return "They met."
        return "Done" if len(model.calls) == 1 else http_error(400)

    model = ScriptedModel(reply, strict=False)
    compaction = Compaction(at_messages=2, keep_last=1, model="small", instructions="Be brief.")
    session = make_anywhere(model).session(
        unique("summed"), spender(), compaction=compaction, limits=Limits(requests=3)
    )
    session.run("one")
    ends = []
    for text in ("two", "three", "four", "five"):
        with pytest.raises((ModelError, LimitReached)) as caught:
            session.run(text)
        ends.append(caught.value)
    assert isinstance(ends[-1], LimitReached)
    assert len(model.calls) <= 6


def test_a_session_is_extended_by_its_run(make_anywhere: Make) -> None:
    """At the limit of a session the error names the command that helps, which extends the session as well."""
    swarm = make_anywhere(ScriptedModel(["one", "two", "three"]))
    session = swarm.session(unique("short"), spender(), limits=Limits(requests=1))
    session.run("one")
    with pytest.raises(LimitReached, match=rf"durable-swarm extend {RUN} --requests 1"):
        session.run("two", run_id=RUN)
    run = swarm.get(RUN)
    run.extend(requests=1)
    run.resume()
    assert run.result().messages[-1]["content"] == "two"
    with pytest.raises(LimitReached):
        session.run("three")
    with pytest.raises(ConfigurationError, match="no limit of US dollars"):
        run.extend(cost=1)


def test_a_call_is_priced_once_and_an_empty_summary_is_paid(make_anywhere: Make) -> None:
    """The program's prices are asked once for each answer; a summary that says nothing was paid all the same."""
    priced: list[str] = []

    def prices(model: str, _: Usage) -> int:
        priced.append(model)
        return 1

    def reply(request: dict[str, Any]) -> str:
        return "" if request["messages"][0]["content"] == "Be brief." else "Done"

    compaction = Compaction(at_messages=2, keep_last=1, model="small", instructions="Be brief.")
    session = make_anywhere(ScriptedModel(reply), prices=prices).session(
        unique("empty"), spender(), compaction=compaction
    )
    session.run("one")
    with pytest.raises(ConfigurationError, match="not empty"):
        session.run("two")
    assert priced == ["gpt-4o", "small"]
    spent = session.runs()[-1].spent
    assert (spent.requests, spent.cost, spent.uncertain) == (1, 1, 0)
