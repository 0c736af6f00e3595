"""Lists of runs: every condition is met by all runs of a list, and pages neither repeat nor lose one."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from durable_swarm import Agent, ConfigurationError, DurableSwarm, RunNotFound
from durable_swarm.cli import main
from durable_swarm.service import Query, open_runs
from durable_swarm.testing import ScriptedModel, call
from durable_swarm.types import Usage
from tests.engine.helpers import change, user
from tests.support.asking import asking


def cent(_model: str, _usage: Usage) -> Decimal:
    """Price every model call at one cent."""
    return Decimal("0.01")


@pytest.fixture
def listed(database_url: str) -> str:
    """The URL of a database with seven runs of two swarms and two agents."""
    for swarm, agent, ids in (
        ("desk", "Clerk", ["a-1", "a-2", "a%3"]),
        ("shop", "Refunds", ["b-1", "b-2", "b_3", "B-4"]),
    ):
        with DurableSwarm(ScriptedModel(lambda _: "Hello"), database=database_url, name=swarm, prices=cent) as durable:
            clerk = Agent(name=agent)
            for run_id in ids:
                durable.run(clerk, user(), run_id=run_id)
    return database_url


def ids(url: str, query: Query) -> list[str]:
    """Return the ids of a list."""
    with open_runs(url) as runs:
        return [view.id for view in runs.list(query)]


def test_each_condition_narrows_the_list(listed: str) -> None:
    """Status, agent, swarm and a text in the id narrow a list, alone and together."""
    assert ids(listed, Query()) == ["B-4", "b_3", "b-2", "b-1", "a%3", "a-2", "a-1"]
    assert ids(listed, Query("done", "Clerk")) == ["a%3", "a-2", "a-1"]
    assert ids(listed, Query(swarm="shop", search="-")) == ["B-4", "b-2", "b-1"]
    assert ids(listed, Query(swarm="desk")) == ["a%3", "a-2", "a-1"]
    assert ids(listed, Query(agent="Clerk", swarm="shop")) == []
    assert (
        ids(listed, Query("failed")) == ids(listed, Query("waiting")) == ids(listed, Query("running", idle=True)) == []
    )


def test_a_text_is_searched_as_it_is(listed: str) -> None:
    """No character of a search has a meaning, and its case counts."""
    expected = {"%": ["a%3"], "_": ["b_3"], "b-": ["b-2", "b-1"], "\0": []}
    assert {text: ids(listed, Query(search=text)) for text in expected} == expected


def test_a_time_narrows_the_list(listed: str) -> None:
    """`since` includes its moment, `until` does not."""
    with open_runs(listed) as runs:
        started = {view.id: view.created_at for view in runs.list(Query())}
    later = started["a%3"] + (started["b-1"] - started["a%3"]) / 2
    assert ids(listed, Query(since=later)) == ["B-4", "b_3", "b-2", "b-1"]
    assert ids(listed, Query(until=later)) == ["a%3", "a-2", "a-1"]
    assert ids(listed, Query(since=started["B-4"] + timedelta(hours=1))) == []


def test_pages_have_each_run_once(listed: str) -> None:
    """Each page begins behind the last run of the one before, while runs are added, also of one millisecond."""
    change(listed, "UPDATE {schema}workflow_status SET created_at = 5 WHERE name = 'durable_swarm.run'")
    found: list[str] = []
    with open_runs(listed) as runs:
        while page := runs.list(Query(limit=2, before=found[-1] if found else None)):
            found += [view.id for view in page]
            with DurableSwarm(ScriptedModel(["Hello"]), database=listed) as swarm:
                clerk = Agent(name="Later")
                swarm.run(clerk, user())
    assert sorted(found) == sorted(["B-4", "b_3", "b-2", "b-1", "a%3", "a-2", "a-1"])


def test_an_invalid_query_is_refused(listed: str) -> None:
    """A limit below 1 and a place behind no run have errors of their own."""
    with pytest.raises(ConfigurationError, match="limit must be"):
        ids(listed, Query(limit=0))
    with pytest.raises(RunNotFound, match="gone"):
        ids(listed, Query(before="gone"))


def test_a_list_has_the_totals_of_each_run(database_url: str) -> None:
    """A row has the run's swarm, turns, tokens, cost, open requests and error; the full view has the same."""

    def refund(amount: int) -> str:
        raise RuntimeError("the bank is down")

    model = ScriptedModel([[call("refund", amount=5)]])
    with (
        DurableSwarm(model, database=database_url, name="shop", prices=cent) as swarm,
        pytest.raises(RuntimeError, match="bank"),
    ):
        swarm.run(Agent(name="Refunds", functions=[refund]), user(), run_id="bad")
    with open_runs(database_url) as runs:
        view = runs.list(Query())[0]
        assert (view.swarm, view.turns, view.cost, view.open_requests) == ("shop", 1, Decimal("0.01"), 0)
        assert view.failure == "RuntimeError: the bank is down"
        detail = runs.show("bad")
        assert detail.usage is not None
        assert view.tokens == detail.tokens == detail.usage.total_tokens
        assert (detail.turns, detail.cost) == (1, Decimal("0.01"))


def test_a_list_counts_open_requests(database_url: str) -> None:
    """A run that asks has the number of its open requests in its row."""
    with asking("asks", "choose", database=database_url), open_runs(database_url) as runs:
        assert [(view.id, view.open_requests) for view in runs.list(Query("waiting"))] == [("asks", 1)]


def test_damaged_records_do_not_fail_a_list(listed: str) -> None:
    """A reply whose record is no JSON, or tells of other than numbers, counts as a turn without tokens."""
    update = "UPDATE {schema}operation_outputs SET output = :output WHERE workflow_uuid = :run"
    change(listed, update, output='{"usage": [1', run="a-1")
    change(listed, update, output='{"v": 1, "usage": ["a", 1, 2, 3.5], "cost": "much"}', run="a-2")
    with open_runs(listed) as runs:
        totals = {view.id: (view.turns, view.tokens, view.cost) for view in runs.list(Query(agent="Clerk"))}
    assert totals["a-1"] == totals["a-2"] == (1, None, None)
    assert totals["a%3"][2] == Decimal("0.01")


def test_the_command_lists_pages(listed: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`runs` takes the same conditions, and the last id of a page begins the next one."""
    main(["runs", "--swarm", "shop", "--search", "b", "--limit", "2", "--before", "B-4", "--database", listed])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["b_3", "b-2"]
    main(["runs", "--since", "1h", "--agent", "Clerk", "--database", listed])
    assert len(capsys.readouterr().out.splitlines()) == 4
