"""Reads the runs of a database, cancels and resumes them."""

from __future__ import annotations

import builtins
import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

from durable_swarm import codec
from durable_swarm.encryption import codec_of_environment
from durable_swarm.engine.api.inspector import Inspector, NoRuns, inspect_database
from durable_swarm.engine.api.run import Run
from durable_swarm.engine.database import urls
from durable_swarm.engine.history import importing
from durable_swarm.engine.history.export import Exported, export
from durable_swarm.engine.history.export_redaction import Redact
from durable_swarm.engine.history.follower import EventReader, check_after
from durable_swarm.engine.history.spending import limits_now, spending
from durable_swarm.engine.history.story import step_infos, story, usage_with_children
from durable_swarm.engine.records import runs
from durable_swarm.engine.records.encoding import ENCRYPTED, Unreadable
from durable_swarm.engine.storage.family import Relatives
from durable_swarm.engine.storage.retention import Retention
from durable_swarm.engine.storage.rows import RunRow
from durable_swarm.engine.storage.runs import Store, moment, notes_on, owner_of, reason_noted, started_at, state_of
from durable_swarm.events import Event
from durable_swarm.loop import Start
from durable_swarm.runs import ENDED, RunHistory, State
from durable_swarm.service.ids import find_run
from durable_swarm.service.requests import Inbox
from durable_swarm.service.sessions import SessionList
from durable_swarm.service.unreadable import opened, why_closed
from durable_swarm.service.views import Failure, Query, RunDetail, RunView
from durable_swarm.types import EndedBy, Message

EVERY = 2**31 - 1
"""A limit above the number of runs in any database."""

STANDING = 1.0
"""Seconds between checks of the reason why a followed run does not continue."""


@contextlib.contextmanager
def open_runs(url: str | None) -> Iterator[Runs]:
    """Open the runs of a database; `url` is as in `DurableSwarm`.

    Encrypted records are read with the keys of the environment, if it has any. Raises `NoRuns` if there is no database
    yet, and `ConfigurationError` if it cannot be used.
    """
    with inspect_database(urls.choose(url), functools.cache(codec_of_environment)) as visitor:
        yield Runs(visitor)


def import_run(url: str | None, document: Any) -> RunView:
    """Put an exported run into a database, which is created if it does not exist; return the run's new state.

    Raises `ConfigurationError` if the document is not an exported run, and `RunConflict` if its id belongs to another
    run.
    """
    Exported(document)
    try:
        with open_runs(url) as there:
            return there.load(document)
    except NoRuns:
        from durable_swarm.engine.api.durable import DurableSwarm  # With DBOS, which reading does without.

        with DurableSwarm(database=url) as swarm:
            swarm.runs(limit=1)
    with open_runs(url) as there:
        return there.load(document)


class Runs:
    """The runs of one database. Every id may be shortened to a prefix that fits one run alone.

    Methods that take an id raise `RunNotFound`, and `ConfigurationError` for a prefix that fits several runs.
    """

    def __init__(self, visitor: Inspector) -> None:
        self._visitor = visitor
        self._store: Store = visitor.store
        self.inbox = Inbox(visitor)
        """The requests of the runs, and the ways to answer them."""
        self.sessions = SessionList(visitor, self._views)
        """The sessions of the runs."""

    def list(self, query: Query) -> list[RunView]:
        """Return runs, newest first. Raises `ConfigurationError` for a limit below 1."""
        rows = self._store.listed(query.status, query.agent, EVERY if query.idle else query.limit)
        idle = self._visitor.idle(rows)
        found = [row for row in rows if row.workflow_id in idle or not query.idle][: query.limit]
        ends = self._store.ends(found)
        families = self._store.family.relatives([row.workflow_id for row in found])
        return [
            _view(self._store, row, row.workflow_id in idle, ends.get(row.workflow_id), families[row.workflow_id])
            for row in found
        ]

    def show(self, run_id: str) -> RunDetail:
        """Return one run in full."""
        row = self._store.row(find_run(self._store, run_id), waits=True)
        return _detail(self._store, row, bool(self._visitor.idle([row])))

    def view(self, run_id: str) -> RunView:
        """Return one run as it appears in a list."""
        return self._seen(self._run(run_id))

    def events(
        self, run_id: str, after: int = 0, stands: Callable[[RunView], None] = lambda _: None
    ) -> Iterator[Event]:
        """Yield the events of a run after number `after`: first the past ones, then new ones, until the run ends.

        `stands` is called while the run does not continue (`waits_for` gives the reason), once for each reason.
        """
        check_after(after)
        found = find_run(self._store, run_id)
        follower = EventReader(lambda: self._store, found, after)
        told, looked = None, -STANDING
        with opened(f"run {found!r}"):
            while not follower.over:
                events = follower.read()
                yield from events
                if not events and not follower.over:
                    if time.monotonic() - looked >= STANDING:
                        looked, view = time.monotonic(), self.view(found)
                        if view.waits_for not in (None, told):
                            stands(view)
                        told = view.waits_for
                    time.sleep(follower.pause)

    def forget(
        self, before: datetime, *, keep_failed: bool = False, swarm: str | None = None, dry_run: bool = False
    ) -> int:
        """Delete the runs that ended before a time, with all that belongs to them; return their number.

        With `dry_run` they are only counted. Raises `ConfigurationError` if the database refuses it.
        """
        old = Retention(self._store, round(before.timestamp() * 1000), keep_failed=keep_failed, swarm=swarm)
        return old.count() if dry_run else old.delete()

    def cancel(self, run_id: str) -> RunView:
        """Stop a run at its next checkpoint and return its new state; an ended run stays as it is."""
        return self._after(self._run(run_id), Run.cancel)

    def resume(self, run_id: str) -> RunView:
        """Let a failed, cancelled or held run continue, as `Run.resume` does, and return its new state.

        Any other run stays as it is. The run continues in the next program that defines its agent; a run held for a
        changed agent continues in the process that holds it.
        """
        return self._after(self._run(run_id), Run.resume)

    def resume_failed(
        self, *, agent: str | None = None, since: datetime | None = None, error: str | None = None
    ) -> builtins.list[RunView]:
        """Let failed runs continue, oldest first, and return their new states; cancelled ones stay as they are.

        Only those that were started with this agent, that failed at this time or later, and with an error of the class
        of this name, with its module or without.
        """
        rows = self._store.listed("failed", agent, EVERY)
        late = [row for row in reversed(rows) if since is None or moment(row.completed_at or row.updated_at) >= since]
        ends = self._store.ends(late)
        chosen = [run_id for run_id, row in ends.items() if error is None or _is_of(_failure(self._store, row), error)]
        return [self.resume(row.workflow_id) for row in late if row.workflow_id in set(chosen)]

    def extend(self, run_id: str, amounts: dict[str, Any]) -> RunView:
        """Add amounts to the limits of a run, as `Run.extend` does, and return its state.

        Raises `ConfigurationError` for what is not limited.
        """
        return self._after(self._run(run_id), lambda run: run.extend(**amounts))

    def fork(
        self,
        run_id: str,
        turn: int,
        *,
        agent: str | None = None,
        messages: Sequence[Message] | None = None,
        new_id: str | None = None,
    ) -> RunView:
        """Start a new run from a turn of this one, as `Run.fork` does, and return its state.

        It continues in the next program that defines its agent.
        """
        run = self._run(run_id)
        with opened(f"run {run.id!r}"):
            return self._seen(run.fork(turn, agent=agent, messages=messages, run_id=new_id))

    def export(self, run_id: str, redact: Redact | None = None) -> dict[str, Any]:
        """Return a run as a document, as `DurableSwarm.export` does."""
        found = find_run(self._store, run_id)
        with opened(f"run {found!r}"):
            return export(self._store, self._store.row(found, waits=True), redact)

    def load(self, document: Any) -> RunView:
        """Put an exported run into the database, as `DurableSwarm.import_run` does, and return its new state."""
        return self._seen(self._run(importing.import_run(self._store, document)))

    def _after(self, run: Run, change: Any) -> RunView:
        change(run)
        return self._seen(run)

    def _seen(self, run: Run) -> RunView:
        row = self._store.found(run.id, load_output=False, waits=True)
        idle, family = bool(self._visitor.idle([row])), self._store.family.relatives([run.id])[run.id]
        return _view(self._store, row, idle, self._store.ends([row]).get(run.id), family)

    def _views(self, rows: Sequence[RunRow]) -> Sequence[RunView]:
        """Return runs as a list shows them, from their rows with what ended them."""
        idle, families = self._visitor.idle(rows), self._store.family.relatives([row.workflow_id for row in rows])
        return [_view(self._store, row, row.workflow_id in idle, row, families[row.workflow_id]) for row in rows]

    def _run(self, run_id: str) -> Run:
        return Run(find_run(self._store, run_id), lambda: self._store, lambda: None)


def _view(store: Store, row: Any, idle: bool, ended: Any, family: Relatives) -> RunView:
    """Return a run for a list; `ended` is its row with the reason it ended, or None."""
    created, state = started_at(row), state_of(row)
    return RunView(
        id=row.workflow_id,
        status=state,
        agent=_about(row, "agent"),
        created_at=created,
        updated_at=max(created, moment(row.updated_at)),
        idle=idle,
        waits_for=_waits_for(store, row, idle),
        ended_by=runs.read_end(ended.output) if state == "done" and ended is not None else None,
        failure=_failure(store, ended).line if state == "failed" and ended is not None else None,
        **family._asdict(),
        **_origin(row),
    )


def _origin(row: Any) -> dict[str, Any]:
    noted = notes_on(row)
    turn = noted.get("turn")
    return {
        "forked_from": _about(row, "forked_from") or None,
        "turn": turn if isinstance(turn, int) else None,
        "session": noted.get("session"),
        "number": noted.get("number"),
    }


def _about(row: Any, name: str) -> str:
    """Return a text that was noted on the run, or ''."""
    return str(notes_on(row).get(name) or "")


def _detail(store: Store, row: Any, idle: bool) -> RunDetail:
    state = state_of(row)
    start, told, closed = _told(store, row)
    error = _failure(store, row) if state == "failed" else None
    steps = step_infos(store, row)
    created = started_at(row)
    below = store.family.below([row.workflow_id])
    moments = [created, moment(row.updated_at), *(step.finished_at for step in steps if step.finished_at)]
    return RunDetail(
        id=row.workflow_id,
        status=state,
        agent=_about(row, "agent") or start.agent,
        created_at=created,
        updated_at=max(moments),
        idle=idle,
        swarm=_about(row, "swarm"),
        worker="" if state in ENDED else owner_of(row),
        asked=start.messages,
        context_variables=start.context if told.ending is None else told.ending.context,
        model_override=start.model_override,
        max_turns=start.max_turns,
        messages=told.messages,
        steps=steps,
        usage=told.usage if closed else usage_with_children(store, row),
        **_budget(store, row, closed),
        last_agent=None if told.ending is None else told.ending.agent,
        ended_by=_ended_by(row, state, told),
        error=error,
        failure=None if error is None else error.line,
        added={str(turn): detour.messages for turn, detour in sorted(start.detours.items()) if detour.messages},
        waits_for=_waits_for(store, row, idle),
        closed=closed,
        requests=store.inbox.of_runs([row.workflow_id, *(link.run_id for link in below)]),
        **store.family.relatives([row.workflow_id])[row.workflow_id]._asdict(),
        **_origin(row),
    )


def _budget(store: Store, row: Any, closed: str | None) -> dict[str, Any]:
    return {} if closed else {"limits": limits_now(store, row), "spent": spending(store, row)}


def _ended_by(row: Any, state: State, told: RunHistory) -> EndedBy | None:
    if state != "done":
        return None
    return runs.read_end(row.output) if told.ending is None else told.ending.ended_by


def _told(store: Store, row: Any) -> tuple[Start, RunHistory, str | None]:
    """Return the run's input and history, or empty ones and a sentence with the reason if they cannot be decoded."""
    try:
        return runs.read_start(store.start_record(row)), story(store, row), None
    except Unreadable as error:
        return Start("", [], {}), RunHistory([], None), why_closed(error)


def _waits_for(store: Store, row: Any, idle: bool) -> str | None:
    """Return why an unfinished run does not continue, preferably in the words of the process that held it."""
    recorded = reason_noted(row) or store.reason_below(row)
    if recorded or not idle:
        return recorded
    agent, swarm = _about(row, "agent"), _about(row, "swarm")
    named = f" in a swarm named {swarm!r}" if swarm else ""
    return (
        f"no process executes it; it goes on when a program that defines agent {agent!r}{named} uses its DurableSwarm"
    )


def _is_of(failure: Failure, name: str) -> bool:
    """Return True if an error is of the class of this name, with its module or without."""
    return failure.type == name or failure.type.rpartition(".")[2] == name


def _failure(store: Store, row: Any) -> Failure:
    try:
        record = store.failure_record(row)
    except Unreadable:
        return Failure(row.error.data["type"], ENCRYPTED, str(row.error.data.get("step", "")))
    if record is None:
        return Failure(type(row.error).__name__, f"run {row.workflow_id!r} failed: {row.error}")
    return Failure(
        record["type"],
        codec.decode(record.get("message", "")),
        record.get("step", ""),
        codec.decode(record.get("traceback", "")),
    )
