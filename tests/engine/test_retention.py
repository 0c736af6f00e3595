"""Deleting runs that ended long ago: with all that belongs to them, and nothing else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy

from durable_swarm import Agent, ConfigurationError, DurableSwarm, RunNotFound, ask_human, emit, step, tool
from durable_swarm.cli.app import main
from durable_swarm.engine.processes import here
from durable_swarm.engine.storage import retention
from durable_swarm.service import open_runs
from durable_swarm.testing import ScriptedModel
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, change, connected, unique, user, wait_until

LATER = datetime(2100, 1, 1, tzinfo=UTC)


@step
def inner() -> int:
    """Make a record."""
    return 1


@tool(effect="transactional")
def book(connection: sqlalchemy.Connection) -> str:
    """Leave a row of a transaction."""
    return "booked"


def work() -> str:
    """Leave every kind of row."""
    emit("working")
    return f"{inner()} {ask_human('Now?')}"


def agent() -> Agent:
    return Agent(name=unique(), functions=[work, book])


HOSTS = (
    """streams (workflow_uuid, key, value, "offset") VALUES ('old', 'k', '1', 900)""",
    "workflow_events (workflow_uuid, key, value) VALUES ('old', 'k', '1')",
    "workflow_events_history (workflow_uuid, function_id, key, value) VALUES ('old', 1, 'k', '1')",
    "notifications (message_uuid, destination_uuid, message, created_at_epoch_ms) VALUES ('m', 'old', '1', 1)",
)
"""Rows that a run leaves seldom, or only where its tools use the DBOS of the program."""


def script() -> ScriptedModel:
    return ScriptedModel(lambda request: "Done." if _called(request) else ["work", "book"], strict=False)


def _called(request: dict[str, Any]) -> bool:
    return any(message["role"] == "tool" for message in request["messages"])


def whole(swarm: DurableSwarm, clerk: Agent, run_id: str) -> None:
    """Have a run leave every kind of row, and end."""
    run = swarm.start(clerk, user(), run_id=run_id)
    wait_until(run.requests)
    run.say("Hurry.")
    run.answer("yes")
    run.result(PATIENCE)


def everything(url: str) -> dict[str, set[Any]]:
    """Give every row of every table, as texts; those that tell of processes and programs left out."""
    inspector = sqlalchemy.inspect(here.current().store.engine)
    found: dict[str, set[Any]] = {}
    for schema in {None, *(["dbos"] if not url.startswith("sqlite") else [])}:
        for name in inspector.get_table_names(schema=schema):
            if name not in ("durable_swarm_processes", "durable_swarm_process_facts"):
                with connected(url) as connection:
                    rows = connection.execute(sqlalchemy.text(f"SELECT * FROM {f'{schema}.' if schema else ''}{name}"))
                    found[f"{schema}.{name}"] = {str(tuple(row)) for row in rows}
    return found


def test_all_that_belongs_to_a_run_is_deleted(make_anywhere: Make, database_url: str) -> None:
    """Afterwards every table is as it was before the run: so no table of rows was forgotten."""
    swarm, clerk = make_anywhere(script()), agent()
    whole(swarm, clerk, "kept")
    before = everything(database_url)
    whole(swarm, clerk, "old")
    for statement in HOSTS:
        change(database_url, f"INSERT INTO {{schema}}{statement}")
    grown = [name for name, rows in everything(database_url).items() if rows - before[name]]
    assert len(grown) == 11, grown
    change(database_url, "UPDATE {schema}workflow_status SET updated_at = 1000 WHERE workflow_uuid = 'old'")
    with open_runs(database_url) as runs:
        assert runs.forget(datetime.now(UTC) - timedelta(days=1), dry_run=True) == 1
        assert runs.forget(datetime.now(UTC) - timedelta(days=1)) == 1
    assert everything(database_url) == before
    with pytest.raises(RunNotFound):
        swarm.get("old")
    assert swarm.run(clerk, user(), run_id="kept").run_id == "kept"


def test_what_has_not_ended_is_kept(make_anywhere: Make, database_url: str) -> None:
    """A run that waits is kept however old it is, and failed ones where that is asked for."""
    swarm, clerk = make_anywhere(script()), agent()
    waiting = swarm.start(clerk, user(), run_id="waits")
    wait_until(waiting.requests)
    broken = Agent(name=unique(), functions=[tool(name="rest")(lambda: None)], instructions=lambda: 1 / 0)
    swarm.start(broken, user(), run_id="failed")
    wait_until(lambda: swarm.get("failed").status == "failed")
    with open_runs(database_url) as runs:
        assert runs.forget(LATER, keep_failed=True) == 0
        assert runs.forget(LATER, swarm="another") == 0
        assert runs.forget(LATER, swarm="") == 1
    waiting.answer("yes")
    assert waiting.result(PATIENCE).run_id == "waits"


def test_more_than_a_batch(make_anywhere: Make, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches follow one another until nothing is left, in two processes' worth of threads as well."""
    monkeypatch.setattr(retention, "BATCH", 3)
    swarm = make_anywhere(ScriptedModel(["Done."] * 20, strict=False))
    for number in range(20):
        swarm.run(Agent(), user(), run_id=f"r{number}")
    store = here.current().store
    with ThreadPoolExecutor(2) as pool:
        deleted = list(pool.map(lambda _: retention.Retention(store, 2**52).delete(), range(2)))
    assert sum(deleted) == 20
    assert swarm.runs() == []


def test_resumed_in_the_same_moment(make: Make, url: str) -> None:
    """Of a deletion and a resumption at once, one wins: never is there a run without its steps."""
    swarm, clerk = make(ScriptedModel(lambda _: "Done.", strict=False)), agent()
    for number in range(10):
        swarm.run(clerk, user(), run_id=f"r{number}")
        change(url, "UPDATE workflow_status SET status = 'CANCELLED' WHERE workflow_uuid = :run", run=f"r{number}")

    def resume(number: int) -> str:
        try:
            run = swarm.get(f"r{number}")
            run.resume()
            return str(run.result(PATIENCE).messages[-1]["content"])
        except (RunNotFound, ConfigurationError):
            return "gone"

    with ThreadPoolExecutor(2) as pool:
        deleting = pool.submit(retention.Retention(here.current().store, 2**52).delete)
        found = [resume(number) for number in range(10)]
        deleting.result()
    assert set(found) <= {"Done.", "gone"}


def test_the_setting_deletes_by_itself(make: Make, url: str) -> None:
    """A swarm that keeps runs for a time has those of its own name deleted once they are older."""
    with DurableSwarm(ScriptedModel(["Done."]), database=url, name="other") as other:
        other.run(Agent(), user(), run_id="theirs")
    with DurableSwarm(ScriptedModel(["Done."]), database=url) as early:
        early.run(Agent(), user(), run_id="ours")
    swarm = make(ScriptedModel([]), keep_for=0)
    swarm.runs()
    wait_until(lambda: [run.id for run in swarm.runs()] == ["theirs"])


@pytest.mark.parametrize("keep_for", [-1, "30d", True])
def test_a_wrong_setting(keep_for: Any) -> None:
    """What is no number of seconds is refused at once."""
    with pytest.raises(ConfigurationError, match="keep_for"):
        DurableSwarm(keep_for=keep_for)


def test_the_command(make: Make, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`gc` says what there is, and what it deleted."""
    make(ScriptedModel(["Done."])).run(Agent(), user(), run_id="r")
    assert main(["gc", "--older-than", "1d", "--database", url]) == 0
    assert "Deleted 0 runs" in capsys.readouterr().out
    change(url, "UPDATE workflow_status SET updated_at = 1000")
    assert main(["gc", "--older-than", "30d", "--dry-run", "--database", url]) == 0
    assert "Would delete 1 run that" in capsys.readouterr().out
    assert main(["gc", "--older-than", "30d", "--database", url]) == 0
    assert "Deleted 1 run that" in capsys.readouterr().out
    for wrong in ("30", "d", "-5d", "5y", "99999999999d"):
        assert main(["gc", "--older-than", wrong, "--database", url]) == 2
        assert "30d" in capsys.readouterr().err
    assert main(["gc", "--older-than", "999999999d", "--database", url]) == 0
