"""The open requests of all runs and the ways to answer them, for every interface."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

from durable_swarm.engine.api.inspector import Inspector
from durable_swarm.engine.api.run_requests import say
from durable_swarm.engine.storage.run_state import owner_of, state_of
from durable_swarm.errors import ConfigurationError
from durable_swarm.requests import TOKEN, Decision, Request
from durable_swarm.runs import ENDED
from durable_swarm.service.ids import find_run
from durable_swarm.service.unreadable import opened
from durable_swarm.swarm.answering import answer, approve, reject
from durable_swarm.validation import check_name

Check = Callable[[Request], None]

NAMED = 5
"""How many requests the error for an ambiguous id lists."""


class Inbox:
    """The requests of one database. A request may also be named by its run's id if the run has one open request.

    The methods that answer raise `AlreadyAnswered`, `RequestExpired`, `InvalidAnswer`, `NoRequest`, and
    `ConfigurationError` for a run with several open requests. `by` names the person or program that answers. `check`
    gets the request as it is when the decision is taken, and may refuse it by an error.
    """

    def __init__(self, visitor: Inspector) -> None:
        self._visitor = visitor
        self._store = visitor.store

    def list(self, run_id: str | None = None, limit: int | None = None) -> list[Request]:
        """Return the open requests, oldest first: of all runs, or of one and those below it.

        `run_id` may be a prefix that fits no other run. Raises `RunNotFound`, and `ConfigurationError` where the prefix
        fits several runs.
        """
        if run_id is None:
            return self._store.inbox.open_requests(None, limit)
        found = find_run(self._store, run_id)
        below = [link.run_id for link in self._store.family.below([found])]
        return self._store.inbox.open_requests([found, *below], limit)

    def closed(self, limit: int, before: str | None = None) -> builtins.list[Request]:
        """Return the requests that were decided or have expired, the last one first.

        With `before`, the id of a request, only those behind it. Raises `NoRequest`.
        """
        return self._store.inbox.closed_requests(limit, before)

    def find(self, request_id: str) -> Request:
        """Return the request of exactly this id, open or not. Raises `NoRequest`."""
        with opened(f"request {request_id!r}"):
            return self._store.inbox.found(request_id)

    def answer(self, name: str, value: object, by: str | None, check: Check | None = None) -> Request:
        """Answer a question, or supply the result of a call that happened; return the updated request."""
        return self._decide(name, answer(value), by, check)

    def approve(
        self, name: str, arguments: dict[str, Any] | None, by: str | None, check: Check | None = None
    ) -> Request:
        """Approve a call, optionally with other arguments, and return the updated request."""
        return self._decide(name, approve(arguments), by, check)

    def reject(self, name: str, reason: str, by: str | None, check: Check | None = None) -> Request:
        """Reject a call, and return the updated request."""
        return self._decide(name, reject(reason), by, check)

    def complete(self, token: str, result: object, by: str | None) -> Request | None:
        """Post the result of a call that has returned `later(token)`, or will.

        Returns the updated request, or None if no run waits for the result yet.
        """
        with opened(f"the request of token {token!r}"):
            waits = self._store.inbox.complete(check_name("token", token), answer(result), by, "")
        return self._store.inbox.found(TOKEN + token) if waits else None

    def say(self, run_id: str, text: str, by: str | None = None) -> str:
        """Add a user's message to a run before its next model call, and return the run's id.

        `run_id` may be a prefix that fits no other run. Raises `RunNotFound`, `ConfigurationError`.
        """
        found = find_run(self._store, run_id)
        with opened(f"run {found!r}"):
            say(self._store, found, text)
        self._store.actions.add(found, "said something", by)
        return found

    def goes_on(self, run_id: str) -> bool | None:
        """Return True if a living process executes the run, or ended it; None if any capable process may take it.

        Capable means that it defines the run's agent. Raises `RunNotFound`.
        """
        row = self._store.found(run_id, load_output=False)
        owner = owner_of(row)
        if state_of(row) in ENDED:
            return True
        if not owner:
            return None
        with self._visitor.alone() as me:
            return not me.is_dead(owner)

    def _decide(self, name: str, decision: Decision, by: str | None, check: Check | None) -> Request:
        request_id = self._meant(name)
        with opened(f"request {request_id!r}"):
            return self._store.inbox.decide(request_id, decision, by, check)

    def _meant(self, name: str) -> str:
        """Return the request id that an id of a request or of a run refers to."""
        if self._store.row(name, load_output=False) is None:
            return name
        found = self.list(name)
        if len(found) == 1:
            return found[0].id
        if not found:
            raise self._store.inbox.none_open(name)
        ids = ", ".join(request.id for request in found[:NAMED])
        raise ConfigurationError(f"run {name!r} has {len(found)} open requests; name one of {ids}")
