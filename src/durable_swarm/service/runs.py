"""Looking at the runs of a database, cancelling and resuming them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from durable_swarm import codec
from durable_swarm.engine import Run, database, records
from durable_swarm.engine.durable import list_rows
from durable_swarm.engine.history import step_infos, story
from durable_swarm.engine.run import error_of
from durable_swarm.engine.store import Store, state_of
from durable_swarm.engine.visitor import Visitor, visit
from durable_swarm.errors import ConfigurationError, RunNotFound
from durable_swarm.runs import ENDED
from durable_swarm.service.views import Failure, Query, RunDetail, RunView

CANDIDATES = 5
"""How many runs an ambiguous id names."""


@contextlib.contextmanager
def open_runs(url: str | None) -> Iterator[Runs]:
    """Give the runs of a database; `url` is as in `DurableSwarm`.

    Raises `NoRuns` where there is no database yet, and `ConfigurationError` where it cannot be used.
    """
    with visit(database.choose(url)) as visitor:
        yield Runs(visitor)


class Runs:
    """The runs of one database. Wherever an id is asked for, its beginning will do if it fits one run alone.

    What takes an id raises `RunNotFound`, and `ConfigurationError` for a beginning that fits several runs.
    """

    def __init__(self, visitor: Visitor) -> None:
        self._visitor = visitor
        self._store: Store = visitor.store

    def list(self, query: Query) -> list[RunView]:
        """Give runs, newest first. Raises `ConfigurationError` for a limit below 1."""
        rows = list_rows(self._store, query.status, query.agent, query.limit)
        idle = self._visitor.idle(rows)
        return [_view(row, row.workflow_id in idle) for row in rows]

    def show(self, run_id: str) -> RunDetail:
        """Give one run in full."""
        row = self._store.row(self._find(run_id))
        return _detail(self._store, row, bool(self._visitor.idle([row])))

    def cancel(self, run_id: str) -> RunView:
        """Stop a run at its next checkpoint, and give it as it is then; an ended run stays as it is."""
        return self._after(self._run(run_id), Run.cancel)

    def resume(self, run_id: str) -> RunView:
        """Let a failed or cancelled run go on, and give it as it is then; any other run stays as it is.

        It goes on with the next program that defines its agent.
        """
        return self._after(self._run(run_id), Run.resume)

    def _after(self, run: Run, change: Any) -> RunView:
        change(run)
        row = self._store.row(run.id, load_output=False)
        return _view(row, bool(self._visitor.idle([row])))

    def _run(self, run_id: str) -> Run:
        return Run(self._find(run_id), lambda: self._store, lambda: None)

    def _find(self, text: str) -> str:
        """Give the id of the run that `text` is the id, or the only beginning, of."""
        if self._store.row(text, load_output=False) is not None:
            return text
        rows = self._store.rows(prefix=text, limit=CANDIDATES + 1) if text else []
        if not rows:
            raise RunNotFound(
                f"there is no run {text!r} in {self._store.url.render_as_string()}; `durable-swarm runs` lists them",
                run_id=text,
            )
        if len(rows) > 1:
            names = [row.workflow_id for row in rows[:CANDIDATES]] + ["…"] * (len(rows) > CANDIDATES)
            raise ConfigurationError(f"{text!r} is the beginning of several ids: {', '.join(names)}; write more of it")
        return str(rows[0].workflow_id)


def _view(row: Any, idle: bool) -> RunView:
    created = _created(row)
    return RunView(
        id=row.workflow_id,
        status=state_of(row),
        agent=_about(row, "agent"),
        created_at=created,
        updated_at=max(created, _time(row.updated_at)),
        idle=idle,
        waits_for=_waits_for(row, idle),
    )


def _about(row: Any, name: str) -> str:
    """Give a text that was noted on the run, or ''."""
    return str((row.attributes or {}).get(name) or "")


def _created(row: Any) -> datetime:
    """Give the time of the call that started the run; its row is written a little later."""
    at = (row.attributes or {}).get("at")
    return _time(row.created_at) if at is None else datetime.fromtimestamp(at, UTC)


def _time(milliseconds: int | None) -> datetime:
    return datetime.fromtimestamp((milliseconds or 0) / 1000, UTC)


def _detail(store: Store, row: Any, idle: bool) -> RunDetail:
    record = store.start_record(row)
    start, told, state = records.read_start(record), story(store, row), state_of(row)
    error = _failure(row) if state == "failed" else None
    steps = step_infos(store, row)
    created = _created(row)
    moments = [created, _time(row.updated_at), *(step.finished_at for step in steps if step.finished_at)]
    return RunDetail(
        id=row.workflow_id,
        status=state,
        agent=start.agent,
        created_at=created,
        updated_at=max(moments),
        idle=idle,
        swarm=record.get("swarm", ""),
        asked=start.messages,
        context_variables=start.context if told.ending is None else told.ending.context,
        model_override=start.model_override,
        max_turns=start.max_turns,
        messages=told.messages,
        steps=steps,
        usage=told.usage,
        last_agent=None if told.ending is None else told.ending.agent,
        error=error,
        waits_for=_waits_for(row, idle),
    )


def _waits_for(row: Any, idle: bool) -> str | None:
    """Say why an unfinished run does not go on: in the words of the process that held it, where there are any."""
    if state_of(row) in ENDED:
        return None
    recorded = _about(row, "waits_for")
    if recorded or not idle:
        return recorded or None
    agent, swarm = _about(row, "agent"), _about(row, "swarm")
    named = f" in a swarm named {swarm!r}" if swarm else ""
    return (
        f"no process executes it; it goes on when a program that defines agent {agent!r}{named} uses its DurableSwarm"
    )


def _failure(row: Any) -> Failure:
    record = getattr(row.error, "data", None)
    if not isinstance(record, dict) or "type" not in record:
        return Failure(type(row.error).__name__, str(error_of(row)))
    return Failure(
        record["type"],
        codec.decode(record.get("message", "")),
        record.get("step", ""),
        codec.decode(record.get("traceback", "")),
    )
