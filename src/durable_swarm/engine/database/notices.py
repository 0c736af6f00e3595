"""Notices to the processes that have a PostgreSQL database open: something was handed over, so they look at once.

They listen on the session of their locks (`locks.py`). A SQLite file needs none: its index shows each transaction.
"""

from __future__ import annotations

import contextlib

import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError

from durable_swarm.engine.database.connection import for_one_statement

CHANNEL = "durable_swarm"
"""The channel of PostgreSQL. It carries no text, and is the same for all schemas of a database."""


def notify(connection: sqlalchemy.Connection) -> None:
    """Notify the processes as soon as this transaction is committed."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"NOTIFY {CHANNEL}")


def notify_now(engine: sqlalchemy.Engine) -> None:
    """Notify the processes of what is committed already. If that fails they find it a little later."""
    if engine.dialect.name == "postgresql":
        with contextlib.suppress(SQLAlchemyError), for_one_statement(engine) as connection:
            notify(connection)
