"""Inspection of a database from outside: its runs, their owners, its facts. Nothing is launched or taken over."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import column, func, select, table
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from durable_swarm.codec import Codec
from durable_swarm.engine.database import connection as database_connection
from durable_swarm.engine.database import diagnosis, urls
from durable_swarm.engine.database.locks import open_locks
from durable_swarm.engine.database.urls import shown
from durable_swarm.engine.processes import here
from durable_swarm.engine.processes.identity import Identity
from durable_swarm.engine.records import names as records_names
from durable_swarm.engine.records.rows import RunRow
from durable_swarm.engine.storage.run_state import owner_of, state_of, stored_state
from durable_swarm.engine.storage.runs import Store
from durable_swarm.errors import ConfigurationError

LOOK = 2.0
"""Seconds for which it is remembered whether a process lives: a look keeps the workers from taking runs over."""


class NoRuns(ConfigurationError):
    """The database does not exist yet, or contains nothing of durable-swarm."""


class Inspector:
    """The operations available from outside: the store, and the runs that no living process executes."""

    def __init__(self, store: Store, identity: Identity) -> None:
        self.store = store
        self._identity = identity
        self._looked: dict[str, tuple[float, bool]] = {}
        """The owners of runs: when each was looked at last, and whether it was dead."""

    def seen_by(self, person: str) -> Inspector:
        """Return this inspector without the runs of others."""
        return Inspector(self.store.seen_by(person), self._identity)

    @contextlib.contextmanager
    def alone(self) -> Iterator[Identity]:
        """Be the only process that looks for runs of dead processes."""
        with self._identity.alone():
            yield self._identity

    def idle(self, rows: Iterable[RunRow]) -> set[str]:
        """Return the ids of the running runs among these that no living process executes."""
        found = [row for row in rows if state_of(row) == "running"]
        dead = {"", *self.dead(owner for owner in map(owner_of, found) if owner)}
        return {row.workflow_id for row in found if owner_of(row) in dead}

    def dead(self, names: Iterable[str]) -> set[str]:
        """Return the processes among these that do not live, as they were seen within the last two seconds."""
        owners = set(names)
        since = time.monotonic() - LOOK
        if due := [owner for owner in owners if self._looked.get(owner, (-math.inf, False))[0] < since]:
            with self.alone() as me:
                self._looked |= {owner: (time.monotonic(), me.is_dead(owner)) for owner in due}
        return {owner for owner in owners if self._looked[owner][1]}

    def facts(self) -> Facts:
        """Return the facts about the database. Reads all of a SQLite file."""
        url = self.store.url
        with diagnosis.reporting_errors(url), self.store.engine.connect() as connection:
            here = _sqlite(connection) if urls.is_sqlite(url) else _postgres(connection, url)
            return _counted(here, connection, url)


@contextlib.contextmanager
def inspect_database(url: sqlalchemy.URL, codec: Callable[[], Codec | None] = lambda: None) -> Iterator[Inspector]:
    """Inspect a database from outside; in a process that uses it already, with that process's connections and codecs.

    `codec` returns the codec that decodes the records, and is called at the first one. Raises `NoRuns` if the database
    contains no runs, and `ConfigurationError` if it cannot be used.
    """
    process = here.opened()
    try:
        if process is not None and process.url == url:  # Its locks must not be opened a second time.
            yield Inspector(process.store, process.identity)
        else:
            with _visit(url, codec) as visitor:
                yield visitor
    except BrokenPipeError:
        raise  # The reader of the output has closed the pipe.
    except (SQLAlchemyError, OSError) as error:
        raise diagnosis.unusable(url, error) from error


@contextlib.contextmanager
def _visit(url: sqlalchemy.URL, codec: Callable[[], Codec | None]) -> Iterator[Inspector]:
    with contextlib.ExitStack() as stack:
        engine = _connect(url)
        stack.callback(engine.dispose)
        if not sqlalchemy.inspect(engine).has_table("workflow_status", schema=urls.schema_of(url)):
            raise NoRuns(f"the database {shown(url)} holds nothing of durable-swarm; name another with --database")
        locks = open_locks(url)
        stack.callback(locks.close)
        store = Store(url, engine, lambda _: codec(), owns=False, guesses=True)
        stack.callback(store.close)
        yield Inspector(store, Identity(locks, None))


def _connect(url: sqlalchemy.URL) -> sqlalchemy.Engine:
    if urls.is_sqlite(url) and not Path(str(url.database)).exists():
        raise NoRuns(
            f"there is no database {shown(url)}; run a program with DurableSwarm there, or name another with --database"
        )
    try:
        return database_connection.connect(url, create=False)
    except ConfigurationError as error:
        if database_connection.is_missing(error.__cause__):
            raise NoRuns(f"there is no database {shown(url)}; run a program with DurableSwarm there first") from None
        raise


@dataclass(frozen=True)
class Facts:
    """The facts about a database.

    `size` is in bytes, as is that of each of the `tables`, with its indexes; a SQLite without `dbstat` reports no
    tables. `settings` are those that decide whether a reported commit is on disk. `damage` is the finding of SQLite's
    own check, or ''. `states` and `formats` count the runs by state and by wire format; `pickles` counts our rows that
    are pickles.
    """

    kind: str
    version: str
    size: int
    settings: dict[str, str]
    damage: str = ""
    tables: dict[str, int] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    pickles: int = 0


def _sqlite(connection: sqlalchemy.Connection) -> Facts:
    def pragma(name: str) -> Any:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar()

    levels = {0: "off", 1: "normal", 2: "full", 3: "extra"}
    found = str(pragma("quick_check(1)"))
    return Facts(
        kind="SQLite",
        version=connection.exec_driver_sql("SELECT sqlite_version()").scalar_one(),
        size=pragma("page_count") * pragma("page_size"),
        settings={"journal_mode": pragma("journal_mode"), "synchronous": levels[pragma("synchronous")]},
        damage="" if found == "ok" else found.strip(),
        tables={} if found != "ok" else _sqlite_tables(connection),
    )


def _sqlite_tables(connection: sqlalchemy.Connection) -> dict[str, int]:
    sizes = (
        "SELECT tbl_name, sum(pgsize) FROM dbstat JOIN sqlite_schema USING (name) "
        "WHERE aggregate = TRUE GROUP BY tbl_name"
    )
    try:
        return {str(name): int(size) for name, size in connection.exec_driver_sql(sizes)}
    except DBAPIError:  # Compiled without it.
        return {}


def _postgres(connection: sqlalchemy.Connection, url: sqlalchemy.URL) -> Facts:
    tables = "SELECT relname, pg_total_relation_size(relid) FROM pg_stat_user_tables WHERE schemaname = %s"
    return Facts(
        kind="PostgreSQL",
        version=connection.exec_driver_sql("SHOW server_version").scalar_one(),
        size=connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one(),
        settings={
            name: connection.exec_driver_sql(f"SHOW {name}").scalar_one() for name in ("synchronous_commit", "fsync")
        },
        tables={str(name): int(size) for name, size in connection.exec_driver_sql(tables, (urls.schema_of(url),))},
    )


def _counted(facts: Facts, connection: sqlalchemy.Connection, url: sqlalchemy.URL) -> Facts:
    """Return the facts with the numbers of runs and of pickles."""
    names = ("workflow_uuid", "name", "status", "queue_name", "application_version", "serialization")
    flows = table("workflow_status", *map(column, names), schema=urls.schema_of(url))
    steps = table("operation_outputs", column("workflow_uuid"), column("serialization"), schema=urls.schema_of(url))
    groups = (flows.c.status, flows.c.queue_name, flows.c.application_version)
    states: dict[str, int] = {}
    formats: dict[str, int] = {}
    runs = select(*groups, func.count()).where(flows.c.name == records_names.RUN).group_by(*groups)
    for status, queue, version, count in connection.execute(runs):
        state = stored_state(status, queue)
        states[state] = states.get(state, 0) + count
        formats[str(version)] = formats.get(str(version), 0) + count
    ours = select(flows.c.workflow_uuid).where(flows.c.name.in_([records_names.RUN, records_names.TOOL]))
    pickles = [
        select(func.count()).where(rows.c.serialization == "py_pickle", rows.c.workflow_uuid.in_(ours))
        for rows in (flows, steps)
    ]
    found = sum(connection.execute(query).scalar_one() for query in pickles)
    return replace(facts, states=states, formats=formats, pickles=found)
