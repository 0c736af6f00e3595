"""Initial databases of the cases: one is opened once and copied for each case, in a tenth of the time."""

from __future__ import annotations

import shutil
from multiprocessing.connection import Connection
from pathlib import Path

import sqlalchemy

from durable_swarm.engine.api.durable import DurableSwarm
from durable_swarm.engine.database import connection as databases
from durable_swarm.engine.database import urls
from durable_swarm.errors import ConfigurationError
from durable_swarm.testing.crash.processes import Child, fork_server, leave, redirect

SECONDS = 60.0
"""Maximum seconds for making a template."""


def make_template(url: sqlalchemy.URL, log: Path, preload: list[str]) -> None:
    """Open the database once, in a process of its own, so that it has all tables.

    Raises `ConfigurationError` if it cannot be used.
    """
    child = Child(fork_server(preload), _open, (url.render_as_string(hide_password=False), log), log, daemon=True)
    try:
        problem = child.receive(SECONDS)
    except TimeoutError:
        problem = f"the database {urls.shown(url)} could not be opened within {SECONDS:g} s"
    child.gone(10)
    child.answer.close()
    if problem != "":
        raise ConfigurationError(problem or f"the database {urls.shown(url)} could not be opened: {child.log}")


def _open(url: str, log: Path, answer: Connection) -> None:
    redirect(log, log.parent)
    try:
        open_once(url)
    except ConfigurationError as error:
        leave(answer, str(error))
    leave(answer, "")


def open_once(url: str) -> None:
    """Open the database in this process and close it again, so that it has all tables."""
    with DurableSwarm(database=url) as swarm:
        swarm.runs(limit=1)


def copy_template(template: sqlalchemy.URL, to: sqlalchemy.URL) -> None:
    """Make a database as a copy of the template. No connection to the template may be open."""
    if urls.is_sqlite(to):
        path = Path(str(to.database))
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(template.database), path)
    else:
        databases.copy(template, to)
