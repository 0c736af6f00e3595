"""The use cases behind every face: listing, showing, cancelling, resuming, and the check-up."""

from __future__ import annotations

import json
import os
import re
import secrets
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from durable_swarm import Agent, ConfigurationError, DurableSwarm, RunNotFound, step
from durable_swarm.engine.api.inspector import inspect_database
from durable_swarm.service import Check, NoRuns, Query, Runs, checkup, open_runs, to_json
from durable_swarm.testing import ScriptedModel
from tests.support.asking import leave
from tests.support.patience import PATIENCE


def ask(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def say(url: str, run_id: str, agent: str = "Clerk") -> None:
    """Leave a finished run."""
    with DurableSwarm(ScriptedModel(["Hello"]), database=url) as swarm:
        swarm.run(Agent(name=agent), ask("Hi"), run_id=run_id)


def fail(url: str, run_id: str) -> Agent:
    """Leave a run whose tool raised, and give its agent."""

    def refund(item: str) -> str:
        raise ValueError(f"no {item} in stock")

    agent = Agent(name="Refunds", functions=[refund])
    with (
        DurableSwarm(ScriptedModel([[("refund", {"item": "hat"})]]), database=url) as swarm,
        pytest.raises(ValueError, match="hat"),
    ):
        swarm.run(agent, ask("Refund my hat"), run_id=run_id)
    return agent


def look(url: str, question: Callable[[Runs], Any]) -> Any:
    """Ask the runs of a database something."""
    with open_runs(url) as runs:
        return question(runs)


def levels(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.level for check in checks}


def test_runs_are_listed_newest_first(database_url: str) -> None:
    """A list gives each run's id, status, agent and times, and can be narrowed and cut."""
    say(database_url, "one")
    fail(database_url, "two")
    with open_runs(database_url) as runs:
        views = runs.list(Query())
        assert {(view.id, view.status, view.agent, view.idle) for view in views} == {
            ("one", "done", "Clerk", False),
            ("two", "failed", "Refunds", False),
        }
        assert [view.id for view in runs.list(Query(status="failed"))] == ["two"]
        assert [view.id for view in runs.list(Query(agent="Clerk"))] == ["one"]
        assert len(runs.list(Query(limit=1))) == 1
    now = datetime.now(UTC)
    assert all(now - timedelta(minutes=1) < view.created_at <= view.updated_at <= now for view in views)


def test_a_run_is_shown_in_full(database_url: str) -> None:
    """The full view has the question, the messages, every step with its version, the tokens and the last agent."""

    @step
    def look_up(item: str) -> dict[str, Any]:
        return {"item": item, "found": datetime(2030, 1, 31, tzinfo=UTC)}

    def find(item: str) -> str:
        return f"{look_up(item)['item']} found"

    agent = Agent(name="Finder", functions=[find])
    model = ScriptedModel([[("find", {"item": "hat"})], "There it is"])
    with DurableSwarm(model, database=database_url) as swarm:
        swarm.run(agent, ask("Where is my hat?"), {"user": "Ann"}, run_id="full")
    run = look(database_url, lambda runs: runs.show("full"))
    assert (run.status, run.agent, run.last_agent, run.asked) == ("done", "Finder", "Finder", ask("Where is my hat?"))
    assert [step.name for step in run.steps] == ["model:Finder", "tool:find", "look_up", "model:Finder"]
    assert [bool(step.version) for step in run.steps] == [True, False, False, True]
    assert run.messages[-1]["content"] == "There it is"
    assert run.usage is not None
    assert run.usage.requests == 2
    assert (run.context_variables, run.error, run.waits_for) == ({"user": "Ann"}, None, None)


def test_the_full_view_is_json(tmp_path: Path) -> None:
    """Every view has a JSON form: times as ISO 8601 in UTC, a tool's values as they are stored."""
    url = f"sqlite:///{tmp_path}/runs.sqlite"
    fail(url, "two")
    data = json.loads(json.dumps(to_json(look(url, lambda runs: runs.show("two")))))
    assert datetime.fromisoformat(data["created_at"]).utcoffset() == timedelta(0)
    assert data["error"]["type"] == "ValueError"
    assert data["steps"][0]["output"]["tool_calls"][0]["function"]["name"] == "refund"


def test_the_failed_step_is_shown_as_failed(tmp_path: Path) -> None:
    """A failed run tells which step failed, with what error, and where in the code."""
    url = f"sqlite:///{tmp_path}/runs.sqlite"
    fail(url, "two")
    run = look(url, lambda runs: runs.show("two"))
    assert (run.error.type, run.error.message, run.error.step) == ("ValueError", "no hat in stock", "tool:refund")
    assert "in refund" in run.error.traceback
    assert (run.steps[-1].name, run.steps[-1].status) == ("tool:refund", "failed")
    assert run.steps[-1].error == "ValueError: no hat in stock"


def test_runs_that_are_closed_harm_no_other_file(tmp_path: Path) -> None:
    """Runs used after their end raise a clear error, and close no file that was opened meanwhile."""
    url = f"sqlite:///{tmp_path}/runs.sqlite"
    leave("one", "choose", database=url)
    with open_runs(url) as runs:
        assert runs.show("one").status == "waiting"
    opened = [os.open(tmp_path, os.O_RDONLY) for _ in range(20)]
    try:
        with pytest.raises(ConfigurationError, match="closed here; open it again"):
            runs.inbox.goes_on("one")
        assert all(os.fstat(number) for number in opened)
    finally:
        for number in opened:
            os.close(number)


def test_resuming_leaves_the_run_to_its_program(database_url: str) -> None:
    """A resumed run is idle until a program with its agent comes, which then ends it."""
    agent = fail(database_url, "two")
    view = look(database_url, lambda runs: runs.resume("two"))
    assert (view.status, view.idle) == ("running", True)
    assert "'Refunds'" in look(database_url, lambda runs: runs.show("two")).waits_for

    def refund(item: str) -> str:
        return f"{item} refunded"

    agent.functions[:] = [refund]
    model = ScriptedModel([[("refund", {"item": "hat"})], "Done"])
    with DurableSwarm(model, database=database_url) as swarm:
        assert swarm.get("two").result(timeout=PATIENCE).messages[-1]["content"] == "Done"
    assert look(database_url, lambda runs: runs.resume("two")).status == "done"


def test_the_recorded_reason_for_waiting_goes_first(tmp_path: Path) -> None:
    """Why an unfinished run was held is told in the words of the process that held it, as long as it is unfinished."""
    url = f"sqlite:///{tmp_path}/runs.sqlite"
    fail(url, "two")
    look(url, lambda runs: runs.resume("two"))
    with inspect_database(sqlalchemy.make_url(url)) as visitor:
        visitor.store.annotate("two", waits_for="the tool 'refund' is gone")
        runs = Runs(visitor)
        assert runs.show("two").waits_for == runs.list(Query())[0].waits_for == "the tool 'refund' is gone"
        visitor.store.annotate("two", waits_for=None)
        assert "no running process owns it" in str(runs.show("two").waits_for)
        visitor.store.annotate("two", waits_for="the tool 'refund' is gone")
        assert runs.cancel("two").waits_for is None


def test_lists_and_full_views_agree(tmp_path: Path) -> None:
    """A list and the full view give one time for the start of a run: that of the call that started it."""
    url = f"sqlite:///{tmp_path}/runs.sqlite"
    say(url, "one")
    with open_runs(url) as runs:
        assert runs.list(Query())[0].created_at == runs.show("one").created_at


def test_cancelling_a_run_that_nobody_executes(tmp_path: Path) -> None:
    """An unfinished run can be cancelled from outside; an ended one stays as it is."""
    url = f"sqlite:///{tmp_path}/runs.sqlite"
    fail(url, "two")
    with open_runs(url) as runs:
        assert runs.cancel("two").status == "failed"
        runs.resume("two")
        assert runs.cancel("two").status == "cancelled"
        assert runs.cancel("two").status == "cancelled"
        assert runs.resume("two").status == "running"


def test_the_beginning_of_an_id_will_do(tmp_path: Path) -> None:
    """An id may be cut short where that fits one run alone; a whole id goes before a beginning."""
    url = f"sqlite:///{tmp_path}/runs.sqlite"
    for run_id in ("order", "order-100%", "order_2"):
        say(url, run_id)
    with open_runs(url) as runs:
        assert runs.show("order").id == "order"
        assert runs.show("order_").id == "order_2"
        with pytest.raises(ConfigurationError, match="order-100%"):
            runs.show("ord")
        for unknown in ("", "%", "order-2"):
            with pytest.raises(RunNotFound):
                runs.show(unknown)


def test_looking_makes_nothing(tmp_path: Path) -> None:
    """Where there is no database, or nothing of ours in it, looking says so and makes none."""
    with pytest.raises(NoRuns, match="there is no database"):
        look(f"sqlite:///{tmp_path}/none.sqlite", lambda runs: runs.list(Query()))
    assert list(tmp_path.iterdir()) == []
    sqlite3.connect(tmp_path / "other.sqlite").close()
    with pytest.raises(NoRuns, match="nothing of durable-swarm"):
        look(f"sqlite:///{tmp_path}/other.sqlite", lambda runs: runs.list(Query()))


def test_looking_beside_a_run_leaves_it_alone(tmp_path: Path) -> None:
    """A process that executes runs can look at its database; its runs stay its own."""
    url = f"sqlite:///{tmp_path}/runs.sqlite"
    seen: list[Any] = []

    def inspect() -> str:
        for _ in range(2):
            seen.extend((view.status, view.idle) for view in look(url, lambda runs: runs.list(Query())))
        return "seen"

    with DurableSwarm(ScriptedModel([["inspect"], "Done"]), database=url) as swarm:
        swarm.run(Agent(functions=[inspect]), ask("Look"))
    assert seen == [("running", False)] * 2


def test_a_fit_database_passes_the_check_up(database_url: str) -> None:
    """The check-up finds nothing failing in a database made by this package, and counts its runs."""
    say(database_url, "one")
    fail(database_url, "two")
    checks = checkup(database_url)
    assert "fail" not in levels(checks).values()
    texts = {check.name: check.text for check in checks}
    assert texts["runs"].startswith("1 done, 1 failed; `durable-swarm runs --status failed` says why")
    assert texts["wire format"].startswith("durable-swarm-1: every run is stored")
    assert texts["pickle"].startswith("none: everything stored is JSON")
    assert texts["interrupted runs"].startswith("none")
    assert ("file mode" in texts) == database_url.startswith("sqlite")


def test_doctor_tells_which_tables_are_large(database_url: str) -> None:
    """The sizes of tables count what is in them."""
    say(database_url, "one")
    with inspect_database(sqlalchemy.make_url(database_url)) as visitor:
        before = visitor.facts().tables
    with DurableSwarm(ScriptedModel([secrets.token_hex(300_000)]), database=database_url) as swarm:
        swarm.run(Agent(), ask("Hi"))
    with inspect_database(sqlalchemy.make_url(database_url)) as visitor:
        after = visitor.facts().tables
    assert after["operation_outputs"] > before["operation_outputs"]
    [check] = [check for check in checkup(database_url) if check.name == "largest tables"]
    assert re.search(r"workflow_status [\d.]+ [KM]iB", check.text)


def test_the_check_up_warns_of_lost_commits(postgres_database: str) -> None:
    """PostgreSQL that reports commits before they are on disk gets a warning."""
    say(postgres_database, "one")
    assert levels(checkup(postgres_database))["synchronous_commit"] == "warn"


def test_the_check_up_fails_for_pickles(tmp_path: Path) -> None:
    """A row of ours that is a pickle is found, and fails the check-up."""
    say(f"sqlite:///{tmp_path}/runs.sqlite", "one")
    connection = sqlite3.connect(tmp_path / "runs.sqlite")
    connection.execute("UPDATE operation_outputs SET serialization = 'py_pickle'")
    connection.commit()
    connection.close()
    assert levels(checkup(f"sqlite:///{tmp_path}/runs.sqlite"))["pickle"] == "fail"


def test_the_check_up_warns_of_open_files_and_left_runs(tmp_path: Path) -> None:
    """A file that others can read, and runs that nobody executes, get warnings with what to do."""
    url = f"sqlite:///{tmp_path}/runs.sqlite"
    fail(url, "two")
    look(url, lambda runs: runs.resume("two"))
    (tmp_path / "runs.sqlite").chmod(0o644)
    checks = {check.name: check for check in checkup(url)}
    assert (checks["file mode"].level, checks["interrupted runs"].level) == ("warn", "warn")
    assert "chmod 600" in checks["file mode"].text
    assert "'Refunds'" in checks["interrupted runs"].text


def test_the_check_up_names_a_damaged_file(tmp_path: Path) -> None:
    """A file that is no database fails the check-up, with the remedy."""
    (tmp_path / "bad.sqlite").write_text("no database " * 100)
    [check] = [check for check in checkup(f"sqlite:///{tmp_path}/bad.sqlite") if check.name == "database"]
    assert (check.level, "backup" in check.text) == ("fail", True)


def test_a_missing_database_fails_only_if_it_was_named(tmp_path: Path) -> None:
    """Before the first run there is no default database yet, which is fine; one that was named should be there."""
    assert levels(checkup(None))["database"] == "warn"
    assert levels(checkup(f"sqlite:///{tmp_path}/named.sqlite"))["database"] == "fail"


def test_the_check_up_keeps_the_key_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check-up says whether a key is set, and never its value."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-value")
    checks = checkup(None)
    assert levels(checks)["OPENAI_API_KEY"] == "ok"
    assert "secret" not in str(checks)
