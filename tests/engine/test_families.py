"""A run and the runs below it: what they ask, how they wait, end, continue and are deleted, together."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from durable_swarm import (
    Agent,
    ConfigurationError,
    DurableSwarm,
    Run,
    RunCancelled,
    RunFailed,
    RunNotFound,
    ask_human,
    ask_human_async,
    tool,
)
from durable_swarm.service import Query, open_runs
from durable_swarm.testing import ScriptedModel, call, when
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, unique, user, wait_until

LATER = datetime(2100, 1, 1, tzinfo=UTC)


def results(request: dict[str, Any]) -> bool:
    """Return True if the last message is the result of a tool."""
    return bool(request["messages"][-1]["role"] == "tool")


class Clan:
    """A boss that asks two scouts at once; `work` is the scouts' tool."""

    def __init__(self, make: Make, work: Any, *, scouts: int = 1, **options: Any) -> None:
        self.scouts = [
            Agent(name=unique("Clan Scout"), instructions="You look.", functions=[work]) for _ in range(scouts)
        ]
        tools = [scout.as_tool(f"ask_{number}") for number, scout in enumerate(self.scouts)]
        self.boss = Agent(name=unique("Clan Boss"), instructions="You lead.", functions=tools)
        asks = [call(f"ask_{number}", message=f"Go {number}") for number in range(scouts)]
        self.model = ScriptedModel(
            [
                when(system="lead", where=results, reply="All is found."),
                when(system="lead", reply=asks),
                when(system="look", where=results, reply="Found."),
                when(system="look", reply=[call("work")]),
            ]
        )
        self.swarm: DurableSwarm = make(self.model, **options)

    def start(self, run_id: str) -> Run:
        """Start the boss."""
        return self.swarm.start(self.boss, user(), run_id=run_id)

    def waiting(self, run_id: str) -> Run:
        """Start the boss, and wait until it waits for its scouts."""
        run = self.start(run_id)
        wait_until(lambda: len(run.requests()) == len(self.scouts))
        return run


@tool(approval=True)
def work() -> str:
    """Need an approval."""
    return "worked"


def test_a_parent_waits_with_its_child(make_anywhere: Make, database_url: str) -> None:
    """The parent of a child that waits is `waiting`, says for whom, and lists the child's request."""
    clan = Clan(make_anywhere, work)
    run = clan.waiting("pa")
    child = run.children()[0]
    assert (run.status, child.status) == ("waiting", "waiting")
    why = f"child run 'pa/0.0/0' of agent {clan.scouts[0].name!r} waits: it has an open request (approval)"
    assert run.waits_for == why
    assert [request.run_id for request in run.requests()] == ["pa/0.0/0"]
    assert run.requests(children=False) == []
    assert [one.id for one in clan.swarm.runs(status="waiting")] == [child.id, run.id]
    with open_runs(database_url) as opened:
        view = opened.view("pa")
        assert (view.status, view.children, view.waits_for) == ("waiting", ["pa/0.0/0"], run.waits_for)
        assert opened.view("pa/0.0/0").parent == "pa"
        (asked,) = opened.inbox.list()
        assert [(above.run_id, above.agent) for above in asked.parents] == [("pa", clan.boss.name)]
        assert opened.inbox.list("pa") == [asked]
    run.approve()
    assert run.result(PATIENCE).messages[-1]["content"] == "All is found."
    assert run.requests() == []
    assert [request.status for request in run.requests(all=True)] == ["answered"]


def test_a_parent_decides_by_the_id_of_a_childs_request(make_anywhere: Make) -> None:
    """With several open requests below, each is decided through the parent by its id; others' ids are refused."""
    clan = Clan(make_anywhere, work, scouts=2)
    run, other = clan.waiting("two"), clan.waiting("other-two")
    first, second = run.requests()
    with pytest.raises(ConfigurationError, match="several open requests"):
        run.approve()
    with pytest.raises(ConfigurationError, match="is not of run 'two'"):
        run.approve(other.requests()[0].id)
    run.approve(first.id)
    run.reject("no", second.id)
    assert run.result(PATIENCE).messages[-1]["content"] == "All is found."
    assert {request.run_id for request in other.requests()} == {"other-two/0.0/0", "other-two/0.1/0"}
    other.cancel()


def test_cancelling_a_parent_ends_its_children(make_anywhere: Make) -> None:
    """`cancel` goes down: the runs below end cancelled, and what they ask is asked no more."""
    clan = Clan(make_anywhere, work, scouts=2)
    run = clan.waiting("stop")
    run.cancel()
    assert [one.status for one in (run, *run.children())] == ["cancelled"] * 3
    assert clan.swarm.requests() == []
    with pytest.raises(RunCancelled):
        run.result(PATIENCE)


def test_resuming_a_cancelled_parent_resumes_its_children(make_anywhere: Make) -> None:
    """`resume` goes down: the runs below continue where they were, and the parent gets their answers."""
    clan = Clan(make_anywhere, work, scouts=2)
    run = clan.waiting("again")
    run.cancel()
    with pytest.raises(RunCancelled):
        run.result(PATIENCE)
    run.resume()
    for request in run.requests():
        run.approve(request.id)
    assert run.result(PATIENCE).messages[-1]["content"] == "All is found."
    assert len(clan.model.calls) == 6


def test_resuming_a_failed_parent_resumes_failed_children(make_anywhere: Make) -> None:
    """A child that failed is resumed with its parent: what had finished is not repeated, the failed step is."""
    broken = threading.Event()
    broken.set()

    def work() -> str:
        if broken.is_set():
            raise ValueError("no light")
        return "worked"

    clan = Clan(make_anywhere, work)
    run = clan.start("mended")
    with pytest.raises(RunFailed, match=r"child run 'mended/0.0/0' .* failed: ValueError: no light"):
        run.result(PATIENCE)
    broken.clear()
    run.resume()
    assert run.result(PATIENCE).messages[-1]["content"] == "All is found."
    assert len(clan.model.calls) == 4
    told = [event.data["status"] for event in run.events() if event.type == "child.finished"]
    assert told == ["failed", "done"]


def test_usage_counts_the_runs_below(make_anywhere: Make, database_url: str) -> None:
    """A run's tokens are its own and those of all runs below it."""
    clan = Clan(make_anywhere, lambda: "worked", scouts=2)
    clan.scouts[0].functions[0].__name__ = "work"
    run = clan.start("spent")
    run.result(PATIENCE)
    usages = [one.usage for one in (run, *run.children())]
    assert [usage.requests for usage in usages if usage is not None] == [6, 2, 2]
    with open_runs(database_url) as opened:
        assert opened.show("spent").usage == usages[0]


def test_events_of_the_children_come_with_their_run(make_anywhere: Make) -> None:
    """With `children=True` a reader gets every event of each run, numbered in that run, between start and end."""
    clan = Clan(make_anywhere, work, scouts=2)
    run = clan.waiting("told")
    for request in run.requests():
        run.approve(request.id)
    found = list(run.events(children=True))
    for child in run.children():
        own = [event for event in found if event.run_id == child.id]
        assert [(event.seq, event.type, event.data) for event in own] == [
            (event.seq, event.type, event.data) for event in child.events()
        ]
    assert [event for event in found if event.run_id is None] == list(run.events())
    for place, event in enumerate(found):
        if event.type == "child.finished":
            assert event.data["run_id"] not in [later.run_id for later in found[place:]]
    began = next(event.seq for event in run.events() if event.type == "child.finished")
    rest = list(run.events(after=began, children=True))
    assert [event for event in rest if event.run_id is None] == [event for event in run.events() if event.seq > began]


def test_old_families_are_deleted_together(make_anywhere: Make, database_url: str) -> None:
    """A child run is kept as long as its parent, and a parent as long as a run below it has not ended."""
    clan = Clan(make_anywhere, work)
    ended, open_one = clan.waiting("gone"), clan.waiting("stays")
    ended.approve()
    ended.result(PATIENCE)

    async def later() -> str:
        return await ask_human_async("When?")

    asker = Agent(name=unique("Clan Asker"), instructions="You look.", functions=[later])
    asker.functions[0].__name__ = "work"

    async def leave() -> str:
        await clan.swarm.start_async(asker, user())
        return "left"

    keeper = Agent(name=unique("Clan Keeper"), instructions="You look.", functions=[leave])
    keeper.functions[0].__name__ = "work"
    clan.swarm.run(keeper, user(), run_id="left")
    with open_runs(database_url) as opened:
        assert opened.forget(LATER, dry_run=True) == 2
        assert opened.forget(LATER) == 2
        kept = {view.id for view in opened.list(Query())}
    assert kept == {"stays", "stays/0.0/0", "left", "left/0.0/0"}
    with pytest.raises(RunNotFound):
        clan.swarm.get("gone/0.0/0")
    open_one.cancel()
    clan.swarm.get("left/0.0/0").cancel()


def test_a_question_of_a_plain_tool_below_is_answered(make_anywhere: Make) -> None:
    """A grandchild's question is its top run's, and the way to it names every run between."""
    low = Agent(name=unique("Clan Low"), instructions="You look.", functions=[_ask])
    ask_low = low.as_tool()

    async def work(context_variables: dict[str, Any]) -> str:
        return str(await ask_low(message="Which?", context_variables=context_variables))

    clan = Clan(make_anywhere, work)
    run = clan.start("deep")
    wait_until(lambda: len(run.requests()) == 1)
    (request,) = run.requests()
    assert [above.run_id for above in request.parents] == ["deep", "deep/0.0/0"]
    assert run.status == "waiting"
    assert "deep/0.0/0/0.0/0" in (run.waits_for or "")
    run.cancel()


def _ask() -> str:
    return ask_human("Which?")


_ask.__name__ = "work"


def test_an_imported_family_is_one_again(make: Make, fresh_sqlite: Any, tmp_path: Any) -> None:
    """Parent and children are exported one by one, and are a family again wherever they are imported, in any order."""
    clan = Clan(make, work)
    run = clan.waiting("moved")
    run.approve()
    run.result(PATIENCE)
    documents = [clan.swarm.export(one.id) for one in (*run.children(), run)]
    clan.swarm.close()
    with DurableSwarm(ScriptedModel([]), database=fresh_sqlite(tmp_path / "other.sqlite")) as other:
        for document in documents:
            other.import_run(document)
        assert [one.id for one in other.get("moved").children()] == ["moved/0.0/0"]
        parent = other.get("moved/0.0/0").parent
        assert parent is not None
        assert parent.id == "moved"
