"""What SQLAlchemy has for each database in a form of its own.

PostgreSQL's part is imported at its first use: it takes a tenth of the time of a command that reads a SQLite file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy.dialects import sqlite

from durable_swarm.engine.database.urls import is_sqlite

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql

    Insert = sqlite.Insert | postgresql.Insert


def insert_into(engine: sqlalchemy.Engine, rows: sqlalchemy.TableClause) -> Insert:
    """Return an insert that can say what happens in a conflict."""
    if engine.dialect.name == "sqlite":
        return sqlite.insert(rows)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(rows)


def notes_column(url: sqlalchemy.URL) -> sqlalchemy.ColumnClause[Any]:
    """Return the column of the notes on a run."""
    if is_sqlite(url):
        return sqlalchemy.column("attributes", sqlalchemy.JSON())
    from sqlalchemy.dialects import postgresql

    return sqlalchemy.column("attributes", postgresql.JSONB())
