"""Reads the runs of a database, cancels and resumes them."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from durable_swarm.encryption import codec_of_environment
from durable_swarm.engine.api.inspector import Inspector, NoRuns, inspect_database
from durable_swarm.engine.database import urls
from durable_swarm.engine.records.rows import RunRow
from durable_swarm.engine.storage.changes import Mark
from durable_swarm.engine.storage.run_list import Query, listed
from durable_swarm.engine.storage.run_state import moment, notes_on, state_of
from durable_swarm.engine.storage.runs import Store
from durable_swarm.events import Event
from durable_swarm.runs import ENDED, State, StepInfo
from durable_swarm.service.ids import find_run
from durable_swarm.service.run_views import failure_of, run_detail, run_views
from durable_swarm.service.unreadable import opened
from durable_swarm.service.views import Failure, RunDetail, RunView
from durable_swarm.types import Message
from durable_swarm.validation import check_whole

if TYPE_CHECKING:  # Imported at their use: lists and views of runs, which most commands show, do without them.
    from durable_swarm.engine.api.run import Run
    from durable_swarm.engine.history.export_redaction import Redact
    from durable_swarm.engine.history.follower import EventReader
    from durable_swarm.observing import RunTrace
    from durable_swarm.service.comparison import Comparison
    from durable_swarm.service.feed import Feed
    from durable_swarm.service.requests import Inbox
    from durable_swarm.service.run_pages import RunPage
    from durable_swarm.service.schedules import ScheduleList
    from durable_swarm.service.sessions import SessionList
    from durable_swarm.service.workers import Workers

EVERY = 2**31 - 1
"""A limit above the number of runs in any database."""

STEPS = 200
"""The number of steps on a page of a run."""

FOLLOWED = 0.25
"""Seconds between looks of `follow` whether its run has changed."""

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


def import_run(url: str | None, document: object) -> RunView:
    """Put an exported run into a database, which is created if it does not exist; return the run's new state.

    Raises `ConfigurationError` if the document is not an exported run, and `RunConflict` if its id belongs to another
    run.
    """
    from durable_swarm.engine.history.export import Exported

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

    @functools.cached_property
    def inbox(self) -> Inbox:
        """The requests of the runs, and the ways to answer them."""
        from durable_swarm.service.requests import Inbox

        return Inbox(self._visitor)

    @functools.cached_property
    def schedules(self) -> ScheduleList:
        """The schedules."""
        from durable_swarm.service.schedules import ScheduleList

        return ScheduleList(self._store)

    @functools.cached_property
    def sessions(self) -> SessionList:
        """The sessions of the runs."""
        from durable_swarm.service.sessions import SessionList

        return SessionList(self._visitor)

    def seen_by(self, person: str | None) -> Runs:
        """Return these runs without those that belong to others than this person; all of them for None."""
        return self if person is None else Runs(self._visitor.seen_by(person))

    def list(self, query: Query) -> list[RunView]:
        """Return runs, newest first.

        Raises `ConfigurationError` for an invalid query, `RunNotFound` if `before` is the id of no run.
        """

        def idle_ones(rows: Sequence[RunRow]) -> Sequence[RunRow]:
            idle = self._visitor.idle(rows)
            return [row for row in rows if row.workflow_id in idle]

        rows = listed(self._store, query, idle_ones) if query.idle else listed(self._store, query)
        return run_views(self._visitor, rows)

    def show(self, run_id: str) -> RunDetail:
        """Return one run in full."""
        return run_detail(self._visitor, self._found(run_id))

    def view(self, run_id: str) -> RunView:
        """Return one run as it appears in a list."""
        return self._seen(self._run(run_id))

    def status(self, run_id: str) -> State:
        """Return the status of the run of exactly this id; a prefix finds nothing."""
        return state_of(self._store.found(run_id, load_output=False, waits=True))

    def exactly(self, run_id: str) -> RunView:
        """Return the run of exactly this id as it appears in a list; a prefix finds nothing."""
        return self._seen(self._exactly(run_id))

    def compare(self, first: str, second: str) -> Comparison:
        """Return two runs side by side, turn by turn."""
        from durable_swarm.service.comparison import compare

        return compare(self.show(first), self.show(second))

    def lineage(self, run_id: str) -> tuple[builtins.list[RunView], builtins.list[RunView]]:
        """Return the runs from which this run was forked, the first one first, and its own forks, newest first.

        A run above that was deleted ends the line.
        """
        row, above = self._found(run_id), builtins.list[RunView]()
        known = {row.workflow_id}
        while (source := notes_on(row).get("forked_from")) and source not in known:
            found = self._store.row(source, load_output=False, waits=True)
            if found is None:
                break
            row = found
            known.add(source)
            above.insert(0, run_views(self._visitor, [row])[0])
        return above, self.list(Query(forked_from=find_run(self._store, run_id)))

    def workers(self) -> Workers:
        """Return who works on the database, what waits, and what is limited."""
        from durable_swarm.service.workers import workers

        return workers(self._visitor)

    def page(self, run_id: str, after: int = 0, limit: int = STEPS) -> RunPage:
        """Return a page of one run: `limit` of its steps after number `after`, and long values cut.

        Raises `ConfigurationError` for an invalid number.
        """
        from durable_swarm.service.run_pages import run_page

        check_whole("after", after, 0)
        check_whole("limit", limit, 1)
        return run_page(self._visitor, self._found(run_id), after, limit)

    def step(self, run_id: str, number: int) -> StepInfo:
        """Return one step of a run with its whole values. Raises `NoStep`."""
        from durable_swarm.service.run_pages import whole_step

        return whole_step(self._visitor, self._found(run_id), number)

    def mark(self, run_id: str | None = None) -> Mark:
        """Return a value that differs from the last one if something has changed: in any run, or in one.

        It costs a fraction of reading what may have changed. The mark of all runs does not tell of streamed pieces of
        text, nor of the death of a process.
        """
        return (
            self._store.changes.of_run(find_run(self._store, run_id)) if run_id else self._store.changes.of_database()
        )

    async def follow(self, run_id: str, after: int = 0) -> AsyncIterator[Event]:
        """Yield the events of a run after number `after`, past and new ones, until the run ends.

        No thread is held while nothing happens, so a server can have many of these. Cancel the task, or close the
        iterator, to stop.
        """
        reader, seen = await asyncio.to_thread(self.reader, run_id, after), None
        found = reader.run_id
        while not reader.over:
            mark = await asyncio.to_thread(self._store.changes.of_run, found)
            if mark != seen:
                seen = mark
                with opened(f"run {found!r}"):
                    for event in await asyncio.to_thread(reader.read):
                        yield event
            if not reader.over:
                await asyncio.sleep(FOLLOWED)

    def feed(self) -> Feed:
        """Return the events of all runs from now on."""
        from durable_swarm.service.feed import Feed

        return Feed(self._store)

    def events(
        self, run_id: str, after: int = 0, stands: Callable[[RunView], None] = lambda _: None
    ) -> Iterator[Event]:
        """Yield the events of a run after number `after`: first the past ones, then new ones, until the run ends.

        `stands` is called while the run does not continue (`waits_for` gives the reason), once for each reason.
        """
        follower = self.reader(run_id, after)
        found = follower.run_id
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

    def reader(self, run_id: str, after: int = 0) -> EventReader:
        """Return a reader of a run's events after number `after`, which never waits: each `read` returns the new ones.

        It has read all when `over` is true; `pause` is the number of seconds until the next `read` is worthwhile.
        """
        from durable_swarm.engine.history.follower import EventReader, check_after

        check_after(after)
        return EventReader(lambda: self._store, find_run(self._store, run_id), after)

    def traces(self, run_id: str) -> builtins.list[RunTrace]:
        """Return what tracing tells of a run and of the runs below it, parents first."""
        from durable_swarm.engine.history.trace import trace_of

        found = find_run(self._store, run_id)
        with opened(f"run {found!r}"):
            below = [link.run_id for link in self._store.family.below([found])]
            return [trace_of(self._store, one) for one in (found, *below)]

    def forget(
        self,
        before: datetime,
        *,
        keep_failed: bool = False,
        swarm: str | None = None,
        dry_run: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Delete the runs that ended before a time, with all that belongs to them; return their number.

        With `dry_run` they are only counted. `progress` gets the number deleted so far, after each batch. Raises
        `ConfigurationError` if the database refuses it.
        """
        from durable_swarm.engine.storage.retention import Retention

        old = Retention(self._store, round(before.timestamp() * 1000), keep_failed=keep_failed, swarm=swarm)
        return old.count() if dry_run else old.delete(progress=progress)

    def cancel(self, run_id: str, by: str | None = None) -> RunView:
        """Stop a run at its next checkpoint and return its new state; an ended run stays as it is.

        `by` is the name of the person who does it, here and in the other methods; it is recorded with the change.
        """
        run = self._run(run_id)
        return self.view(run.id) if run.status in ENDED else self._after(run, lambda run: run.cancel(), "cancelled", by)

    def resume(self, run_id: str, by: str | None = None) -> RunView:
        """Let a failed, cancelled or held run continue, as `Run.resume` does, and return its new state.

        Any other run stays as it is. The run continues in the next program that defines its agent; a run held for a
        changed agent continues in the process that holds it.
        """
        run = self._run(run_id)
        return self.view(run.id) if run.status == "done" else self._after(run, lambda run: run.resume(), "resumed", by)

    def resume_failed(
        self,
        *,
        agent: str | None = None,
        since: datetime | None = None,
        error: str | None = None,
        by: str | None = None,
    ) -> builtins.list[RunView]:
        """Let failed runs continue, oldest first, and return their new states; cancelled ones stay as they are.

        Only those that were started with this agent, that failed at this time or later, and with an error of the class
        of this name, with its module or without.
        """
        rows = listed(self._store, Query("failed", agent, EVERY))
        late = [row for row in reversed(rows) if since is None or moment(row.completed_at or row.updated_at) >= since]
        ends = self._store.ends(late)
        chosen = [
            run_id for run_id, row in ends.items() if error is None or _is_of(failure_of(self._store, row), error)
        ]
        return [self.resume(row.workflow_id, by) for row in late if row.workflow_id in set(chosen)]

    def extend(self, run_id: str, amounts: Mapping[str, object], by: str | None = None) -> RunView:
        """Add amounts to the limits of a run, as `Run.extend` does, and return its state.

        Raises `ConfigurationError` for what is not limited.
        """
        more = ", ".join(f"{name} +{amount}" for name, amount in amounts.items())
        return self._after(self._run(run_id), lambda run: run.extend(**amounts), f"extended ({more})", by)

    def fork(
        self,
        run_id: str,
        turn: int,
        *,
        agent: str | None = None,
        messages: Sequence[Message] | None = None,
        new_id: str | None = None,
        by: str | None = None,
    ) -> RunView:
        """Start a new run from a turn of this one, as `Run.fork` does, and return its state.

        It continues in the next program that defines its agent.
        """
        run = self._run(run_id)
        with opened(f"run {run.id!r}"):
            fork = run.fork(turn, agent=agent, messages=messages, run_id=new_id)
        self._store.actions.add(fork.id, f"forked from turn {turn} of {run.id}", by)
        return self._seen(fork)

    def export(self, run_id: str, redact: Redact | None = None) -> dict[str, Any]:
        """Return a run as a document, as `DurableSwarm.export` does."""
        from durable_swarm.engine.history.export import export

        found = find_run(self._store, run_id)
        with opened(f"run {found!r}"):
            return export(self._store, self._store.found(found, waits=True), redact)

    def load(self, document: object) -> RunView:
        """Put an exported run into the database, as `DurableSwarm.import_run` does, and return its new state."""
        from durable_swarm.engine.history import importing

        return self._seen(self._run(importing.import_run(self._store, document)))

    def _after(self, run: Run, change: Callable[[Run], object], action: str, by: str | None) -> RunView:
        change(run)
        self._store.actions.add(run.id, action, by)
        return self._seen(run)

    def _seen(self, run: Run) -> RunView:
        return run_views(self._visitor, [self._store.found(run.id, load_output=False, waits=True)])[0]

    def _found(self, run_id: str) -> RunRow:
        return self._store.found(find_run(self._store, run_id), waits=True)

    def _run(self, run_id: str) -> Run:
        return self._exactly(find_run(self._store, run_id))

    def _exactly(self, run_id: str) -> Run:
        from durable_swarm.engine.api.run import Run

        return Run(run_id, lambda: self._store, lambda: None)


def _is_of(failure: Failure, name: str) -> bool:
    """Return True if an error is of the class of this name, with its module or without."""
    return failure.type == name or failure.type.rpartition(".")[2] == name
