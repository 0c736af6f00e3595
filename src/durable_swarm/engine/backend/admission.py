"""New workflows that are recorded in one transaction with what admits them: the number of a run in its session.

Beyond DBOS's public interface:

- `init_workflow` of its database: DBOS records a new workflow in a transaction of its own. For a workflow that is
  started inside `admitted_by`, ours does it, and `admit` writes its part in the same transaction.
- `init_workflow_with_connection`, which is public for datasources, does the recording.
- `db_retry`: the transaction is repeated after a lost connection, as DBOS's is.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dbos import _sys_db
from sqlalchemy import Connection

from durable_swarm.engine.backend.launch import instance
from durable_swarm.engine.database.connection import writing
from durable_swarm.engine.records.sessions import Admission
from durable_swarm.errors import DurableSwarmError


class AlreadyRecorded(Exception):
    """A workflow of this id exists already."""


class NotAdmitted(Exception):
    """A workflow was not recorded; `reason` says why."""

    def __init__(self, reason: DurableSwarmError) -> None:
        super().__init__(str(reason))
        self.reason = reason


Admit = Callable[[Connection], Admission]

_admitting: contextvars.ContextVar[tuple[str, Admit] | None] = contextvars.ContextVar(
    "durable_swarm_admitting", default=None
)


@contextlib.contextmanager
def admitted_by(workflow_id: str, admit: Admit | None) -> Iterator[None]:
    """Record the workflow of this id, if it is started in this block, as `admit` says, in its transaction.

    The start raises `NotAdmitted` with an error of ours that `admit` raises, and `AlreadyRecorded`.
    """
    token = _admitting.set(None if admit is None else (workflow_id, admit))
    try:
        yield
    finally:
        _admitting.reset(token)


def install() -> None:
    """Let the launched DBOS record workflows as they are admitted."""
    dbos = instance()
    assert dbos is not None
    database: Any = dbos._sys_db_field
    if not isinstance(database.init_workflow, _Recorder):
        database.init_workflow = _Recorder(database, database.init_workflow)


@dataclass(frozen=True)
class _Recorder:
    """Records a new workflow; returns its state, and True if this process executes it."""

    database: Any
    plain: Callable[..., tuple[Any, bool]]

    def __call__(
        self, status: dict[str, Any], *, creator_xid: str | None, reuse_policy: Any = None
    ) -> tuple[Any, bool]:
        admitting = _admitting.get()
        if admitting is None or admitting[0] != status["workflow_uuid"]:
            return self.plain(status, creator_xid=creator_xid, reuse_policy=reuse_policy)
        return _admitted(self.database, status, admitting[1], creator_xid)


@_sys_db.db_retry()
def _admitted(database: Any, status: dict[str, Any], admit: Admit, creator_xid: str | None) -> tuple[Any, bool]:
    with writing(database.engine) as connection:
        try:
            admission = admit(connection)
        except DurableSwarmError as error:
            raise NotAdmitted(error) from error
        if admission.queued is not None:
            state, queue = admission.queued
            status |= {"status": state, "queue_name": queue, "executor_id": None, "priority": admission.priority}
        status["attributes"] = {**(status["attributes"] or {}), **admission.notes}
        recorded, new = database.init_workflow_with_connection(status, connection, creator_xid=creator_xid)
        if not new:  # What admitted it must not stay.
            raise AlreadyRecorded(status["workflow_uuid"])
    return recorded, admission.queued is None
