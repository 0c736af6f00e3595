"""Ownership of runs: reading it, and handing runs over. Rows of DBOS's own table, written under a lock of each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType

import sqlalchemy
from sqlalchemy import ColumnElement, Connection, column, delete, func, literal, or_, select, table, update

from durable_swarm.engine.database.connection import writing
from durable_swarm.engine.database.diagnosis import reporting_errors
from durable_swarm.engine.database.dialects import notes_column
from durable_swarm.engine.database.notices import notify
from durable_swarm.engine.database.reconnecting import read
from durable_swarm.engine.database.urls import schema_of
from durable_swarm.engine.records import names as records_names
from durable_swarm.engine.records.rows import RunRow

UNFINISHED = ("PENDING", "ENQUEUED", "DELAYED")
"""DBOS's states of an unfinished run; a suspended run is DELAYED."""


def now() -> int:
    """Return the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class Claims:
    """The runs and tool calls of one database, and their owners. Raises `ConfigurationError` if it cannot be used."""

    def __init__(self, url: sqlalchemy.URL, engine: sqlalchemy.Engine) -> None:
        self._url = url
        self._engine = engine
        schema = schema_of(url)
        names = ("workflow_uuid", "status", "queue_name", "owner_xid", "name", "updated_at", "parent_workflow_id")
        more = ("recovery_attempts", "created_at", "started_at_epoch_ms", "executor_id", "completed_at")
        ends = ("error", "output")
        noted = notes_column(url)
        self._runs = table("workflow_status", *map(column, (*names, *more, *ends)), noted, schema=schema)
        self._steps = table("operation_outputs", column("workflow_uuid"), column("function_id"), schema=schema)
        self._outputs = table("workflow_output", column("workflow_uuid"), schema=schema)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        """Open a transaction. It changes a run's row before those of its calls, so that none interleave.

        All of them hand something over, so the other processes are notified.
        """
        with reporting_errors(self._url), writing(self._engine) as connection:
            yield connection
            notify(connection)

    def _calls_of(self, run_id: str) -> ColumnElement[bool]:
        return (self._runs.c.parent_workflow_id == run_id) & (self._runs.c.name == records_names.TOOL)

    def transfer(
        self,
        rows: Iterable[RunRow],
        queue: str,
        attempts: int = 0,
        *,
        spared: Mapping[str, str | None] = MappingProxyType({}),
        notes: Mapping[str, Mapping[str, object]] = MappingProxyType({}),
    ) -> set[str]:
        """Hand runs over to the processes that serve `queue`, with their open calls; return the ids of these runs.

        `attempts` is stored as the recovery count. Calls in `spared` stay if the execution of that token owns them.
        `notes` are added to those on runs.

        Compare-and-set: a run that changed since its row was read is left alone, whether it was cancelled (which DBOS's
        own resumption would ignore) or taken over by another process. The calls are handed over with their run, whoever
        owns them.
        """
        runs, taken = self._runs, set()
        stays = [(runs.c.workflow_uuid == call) & (runs.c.owner_xid == owner) for call, owner in spared.items()]
        with self._writing() as connection:
            for row in sorted(rows, key=lambda row: str(row.workflow_id)):
                run_id = row.workflow_id
                as_read = (
                    (runs.c.workflow_uuid == run_id)
                    & (runs.c.status == row.status)
                    & runs.c.executor_id.is_not_distinct_from(row.executor_id)
                    & runs.c.queue_name.is_not_distinct_from(row.queue_name)
                )
                moving = update(runs).where(as_read).values(**moved("ENQUEUED", queue, attempts))
                if not connection.execute(moving).rowcount:
                    continue
                taken.add(run_id)
                calls = self._calls_of(run_id) & runs.c.status.in_(UNFINISHED)
                going = calls & ~or_(*stays) if stays else calls
                connection.execute(update(runs).where(going).values(**moved("ENQUEUED", queue)))
                if run_id in notes:
                    self._note(connection, run_id, notes[run_id])
        return taken

    def _note(
        self,
        connection: Connection,
        run_id: str,
        more: Mapping[str, object],
        drop: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Change the notes on a run whose row this transaction has locked."""
        this = self._runs.c.workflow_uuid == run_id
        noted = connection.execute(select(self._runs.c.attributes).where(this)).scalar()
        before = noted if isinstance(noted, dict) else {}
        after = {name: value for name, value in before.items() if not drop(name)} | {**more}
        if after != before:
            connection.execute(update(self._runs).where(this).values(attributes=after))

    def resume(
        self,
        row: RunRow,
        queue: str,
        forget: Mapping[str, int],
        forgive: Callable[[str], bool],
        *,
        reopen: Callable[[Connection], bool] | None = None,
        notes: Mapping[str, object],
    ) -> bool:
        """Let an ended run continue on `queue`, with its open calls; return False if its row changed since it was read.

        `forget` maps calls to the first step whose record is deleted. Notes are deleted if `forgive` returns True for
        their name, then `notes` are added. `reopen` is called first in the transaction, for a run of a session; if it
        returns False, the run waits for its turn.
        """
        runs, run_id, steps = self._runs, row.workflow_id, self._steps
        as_read = (
            (runs.c.workflow_uuid == run_id)
            & (runs.c.status == row.status)
            & runs.c.completed_at.is_not_distinct_from(row.completed_at)
        )
        open_still = runs.c.status.in_([*UNFINISHED, "CANCELLED"])
        with contextlib.suppress(_NotAsRead), self._writing() as connection:
            its_turn = reopen is None or reopen(connection)
            to = moved("ENQUEUED", queue) if its_turn else moved("DELAYED", records_names.TURNS)
            anew = {**to, "completed_at": None}
            if not connection.execute(update(runs).where(as_read).values(**anew, error=None, output=None)).rowcount:
                raise _NotAsRead
            connection.execute(delete(self._outputs).where(self._outputs.c.workflow_uuid == run_id))
            connection.execute(update(runs).where(self._calls_of(run_id), open_still).values(**anew))
            for call, first in forget.items():
                connection.execute(delete(steps).where(steps.c.workflow_uuid == call, steps.c.function_id >= first))
            self._note(connection, run_id, notes, forgive)
            return True
        return False

    def cancel(self, run_id: str, children: Callable[[Connection, list[str]], list[str]]) -> bool:
        """Cancel an unfinished run, everything in progress in it, and its child runs; return False if it has ended.

        `children` returns the ids of the child runs of some runs.
        """
        runs, at = self._runs, now()
        ended = {**moved("CANCELLED", None), "completed_at": at}
        family, found = {run_id}, [run_id]
        with self._writing() as connection:
            while found:
                these = runs.c.workflow_uuid.in_(found) & runs.c.status.in_(UNFINISHED)
                done = connection.execute(update(runs).where(these).values(**ended)).rowcount
                if found == [run_id] and not done:
                    return False
                calls = connection.execute(
                    select(runs.c.workflow_uuid).where(runs.c.parent_workflow_id.in_(found))
                ).scalars()
                within = dict.fromkeys([*calls, *children(connection, found)])
                found = [one for one in within if one not in family]
                family.update(found)
        return True

    def cancelled(self, workflow_ids: Iterable[str]) -> list[str]:
        """Return the runs and tool calls among these that were cancelled."""
        ids, runs = list(workflow_ids), self._runs
        if not ids:
            return []
        cancelled = select(runs.c.workflow_uuid).where(runs.c.workflow_uuid.in_(ids), runs.c.status == "CANCELLED")
        with reporting_errors(self._url), self._engine.connect() as connection:
            return list(connection.execute(cancelled).scalars())

    def fetch_call(self, call: str, run_id: str, owner: str | None, queue: str) -> bool:
        """Hand a call that no process executes to those that serve `queue`, if the execution `owner` owns its run."""
        runs = self._runs
        mine = (runs.c.workflow_uuid == run_id) & (runs.c.status == "PENDING") & (runs.c.owner_xid == owner)
        open_still = (runs.c.workflow_uuid == call) & runs.c.status.in_(UNFINISHED)
        with self._writing() as connection:
            if not connection.execute(update(runs).where(mine).values(owner_xid=runs.c.owner_xid)).rowcount:
                return False
            elsewhere = (runs.c.status != "ENQUEUED") | runs.c.queue_name.is_distinct_from(queue)
            moving = update(runs).where(open_still, elsewhere)
            return bool(connection.execute(moving.values(**moved("ENQUEUED", queue))).rowcount)

    def unfinished(self) -> list[str]:
        """Return the unfinished runs, except those that wait for a worker."""
        runs = self._runs
        begun = (runs.c.status == "PENDING") | (
            (runs.c.status == "ENQUEUED") & runs.c.queue_name.not_like(f"{records_names.work_queue('')}%")
        )
        with reporting_errors(self._url):
            return [
                row[0]
                for row in read(
                    self._engine, select(runs.c.workflow_uuid).where(runs.c.name == records_names.RUN, begun)
                )
            ]

    def without_steps(self, run_ids: Iterable[str]) -> set[str]:
        """Return the runs among these that have finished no step."""
        ids, steps = set(run_ids), self._steps
        finished = select(steps.c.workflow_uuid).where(steps.c.workflow_uuid.in_(ids)).distinct()
        with reporting_errors(self._url), self._engine.connect() as connection:
            return ids.difference(connection.execute(finished).scalars()) if ids else ids

    def claims(self, name: str) -> list[tuple[str, str]]:
        """Return the runs that are in progress in the process of this name, each with its execution's token."""
        runs = self._runs
        mine = (runs.c.name == records_names.RUN) & (runs.c.status == "PENDING") & (runs.c.executor_id == name)
        with reporting_errors(self._url):
            found = read(self._engine, select(runs.c.workflow_uuid, runs.c.owner_xid).where(mine))
            return [(str(run_id), str(owner)) for run_id, owner in found]

    def elsewhere(self, run_ids: Iterable[str], name: str) -> dict[str, bool]:
        """Return the runs among these that the process of this name neither has nor can take, with True if ended."""
        runs, ids = self._runs.c, set(run_ids)
        wanted = select(runs.workflow_uuid, runs.status, runs.executor_id, runs.queue_name)
        with reporting_errors(self._url):
            found = read(self._engine, wanted.where(runs.workflow_uuid.in_(ids))) if ids else []
        gone = dict.fromkeys(ids, True)
        for run_id, status, process, queue in found:
            owner = process
            if status != "PENDING":
                is_handed = status == "ENQUEUED" and queue != records_names.UNCLAIMED
                handed = str(queue).removeprefix(records_names.QUEUE)
                owner = handed if is_handed and handed != queue else name
            if status in UNFINISHED:
                gone[run_id] = False
                if owner == name:
                    del gone[run_id]
        return gone

    def owners(self) -> set[str]:
        """Return the names of the processes that own unfinished runs."""
        runs, queue, a_run = self._runs, self._runs.c.queue_name, self._runs.c.name == records_names.RUN
        pending = select(runs.c.executor_id).where(a_run, runs.c.status == "PENDING")
        queued = select(queue).where(a_run, runs.c.status == "ENQUEUED", queue.like(f"{records_names.QUEUE}%"))
        with reporting_errors(self._url):
            found = [row[0] for row in read(self._engine, sqlalchemy.union(pending, queued))]
            return {str(name).removeprefix(records_names.QUEUE) for name in found if name != records_names.UNCLAIMED}

    def loads(self) -> list[tuple[str, str | None, str | None, int, int]]:
        """Return the unfinished runs in groups: status, queue, process, their number and the oldest's start.

        The start is in milliseconds since 1970.
        """
        runs = self._runs.c
        # As literals, so that the index of unfinished rows is used.
        states = [literal(name, literal_execute=True) for name in ("ENQUEUED", "PENDING")]
        groups = (runs.status, runs.queue_name, runs.executor_id)
        wanted = select(*groups, func.count(), func.min(runs.created_at)).where(runs.name == records_names.RUN)
        with reporting_errors(self._url):
            found = read(self._engine, wanted.where(runs.status.in_(states)).group_by(*groups))
        return [(status, queue, process, int(count), int(oldest)) for status, queue, process, count, oldest in found]

    def ended_since(self, at: int) -> dict[str, int]:
        """Return how many runs have ended since a time, in milliseconds since 1970, by DBOS's status."""
        runs = self._runs.c
        ended = (runs.name == records_names.RUN) & (runs.completed_at >= at)
        with reporting_errors(self._url):
            found = read(self._engine, select(runs.status, func.count()).where(ended).group_by(runs.status))
        return {str(status): int(count) for status, count in found}

    def owner(self, workflow_id: str) -> str | None:
        """Return DBOS's token of the execution that owns a run or a tool call now."""
        runs = self._runs
        with reporting_errors(self._url), self._engine.connect() as connection:
            owner = connection.execute(select(runs.c.owner_xid).where(runs.c.workflow_uuid == workflow_id)).scalar()
            return None if owner is None else str(owner)


class _NotAsRead(Exception):
    """The row of a run is not as it was read: what was written for it must not be."""


def moved(status: str, queue: str | None, attempts: int = 0) -> dict[str, object]:
    """Return the columns of a run that no process executes, and whose next execution starts anew."""
    return {
        "status": status,
        "queue_name": queue,
        "owner_xid": None,
        "recovery_attempts": attempts,
        "started_at_epoch_ms": None,
        "updated_at": now(),
    }
