"""The rows of runs and steps, read by our own statements, are what DBOS itself reads of them."""

from __future__ import annotations

from typing import Any

import pytest
from dbos import DBOSClient
from dbos._schemas.system_database import SystemSchema

from durable_swarm import Agent, ToolError, step
from durable_swarm.engine.backend import launch
from durable_swarm.engine.processes import here
from durable_swarm.engine.records.names import PORTABLE
from durable_swarm.engine.records.rows import RecordedError
from durable_swarm.engine.storage.rows import RowReader
from durable_swarm.testing import ScriptedModel, call
from tests.engine.conftest import Make
from tests.engine.helpers import unique, user

FIELDS = [
    *("workflow_id", "name", "status", "executor_id", "queue_name", "app_version", "parent_workflow_id"),
    *("attributes", "created_at", "updated_at", "completed_at"),
]
STEPS = [
    *("function_id", "function_name", "output", "child_workflow_id", "started_at_epoch_ms", "completed_at_epoch_ms")
]


@step
def doubled(number: int) -> int:
    """Double a number."""
    return 2 * number


def plain(number: int) -> str:
    """Call a step."""
    return f"{doubled(number)} ☂ \u2028"


def refuses() -> None:
    """Tell the model what is wrong."""
    raise ToolError("not today")


def raises() -> None:
    """Call a step, and end the run."""
    doubled(1)
    raise RuntimeError("broken")


def _error(error: Any) -> Any:
    return None if error is None else (error.name, error.message, error.data)


@pytest.fixture
def reader(make: Make) -> RowReader:
    """A reader of a database with runs that are done, failed and queued, and their calls."""
    agent = Agent(name=unique(), functions=[doubled, plain, refuses, raises])
    replies = [[call("doubled", number=1), call("plain", number=2), call("refuses")], "Done", [call("raises")]]
    swarm = make(ScriptedModel(replies))
    swarm.run(agent, user("☂"), {"colour": "blue"}, run_id="done")
    with pytest.raises(RuntimeError):
        swarm.run(agent, user(), run_id="failed")
    swarm.enqueue("nobody", user(), run_id="queued")
    store = here.current().store
    return RowReader(store.url, store.engine)


def _client(reader: RowReader) -> DBOSClient:
    url = reader._url.render_as_string(hide_password=False)
    return DBOSClient(system_database_url=url, system_database_engine=reader._engine, serializer=launch.JSON, lazy=True)


def test_rows_are_what_dbos_reads(reader: RowReader) -> None:
    """Every field of every row, its input, output and error are the same."""
    client = _client(reader)
    rows = reader.read(load_input=True, load_output=True)
    theirs = {row.workflow_id: row for row in client.list_workflows()}
    assert len(rows) == len(theirs) >= 5
    for row in rows:
        other = theirs[row.workflow_id]
        assert {name: getattr(row, name) for name in FIELDS} == {name: getattr(other, name) for name in FIELDS}
        assert row.input == (None if other.input is None else list(other.input["args"]))
        assert (row.output, _error(row.error)) == (other.output, _error(other.error))
    assert {type(row.error) for row in rows} == {type(None), RecordedError}
    client.destroy()


def test_steps_are_what_dbos_reads(reader: RowReader) -> None:
    """Every field of every step is the same, and the first ones can be left out."""
    client = _client(reader)
    for row in reader.read():
        theirs, ours = client.list_workflow_steps(row.workflow_id), reader.steps(row.workflow_id)
        assert [{name: getattr(one, name) for name in STEPS} for one in ours] == [
            {name: one[name] for name in STEPS} for one in map(dict[str, Any], theirs)
        ]
        assert [_error(one.error) for one in ours] == [_error(one["error"]) for one in theirs]
        assert reader.steps(row.workflow_id, after=1) == ours[1:]
    client.destroy()


def test_newest_rows_come_first(reader: RowReader) -> None:
    """The newest rows are the end of the whole list, backwards."""
    whole = [row.workflow_id for row in reader.read(newest=True)]
    assert whole == [row.workflow_id for row in reader.read()][::-1]
    assert [row.workflow_id for row in reader.read(newest=True, limit=2)] == whole[:2]


def test_the_tables_are_those_of_dbos(reader: RowReader) -> None:
    """Each column that is read exists, and JSON has the name that DBOS gives it."""
    assert launch.JSON.name() == PORTABLE
    for ours in (reader.runs, reader._inputs, reader._outputs, reader._steps):
        theirs = getattr(SystemSchema, ours.name)
        assert {column.name for column in ours.c} <= {column.name for column in theirs.c}
