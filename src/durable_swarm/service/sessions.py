"""Reads the sessions of a database."""

from __future__ import annotations

from collections.abc import Sequence

from durable_swarm import codec
from durable_swarm.engine.api.inspector import Inspector
from durable_swarm.engine.database import urls
from durable_swarm.engine.history.conversation import newest_first
from durable_swarm.engine.records.encoding import Unreadable
from durable_swarm.engine.records.rows import RunRow
from durable_swarm.engine.storage.run_state import moment, state_of
from durable_swarm.engine.storage.session_state import BEGUN, LEFT_OUT, WAITS, SessionState, no_session
from durable_swarm.errors import ConfigurationError, RunNotFound
from durable_swarm.service.run_views import run_views
from durable_swarm.service.unreadable import why_closed
from durable_swarm.service.views import SessionDetail, SessionView
from durable_swarm.types import Message, Usage

IDLE = "idle"
"""The status of a session without a run in progress."""
CANDIDATES = 5
"""How many sessions the error for an ambiguous id lists."""


class SessionList:
    """The sessions of one database."""

    def __init__(self, visitor: Inspector) -> None:
        self._visitor = visitor
        self._store = visitor.store

    def listed(self, agent: str | None = None, limit: int = 100) -> list[SessionView]:
        """Return sessions, the one with the latest change first: all, or those whose next message `agent` answers."""
        return [self._view(state, self._run_ids(state)) for state in self._store.sessions.listed(agent, limit)]

    def check(self, session: str) -> None:
        """Check that a session may be used. Raises `RunNotFound` if it exists, and belongs to somebody else."""
        if self._store.sessions.is_hidden(session):
            raise no_session(session)

    def show(self, session: str) -> SessionDetail:
        """Return one session in full, by its id or a prefix that fits no other.

        Raises `RunNotFound` if there is none, and `ConfigurationError` if several begin with it.
        """
        state = self._found(session)
        messages, context, closed = self._told(state)
        counts = self._store.sessions.runs.usages(state.id)
        usages = [Usage(**count) for count in counts]
        run_ids = self._run_ids(state)
        rows = {row.workflow_id: row for row in self._store.waits.note(self._store.some(run_ids))}
        return SessionDetail(
            **vars(self._view(state, run_ids)),
            messages=messages,
            context_variables=context,
            usage=sum(usages[1:], usages[0]) if usages else None,
            all_runs=run_views(self._visitor, [rows[run_id] for run_id in run_ids if run_id in rows]),
            closed=closed,
        )

    def _found(self, text: str) -> SessionState:
        found = self._store.sessions.look(text) if text else None
        if found is not None:
            return found
        some = self._store.sessions.beginning(text, CANDIDATES + 1) if text else []
        if not some:
            raise RunNotFound(
                f"there is no session {text!r} in {urls.shown(self._store.url)}; `durable-swarm sessions` lists them"
            )
        if len(some) > 1:
            names = [state.id for state in some[:CANDIDATES]] + ["…"] * (len(some) > CANDIDATES)
            raise ConfigurationError(f"{text!r} is the beginning of several ids: {', '.join(names)}; write more of it")
        return some[0]

    def _run_ids(self, state: SessionState) -> list[str]:
        found = self._store.sessions.runs.ids(state.id, states=(BEGUN, LEFT_OUT, WAITS))
        return [run_id for _, run_id in reversed(found)]

    def _view(self, state: SessionState, run_ids: list[str]) -> SessionView:
        ahead = None if state.ahead is None or state.ahead.over else self._store.row(state.ahead.run_id, waits=True)
        return SessionView(
            id=state.id,
            status=IDLE if ahead is None else state_of(ahead),
            agent=state.agent,
            swarm=state.swarm,
            runs=len(run_ids),
            waiting=len(self._store.sessions.runs.ids(state.id, states=(WAITS,))),
            created_at=moment(state.created_at),
            updated_at=moment(state.updated_at),
            interrupted=ahead is not None and bool(self._visitor.idle([ahead])),
        )

    def _idle(self, rows: Sequence[RunRow]) -> set[str]:
        return self._visitor.idle(self._store.waits.note([*rows]))

    def _told(self, state: SessionState) -> tuple[list[Message], dict[str, object], str | None]:
        try:
            found = [messages for _, messages in newest_first(self._store, state.id, idle=self._idle)]
            context = self._store.sessions.context(state)
        except Unreadable as error:
            return [], {}, why_closed(error)
        all_messages = [message for messages in reversed(found) for message in messages]
        return all_messages, {name: codec.decode(value) for name, value in context.items()}, None
