"""Lists runs: the conditions of a list as SQL, and pages that begin behind a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnClause, ColumnElement, and_, case, func, literal, literal_column
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from durable_swarm import errors
from durable_swarm.codec import storable
from durable_swarm.engine.database.urls import is_sqlite
from durable_swarm.engine.records.names import QUEUE
from durable_swarm.engine.records.rows import RunRow
from durable_swarm.engine.storage.rows import FORKED
from durable_swarm.engine.storage.run_state import state_of
from durable_swarm.engine.storage.runs import PAGE, Store
from durable_swarm.runs import STATES, State
from durable_swarm.validation import check_whole

Keep = Callable[[Sequence[RunRow]], Sequence[RunRow]]
"""Returns the rows of a page that a list shows."""


@dataclass(frozen=True)
class Query:
    """The runs to list, newest first: those that meet all conditions, at most `limit`.

    `status` is the present one, `agent` the name of the agent that each was started with, `swarm` the name of its
    swarm, and `search` a text in its id. `since` and `until` are aware times; a run was started at `since` or later,
    and before `until`. With `idle`, only unfinished runs that no living process executes.

    `forked_from` is the id of the run of which all are forks.

    `before` is the id of a run: the list begins with the next older one. To read page by page, pass the id of the last
    run of a page; a run that is started meanwhile moves nothing.
    """

    status: State | None = None
    agent: str | None = None
    limit: int = 100
    idle: bool = False
    swarm: str | None = None
    search: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    before: str | None = None
    forked_from: str | None = None


def listed(store: Store, query: Query, keep: Keep = list) -> list[RunRow]:
    """Return the rows of runs that meet a query and that `keep` leaves, without their inputs and outputs.

    Raises `ConfigurationError` for an invalid query, `RunNotFound` if `before` is the id of no run.
    """
    _check(query)
    wanted = [*_conditions(store, query)]
    place = None if query.before is None else store.found(query.before, load_output=False)
    found: list[RunRow] = []
    # What SQL cannot tell is filtered here, page by page; then a page has more rows than are asked for.
    size = max(query.limit, PAGE) if query.idle or query.status in ("running", "waiting", "queued") else query.limit
    while True:
        behind = [] if place is None else [_older(store, place)]
        rows, place = store.page(*wanted, *behind, limit=size, by_index=bool(query.search))
        found += keep([row for row in rows if query.status in (None, state_of(row))])
        if len(found) >= query.limit or place is None:
            return found[: query.limit]


def _check(query: Query) -> None:
    if query.status is not None and (not isinstance(query.status, str) or query.status not in STATES):
        raise errors.ConfigurationError(f"status must be one of {', '.join(STATES)}, not {query.status!r}")
    if query.agent is not None and not isinstance(query.agent, str):
        raise errors.ConfigurationError(f"agent must be an agent's name, not {query.agent!r:.40}")
    check_whole("limit", query.limit, 1)


def _older(store: Store, row: RunRow) -> ColumnElement[bool]:
    runs = store.columns
    before = (runs.created_at < row.created_at) | (runs.workflow_uuid < row.workflow_id)
    return (runs.created_at <= row.created_at) & before


def _conditions(store: Store, query: Query) -> Iterator[ColumnElement[bool]]:
    runs = store.columns
    if query.status is not None:
        yield _may_be(runs, query.status)
    texts = {"agent": query.agent, "swarm": query.swarm, "forked_from": query.forked_from}
    noted = {name: text for name, text in texts.items() if text is not None}
    if noted:
        yield _is_noted(store, noted)
    if query.forked_from is not None and is_sqlite(store.url):
        yield literal_column(FORKED)
    if query.search:
        found = func.instr if is_sqlite(store.url) else func.strpos
        yield found(runs.workflow_uuid, query.search) > 0 if storable(query.search) else literal(value=False)
    if query.since is not None:
        yield runs.created_at >= _milliseconds(query.since)
    if query.until is not None:
        yield runs.created_at < _milliseconds(query.until)


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _may_be(runs: ReadOnlyColumnCollection[str, ColumnClause[Any]], status: State) -> ColumnElement[bool]:
    """True for the rows that can be those of runs of a status: of unfinished ones, their row alone does not say it."""
    ours = runs.queue_name.startswith(QUEUE, autoescape=True)

    def any_of(*names: str) -> ColumnElement[bool]:
        # As literals, because DBOS's indexes of unfinished runs are found only by these.
        is_one: ColumnElement[bool] = runs.status.in_([literal(name, literal_execute=True) for name in names])
        return is_one

    found: dict[State, ColumnElement[bool]] = {
        "queued": runs.status.in_(["ENQUEUED", "DELAYED"]) & (runs.queue_name.is_(None) | ~ours),
        "running": any_of("ENQUEUED", "PENDING") & ((runs.status == "PENDING") | ours),
        "waiting": any_of("ENQUEUED", "PENDING") | any_of("DELAYED"),
        "done": runs.status == "SUCCESS",
        "failed": runs.status.in_(["ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]),
        "cancelled": runs.status == "CANCELLED",
    }
    return found[status]


def _is_noted(store: Store, noted: dict[str, str]) -> ColumnElement[bool]:
    """True for a run with these texts among its notes."""
    notes = store.columns.attributes
    if not all(storable(text) for text in noted.values()):
        return literal(value=False)
    if not is_sqlite(store.url):
        return notes.op("@>")(literal(noted, notes.type))
    # A damaged row must not fail the list.
    parsed = case((func.json_valid(notes), notes))
    return and_(*(func.json_extract(parsed, f"$.{name}") == text for name, text in noted.items()))
