"""The sessions of this process's runs: their messages, kept in memory, and the turn, passed from run to run.

Whoever finds that the run in progress of a session has ended passes the turn: the process that executed it, a sender,
a waiter, or the maintenance thread of any process. So no process's death can stop a session.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from durable_swarm.background import threads
from durable_swarm.engine.execution.execution import Execution
from durable_swarm.engine.history.conversation import history_before, left_by
from durable_swarm.engine.records.base import Record
from durable_swarm.engine.records.encoding import input_of
from durable_swarm.engine.records.sessions import SessionPlace, begun, place_in
from durable_swarm.engine.storage.session_state import Following, Left, SessionState
from durable_swarm.errors import DurableSwarmError
from durable_swarm.models.wire import Conversation
from durable_swarm.swarm.compaction import SessionHistory
from durable_swarm.swarm.session import answered

if TYPE_CHECKING:
    from durable_swarm.engine.processes.process import Process

log = logging.getLogger("durable_swarm")

KEPT = 100
"""The number of sessions whose messages stay in memory: those used last."""
SOONEST, LATEST = 0.002, 0.5
"""Seconds between looks for the recorded end of a run that has ended here: at first, and at most."""


@dataclass
class Known:
    """The messages of a session through run `run_id`, which cannot change any more, and their form for providers."""

    run_id: str
    history: SessionHistory
    conversation: Conversation | None = None


class SessionTurns:
    """The order of turns in the sessions of this process's swarms. Any thread may call it."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._lock = threading.Lock()
        self._looking: set[Future[None]] = set()
        self._told: set[str] = set()
        self.beginning: set[str] = set()
        """Runs that read the messages before them, which may take a while: they are executed here."""
        self._unsettled = False

    # Messages

    def begin(self, run: Execution, record: Record) -> SessionHistory:
        """Return the messages of its session before a run that begins here; empty for a run that is in none."""
        place = place_in(record)
        if place is None or place.base is None:
            return SessionHistory()
        with self._lock:
            known = self._known.get(place.session) or Known("", SessionHistory())
        history = known.history
        if known.run_id == place.base:
            # Used once: an execution that ends early may have put messages into it that were never recorded.
            run.conversation, known.conversation = known.conversation or run.conversation, None
        else:
            self.beginning.add(run.run_id)
            try:
                history = history_before(self._process.store, place, known.run_id, history)
            finally:
                self.beginning.discard(run.run_id)
            self._keep(place.session, Known(place.base, history))
        return history

    def _keep(self, session: str, known: Known) -> None:
        with self._lock:
            self._known[session] = known
            self._known.move_to_end(session)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)

    # Turns

    def left(self, run: Execution) -> None:
        """Note that a run is no longer executed here: if it has ended, the next one begins soon."""
        place = run.place
        if place is None:
            return
        if run.response is not None:
            # Copied, because the program may change what it is given.
            sent = run.start.messages[len(run.history.sent) :]
            messages = answered([*sent, *copy.deepcopy(run.response.messages)])
            self._keep(place.session, Known(run.run_id, run.history.grown(messages, run.tokens), run.conversation))
        if run.has_ended and not self._process.is_closed:
            with contextlib.suppress(RuntimeError):  # The interpreter ends: another process passes the turn.
                looking = threads().submit(self._soon, place.session, run.run_id)
                self._looking.add(looking)
                looking.add_done_callback(self._looking.discard)

    def _soon(self, session: str, run_id: str) -> None:
        """Pass the turn as soon as the end of a run is recorded; if that takes long, the maintenance thread does it."""
        pause = SOONEST
        with contextlib.suppress(Exception):
            while pause < LATEST and not self._process.is_closed:
                state = self._process.store.sessions.look(session)
                if state is None or state.ahead is None or state.ahead.run_id != run_id:
                    return
                if state.ahead.over:
                    self.advance(session)
                    return
                time.sleep(pause)
                pause *= 2

    def advance(self, session: str, *, sweeps: bool = False) -> None:
        """If the run in progress of a session has ended, note what it has left, and begin the next one that waits.

        With `sweeps`, also note that runs were cancelled before their turn, while none was in progress.
        """
        sessions = self._process.store.sessions
        while (state := sessions.look(session)) is not None:
            if state.ahead is not None and not state.ahead.over:
                return
            waiting = sessions.runs.first_waiting(session)
            if state.ahead is None and waiting is None and not sweeps:
                return
            left = self._left(state)
            following = None if waiting is None else self._following(state, left, *waiting)
            if sessions.pass_turn(state, left, following):
                self._process.maintenance.expect()
                return

    def _left(self, state: SessionState) -> Left | None:
        store, ahead = self._process.store, state.ahead
        row = None if ahead is None else store.row(ahead.run_id)
        return None if row is None else left_by(store, row)

    def _following(
        self, state: SessionState, left: Left | None, number: int, run_id: str, queue: str
    ) -> Following | None:
        """Return the next run with its start record, completed with what the run before it has left."""
        store = self._process.store
        row = store.row(run_id, load_output=False)
        if row is None:
            return None
        agent, base = (state.agent, state.base) if left is None else (left.agent, left.base)
        context = store.sessions.context(state) if left is None else left.context
        record = begun(store.start_record(row), SessionPlace(state.id, number, base), agent, context)
        stored = store.record_codec(row).close(record, input_of(run_id))
        return Following(number, run_id, queue, agent, stored)

    def ahead_of(self, run_ids: Iterable[str]) -> list[str]:
        """Return the runs in progress of the sessions in which these runs wait for their turn."""
        found, sessions = [], self._process.store.sessions
        for run_id in run_ids:
            session = sessions.runs.waits_in(run_id)
            if session is not None:
                self._process.maintenance.expect()  # A process that passes the turn to this one cannot tell it.
                self.advance(session)
                state = sessions.look(session)
                found += [] if state is None or state.ahead is None else [state.ahead.run_id]
        return found

    def look(self) -> None:
        """Pass the turn in sessions where the process that was to do it has died."""
        found = self._process.store.sessions.unsettled({swarm.name for swarm in self._process.swarms})
        self._unsettled = bool(found)
        for session in found:
            try:
                self.advance(session, sweeps=True)
            except DurableSwarmError as error:
                if session not in self._told:
                    log.warning("session %r does not continue: %s", session, error)
                self._told.add(session)

    def is_unsettled(self) -> bool:
        """Return True if the last look found a session that may still wait for its turn to be passed."""
        return self._unsettled

    def close(self, seconds: float) -> None:
        """Wait for the looks in progress, at most `seconds`: their connections are about to be closed."""
        wait(list(self._looking), seconds)
