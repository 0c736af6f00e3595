"""Launches the DBOS of this process, and finds the one that is launched: its database, and its serializer.

Beyond DBOS's public interface:

- `_schemas.system_database.SystemSchema`: the tables, to import runs that have ended elsewhere. DBOS has no way to do
  so.
- `_config`, `_sys_db.engine`: the database of a DBOS that the program launched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, _dbos, _schemas

from durable_swarm.engine.backend import patches, pools
from durable_swarm.engine.database import diagnosis, urls
from durable_swarm.engine.records import names

JSON = DBOSPortableJSONSerializer()
POLL = 0.02
"""Seconds between DBOS's polls for notifications, which is about how long closing waits. It costs 0.3 % of a core."""


def instance() -> DBOS | None:
    """Return the process's DBOS object, or None."""
    return _dbos._dbos_global_instance


def launched_instance() -> DBOS | None:
    """Return the process's DBOS object if it is launched, or None."""
    dbos = instance()
    return dbos if dbos is not None and dbos._launched else None


def launched() -> bool:
    """Return True if this process has a launched DBOS."""
    return launched_instance() is not None


LATE = launched()
"""True if this package was imported after DBOS was launched: DBOS's own recovery then ran without our workflows."""


def launch_dbos(url: sqlalchemy.URL, engine: sqlalchemy.Engine, executor_id: str, threads: int) -> None:
    """Launch DBOS on a database, with at most `threads` threads. Raises `ConfigurationError` if that fails."""
    patches.silence()
    config: DBOSConfig = {
        "name": "durable-swarm",
        "system_database_url": url.render_as_string(hide_password=False),
        "system_database_engine": engine,
        "application_version": names.WIRE,
        "executor_id": executor_id,
        "serializer": JSON,
        "log_level": "CRITICAL",
        "max_executor_threads": threads,
        "notification_listener_polling_interval_sec": POLL,
    }
    try:
        patches.shorten_pauses()
        DBOS(config=config)
        with patches.recovering_nothing():
            DBOS.launch()
        pools.keep_apart()
    except Exception as error:
        DBOS.destroy()
        raise diagnosis.unusable(url, error) from error


def host_database() -> tuple[str, sqlalchemy.Engine]:
    """Return the URL of the launched DBOS's database, and its connections."""
    dbos = instance()
    assert dbos is not None
    return str(dbos._config["system_database_url"]), dbos._sys_db.engine


@dataclass(frozen=True)
class Layout:
    """The tables of a launched DBOS: its connections, and the names of its schemas by those in `tables`."""

    engine: sqlalchemy.Engine
    tables: Any
    schemas: dict[str | None, str | None]
    application: str | None


def layout_of(database: Any) -> Layout:
    """Return the tables of a launched DBOS's database."""
    schemas: dict[str | None, str | None] = {_schemas.SCHEMA_PLACEHOLDER: database.schema or "main"}
    return Layout(database.engine, _schemas.system_database.SystemSchema, schemas, database.app_name)


def insert(engine: sqlalchemy.Engine, schema: str | None, rows: dict[str, list[dict[str, object]]]) -> None:
    """Write rows of DBOS's tables, all or none; `schema` contains the tables."""
    tables = _schemas.system_database.SystemSchema
    mapped = engine.execution_options(schema_translate_map={_schemas.SCHEMA_PLACEHOLDER: schema})
    with mapped.begin() as connection:
        for name, some in rows.items():
            if some:
                connection.execute(sqlalchemy.insert(getattr(tables, name)), some)


def host_url() -> sqlalchemy.URL | None:
    """Return the URL of the database of a DBOS that the program has launched, None if it has launched none."""
    return urls.choose(host_database()[0]) if launched() else None
