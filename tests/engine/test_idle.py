"""A process with nothing to do asks the database nothing, and notices at once that another process has written."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import event

from durable_swarm import Agent, tool
from durable_swarm.engine.database import connection as database_connection
from durable_swarm.engine.database import file_guard, urls
from durable_swarm.engine.database.locks import PostgresLocks, open_locks
from durable_swarm.engine.execution import waiting
from durable_swarm.engine.processes import changes, here, maintenance
from durable_swarm.engine.processes.changes import ChangeWatch
from durable_swarm.engine.processes.maintenance import Job, only_on_change
from durable_swarm.engine.records import names
from durable_swarm.engine.records.occurrences import Timing
from durable_swarm.engine.storage.provider_outages import Failure, Provider
from durable_swarm.engine.storage.runs import Store
from durable_swarm.engine.storage.session_state import SessionState
from durable_swarm.requests import Decision
from durable_swarm.testing import ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import change, connected, unique, user, wait_until

SIGNS = (re.compile(r"INSERT INTO \S*durable_swarm_processes "), re.compile(r"SELECT \(SELECT max\("))
"""The heartbeat, and the mark of the database: of these two, PostgreSQL gets each every few seconds."""


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """The rounds of the maintenance, which come quickly; what is looked at whatever was noticed never comes."""

    def one(self: maintenance.MaintenanceLoop, present: float) -> None:
        made(self, present)
        count.append(None)

    count: list[None] = []
    made = maintenance.MaintenanceLoop._round
    monkeypatch.setattr(maintenance.MaintenanceLoop, "_round", one)
    for name in ("TICK", "LOOK", "KEEP"):
        monkeypatch.setattr(maintenance, name, 0.01)
    monkeypatch.setattr(changes, "ANYWAY", 1e9)
    return count


@contextlib.contextmanager
def sent() -> Iterator[list[str]]:
    """Yield the statements that our threads, and DBOS's for our queue, send meanwhile."""

    def count(*call: Any) -> None:
        name = threading.current_thread().name
        if name.startswith(("durable-swarm", f"queue-worker-{names.QUEUE}")):
            found.append(re.sub(r"\s+", " ", call[2]))

    found: list[str] = []
    engine = here.current().store.engine
    event.listen(engine, "before_cursor_execute", count)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", count)


@tool(approval=True)
def approved(number: int) -> str:
    """Wait for an approval."""
    return f"approved {number}"


@pytest.mark.parametrize("waits", [0, 3])
def test_an_idle_process_asks_nothing(
    waits: int, make_anywhere: Make, database_url: str, rounds: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nobody writes there is no look at queues, claims, sessions, schedules, outages or decisions."""
    monkeypatch.setattr(waiting, "THREADS", 1)  # One run waits in memory, the others are suspended.
    swarm = make_anywhere(ScriptedModel(lambda request: "Done." if waits == 0 else [("approved", {"number": 1})]))
    agent = Agent(name=unique(), functions=[approved])
    begun = [swarm.start(agent, user()) for _ in range(max(1, waits))]
    wait_until(lambda: {run.status for run in begun} == {"waiting" if waits else "done"})

    def asks() -> list[str]:
        with sent() as statements:
            before = len(rounds)
            wait_until(lambda: len(rounds) > before + 20)
        return [text for text in statements if urls.is_sqlite(here.current().url) or not _is_sign(text)]

    for _ in range(100):
        if not (asked := asks()):
            break
    assert asked == []
    assert asks() == []


def _is_sign(statement: str) -> bool:
    return any(sign.match(statement) for sign in SIGNS)


def test_a_run_handed_over_without_a_word_begins(make_anywhere: Make, database_url: str) -> None:
    """What any program writes is noticed: a run on the queue of a process begins, though no notice was sent."""
    swarm, agent = make_anywhere(ScriptedModel(["Done."])), Agent(name=unique())
    run = swarm.start(agent, user(), run_id="r", queue=True)
    queue = here.current().queue
    wait_until(lambda: here.current()._private._worker_concurrency == 0)
    change(database_url, "UPDATE {schema}workflow_status SET queue_name = :queue", queue=queue)
    assert run.result(60).messages[-1]["content"] == "Done."


@pytest.mark.parametrize(
    ("present", "count", "wants", "error", "due"),
    [
        (0.5, 2, True, None, False),
        (2.0, 1, False, None, False),
        (2.0, 2, False, None, True),
        (2.0, 1, True, None, True),
        (2.0, 1, False, "failed", True),
        (2.0, 1, None, None, True),
    ],
    ids=["too soon", "nothing", "a change", "wanted", "failed", "always"],
)
def test_when_a_job_is_due(present: float, count: int, wants: bool | None, error: str | None, due: bool) -> None:
    """A job that waits for changes is done after one, where it failed, and where it has more to do; none too often."""
    job = Job("one", lambda: None, 1.0, None if wants is None else lambda: bool(wants))
    job.run(0.0, 1)
    job.error = error
    assert job.is_due(present, count) is due
    assert only_on_change() is False


def test_a_change_during_a_job_is_not_lost() -> None:
    """A job counts the changes before it looks: what changes while it looks makes it look again."""
    count = [1]
    job = Job("one", lambda: count.append(count.pop() + 1), 0.0, only_on_change)
    job.run(0.0, count[0])
    assert job.is_due(1.0, count[0])


def test_what_counts_as_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notice, another mark, a time that has come, and a long time without any look."""
    heard, marks, at = [False], [((1,), None)], int(time.time() * 1000)
    watch = ChangeWatch(lambda: heard[0], lambda: marks[0])

    def counts(act: Callable[[], object]) -> bool:
        before = watch.count
        act()
        return watch.count > before

    assert counts(watch.compare)
    assert not counts(watch.compare)
    marks[0] = ((2,), at + 3_600_000)
    assert counts(watch.compare)
    assert not counts(watch.look)
    heard[0] = True
    assert counts(watch.look)
    heard[0], marks[0] = False, ((2,), at)
    assert not counts(watch.compare)
    assert counts(watch.look)
    marks[0] = ((2,), at - 60_000)
    watch.compare()
    assert not counts(watch.look)
    monkeypatch.setattr(watch, "_anyway", time.monotonic())
    assert counts(watch.look)
    assert counts(watch.touch)


def test_a_decision_before_the_wait_is_found(make: Make) -> None:
    """A wait that has just begun is looked at without any change: its decision may have come before it."""
    swarm = make(ScriptedModel([[("approved", {"number": 1})], "Done."]))
    agent = Agent(name=unique(), functions=[approved])
    run = swarm.start(agent, user())
    wait_until(lambda: run.status == "waiting")
    calls = here.current().waiting_calls
    wait_until(lambda: not calls.has_new())
    calls._enter(calls._waiting[0])
    assert calls.has_new()
    calls.look()
    assert not calls.has_new()


# SQLite


def test_each_transaction_changes_the_head_of_the_index(url: str) -> None:
    """The head differs after each transaction of any program, and stays while all of them read or write nothing."""
    path = url.removeprefix("sqlite:///")
    assert file_guard.head_of_index(path) is None
    engine = database_connection.connect(urls.choose(url), create=False)
    with contextlib.closing(open_locks(urls.choose(url))) as locks:
        with connected(url) as connection:
            connection.exec_driver_sql("CREATE TABLE kept (number INTEGER)")
        assert locks.hear()
        for number in range(3):
            assert not locks.hear()
            with connected(url) as connection:
                connection.exec_driver_sql("SELECT number FROM kept").all()
                connection.exec_driver_sql("UPDATE kept SET number = 1 WHERE number < 0")
            assert not locks.hear()
            with connected(url) as connection:
                connection.exec_driver_sql(f"INSERT INTO kept VALUES ({number})")
            assert locks.hear()
    database_connection.let_go(engine)


def test_an_unknown_file_may_always_have_changed(tmp_path: Any) -> None:
    """Where the index is not ours to read, as with the connections of a program's own DBOS, every look is made."""
    with contextlib.closing(open_locks(urls.choose(f"sqlite:///{tmp_path}/none.sqlite"))) as locks:
        assert [locks.hear() for _ in range(3)] == [True] * 3


# PostgreSQL

HANDS_OVER: dict[str, Callable[[Store], object]] = {
    "a new run": lambda store: store.enqueue("new", {}, {}, names.UNCLAIMED, None),
    "a cancelled run": lambda store: store.cancel("r"),
    "a run that continues": lambda store: store.inbox.wake("r"),
    "a run left to others": lambda store: store.claims.transfer([store.found("r")], names.UNCLAIMED),
    "a decision": lambda store: store.inbox.decide(store.inbox.open_requests()[0].id, Decision("approved"), None),
    "a turn": lambda store: store.sessions.pass_turn(_session(store), None, None),
    "a schedule": lambda store: store.schedules.put("daily", "s", "a", Timing(every=3600.0, since=SINCE), {}),
    "a provider away": lambda store: store.outages.begin(Provider("p", "m"), Failure("down")),
    "a provider back": lambda store: store.outages.end(["p m"]),
}
SINCE = "2026-01-01T00:00:00+00:00"


def _session(store: Store) -> SessionState:
    state = store.sessions.look("s")
    assert state is not None
    return state


@pytest.mark.parametrize("hands_over", HANDS_OVER.values(), ids=HANDS_OVER.keys())
def test_who_hands_over_tells_the_other_processes(
    hands_over: Callable[[Store], object], make: Make, postgres_database: str
) -> None:
    """Whatever another process may have to act on is followed by a notice; its reader does not take it for its end."""
    swarm = make(
        ScriptedModel(lambda request: [("approved", {"number": 1})] if request.get("tools") else "Hello."),
        database=postgres_database,
    )
    agent, greeter = Agent(name=unique(), functions=[approved]), Agent(name=unique("Greeter"))
    run = swarm.start(agent, user(), run_id="r")
    swarm.session("s", greeter).run("Hi")
    wait_until(lambda: run.status == "waiting")
    swarm.close()
    url = urls.choose(postgres_database)
    store = Store(url, database_connection.connect(url, create=False))
    with contextlib.closing(store), contextlib.closing(open_locks(url)) as locks:
        assert locks.hear()
        assert not locks.hear()
        hands_over(store)
        wait_until(locks.hear)
        assert not locks.lost()


def test_a_lock_missed_at_a_reconnection_is_taken_later(postgres_database: str) -> None:
    """A heartbeat does not count as having the name: who lost it while another looked at it takes it back."""
    url = urls.choose(postgres_database)
    with contextlib.ExitStack() as stack:
        locks, other = (stack.enter_context(contextlib.closing(PostgresLocks(url))) for _ in range(2))
        beat = sqlalchemy.text("SELECT 1")
        assert locks.take("me")
        assert locks.keep(beat)
        locks._connection.close()
        assert other.take("me")
        assert not locks.keep(beat)
        assert locks.take("another")
        assert not locks.keep(beat)
        other.give("me")
        assert locks.take("me")
        assert locks.keep(beat)
