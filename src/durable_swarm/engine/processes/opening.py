"""Opens and closes this process's engine: the first swarm that is used launches it, the last one closes it."""

from __future__ import annotations

import atexit
import os
import threading

from durable_swarm import errors
from durable_swarm.engine.backend import launch
from durable_swarm.engine.database import connection as database_connection
from durable_swarm.engine.database import diagnosis, reconnecting, urls
from durable_swarm.engine.execution.swarms import Settings
from durable_swarm.engine.processes import here
from durable_swarm.engine.processes.process import Process
from durable_swarm.validation import check_threads


def _end_in_order() -> None:
    """Do the work of `close` for a program that never calls it, and checkpoint a SQLite file's last commits."""
    process = here.opened()
    if process is None or process.pid != os.getpid():
        return
    process.outage.close()
    process.crash_guard.close()
    if urls.is_sqlite(process.url):
        database_connection.empty_journal(process.store.engine)


atexit.register(_end_in_order)

_guard = threading.RLock()


def open_for(swarm: Settings, url: str | None, worker_id: str | None) -> Process:
    """Return the process's engine, launched if necessary, and count `swarm` among its users.

    Raises `ConfigurationError` if the process already works on another database, or under another `worker_id`.
    """
    with _guard:
        process = here.opened()
        at = process.url if process is not None else launch.host_url()
        wanted = at if at is not None and url is None else urls.choose(url)
        if at is not None:
            urls.check_same_database(at, wanted)
        if process is None:
            check_threads()
            with diagnosis.reporting_errors(wanted):
                process = reconnecting.opened(lambda: Process(wanted, worker_id))
            process.swarms.admit(swarm)  # Before any run that DBOS recovers can look for it.
            process.webhooks.begin(swarm)
            here.enter(process)
            return process
        process.check_fork()
        if worker_id is not None and worker_id != process.identity.name:
            raise errors.ConfigurationError(
                f"this process already works as worker_id {process.identity.name!r}; give its swarms that one, or none"
            )
        process.swarms.admit(swarm)
        process.webhooks.begin(swarm)
        return process


def close_for(swarm: Settings) -> None:
    """Remove `swarm` from the users; the last one closes the engine."""
    with _guard:
        process = here.opened()
        if process is None or swarm not in process.swarms:
            return
        process.worker.stop(swarm)  # First, so that it can still execute the runs it claims until then.
        process.swarms.remove(swarm)
        if not process.swarms:
            process.close()
            here.enter(None)
