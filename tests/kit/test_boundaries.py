"""Which statements are boundaries, and in which words: what changes a row of a run, or of the user's own tables."""

from __future__ import annotations

import pytest
import sqlalchemy
from dbos._schemas.system_database import SystemSchema

from durable_swarm.testing.crash.boundaries import _ENGINE, _forget, _labels

SWEEP = (
    "WITH late AS (SELECT workflow_uuid FROM dbos.workflow_status WHERE status = 'PENDING' LIMIT 100 FOR UPDATE{how}) "
    "UPDATE dbos.workflow_status SET status = 'CANCELLED' FROM late RETURNING dbos.workflow_status.workflow_uuid"
)


@pytest.mark.parametrize("how", ["", " SKIP LOCKED", " NOWAIT", " OF workflow_status", "\n  SKIP LOCKED"])
def test_what_the_engine_does_now_and_then_is_no_boundary(how: str) -> None:
    """DBOS's looks for late runs, which come at any time, write no table of the user, however they lock rows."""
    assert _labels(SWEEP.format(how=how), {"status_1": "PENDING"}) == []


@pytest.mark.parametrize(
    ("statement", "tables"),
    [
        ("UPDATE jobs SET done = true", ["jobs"]),
        ('update "shop"."jobs" set done = true', ["jobs"]),
        ("INSERT INTO seats VALUES (1) ON CONFLICT (key) DO UPDATE SET seat = 2", ["seats"]),
        ("WITH next AS (SELECT id FROM jobs FOR UPDATE SKIP LOCKED) UPDATE jobs SET done = true FROM next", ["jobs"]),
        ("WITH next AS (SELECT id FROM jobs FOR NO KEY UPDATE NOWAIT) DELETE FROM jobs USING next", ["jobs"]),
        ("WITH gone AS (DELETE FROM jobs RETURNING id) INSERT INTO old SELECT id FROM gone", ["jobs", "old"]),
        ("SELECT id FROM jobs FOR UPDATE", []),
        ("CREATE TABLE seats (jobs INTEGER REFERENCES jobs ON UPDATE CASCADE)", []),
    ],
)
def test_tables_of_the_user(statement: str, tables: list[str]) -> None:
    """A write to a table of the program's own is a boundary named after it, and a lock is no write."""
    assert _labels(statement, {}) == [f"commit to table {table}" for table in tables]


def test_every_table_of_the_engine_is_known() -> None:
    """No table of DBOS is taken for one of the user, whose every commit is a boundary."""
    tables = [table.name for table in vars(SystemSchema).values() if isinstance(table, sqlalchemy.Table)]
    assert len(tables) > 5
    assert [table for table in tables if not _ENGINE.fullmatch(table)] == []


def test_a_lost_connection_shows_as_what_it_is() -> None:
    """The kit's look at a transaction that is undone hides no lost connection: the engine would not try again."""
    engine = sqlalchemy.create_engine("sqlite://")
    sqlalchemy.event.listen(engine, "rollback", _forget)

    def lose_it() -> None:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("SELECT 1"))
            connection.invalidate()
            raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        lose_it()
