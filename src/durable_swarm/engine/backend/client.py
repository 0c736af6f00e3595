"""DBOS's client, with its errors translated into ours."""

from __future__ import annotations

from typing import Any

import sqlalchemy
from dbos import DBOSClient
from dbos import error as dbos_errors
from sqlalchemy.exc import SQLAlchemyError

from durable_swarm import errors
from durable_swarm.engine.backend import patches
from durable_swarm.engine.database.diagnosis import unusable
from durable_swarm.engine.database.reconnecting import persistently


class _Client:
    """DBOS's client: pickled rows are refused, and the database's errors become ours."""

    def __init__(self, client: DBOSClient, url: sqlalchemy.URL) -> None:
        self._client = client
        self._url = url

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                with patches.reading():
                    return persistently(lambda: method(*args, **kwargs))
            except dbos_errors.DBOSNonExistentWorkflowError as error:
                raise errors.RunNotFound("the run is not in this database any more: it was deleted") from error
            except SQLAlchemyError as error:
                raise unusable(self._url, error) from error

        return call
