"""Runs whose provider is away: they wait, say so, and continue; one of them asks for all."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from durable_swarm import Agent, ConfigurationError, DurableSwarm, ModelError, Run, RunCancelled
from durable_swarm.engine.database.connection import connect
from durable_swarm.engine.execution import waiting
from durable_swarm.engine.processes.here import current
from durable_swarm.engine.storage import provider_outages
from durable_swarm.engine.storage.ownership import now
from durable_swarm.engine.storage.provider_outages import Failure, Provider, ProviderOutages
from durable_swarm.models.provider_errors import MOST_TIME, retry_after
from durable_swarm.testing import ScriptedModel, dropped, http_error, rate_limited, timed_out
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, ROOT, change, rows, unique, user, wait_until
from tests.support import programs

FAR = 3600
"""Seconds that a provider asks to wait: no try is due in a test unless the test says so."""


class Provided(ScriptedModel):
    """A provider that is away until it is back: it fails with `fault`, and answers "Hello" afterwards."""

    def __init__(self, fault: BaseException | None = None) -> None:
        self.fault = rate_limited(FAR) if fault is None else fault
        self.back = threading.Event()
        super().__init__(lambda request: "Hello" if self.back.is_set() else self.fault)


def waits(run: Run) -> bool:
    """Return True if a run waits for its provider."""
    return run.status == "waiting" and run.waits_for is not None


def try_now(url: str) -> None:
    """Make the next try of every outage due."""
    change(url, "UPDATE {schema}durable_swarm_outages SET next_at = 1 WHERE elected = ''")


def planned(url: str) -> list[Any]:
    """Return the time of the next try of each outage, in milliseconds since 1970."""
    return [row[0] for row in rows(url, "next_at", "durable_swarm_outages")]


def url_of(swarm: DurableSwarm) -> str:
    """Return the URL of a swarm's database."""
    assert swarm.database is not None
    return swarm.database


FAULTS: dict[str, Callable[[], BaseException]] = {
    "503": lambda: http_error(503),
    "500": lambda: http_error(500),
    "408": lambda: http_error(408),
    "409": lambda: http_error(409),
    "429": lambda: rate_limited(0),
    "spent": lambda: http_error(429, code="insufficient_quota"),
    "lost": dropped,
    "late": timed_out,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_run_waits_and_continues(fault: Callable[[], BaseException], make: Make) -> None:
    """A run whose provider is away waits, says for what, and ends as if nothing had happened."""
    model = Provided(fault())
    run = make(model).start(Agent(name=unique()), user())
    wait_until(lambda: waits(run))
    assert "the provider of model 'gpt-4o' has been away since " in str(run.waits_for)
    model.back.set()
    assert run.result(PATIENCE).messages[-1]["content"] == "Hello"
    assert run.waits_for is None


def test_another_process_sees_the_wait(make_anywhere: Make) -> None:
    """What a run waits for is in the database: since when, why, with secrets masked, and when it is tried again."""
    swarm = make_anywhere(Provided(rate_limited(FAR, "busy, says sk-abcdefghijklmnop")))
    run = swarm.start(Agent(name=unique()), user())
    wait_until(lambda: waits(run))
    told = str(run.waits_for)
    assert "busy, says ***" in told
    assert "; the next try is at " in told
    assert [found.id for found in swarm.runs("waiting")] == [run.id]


@pytest.mark.parametrize("released", [False, True], ids=["in memory", "released"])
def test_one_run_asks_for_all(released: bool, make_anywhere: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many runs wait, in memory or not, one asks again when it is time; once it succeeds, the others do."""
    model, agent = Provided(), Agent(name=unique())
    swarm = make_anywhere(model)
    if released:
        monkeypatch.setattr(waiting, "COROUTINES", 2)
    runs = [swarm.start(agent, user()) for _ in range(8)]
    wait_until(lambda: all(map(waits, runs)))
    if released:
        wait_until(lambda: [row[0] for row in rows(url_of(swarm), "status")].count("DELAYED") == 6)
    tried = len(model.calls)
    try_now(url_of(swarm))
    wait_until(lambda: len(model.calls) == tried + 1)
    wait_until(lambda: planned(url_of(swarm))[0] > 1)
    wait_until(lambda: "next try is at" in str(runs[0].waits_for))
    assert len(model.calls) == tried + 1
    model.back.set()
    try_now(url_of(swarm))
    assert [run.result(PATIENCE).messages[-1]["content"] for run in runs] == ["Hello"] * 8
    assert len(model.calls) == tried + 1 + 8
    assert planned(url_of(swarm)) == []


def test_patience_ends(make_anywhere: Make) -> None:
    """A run that has waited as long as it was told fails with how long that was, and `resume` continues it."""
    model, agent = Provided(), Agent(name=unique())
    swarm = make_anywhere(model, provider_patience=FAR)
    run = swarm.start(agent, user(), provider_patience=0.3)
    with pytest.raises(ModelError, match=r"was away for \d+ s.*provider_patience.*rate limit reached") as caught:
        run.result(PATIENCE)
    assert caught.value.status == 429
    assert caught.value.away
    assert run.status == "failed"
    model.back.set()
    run.resume()
    assert run.result(PATIENCE).messages[-1]["content"] == "Hello"


@pytest.mark.parametrize("where", ["swarm", "run"])
def test_without_patience_a_run_fails_at_once(where: str, make: Make) -> None:
    """With `provider_patience=0`, for all runs or for one, a run fails at once, also while others wait."""
    model = Provided()
    waiting_run = make(model, name="patient").start(Agent(name=unique()), user())
    wait_until(lambda: waits(waiting_run))
    swarm = make(model, **({"provider_patience": 0} if where == "swarm" else {}))
    options: dict[str, Any] = {"provider_patience": 0} if where == "run" else {}
    with pytest.raises(ModelError, match="the model call failed"):
        swarm.run(Agent(name=unique()), user(), **options)


@pytest.mark.parametrize("value", [-1, "1", None, float("nan"), True])
def test_patience_is_checked(value: Any, make: Make) -> None:
    """What is no number of seconds is refused before anything runs; None leaves it to the swarm."""
    if value is not None:
        with pytest.raises(ConfigurationError, match="provider_patience must be a number of seconds"):
            make(ScriptedModel(["Hello"])).run(Agent(name=unique()), user(), provider_patience=value)
    with pytest.raises(ConfigurationError, match="provider_patience must be a number of seconds"):
        DurableSwarm(provider_patience=value)


def test_patience_may_be_endless(make: Make) -> None:
    """A run may wait for ever."""
    run = make(ScriptedModel(["Hello"])).start(Agent(name=unique()), user(), provider_patience=float("inf"))
    assert run.result(PATIENCE).messages[-1]["content"] == "Hello"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_the_wait_is_an_event(streamed: bool, make_anywhere: Make) -> None:
    """Readers are told once that a run waits, under one number, live and later."""
    model = Provided(http_error(503))
    swarm, agent = make_anywhere(model), Agent(name=unique())
    run_id = unique("run")
    caller = threading.Thread(target=lambda: swarm.run(agent, user(), run_id=run_id))
    if streamed:
        swarm.start(agent, user(), run_id=run_id)
    else:
        caller.start()
    wait_until(lambda: run_id in [run.id for run in swarm.runs("waiting")])
    run = swarm.get(run_id)
    told = []
    for event in run.events():
        told.append(event)
        if event.type == "run.waiting":
            model.back.set()
    expected = ["run.started", "turn.started", "run.waiting", "text.delta", "run.finished"]
    assert [event.type for event in told if event.type != "text.reset"] == expected
    data = told[expected.index("run.waiting")].data
    assert data == {"turn": 0, "kind": "provider", "model": "gpt-4o", "reason": "ProviderError: scripted 503"}
    assert list(run.events()) == told
    if not streamed:
        caller.join()


@pytest.mark.parametrize("released", [False, True], ids=["in memory", "released"])
def test_a_waiting_run_can_be_cancelled(released: bool, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that waits for its provider is cancelled at once, wherever it is; resumed, it waits anew."""
    if released:
        monkeypatch.setattr(waiting, "COROUTINES", 0)
    model, agent = Provided(), Agent(name=unique())
    swarm = make(model)
    run = swarm.start(agent, user())
    wait_until(lambda: waits(run))
    run.cancel()
    with pytest.raises(RunCancelled):
        run.result(PATIENCE)
    assert run.waits_for is None
    model.back.set()
    run.resume()
    assert run.result(PATIENCE).messages[-1]["content"] == "Hello"


def test_resume_asks_at_once(make: Make) -> None:
    """`resume` of a run that waits for its provider makes the next try due, however long the provider asked for."""
    model = Provided()
    swarm = make(model)
    run = swarm.start(Agent(name=unique()), user())
    wait_until(lambda: waits(run))
    model.back.set()
    run.resume()
    assert run.result(PATIENCE).messages[-1]["content"] == "Hello"


def test_a_wait_outlives_its_process(make_anywhere: Make) -> None:
    """A run that waits when its program ends waits in the next one, since the same time and until the same time."""
    model, agent = Provided(), Agent(name=unique())
    swarm = make_anywhere(model)
    run = swarm.start(agent, user())
    wait_until(lambda: waits(run))
    told, url, tried = run.waits_for, url_of(swarm), len(model.calls)
    swarm.close()
    again = swarm.get(run.id)
    assert again.status == "waiting"
    wait_until(lambda: again.id in current().local.executions)
    assert again.waits_for == told
    assert len(model.calls) == tried
    model.back.set()
    try_now(url)
    assert again.result(PATIENCE).messages[-1]["content"] == "Hello"
    assert len(model.calls) == tried + 1


def test_a_worker_is_drained_at_once(make: Make) -> None:
    """A run that waits for its provider does not delay the end of a worker."""
    swarm = make(Provided(), provider_patience=FAR)
    agent = Agent(name=unique())
    swarm.serve(2)
    run = swarm.enqueue(agent.name, user())
    wait_until(lambda: waits(run))
    assert swarm.drain(PATIENCE)


def test_a_waiting_run_gives_its_place_to_another(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a worker a run that waits for its provider makes room for the next, and continues later."""
    monkeypatch.setattr("durable_swarm.engine.processes.worker.PATIENCE", 0.1)
    model = Provided()
    swarm = make(model)
    agent = Agent(name=unique())
    swarm.serve(1)
    runs = [swarm.enqueue(agent.name, user()) for _ in range(3)]
    wait_until(lambda: all(map(waits, runs)))
    model.back.set()
    try_now(url_of(swarm))
    assert [run.result(PATIENCE).messages[-1]["content"] for run in runs] == ["Hello"] * 3


def test_another_refusal_ends_the_wait(make: Make) -> None:
    """A provider that is back and refuses the request ends the run that asked, and the wait of the others."""
    model = Provided()
    swarm, agent = make(model), Agent(name=unique())
    runs = [swarm.start(agent, user()) for _ in range(2)]
    wait_until(lambda: all(map(waits, runs)))
    model.fault = http_error(400, "not like this")
    try_now(url_of(swarm))
    for run in runs:
        with pytest.raises(ModelError, match="not like this"):
            run.result(PATIENCE)
    assert planned(url_of(swarm)) == []


def test_other_models_do_not_wait(make: Make) -> None:
    """An outage is one of a model at a provider: other models are asked."""
    model = Provided()
    swarm = make(model)
    waiting_run = swarm.start(Agent(name=unique(), model="m1"), user())
    wait_until(lambda: waits(waiting_run))
    model.back.set()
    assert swarm.run(Agent(name=unique(), model="m2"), user()).messages[-1]["content"] == "Hello"
    assert waits(waiting_run)


def test_the_example_waits_and_reports(tmp_path: Path) -> None:
    """The example says what its run waits for, and ends with the report."""
    command = [sys.executable, str(ROOT / "examples" / "outage" / "main.py")]
    told = programs.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told[0] == "collecting the figures"
    assert told[1].startswith("waiting: the provider of model 'gpt-4o' has been away since ")
    assert told[-1] == "42 orders today."
    assert told.count("collecting the figures") == 1


GONE = Provider("https://provider.example", "m")


@pytest.fixture
def outages(make_anywhere: Make) -> ProviderOutages:
    """The outages of a fresh database."""
    swarm = make_anywhere(ScriptedModel([]))
    swarm.runs()
    return current().store.outages


def test_one_run_is_elected(outages: ProviderOutages) -> None:
    """Of all that want to ask a provider again one is elected, and none before the time; its end lets another be."""
    outages.begin(GONE, Failure("503", 503, FAR))
    assert not outages.elect(GONE.key, "a")
    outages.hasten(GONE.key)
    assert [outages.elect(GONE.key, run_id) for run_id in "ab"] == [True, False]
    assert [outages.confirm(GONE.key, run_id) for run_id in "ab"] == [True, False]
    outages.withdraw("b")
    assert not outages.elect(GONE.key, "b")
    outages.withdraw("a")
    assert outages.elect(GONE.key, "b")


def test_only_the_elected_run_plans_the_next_try(outages: ProviderOutages) -> None:
    """Failures of runs that were not elected change no plan; those of the elected make the pauses longer."""
    outages.begin(GONE, Failure("503", 503, 0))
    assert outages.elect(GONE.key, "a")
    outages.failed(GONE.key, "b", Failure("other"))
    assert outages.known()[GONE.key].elected == "a"
    outages.failed(GONE.key, "a", Failure("502", 502))
    found = outages.known()[GONE.key]
    assert (found.failures, found.reason, found.status, found.elected) == (2, "502", 502, "")
    outages.begin(GONE, Failure("503", 503))
    assert outages.known()[GONE.key] == found


def test_a_provider_may_ask_for_more_time(outages: ProviderOutages) -> None:
    """The longest wait that a provider asks for counts, whoever was told."""
    outages.begin(GONE, Failure("503", 503))
    before = outages.known()[GONE.key].next_at
    outages.begin(GONE, Failure("429", 429, FAR))
    after = outages.known()[GONE.key]
    assert after.next_at > before
    assert after.failures == 1
    outages.begin(GONE, Failure("429", 429, 1))
    assert outages.known()[GONE.key] == after


def test_an_outage_that_nobody_waits_for_is_forgotten(outages: ProviderOutages) -> None:
    """An outage that is due and for which no run waits is deleted, so that it delays no run later."""
    outages.begin(GONE, Failure("503", 503, FAR))
    outages.forget(GONE.key)
    assert GONE.key in outages.known()
    outages.hasten(GONE.key)
    outages.forget(GONE.key)
    assert outages.known() == {}


@pytest.mark.parametrize("wish", ["1e9", "99999999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_a_slip_in_a_header_stops_no_model_for_years(wish: str) -> None:
    """What a provider asks to wait is bounded."""
    assert retry_after(http_error(429, headers={"retry-after": wish})) == MOST_TIME


def test_a_clock_that_was_set_back_delays_no_try(make_anywhere: Make, database_url: str, monkeypatch: Any) -> None:
    """A try that was planned in what is now the future is due."""
    make_anywhere(ScriptedModel([])).runs()
    url = sqlalchemy.make_url(database_url)
    engine = connect(url, create=True)
    outages = ProviderOutages(url, engine)
    here, later = Provider("here", "model"), now() + 2 * 3_600_000
    with monkeypatch.context() as ahead:
        ahead.setattr(provider_outages, "now", lambda: later)
        outages.begin(here, Failure("away"))
        assert not outages.known()[here.key].is_due
        assert not outages.elect(here.key, "run")
    assert outages.known()[here.key].is_due
    assert outages.elect(here.key, "run")
    engine.dispose()
