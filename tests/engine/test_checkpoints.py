"""The prepared writes of steps and tool calls write what DBOS writes; where they write nothing, it decides."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import text

from durable_swarm import Agent, step
from durable_swarm.engine.backend import launch
from durable_swarm.engine.backend.checkpoints import Checkpoints
from durable_swarm.engine.database.together import Together, Write
from durable_swarm.testing import ScriptedModel, call
from tests.engine.conftest import Make
from tests.engine.helpers import PATIENCE, change, connected, schema, unique, user

TABLES = ("workflow_status", "workflow_input", "workflow_output", "operation_outputs")
CHANGES = {"owner_xid", "creator_xid", "executor_id", "application_version", "attributes", "recovery_attempts"}
"""Columns that differ between two runs of one program."""


def plain(order: str) -> str:
    """Look an order up."""
    return f"{order} is on its way"


@step
def kept(order: str) -> str:
    """Look an order up, in a step."""
    return f"{order} is on its way"


async def awaited(order: str) -> str:
    """Look an order up, on the event loop."""
    return f"{order} is on its way"


def inside(order: str) -> str:
    """Look an order up, with a step inside the call."""
    return str(step(plain)(order))


def nothing(_checkpoints: Checkpoints, _write: Any) -> bool:
    return False


@pytest.mark.parametrize("tool", [plain, kept, awaited, inside], ids=lambda tool: tool.__name__)
def test_the_rows_are_those_that_dbos_writes(
    tool: Callable[..., Any], make_anywhere: Make, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run leaves the same values in every column, whoever has written them."""
    agent = Agent(name=unique(), functions=[tool])

    def written(run_id: str) -> dict[str, list[dict[str, str | bool]]]:
        swarm.run(agent, user(), run_id=run_id)
        return {table: _rows_of(run_id, database_url, table) for table in TABLES}

    calls = [call(tool.__name__, order="A1"), call(tool.__name__, order="A2")]
    swarm = make_anywhere(ScriptedModel([calls, "Done."] * 2))
    ours = written("a" * 8)
    monkeypatch.setattr(Checkpoints, "_made", nothing)
    theirs = written("b" * 8)
    assert ours == theirs
    assert len(ours["operation_outputs"]) >= 4


def _rows_of(run_id: str, url: str, table: str) -> list[dict[str, str | bool]]:
    """Return the rows of a run in which its id is replaced; of times and records only whether they are there."""
    with connected(url) as connection:
        found = connection.execute(text(f"SELECT * FROM {schema(url)}{table}")).mappings().all()
    mine = [
        {
            column: value is not None if _varies(column) else str(value).replace(run_id, "RUN")
            for column, value in row.items()
            if column not in CHANGES
        }
        for row in found
        if run_id in str(row)
    ]
    return sorted(mine, key=str)


def _varies(column: str) -> bool:
    return column in ("inputs", "output") or column.endswith(("_at", "_ms", "_timestamp"))


def _result(run_id: str, number: int, output: str | None = "{}") -> dict[str, Any]:
    return {
        "workflow_uuid": run_id,
        "function_id": number,
        "function_name": "step",
        "output": output,
        "error": None,
        "serialization": "portable_json",
        "started_at_epoch_ms": 1,
        "child_workflow_id": None,
    }


@pytest.fixture
def open_run(make_anywhere: Make, database_url: str) -> str:
    """Leave a run in progress, whose execution is `me`; return its id."""
    make_anywhere(ScriptedModel(["Done."])).run(Agent(name=unique()), user(), run_id="r")
    change(database_url, "UPDATE {schema}workflow_status SET status = 'PENDING', owner_xid = 'me'")
    return "r"


def _checkpoints() -> Checkpoints:
    return Checkpoints(launch.layout_of(launch.instance()._sys_db))


def _numbers(url: str) -> list[int]:
    with connected(url) as connection:
        asked = f"SELECT function_id FROM {schema(url)}operation_outputs WHERE function_name = 'step' ORDER BY 1"
        return [row[0] for row in connection.execute(text(asked))]


def test_a_step_of_a_lost_run_is_not_written(open_run: str, database_url: str) -> None:
    """Neither another owner's, nor one's without a run, nor one that is recorded already: DBOS decides about those."""
    checkpoints = _checkpoints()
    assert not checkpoints.record_step(_result(open_run, 5), 7, "another")
    assert not checkpoints.record_step(_result("no such run", 5), 7, "me")
    assert checkpoints.record_step(_result(open_run, 5), 7, "me")
    assert not checkpoints.record_step(_result(open_run, 5), 8, "me")
    assert _numbers(database_url) == [5]


def test_a_tool_call_begins_whole_or_not_at_all(open_run: str, database_url: str) -> None:
    """A call whose step exists, whose run is lost, or which itself exists leaves no row behind."""
    checkpoints = _checkpoints()

    def begin(call: str, number: int, owner: str) -> bool:
        step = {
            "workflow_uuid": open_run, "function_id": number, "function_name": "call", "child_workflow_id": call,
            "started_at_epoch_ms": 1, "completed_at_epoch_ms": 1, "application_name": None, "retention_timestamp": 1,
        }  # fmt: skip
        given = {"workflow_uuid": call, "status": "PENDING", "name": "call", "priority": 0, "is_debounced": False}
        status = {**given, "app_version": "v", "app_id": "", "inputs": "{}"}
        return checkpoints.begin_call(status, "creator", step, open_run, owner)

    checkpoints.record_step(_result(open_run, 7), 7, "me")
    assert [begin("r/1", 6, "another"), begin("r/2", 7, "me"), begin("r/3", 6, "me"), begin("r/3", 8, "me")] == [
        False, False, True, False,
    ]  # fmt: skip
    for table, column in (("workflow_status", "workflow_uuid"), ("workflow_input", "workflow_uuid")):
        with connected(database_url) as connection:
            asked = f"SELECT {column} FROM {schema(database_url)}{table} WHERE {column} LIKE 'r/%'"
            assert [row[0] for row in connection.execute(text(asked))] == ["r/3"]
    with connected(database_url) as connection:
        asked = f"SELECT function_id FROM {schema(database_url)}operation_outputs WHERE child_workflow_id IS NOT NULL"
        assert [row[0] for row in connection.execute(text(asked))] == [6]


def test_a_run_that_has_another_owner_is_not_ended(open_run: str, make: Make, database_url: str) -> None:
    """On SQLite, where the end is ours too."""
    if not database_url.startswith("sqlite"):
        assert not _checkpoints().end(open_run, "SUCCESS", "{}", None, "me")  # DBOS has a statement for it.
        return
    assert not _checkpoints().end(open_run, "SUCCESS", "{}", None, "another")
    assert _checkpoints().end(open_run, "SUCCESS", '{"v":2}', None, "me")
    assert not _checkpoints().end(open_run, "ERROR", None, "{}", "me")
    with connected(database_url) as connection:
        asked = (
            "SELECT s.status, s.owner_xid, o.output FROM workflow_status s JOIN workflow_output o USING (workflow_uuid)"
        )
        assert [tuple(row) for row in connection.execute(text(asked))] == [("SUCCESS", None, '{"v":2}')]


@pytest.fixture
def notes(tmp_path: Any) -> sqlalchemy.Engine:
    """A SQLite file with one table of numbers, none of which is there twice."""
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'notes.sqlite'}", connect_args={"timeout": 60})
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE notes (number INTEGER PRIMARY KEY)"))
    return engine


def _noting(number: int) -> Callable[[sqlalchemy.Connection], bool]:
    return lambda connection: (
        connection.execute(text("INSERT INTO notes VALUES (:number)"), {"number": number}).rowcount == 1
    )


def _noted(engine: sqlalchemy.Engine) -> list[int]:
    with engine.connect() as connection:
        return [row[0] for row in connection.execute(text("SELECT number FROM notes ORDER BY 1"))]


class Meeting:
    """A write that waits until as many others wait for it as should be written together."""

    def __init__(self, together: Together, others: int) -> None:
        self.together, self.others = together, others
        self.begun = threading.Event()

    def __call__(self, _connection: sqlalchemy.Connection) -> bool:
        self.begun.set()
        while len(self.together._asked) < self.others:
            threading.Event().wait(0.001)
        return True


def meeting(
    pool: ThreadPoolExecutor, together: Together, writes: Sequence[Write], first: Write | None = None
) -> tuple[Future[bool], list[Future[bool]]]:
    """Ask for the writes while another thread writes; return that one's outcome, and theirs."""
    meets = Meeting(together, len(writes))
    leads = pool.submit(together.made, lambda connection: meets(connection) and (first is None or first(connection)))
    assert meets.begun.wait(PATIENCE)
    return leads, [pool.submit(together.made, write) for write in writes]


def test_writes_that_meet_are_one_transaction(notes: sqlalchemy.Engine) -> None:
    """What twenty threads ask for while one writes is committed once, and each learns of its own write."""
    together, commits = Together(notes), []
    sqlalchemy.event.listen(notes, "commit", lambda _: commits.append(1))
    with ThreadPoolExecutor(21) as pool:
        first, others = meeting(pool, together, [_noting(number) for number in range(20)])
        assert first.result(PATIENCE)
        assert [other.result(PATIENCE) for other in others] == [True] * 20
    assert len(commits) == 2
    assert _noted(notes) == list(range(20))


def test_nobody_is_told_before_the_commit(notes: sqlalchemy.Engine) -> None:
    """When what met is about to be committed, no thread has been told yet that its write is made."""
    together, commits, told, known = Together(notes), list[int](), list[bool](), threading.Event()

    def about_to_commit(_connection: sqlalchemy.Connection) -> None:
        commits.append(1)
        if len(commits) == 2:
            threading.Event().wait(0.1)  # Whoever was told is given the time to say so.
            told.extend(one.done() for one in others)

    sqlalchemy.event.listen(notes, "commit", about_to_commit)
    with ThreadPoolExecutor(4) as pool:
        writes = [_noting(number) for number in range(3)]
        first, others = meeting(pool, together, writes, lambda _: known.wait(PATIENCE))
        known.set()
        assert [other.result(PATIENCE) for other in (first, *others)] == [True] * 4
    assert told == [False] * 3


def _spoilt(_connection: sqlalchemy.Connection) -> bool:
    raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "a half of a pair")


@pytest.mark.parametrize("bad", [_noting(7), _spoilt], ids=["refused by the database", "refused by the driver"])
def test_a_write_that_fails_is_reported_by_nobody_as_made(
    bad: Callable[[sqlalchemy.Connection], bool], notes: sqlalchemy.Engine
) -> None:
    """If one of those that meet fails, none is written, and each learns that it is not."""
    together = Together(notes)
    assert together.made(_noting(7))
    with ThreadPoolExecutor(4) as pool:
        first, others = meeting(pool, together, [_noting(1), bad, _noting(2)])
        assert first.result(PATIENCE)
        assert [other.result(PATIENCE) for other in others] == [False, False, False]
    assert _noted(notes) == [7]
    assert together.made(_noting(8)), "the next one is written"


def test_a_write_that_found_nothing_to_write_spoils_no_other(notes: sqlalchemy.Engine) -> None:
    """It returned False without an error: what meets with it is written all the same."""
    together = Together(notes)
    with ThreadPoolExecutor(3) as pool:
        first, [nothing, other] = meeting(pool, together, [lambda _: False, _noting(1)])
        assert first.result(PATIENCE)
        assert (nothing.result(PATIENCE), other.result(PATIENCE)) == (False, True)
    assert _noted(notes) == [1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_thread_that_is_interrupted_while_it_writes_leaves_nobody_waiting(
    notes: sqlalchemy.Engine, error: type[BaseException]
) -> None:
    """Ctrl+C in the thread that writes for others: they learn that nothing was written, and the next one writes."""
    together = Together(notes)

    def broken(_connection: sqlalchemy.Connection) -> bool:
        raise error

    with ThreadPoolExecutor(3) as pool:
        first, others = meeting(pool, together, [_noting(1), _noting(2)], broken)
        with pytest.raises(error):
            first.result(PATIENCE)
        assert [other.result(PATIENCE) for other in others] == [True, True]
    assert _noted(notes) == [1, 2]


def test_many_runs_at_once_are_all_recorded(make_anywhere: Make, database_url: str) -> None:
    """Thirty runs that write at the same time: each has its own steps and its own answer."""
    agent = Agent(name=unique(), functions=[plain, kept])

    def play(body: dict[str, Any]) -> Any:
        said = body["messages"][1]["content"]
        return [call("plain", order=said), call("kept", order=said)] if len(body["messages"]) < 3 else f"{said} it is."

    swarm = make_anywhere(ScriptedModel(play, strict=False))
    with ThreadPoolExecutor(30) as pool:
        said = list(pool.map(lambda number: swarm.run(agent, user(f"N{number}")).messages, range(30)))
    assert [messages[-1]["content"] for messages in said] == [f"N{number} it is." for number in range(30)]
    assert [messages[1]["content"] for messages in said] == [f"N{number} is on its way" for number in range(30)]
    with connected(database_url) as connection:
        counted = connection.execute(text(f"SELECT count(*) FROM {schema(database_url)}operation_outputs")).scalar()
    assert counted == 30 * 4
