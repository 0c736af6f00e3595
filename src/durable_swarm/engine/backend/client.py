"""DBOS's client: it writes rows of runs, also in programs that execute none. Its errors are translated into ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import sqlalchemy
from dbos import DBOSClient, EnqueueOptions, WorkflowSerializationFormat
from dbos import error as dbos_errors

from durable_swarm import errors
from durable_swarm.engine.backend import launch, patches
from durable_swarm.engine.database.diagnosis import reporting_errors
from durable_swarm.engine.database.reconnecting import persistently
from durable_swarm.engine.records import names
from durable_swarm.engine.records.base import Record

T = TypeVar("T")


class Client:
    """Writes rows of runs, and notes on them. Raises `ConfigurationError` if the database cannot be used."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine) -> None:
        patches.silence()
        self._url = url
        self._client = DBOSClient(
            system_database_url=url.render_as_string(hide_password=False),
            system_database_engine=engine,
            serializer=launch.JSON,
            lazy=True,
            retry_connection_errors=False,  # It would wait without end, and block the thread that sends our heartbeat.
        )

    def _ask(self, write: Callable[[], T]) -> T:
        with reporting_errors(self._url), patches.reading():
            return persistently(write)

    def enqueue(
        self,
        run_id: str,
        stored: Record,
        about: dict[str, object],
        queue: str,
        version: str | None,
        priority: int,
        delay: float,
    ) -> bool:
        """Record a new run for those that serve `queue`, after `delay` seconds. Return False if the id is taken."""
        options: EnqueueOptions = {
            "workflow_name": names.RUN,
            "queue_name": queue,
            "workflow_id": run_id,
            "workflow_id_reuse_policy": "reject",
            "attributes": about,
            "serialization_type": WorkflowSerializationFormat.PORTABLE,
        }
        if version is not None:
            options["app_version"] = version
        if priority:
            options["priority"] = priority
        if delay > 0:
            options["delay_seconds"] = delay
        try:
            self._ask(lambda: self._client.enqueue(options, stored))
        except dbos_errors.DBOSWorkflowIDInUseError:
            return False
        return True

    def annotate(self, run_id: str, attributes: dict[str, object]) -> None:
        """Add JSON values to the notes on a run. Raises `RunNotFound` for one that was deleted meanwhile."""
        try:
            self._ask(lambda: self._client.update_workflow_attributes(run_id, attributes, merge=True))
        except dbos_errors.DBOSNonExistentWorkflowError as error:
            raise errors.RunNotFound("the run is not in this database any more: it was deleted") from error

    def note(self, kind: str, name: str, notes: dict[str, object]) -> None:
        """Store notes in a row of a workflow that is never executed, in place of the earlier ones."""
        options: EnqueueOptions = {"workflow_name": kind, "queue_name": kind, "workflow_id": name}
        self._ask(lambda: self._client.enqueue(options))
        self._ask(lambda: self._client.cancel_workflow(name))
        self._ask(lambda: self._client.update_workflow_attributes(name, notes))

    def close(self) -> None:
        """Give back what the client holds; the engine's connections stay."""
        self._client.destroy()
